"""Each request to S3 passes here: only so many at a time, counted, its errors translated."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from threading import Lock

from pipeline import metrics
from pipeline.storage.s3_errors import status_of, translating

MOST = 128
"""Requests under way at a time, unless the settings say otherwise (s3.max_requests)."""

KINDS = {
    "list": "ListObjectsV2",
    "list uploads": "ListMultipartUploads",
    "get": "GetObject",
    "head": "HeadObject",
    "put": "PutObject",
    "copy": "CopyObject",
    "get lifecycle": "GetBucketLifecycleConfiguration",
}
"""S3's own words for our actions; raw ones are S3's words already, in another spelling."""


def kind_of(action: str) -> str:
    """What S3 calls an action: `upload_part` is UploadPart."""
    return KINDS.get(action) or "".join(word.capitalize() for word in action.split("_"))


class Gate:
    """Lets in so many at a time, from threads and from event loops alike, in the order they came.

    Neither a thread's semaphore nor a loop's would do: obstore's requests are made in whatever
    thread wants them, s3fs's on a loop of its own, and the limit is for both together.
    """

    def __init__(self, most: int) -> None:
        self._free = most
        self._waiting: deque[Future[None]] = deque()
        self._lock = Lock()

    def enter(self) -> Future[None] | None:
        """Take a place; or, when all are taken, get a future that is done once there is one."""
        with self._lock:
            if self._free:
                self._free -= 1
                return None
            turn: Future[None] = Future()
            self._waiting.append(turn)
            return turn

    def leave(self) -> None:
        """Give the place to whoever has waited longest and still waits."""
        with self._lock:
            while self._waiting:
                turn = self._waiting.popleft()
                if turn.set_running_or_notify_cancel():
                    turn.set_result(None)
                    return
            self._free += 1

    def give_up(self, turn: Future[None]) -> None:
        """Wait no longer: a place that has just been given is handed on."""
        if not turn.cancel():
            self.leave()


class Requests:
    """The requests of one client."""

    def __init__(self, most: int = MOST) -> None:
        self._gate = Gate(most)

    @contextmanager
    def sent(self, action: str, uri: str) -> Iterator[None]:
        """The block is one request, made by this thread."""
        turn = self._gate.enter()
        if turn is not None:
            try:
                turn.result()
            except BaseException:
                self._gate.give_up(turn)
                raise
        try:
            with translating(action, uri), _counted(action):
                yield
        finally:
            self._gate.leave()

    @asynccontextmanager
    async def sending(self, action: str, uri: str) -> AsyncIterator[None]:
        """The block is one request, made on this event loop."""
        turn = self._gate.enter()
        if turn is not None:
            try:
                await asyncio.wrap_future(turn)
            except BaseException:
                self._gate.give_up(turn)
                raise
        try:
            with translating(action, uri), _counted(action):
                yield
        finally:
            self._gate.leave()


@contextmanager
def _counted(action: str) -> Iterator[None]:
    metrics.IN_FLIGHT.inc()
    status = "none"
    try:
        yield
        status = "200"
    except Exception as error:
        status = status_of(error)
        raise
    finally:
        metrics.IN_FLIGHT.dec()
        metrics.REQUESTS.labels(kind_of(action), status).inc()
