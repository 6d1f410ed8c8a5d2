"""Clients of an S3 service: obstore for speed, s3fs for raw requests, one limit for both."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from functools import cached_property
from typing import Any, TypeVar

from fsspec.asyn import sync
from obstore.store import S3Store

from pipeline.concurrency import map_concurrently
from pipeline.metrics import counted_here, current_tally
from pipeline.storage.retry import RetryPolicy
from pipeline.storage.s3_connection import Access
from pipeline.storage.s3_requests import DEFAULT_MAX_REQUESTS, Requests
from pipeline.uris import parse, redacted

T = TypeVar("T")
Item = TypeVar("Item")

CONCURRENCY = DEFAULT_MAX_REQUESTS
"""Maximum number of small requests in flight, within `s3.max_requests`. At 100 ms per request, a
million outputs are published in nine minutes; with 32 in flight, in 52."""


class S3Client:
    """Sends requests to an S3 service."""

    def __init__(self, access: Access, retry: RetryPolicy | None, requests: Requests | int) -> None:
        """Create it; clients are created on first use.

        Args:
            access: Address and credentials.
            retry: Policy for requests that are retried separately.
            requests: Maximum number of concurrent requests, or the limit shared with others.
        """
        self.access = access
        self.policy = retry or RetryPolicy()
        self.requests = requests if isinstance(requests, Requests) else Requests(requests)
        self._stores: dict[str, S3Store] = {}
        self._prepared: Any = None
        """The raw client that adds the bucket's parameters to requests."""

    @property
    def service(self) -> str:
        """Name of the service in messages."""
        return redacted(self.access.endpoint) if self.access.endpoint else "Amazon S3"

    @property
    def lists_exactly(self) -> bool:
        """Whether obstore cannot list the bucket (see `Access.store`)."""
        return self.access.expected_owner is not None

    @cached_property
    def _fs(self) -> Any:
        return self.access.filesystem()

    def store(self, bucket: str) -> S3Store:
        """Return the obstore client of a bucket, created once."""
        if bucket not in self._stores:
            self._stores[bucket] = self.access.store(bucket)
        return self._stores[bucket]

    def send(self, action: str, uri: str, **arguments: Any) -> Any:
        """Send a raw request synchronously."""
        return self.wait(self.request(action, uri, **arguments))

    def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the client's event loop."""

        async def run() -> T:
            return await coroutine

        result: T = sync(self._fs.loop, run)
        return result

    async def client(self, bucket: str) -> Any:
        """Return the raw client of s3fs, which neither retries nor translates errors."""
        await self._fs.set_session()
        client = await self._fs.get_s3(bucket)
        if client is not self._prepared:
            events = client.meta.events
            events.register_first("before-parameter-build.s3", self._add_parameters)
            self._prepared = client
        return client

    def _add_parameters(self, params: dict[str, Any], model: Any, **_: Any) -> None:
        """Add the bucket's parameters to a raw request, as far as the action knows them."""
        known = () if model.input_shape is None else model.input_shape.members
        for name, value in self.access.parameters(known).items():
            params.setdefault(name, value)

    async def request(self, action: str, uri: str, **arguments: Any) -> Any:
        """Send a raw request for an object; errors are translated."""
        at = parse(uri)
        client = await self.client(at.bucket)
        async with self.requests.sending(action, uri):
            return await getattr(client, action)(Bucket=at.bucket, Key=at.key, **arguments)

    def retry(self, call: Callable[[], T]) -> T:
        """Retry one of many requests separately.

        If a thousand requests were retried together, they would hardly ever all succeed at a server
        that refuses one in a hundred.
        """
        return self.policy.call(call, current_tally().add_retry)

    def each(
        self, call: Callable[[Item], T], items: Iterable[Item], at_once: int = CONCURRENCY
    ) -> list[T]:
        """Call a function for many items with limited concurrency; each call is retried separately.

        In threads: on the event loop, a small request of obstore takes half as much processor time
        again.
        """
        retried = counted_here(lambda item: self.retry(lambda: call(item)))
        return map_concurrently(retried, items, at_once)
