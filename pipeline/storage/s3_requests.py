"""Limit, count and translate the errors of every S3 request."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from threading import Lock

from pipeline import metrics
from pipeline.storage.s3_errors import status_of, translating

DEFAULT_MAX_REQUESTS = 128
"""Default of `s3.max_requests`: maximum number of concurrent requests."""

KINDS = {
    "list": "ListObjectsV2",
    "list uploads": "ListMultipartUploads",
    "get": "GetObject",
    "head": "HeadObject",
    "put": "PutObject",
    "copy": "CopyObject",
    "get lifecycle": "GetBucketLifecycleConfiguration",
}
"""S3's names of actions of obstore; raw actions are S3's names in another spelling."""


def kind_of(action: str) -> str:
    """Return S3's name of an action: `upload_part` is UploadPart."""
    return KINDS.get(action) or "".join(word.capitalize() for word in action.split("_"))


class Gate:
    """A fair semaphore for threads and event loops together.

    The limit covers both obstore's requests, which are made in any thread, and s3fs's requests,
    which are made on an event loop. Neither kind of standard semaphore covers both.
    """

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._waiting: deque[Future[None]] = deque()
        self._lock = Lock()

    def enter(self) -> Future[None] | None:
        """Take a slot; if none is free, return a future that is done once there is one."""
        with self._lock:
            if self._free:
                self._free -= 1
                return None
            turn: Future[None] = Future()
            self._waiting.append(turn)
            return turn

    def leave(self) -> None:
        """Pass the slot to the first waiter."""
        with self._lock:
            while self._waiting:
                turn = self._waiting.popleft()
                if turn.set_running_or_notify_cancel():
                    turn.set_result(None)
                    return
            self._free += 1

    def give_up(self, turn: Future[None]) -> None:
        """Stop waiting; a slot that has just been assigned is passed on."""
        if not turn.cancel():
            self.leave()


class Requests:
    """Limits and counts the requests of clients."""

    def __init__(self, limit: int = DEFAULT_MAX_REQUESTS) -> None:
        self._gate = Gate(limit)

    @contextmanager
    def sent(self, action: str, uri: str) -> Iterator[None]:
        """Send one request in the block, in this thread."""
        turn = self._gate.enter()
        if turn is not None:
            try:
                turn.result()
            except BaseException:
                self._gate.give_up(turn)
                raise
        try:
            with translating(action, uri), _count(action):
                yield
        finally:
            self._gate.leave()

    @asynccontextmanager
    async def sending(self, action: str, uri: str) -> AsyncIterator[None]:
        """Send one request in the block, on this event loop."""
        turn = self._gate.enter()
        if turn is not None:
            try:
                await asyncio.wrap_future(turn)
            except BaseException:
                self._gate.give_up(turn)
                raise
        try:
            with translating(action, uri), _count(action):
                yield
        finally:
            self._gate.leave()


@contextmanager
def _count(action: str) -> Iterator[None]:
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
        kind = kind_of(action)
        metrics.REQUESTS.labels(kind, status).inc()
        metrics.current_tally().add(kind)
