"""Limit, count and translate the errors of every S3 request."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from functools import cache
from types import TracebackType

from prometheus_client import Counter

from pipeline import metrics
from pipeline.errors import ThrottledError
from pipeline.storage.request_gate import Gate
from pipeline.storage.s3_errors import status_of, translate

DEFAULT_MAX_REQUESTS = 192
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


@cache
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

    def sent(self, action: str, uri: str) -> AbstractContextManager[None]:
        """Send one request in the block, in this thread."""
        return _Request(self._gate, action, uri)

    def sending(self, action: str, uri: str) -> AbstractAsyncContextManager[None]:
        """Send one request in the block, on this event loop."""
        return _Request(self._gate, action, uri)


class _Request:
    """A request in its block: it waits for its turn, is counted, and its errors are translated.

    One class instead of a generator for each of these: together they took as long as sending a
    small request.
    """

    __slots__ = ("_action", "_gate", "_generation", "_uri")

    def __init__(self, gate: Gate, action: str, uri: str) -> None:
        self._gate, self._action, self._uri = gate, action, uri
        self._generation = 0

    def __enter__(self) -> None:
        turn = self._gate.enter()
        if turn is not None:
            try:
                turn.result()
            except BaseException:
                self._gate.give_up(turn)
                raise
        self._begin()

    async def __aenter__(self) -> None:
        turn = self._gate.enter()
        if turn is not None:
            try:
                await asyncio.wrap_future(turn)
            except BaseException:
                self._gate.give_up(turn)
                raise
        self._begin()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._end(error)
        finally:
            self._gate.leave()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.__exit__(kind, error, trace)

    def _begin(self) -> None:
        self._generation = self._gate.generation
        metrics.IN_FLIGHT.inc()

    def _end(self, error: BaseException | None) -> None:
        """Count the request, adapt the limit to its outcome, and translate its error."""
        metrics.IN_FLIGHT.dec()
        kind = kind_of(self._action)
        status = "200" if error is None else "none"
        if isinstance(error, Exception):
            status = status_of(error)
        _counter(kind, status).inc()
        metrics.current_tally().add(kind)
        if error is None:
            self._gate.passed()
        elif isinstance(error, Exception):
            translation = translate(error, self._action, self._uri)
            if isinstance(translation, ThrottledError):
                limit = self._gate.throttled(self._generation)
                metrics.THROTTLED.inc()
                metrics.current_tally().add_throttled(limit)
            if translation is not error:
                raise translation from error


@cache
def _counter(kind: str, status: str) -> Counter:
    """Return the counter of requests with these labels."""
    return metrics.REQUESTS.labels(kind, status)
