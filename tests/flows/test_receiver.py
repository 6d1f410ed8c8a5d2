"""The receiver of notifications, over HTTP."""

from __future__ import annotations

import base64
import json
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from threading import Event, Thread

import httpx
import pytest

from pipeline.flows import receiver as module
from pipeline.flows.object_events import Burst, Debouncer
from pipeline.flows.receiver import MAX_BYTES, RateLimit, Receiver, make_server
from tests.flows.test_object_events import EVENTBRIDGE, S3

TOKEN = "a-token-of-many-letters"
AUTH = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    bursts: list[tuple[str, int]] = []

    async def emit(burst: Burst) -> None:
        bursts.append((burst.prefix, burst.count))

    monkeypatch.setattr(module, "_emit", emit)
    return bursts


@pytest.fixture
def receiver() -> Receiver:
    return Receiver(TOKEN, Debouncer(["s3://shop/orders/"], quiet=60.0, longest=60.0))


@contextmanager
def served(receiver: Receiver) -> Iterator[httpx.Client]:
    server, listener = make_server(receiver, "127.0.0.1", 0)
    thread = Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}") as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def client(receiver: Receiver, told: list[tuple[str, int]]) -> Iterator[httpx.Client]:
    with served(receiver) as client:
        yield client


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": TOKEN},
        {"Authorization": "Basic !"},
        {"Authorization": "Basic " + base64.b64encode(f"{TOKEN}:x".encode()).decode()},
    ],
)
def test_a_wrong_token_is_refused(client: httpx.Client, headers: dict[str, str]) -> None:
    assert client.post("/objects", json=S3, headers=headers).status_code == 401


def test_what_is_taken_is_told_once_for_a_burst(
    receiver: Receiver, told: list[tuple[str, int]]
) -> None:
    basic = {"Authorization": "Basic " + base64.b64encode(f"sns:{TOKEN}".encode()).decode()}
    with served(receiver) as client:
        for _ in range(50):
            assert client.post("/objects", json=S3, headers=AUTH).json() == {"objects": 1}
        assert client.post("/objects", json=EVENTBRIDGE, headers=basic).status_code == 202
        assert client.get("/health").json() == {"pending": 51}
        assert told == []
    # Stopping it tells what is pending.
    assert told == [("s3://shop/orders/", 51)]


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"\xff", 400),
        (b"[" * 100_000, 400),
        (b"[]", 422),
        (b'{"Records": [{}]}', 422),
        (b"x" * (MAX_BYTES + 1), 413),
        (json.dumps({"Type": "SubscriptionConfirmation", "SubscribeURL": "x"}).encode(), 202),
    ],
)
def test_malformed_bodies(client: httpx.Client, content: bytes, status: int) -> None:
    answer = client.post("/objects", content=content, headers=AUTH)
    assert answer.status_code == status, answer.text


def test_too_many(receiver: Receiver, client: httpx.Client) -> None:
    receiver.limit = RateLimit(3.0)
    codes = [client.post("/objects", json=S3, headers=AUTH).status_code for _ in range(10)]
    assert codes[:3] == [202, 202, 202]
    assert 429 in codes


def test_a_thousand_in_a_burst(receiver: Receiver, told: list[tuple[str, int]]) -> None:
    """Senders repeat what is refused for their number; one event tells of all of them."""
    body = json.dumps(EVENTBRIDGE).encode()
    codes: Counter[int] = Counter()

    def send(count: int) -> None:
        connection = HTTPConnection("127.0.0.1", port, timeout=60)
        while count:
            connection.request("POST", "/objects", body, AUTH)
            answer = connection.getresponse()
            answer.read()
            codes[answer.status] += 1
            count -= answer.status == 202
            if answer.status == 429:
                time.sleep(float(answer.headers["Retry-After"]) / 20)
        connection.close()

    with served(receiver) as client:
        port = client.base_url.port
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(send, [250] * 4))
        # The queue has an entry per prefix, whatever comes.
        assert client.get("/health").json() == {"pending": 1_000}
        records = {"Records": S3["Records"][:1] * 1_000}
        assert client.post("/objects", json=records, headers=AUTH).json() == {"objects": 1_000}
    assert codes[202] == 1_000
    assert codes.keys() <= {202, 429}
    assert told == [("s3://shop/orders/", 2_000)]


def test_nothing_is_lost_while_prefect_is_away(
    told: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver = Receiver(TOKEN, Debouncer(["s3://shop/orders/"], quiet=0.0, longest=0.0))
    emit, failures = module._emit, [OSError("away"), OSError("away")]

    sent = Event()

    async def sometimes(burst: Burst) -> None:
        if failures:
            raise failures.pop()
        await emit(burst)
        sent.set()

    monkeypatch.setattr(module, "_emit", sometimes)
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.01)
    with served(receiver) as client:
        client.post("/objects", json=S3, headers=AUTH)
        assert sent.wait(20)
    assert told == [("s3://shop/orders/", 1)]
