"""Events go to Prefect's server many at a time, in order, and none is lost while it is away."""

from __future__ import annotations

import gc
import json
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    PREFECT_CLIENT_CSRF_SUPPORT_ENABLED,
    PREFECT_CLIENT_MAX_RETRIES,
    temporary_settings,
)

from pipeline.flows import event_sender
from pipeline.flows.event_sender import EventSender, Origin

WAIT = 60.0


class Server:
    """Takes events as Prefect does; its answers are scripted."""

    def __init__(self, port: int = 0) -> None:
        self.requests: list[list[dict[str, Any]]] = []
        self.lines: list[dict[str, Any]] = []
        self.answers: list[int] = []
        """Statuses of the next answers; then 204."""
        self.authorized: set[str | None] = set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                outer.authorized.add(self.headers["authorization"])
                status = outer.answers.pop(0) if outer.answers else 204
                if status == 204 and self.path == "/api/events":
                    outer.requests.append(body)
                elif status == 204:
                    assert self.path == "/api/logs/"
                    outer.lines.extend(body)
                self.send_response(status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.http.daemon_threads = True
        self.port = self.http.server_port
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.05,))
        self.thread.start()

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()

    @property
    def numbers(self) -> list[int]:
        return [event["number"] for request in self.requests for event in request]


@contextmanager
def serving(port: int = 0) -> Iterator[Server]:
    server = Server(port)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as one:
        yield one


@contextmanager
def sender_to(port: int) -> Iterator[EventSender]:
    settings = {
        PREFECT_API_URL: f"http://127.0.0.1:{port}/api",
        PREFECT_API_AUTH_STRING: "me:secret",
        PREFECT_CLIENT_MAX_RETRIES: 0,
        PREFECT_CLIENT_CSRF_SUPPORT_ENABLED: False,
    }
    with temporary_settings(settings):
        yield EventSender(copy_context())


def events(*numbers: int) -> list[bytes]:
    return [
        json.dumps(
            {
                "number": number,
                "resource": {"prefect.resource.id": f"prefect.task-run.{number}"},
                "related": [],
            }
        ).encode()
        for number in numbers
    ]


def test_many_go_in_one_request_and_in_order(server: Server) -> None:
    with sender_to(server.port) as sender:
        origin = Origin()
        for number in range(1000):
            sender.send(origin, events(number))
        assert sender.flush(WAIT)
    assert server.numbers == list(range(1000))
    assert len(server.requests) < 20
    assert server.authorized == {"Basic bWU6c2VjcmV0"}


class Held:
    """Stands for the plan, the ledger and the cluster's client of a run."""


HELD: ContextVar[Held] = ContextVar("held")


def test_a_flow_run_is_let_go_when_its_resources_are_known(server: Server) -> None:
    """Origins are kept for later events: not what was in the context of their flow runs."""
    with sender_to(server.port) as sender:
        held = Held()
        token = HELD.set(held)
        origin = Origin()
        HELD.reset(token)
        left = weakref.ref(held)
        del held, token
        gc.collect()
        assert left() is not None
        sender.send(origin, events(1))
        assert sender.flush(WAIT)
        gc.collect()
        assert left() is None
        sender.send(origin, events(2))
        assert sender.flush(WAIT)
    assert server.numbers == [1, 2]


def test_each_names_the_flow_run_that_it_is_of(server: Server) -> None:
    origin = Origin()
    flow_run = {"prefect.resource.id": "prefect.flow-run.1", "prefect.resource.role": "flow-run"}
    origin._related = [flow_run, {"prefect.resource.id": "prefect.task-run.7"}]
    with sender_to(server.port) as sender:
        sender.send(origin, events(7))
        assert sender.flush(WAIT)
    [[event]] = server.requests
    assert event["related"] == [flow_run]


def test_log_lines_go_too(server: Server) -> None:
    with sender_to(server.port) as sender:
        sender.send(Origin(), [], [{"message": "one", "level": 20}])
        assert sender.flush(WAIT)
    assert [line["message"] for line in server.lines] == ["one"]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("status", [408, 429, 502, 503, 504])
def test_a_busy_server_is_asked_again(server: Server, status: int) -> None:
    server.answers = [status, status]
    with sender_to(server.port) as sender:
        sender.send(Origin(), events(1, 2))
        assert sender.flush(WAIT)
        sender.send(Origin(), events(3))
        assert sender.flush(WAIT)
    assert server.numbers == [1, 2, 3]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("status", [401, 403, 422, 500])
def test_what_a_server_refuses_is_said_and_left(
    server: Server, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    server.answers = [status]
    with sender_to(server.port) as sender:
        sender.send(Origin(), events(1))
        assert sender.flush(WAIT)
        sender.send(Origin(), events(2))
        assert sender.flush(WAIT)
    assert server.numbers == [2]
    assert "Prefect refuses" in caplog.text
    assert "secret" not in caplog.text


def test_a_server_that_is_away_gets_everything_when_it_is_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with serving() as first:
        port = first.port
    with sender_to(port) as sender:
        sender.send(Origin(), events(1, 2))
        with sender._changed:
            assert sender._changed.wait_for(lambda: sender._is_away, WAIT)
        assert not sender.flush(0.5)
        sender.send(Origin(), events(3))
        with serving(port) as back:
            assert sender.flush(WAIT)
        assert back.numbers == [1, 2, 3]
    assert caplog.text.count("the Prefect UI does not show") == 1


def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_sender, "MAX_WAITING", 10)
    with serving() as first:
        port = first.port
    with sender_to(port) as sender:
        for number in range(100):
            sender.send(Origin(), events(number))
        assert not sender.flush(0.5)
        assert len(sender._events) <= 10
        with serving(port) as back:
            assert sender.flush(WAIT)
        # The newest are kept: how a batch ended matters more than that it was submitted.
        assert back.numbers[-1] == 99
        assert len(back.numbers) <= 20


def test_the_thread_ends_and_begins_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_sender, "IDLE_SECONDS", 0.05)
    with sender_to(server.port) as sender:
        for number in range(3):
            sender.send(Origin(), events(number))
            thread = sender._thread
            assert thread is not None
            assert sender.flush(WAIT)
            thread.join(WAIT)
            assert sender._thread is None
    assert server.numbers == [0, 1, 2]


def test_without_an_address_nothing_is_sent() -> None:
    with temporary_settings({PREFECT_API_URL: None}):
        assert event_sender.event_sender() is None
