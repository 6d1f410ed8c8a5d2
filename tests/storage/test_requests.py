"""Requests of all callers are limited together, and each is counted."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Barrier, Event, Lock

import botocore.exceptions
import pytest
from prometheus_client import REGISTRY

from pipeline.errors import AccessDeniedError, TransientStorageError
from pipeline.storage.s3_requests import Requests, kind_of

URI = "s3://bucket/key"


def counted(kind: str, status: str) -> float:
    labels = {"kind": kind, "status": status}
    return REGISTRY.get_sample_value("chunkmap_s3_requests_total", labels) or 0.0


class Crowd:
    """How many are inside at a time."""

    def __init__(self) -> None:
        self.now = self.most = self.all = 0
        self._lock = Lock()

    def enter(self) -> None:
        with self._lock:
            self.now += 1
            self.all += 1
            self.most = max(self.most, self.now)

    def leave(self) -> None:
        with self._lock:
            self.now -= 1


def test_threads_and_a_loop_share_one_limit() -> None:
    requests, crowd, start = Requests(3), Crowd(), Barrier(9)

    def in_thread(_: int) -> None:
        start.wait(10)
        for _ in range(50):
            with requests.sent("get", URI):
                crowd.enter()
                crowd.leave()

    async def on_loop() -> None:
        async def one() -> None:
            async with requests.sending("get", URI):
                crowd.enter()
                await asyncio.sleep(0)
                crowd.leave()

        await asyncio.get_running_loop().run_in_executor(None, start.wait, 10)
        await asyncio.gather(*(one() for _ in range(200)))

    with ThreadPoolExecutor(9) as pool:
        others = [pool.submit(in_thread, number) for number in range(8)]
        asyncio.run(on_loop())
        for other in others:
            other.result(30)
    assert crowd.all == 8 * 50 + 200
    assert 1 < crowd.most <= 3
    assert crowd.now == 0


def test_a_caller_that_stops_waiting_keeps_no_slot() -> None:
    requests = Requests(1)

    async def run() -> None:
        async with requests.sending("get", URI):
            waiting = [asyncio.ensure_future(_one(requests)) for _ in range(3)]
            await asyncio.sleep(0)
            waiting[0].cancel()
            await asyncio.gather(waiting[0], return_exceptions=True)
            # Told that it is its turn, and cancelled before it hears of it.
            waiting[1].cancel()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert results[2] == "done"
        assert await asyncio.wait_for(_one(requests), 10) == "done"

    asyncio.run(run())


async def _one(requests: Requests) -> str:
    async with requests.sending("get", URI):
        return "done"


def test_a_slot_is_released_after_any_error() -> None:
    requests = Requests(1)
    for _ in range(3):
        with pytest.raises(TransientStorageError), requests.sent("put", URI):
            raise ConnectionError("reset")
    with requests.sent("put", URI):
        pass


@pytest.mark.parametrize(
    ("action", "kind"),
    [("get", "GetObject"), ("upload_part", "UploadPart"), ("list", "ListObjectsV2")],
)
def test_requests_are_counted_as_s3_calls_them(action: str, kind: str) -> None:
    assert kind_of(action) == kind
    before = counted(kind, "200")
    with Requests().sent(action, URI):
        pass
    assert counted(kind, "200") == before + 1


def test_failures_are_counted_by_status() -> None:
    said = {"Error": {"Code": "AccessDenied"}, "ResponseMetadata": {"HTTPStatusCode": 403}}
    denied, silent = counted("HeadObject", "403"), counted("HeadObject", "none")
    with pytest.raises(AccessDeniedError), Requests().sent("head_object", URI):
        raise botocore.exceptions.ClientError(said, "HeadObject")
    with suppress(TransientStorageError), Requests().sent("head_object", URI):
        raise TimeoutError
    assert counted("HeadObject", "403") == denied + 1
    assert counted("HeadObject", "none") == silent + 1


def test_in_flight_is_what_waits_for_an_answer() -> None:
    inside, go = Event(), Event()

    def hold() -> None:
        with Requests().sent("get", URI):
            inside.set()
            go.wait(10)

    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(hold)
        assert inside.wait(10)
        now = REGISTRY.get_sample_value("chunkmap_s3_requests_in_flight")
        go.set()
        held.result(10)
    assert now == 1
    assert REGISTRY.get_sample_value("chunkmap_s3_requests_in_flight") == 0
