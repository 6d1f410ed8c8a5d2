"""Limit, count and translate the errors of every S3 request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from pipeline import metrics
from pipeline.errors import ThrottledError
from pipeline.storage.request_gate import Gate
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


class Requests:
    """Limits and counts the requests of clients."""

    def __init__(self, limit: int = DEFAULT_MAX_REQUESTS) -> None:
        """Create it.

        Args:
            limit: Maximum number of concurrent requests; fewer while the service throttles.
        """
        self._gate = Gate(limit)
        metrics.REQUEST_LIMIT.set(limit)

    @property
    def limit(self) -> int:
        """Maximum number of concurrent requests now."""
        return self._gate.limit

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
            with self._adapt(), translating(action, uri), _count(action):
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
            with self._adapt(), translating(action, uri), _count(action):
                yield
        finally:
            self._gate.leave()

    @contextmanager
    def _adapt(self) -> Iterator[None]:
        """Adapt the limit to the outcome of the block's request."""
        generation = self._gate.generation
        try:
            yield
        except ThrottledError:
            limit = self._gate.throttled(generation)
            metrics.THROTTLED.inc()
            metrics.current_tally().add_throttled(limit)
            raise
        self._gate.passed()


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
