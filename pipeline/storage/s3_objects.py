"""Objects in S3: obstore for speed, s3fs where obstore has no door (raw uploads, odd keys)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import obstore
from fsspec.asyn import sync
from obstore.exceptions import InvalidPathError
from obstore.store import S3Store

if TYPE_CHECKING:
    from obstore import GetOptions, ObjectMeta

from partitioning import ObjectInfo
from pipeline.errors import (
    AlreadyExistsError,
    ObjectChangedError,
    ObjectMissingError,
    PreconditionFailedError,
)
from pipeline.storage.backend import Blob, StagedObject
from pipeline.storage.retry import RetryPolicy
from pipeline.storage.s3_connection import Access
from pipeline.storage.s3_errors import translated, translating
from pipeline.storage.s3_parts import copy_in_parts
from pipeline.storage.s3_requests import MOST, Requests
from pipeline.uris import Location, parse, redacted

T = TypeVar("T")

PAGE = 1000
"""Keys of one page of a listing, at most."""
UNORDERED = "--x-s3"
"""Ends the names of directory buckets, whose listings are in no order and begin at their first key.
https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html"""
PLAIN = re.compile(r"[A-Za-z0-9_.=/-]+")
"""Keys that obstore and S3 spell alike."""
COPY_BYTES = 5 << 30
"""The largest object that S3 copies in one request; larger ones are copied in parts."""
CONCURRENCY = MOST
"""Requests in flight when many small ones are sent, if the settings allow as many. At 100 ms each,
the two that each of a million outputs needs take half an hour; with 32, an hour and three quarters.
"""


def spellable(key: str) -> bool:
    """Whether obstore can name this key: it refuses empty, `.` and `..` segments."""
    return not any(part in ("", ".", "..") for part in key.split("/"))


class S3Objects:
    """The objects of one S3 service."""

    def __init__(
        self,
        access: Access,
        retry: RetryPolicy | None = None,
        requests: Requests | int = MOST,
        *,
        conditional: bool = True,
    ) -> None:
        """Make the clients when they are needed.

        Args:
            access: Where, and who we are there.
            retry: For requests that are tried again on their own.
            requests: Under way at a time, or the count that is shared with other services.
            conditional: The service honours If-None-Match and If-Match on writes. If not, it is
                looked before each such write, which serves a single writer.
        """
        self._access = access
        self.conditional = conditional
        self._retry = retry or RetryPolicy()
        self.requests = requests if isinstance(requests, Requests) else Requests(requests)
        self.copy_bytes = COPY_BYTES
        self._bare_etags = False
        """Whether this service wants ETags in conditions of writes without their quotes."""
        self._stores: dict[str, S3Store] = {}
        self._prepared: Any = None
        """The raw client that says what the bucket asks for."""

    @property
    def service(self) -> str:
        """What the service is called in messages."""
        return redacted(self._access.endpoint) if self._access.endpoint else "Amazon S3"

    @property
    def lists_exactly(self) -> bool:
        """Whether obstore cannot list the bucket (see `Access.store`)."""
        return self._access.expected_owner is not None

    @cached_property
    def _fs(self) -> Any:
        return self._access.filesystem()

    def store(self, bucket: str) -> S3Store:
        """The obstore client of a bucket, made once."""
        if bucket not in self._stores:
            self._stores[bucket] = self._access.store(bucket)
        return self._stores[bucket]

    def _send(self, action: str, uri: str, **arguments: Any) -> Any:
        """One raw request, synchronously."""
        return self.wait(self.request(action, uri, **arguments))

    def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the client's own loop."""

        async def held() -> T:
            return await coroutine

        result: T = sync(self._fs.loop, held)
        return result

    async def client(self, bucket: str) -> Any:
        """The raw client behind s3fs: no retries of its own, no translation of its own."""
        await self._fs.set_session()
        client = await self._fs.get_s3(bucket)
        if client is not self._prepared:
            events = client.meta.events
            events.register_first("before-parameter-build.s3", self._add_parameters)
            self._prepared = client
        return client

    def _add_parameters(self, params: dict[str, Any], model: Any, **_: Any) -> None:
        """Say in each raw request what the bucket asks for, where the action knows of it."""
        known = () if model.input_shape is None else model.input_shape.members
        for name, value in self._access.parameters(known).items():
            params.setdefault(name, value)

    async def request(self, action: str, uri: str, **arguments: Any) -> Any:
        """One raw request about one object; errors are ours."""
        at = parse(uri)
        client = await self.client(at.bucket)
        async with self.requests.sending(action, uri):
            return await getattr(client, action)(Bucket=at.bucket, Key=at.key, **arguments)

    async def patiently(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """One of many requests that succeed or fail together, tried again on its own.

        Tried again together, a thousand of them would hardly ever all succeed at a server that
        refuses one in a hundred.
        """
        async for attempt in self._retry.tries():
            with attempt:
                return await call()
        raise AssertionError("stamina returns or raises")

    async def gather(
        self,
        one: Callable[[StagedObject], Coroutine[Any, Any, T]],
        many: Sequence[StagedObject],
        *,
        patient: bool = True,
    ) -> list[T]:
        """Do one thing to many, so many at a time that the server is busy and not drowned.

        Args:
            one: What to do.
            many: To what.
            patient: Try each again on its own.
        """
        gate = asyncio.Semaphore(CONCURRENCY)

        async def held(item: StagedObject) -> T:
            async with gate:
                return await (self.patiently(lambda: one(item)) if patient else one(item))

        return await asyncio.gather(*(held(item) for item in many))

    # -- reading ------------------------------------------------------------------------------

    def objects(self, prefix: str) -> Iterator[ObjectInfo]:
        """See `Backend.objects`."""
        at = parse(prefix)
        # The greatest key before all that is wanted, or one that is hardly any smaller.
        return self._listed(at, "" if at.key.endswith("/") else at.key[:-1])

    def after(self, folder: str, name: str) -> Iterator[ObjectInfo]:
        """See `Backend.after`."""
        at = parse(folder)
        for info in self._listed(at, at.key + name if name else ""):
            rest = info.uri.removeprefix(at.uri)
            # Some servers list a folder where a file of its name would be, out of the keys' order.
            if rest > name and "/" not in rest:
                yield info

    def _listed(self, at: Location, start: str) -> Iterator[ObjectInfo]:
        """What begins as wanted; listed from a key on, which leaves out the less before it.

        Falls back to s3fs's client where a key defeats obstore.
        """
        # obstore lists whole directories: a prefix is cut back to its last slash.
        folder = at.key[: at.key.rfind("/") + 1]
        start = start if PLAIN.fullmatch(start) and not at.bucket.endswith(UNORDERED) else ""
        if self.lists_exactly or (folder and not spellable(folder[:-1])):
            yield from self._list_exactly(at, start)
            return
        with self.requests.sent("list", at.uri):
            try:
                found = list(self._list_folder(at, folder, start))
            except InvalidPathError:
                # One key that obstore cannot spell ends its whole listing.
                found = None
        if found is None:
            yield from self._list_exactly(at, start)
            return
        for meta in found:
            if meta["path"].startswith(at.key):
                uri = f"s3://{at.bucket}/{meta['path']}"
                yield ObjectInfo(uri, str(meta["e_tag"]).strip('"'), meta["size"])

    def _list_folder(self, at: Location, folder: str, start: str) -> Iterator[ObjectMeta]:
        """The keys of a directory from one on, until none can follow that begins as wanted."""
        store, name = self.store(at.bucket), at.key[len(folder) :]
        for page in obstore.list(store, folder or None, offset=start or None, chunk_size=PAGE):
            yield from page
            # By its first part: see `after`.
            last = page[-1]["path"][len(folder) :].partition("/")[0] if page else ""
            if start and name and last > name and not last.startswith(name):
                return

    def _list_exactly(self, at: Location, start: str) -> Iterator[ObjectInfo]:
        for entry in self.entries(at, start):
            uri = f"s3://{at.bucket}/{entry['Key']}"
            yield ObjectInfo(uri, entry["ETag"].strip('"'), entry["Size"])

    def entries(self, at: Location, start: str) -> Iterator[dict[str, Any]]:
        """What begins as a location does, from a key on, as S3's own listing has it."""
        more: dict[str, str] = {"StartAfter": start} if start else {}
        while True:
            page = self.wait(self._page(at.bucket, Prefix=at.key, **more))
            yield from page.get("Contents", ())
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    async def _page(self, bucket: str, **arguments: Any) -> Any:
        client = await self.client(bucket)
        async with self.requests.sending("list", f"s3://{bucket}/{arguments.get('Prefix', '')}"):
            return await client.list_objects_v2(Bucket=bucket, **arguments)

    def head(self, uri: str) -> ObjectInfo:
        """See `Backend.head`."""
        at = parse(uri)
        if not spellable(at.key):
            said = self._send("head_object", uri)
            return ObjectInfo(uri, said["ETag"].strip('"'), said["ContentLength"])
        with self.requests.sent("head", uri):
            meta = obstore.head(self.store(at.bucket), at.key)
        return ObjectInfo(uri, str(meta["e_tag"]).strip('"'), meta["size"])

    def get(self, uri: str) -> Blob:
        """See `Backend.get`."""
        at = parse(uri)
        if not spellable(at.key):
            data, etag = self.wait(self._body(uri))
            return Blob(data, etag)
        with self.requests.sent("get", uri):
            result = obstore.get(self.store(at.bucket), at.key)
            return Blob(result.bytes().to_bytes(), str(result.meta["e_tag"]).strip('"'))

    async def _body(self, uri: str, **arguments: Any) -> tuple[bytes, str]:
        said = await self.request("get_object", uri, **arguments)
        async with said["Body"] as body:
            with translating("get", uri):
                return await body.read(), said["ETag"].strip('"')

    def get_ranges(self, info: ObjectInfo, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        """See `Backend.get_ranges`: every request carries If-Match, so versions cannot mix."""
        try:
            if len(ranges) == 1 and spellable(parse(info.uri).key):
                return [self._read_one(info, *ranges[0])]  # The way over the loop takes longer.
            return self.wait(self._read_ranges(info, ranges))
        except PreconditionFailedError as error:
            raise ObjectChangedError(info.uri, info.etag, self.head(info.uri).etag) from error

    def _read_one(self, info: ObjectInfo, start: int, stop: int) -> memoryview:
        at = parse(info.uri)
        with self.requests.sent("get", info.uri):
            result = obstore.get(self.store(at.bucket), at.key, options=_only(info, start, stop))
            return _whole(memoryview(result.bytes()), info, start, stop)

    async def _read_ranges(
        self, info: ObjectInfo, ranges: Sequence[tuple[int, int]]
    ) -> list[memoryview]:
        async def read(start: int, stop: int) -> memoryview:
            return await self.patiently(lambda: self.read_range(info, start, stop))

        return await asyncio.gather(*(read(*span) for span in ranges))

    async def read_range(self, info: ObjectInfo, start: int, stop: int) -> memoryview:
        """Bytes [start, stop) of the version that `info` names, or an error of ours."""
        at = parse(info.uri)
        if not spellable(at.key):
            data, _ = await self._body(
                info.uri, Range=f"bytes={start}-{stop - 1}", IfMatch=f'"{info.etag}"'
            )
            return _whole(memoryview(data), info, start, stop)
        async with self.requests.sending("get", info.uri):
            result = await obstore.get_async(
                self.store(at.bucket), at.key, options=_only(info, start, stop)
            )
            return _whole(memoryview(await result.bytes_async()), info, start, stop)

    # -- writing ------------------------------------------------------------------------------

    def put(self, uri: str, data: bytes) -> None:
        """See `Backend.put`."""
        self._put(uri, data, "overwrite", {})

    def put_new(self, uri: str, data: bytes) -> None:
        """See `Backend.put_new`."""
        if not self.conditional:
            with suppress(ObjectMissingError):
                self.head(uri)
                raise AlreadyExistsError(uri)
            self.put(uri, data)
            return
        try:
            self._put(uri, data, "create", {"IfNoneMatch": "*"})
        except PreconditionFailedError as error:
            raise AlreadyExistsError(uri) from error

    def put_if(self, uri: str, data: bytes, etag: str) -> None:
        """See `Backend.put_if`."""
        if not self.conditional:
            if self.head(uri).etag != etag:
                raise PreconditionFailedError(uri)
            self.put(uri, data)
            return
        try:
            self._put_if(uri, data, etag if self._bare_etags else f'"{etag}"')
        except (PreconditionFailedError, AlreadyExistsError):
            if self._bare_etags or not self._is_still(uri, etag):
                raise
            # Ceph 16 compares the header, quotes and all, with the ETag.
            self._put_if(uri, data, etag)
            self._bare_etags = True

    def _is_still(self, uri: str, etag: str) -> bool:
        try:
            return self.head(uri).etag == etag
        except ObjectMissingError:
            return False

    def _put_if(self, uri: str, data: bytes, etag: str) -> None:
        self._put(uri, data, {"e_tag": etag}, {"IfMatch": etag})

    def _put(self, uri: str, data: bytes, mode: Any, condition: dict[str, str]) -> None:
        at = parse(uri)
        if not spellable(at.key):
            self._send("put_object", uri, Body=data, **condition)
            return
        with self.requests.sent("put", uri):
            obstore.put(self.store(at.bucket), at.key, data, mode=mode, use_multipart=False)

    def copy(self, source: str, target: str) -> None:
        """See `Backend.copy`: of one version, so that parts of two cannot mix."""
        info = self.head(source)
        at = parse(source)
        origin = {
            "CopySource": {"Bucket": at.bucket, "Key": at.key},
            "CopySourceIfMatch": f'"{info.etag}"',
        }
        try:
            if info.size <= self.copy_bytes:
                self._send("copy_object", target, **origin)
            else:
                self.wait(copy_in_parts(self, origin, target, info.size))
        except PreconditionFailedError as error:
            raise ObjectChangedError(source, info.etag, None) from error

    def delete(self, uri: str) -> None:
        """See `Backend.delete`."""
        with suppress(ObjectMissingError):
            self._send("delete_object", uri)


def _only(info: ObjectInfo, start: int, stop: int) -> GetOptions:
    """A range of one version, and of no other."""
    return {"range": (start, stop), "if_match": f'"{info.etag}"'}


def _whole(data: memoryview, info: ObjectInfo, start: int, stop: int) -> memoryview:
    """A body that came back short is a lost connection, not data."""
    if len(data) != stop - start:
        error = ConnectionError(f"{len(data)} of {stop - start} bytes came back")
        raise translated(error, "get", info.uri)
    return data
