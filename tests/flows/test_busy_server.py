"""A server whose database is locked is asked again; one that is gone is not waited for."""

from __future__ import annotations

import ssl
import time

import httpx
import pytest
from prefect.client.orchestration import get_client
from prefect.context import SyncClientContext
from prefect.settings import (
    PREFECT_API_TLS_INSECURE_SKIP_VERIFY,
    PREFECT_API_URL,
    PREFECT_CLIENT_CSRF_SUPPORT_ENABLED,
    temporary_settings,
)

from pipeline.flows.busy_server import BUSY_PAUSES, PatientTransport
from pipeline.flows.server import own_client_options, talking_to
from tests.flows.test_event_sender import serving


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slept: list[float] = []
    monkeypatch.setattr("pipeline.flows.busy_server.time.sleep", slept.append)
    return slept


def answering(*statuses: int) -> tuple[httpx.Client, list[bytes]]:
    left, bodies = list(statuses), list[bytes]()

    def answer(request: httpx.Request) -> httpx.Response:
        bodies.append(request.read())
        return httpx.Response(left.pop(0))

    return httpx.Client(transport=PatientTransport(httpx.MockTransport(answer))), bodies


def test_a_refused_request_is_sent_again_with_its_body(pauses: list[float]) -> None:
    client, bodies = answering(503, 503, 201)
    with client:
        assert client.post("http://prefect/api/flow_runs/", json={"a": 1}).status_code == 201
    assert bodies == [b'{"a":1}'] * 3
    assert len(pauses) == 2


def test_it_is_not_sent_for_ever(pauses: list[float]) -> None:
    client, bodies = answering(*[503] * 9)
    with client:
        assert client.get("http://prefect/api/").status_code == 503
    assert len(bodies) == 1 + len(BUSY_PAUSES)
    assert sum(pauses) <= 1.5 * sum(BUSY_PAUSES)


@pytest.mark.parametrize("status", [200, 404, 500])
def test_other_answers_are_returned_at_once(status: int, pauses: list[float]) -> None:
    client, bodies = answering(status)
    with client:
        assert client.get("http://prefect/api/").status_code == status
    assert (len(bodies), pauses) == (1, [])


def test_flow_runs_wait_for_a_busy_server() -> None:
    off = {PREFECT_CLIENT_CSRF_SUPPORT_ENABLED: False}
    with serving() as server, temporary_settings(off):
        server.answers = [503, 503]
        with talking_to(f"http://127.0.0.1:{server.port}/api", 0):
            context = SyncClientContext.get()
            assert context is not None
            answer = context.client.request("POST", "/events", json=[{"number": 1}])
            context.client._client.close()  # Otherwise the process keeps it.
    assert answer.status_code == 204
    assert server.numbers == [1]


def test_flow_runs_do_not_wait_for_a_server_that_is_gone() -> None:
    with serving() as server:
        port = server.port
    started = time.monotonic()
    with talking_to(f"http://127.0.0.1:{port}/api", 0):
        context = SyncClientContext.get()
        assert context is not None
        with pytest.raises(httpx.ConnectError):
            context.client.request("POST", "/events", json=[])
    assert time.monotonic() - started < 30


def test_own_clients_read_the_certificates_once(monkeypatch: pytest.MonkeyPatch) -> None:
    own_client_options()
    monkeypatch.setattr(ssl, "create_default_context", lambda **_: pytest.fail("read again"))
    monkeypatch.setattr(httpx, "create_ssl_context", lambda **_: pytest.fail("read again"))
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        for _ in range(2):
            get_client(httpx_settings=own_client_options(), sync_client=True)
        with temporary_settings({PREFECT_API_TLS_INSECURE_SKIP_VERIFY: True}):
            assert own_client_options() == {}
