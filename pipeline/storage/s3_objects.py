"""Read and write objects in S3: with obstore for speed, with s3fs for raw uploads and odd keys."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import obstore
from obstore.exceptions import InvalidPathError

if TYPE_CHECKING:
    from obstore import GetOptions, ObjectMeta

from typing_extensions import override

from partitioning import ObjectInfo
from pipeline.errors import (
    AlreadyExistsError,
    ObjectChangedError,
    ObjectMissingError,
    PreconditionFailedError,
)
from pipeline.storage.backend import Backend, Blob
from pipeline.storage.retry import RetryPolicy
from pipeline.storage.s3_client import S3Client
from pipeline.storage.s3_connection import Access
from pipeline.storage.s3_errors import translate, translating
from pipeline.storage.s3_parts import copy_in_parts
from pipeline.storage.s3_requests import DEFAULT_MAX_REQUESTS, Requests
from pipeline.uris import Location, parse

T = TypeVar("T")

PAGE = 1000
"""Maximum number of keys in a page of a listing."""
DIRECTORY_BUCKET_SUFFIX = "--x-s3"
"""Suffix of directory buckets, whose listings are unordered and ignore the start key.
https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html"""
PLAIN_KEY = re.compile(r"[A-Za-z0-9_.=/-]+")
"""Keys that obstore and S3 spell alike."""
_UNSPELLABLE = frozenset(("", ".", ".."))
COPY_BYTES = 5 << 30
"""Maximum size of an object that S3 copies in one request; larger objects are copied in parts."""


def spellable(key: str) -> bool:
    """Whether obstore can name this key: it refuses empty, `.` and `..` segments."""
    return _UNSPELLABLE.isdisjoint(key.split("/"))


class S3Objects(S3Client, Backend):
    """The objects of an S3 service."""

    def __init__(
        self,
        access: Access,
        retry: RetryPolicy | None = None,
        requests: Requests | int = DEFAULT_MAX_REQUESTS,
        *,
        conditional: bool = True,
    ) -> None:
        """Create it; clients are created on first use.

        Args:
            access: Address and credentials.
            retry: Policy for requests that are retried separately.
            requests: Maximum number of concurrent requests, or the limit shared with others.
            conditional: Whether writes use If-None-Match and If-Match. If not, the object is
                checked before each such write, which is enough for a single writer.
        """
        super().__init__(access, retry, requests)
        self.conditional = conditional
        self.copy_bytes = COPY_BYTES
        self.proven_buckets: set[str] = set()
        """Buckets whose service honours the conditions of writes (see `pipeline.storage.probe`)."""
        self._bare_etags = False
        """Whether this service needs ETags without quotes in conditions of writes."""

    # -- reading ------------------------------------------------------------------------------

    @override
    def objects(self, prefix: str) -> Iterator[ObjectInfo]:
        at = parse(prefix)
        # A key slightly smaller than all keys with this prefix.
        return self._list(at, "" if at.key.endswith("/") else at.key[:-1])

    @override
    def after(self, folder: str, name: str) -> Iterator[ObjectInfo]:
        at = parse(folder)
        for info in self._list(at, at.key + name if name else ""):
            rest = info.uri.removeprefix(at.uri)
            # Some servers sort a folder like a file of its name, out of the order of keys.
            if rest > name and "/" not in rest:
                yield info

    def _list(self, at: Location, start: str) -> Iterator[ObjectInfo]:
        """List the keys with a prefix, from a start key on where possible.

        The s3fs client is used for keys that obstore does not support.
        """
        # obstore lists whole directories, so the prefix is cut back to its last slash.
        folder = at.key[: at.key.rfind("/") + 1]
        if not PLAIN_KEY.fullmatch(start) or at.bucket.endswith(DIRECTORY_BUCKET_SUFFIX):
            start = ""
        if self.lists_exactly or (folder and not spellable(folder[:-1])):
            yield from self._list_exactly(at, start)
            return
        with self.requests.sent("list", at.uri):
            try:
                metas = list(self._list_folder(at, folder, start))
            except InvalidPathError:
                # A single key that obstore does not support fails the whole listing.
                metas = None
        if metas is None:
            yield from self._list_exactly(at, start)
            return
        for meta in metas:
            if meta["path"].startswith(at.key):
                uri = f"s3://{at.bucket}/{meta['path']}"
                yield ObjectInfo(uri, str(meta["e_tag"]).strip('"'), meta["size"])

    def _list_folder(self, at: Location, folder: str, start: str) -> Iterator[ObjectMeta]:
        """List the keys of a directory from a start key on, until no key can have the prefix."""
        store, name = self.store(at.bucket), at.key[len(folder) :]
        for page in obstore.list(store, folder or None, offset=start or None, chunk_size=PAGE):
            yield from page
            # Compare first segments only (see `after`).
            last = page[-1]["path"][len(folder) :].partition("/")[0] if page else ""
            if start and name and last > name and not last.startswith(name):
                return

    def _list_exactly(self, at: Location, start: str) -> Iterator[ObjectInfo]:
        for entry in self.entries(at, start):
            uri = f"s3://{at.bucket}/{entry['Key']}"
            yield ObjectInfo(uri, entry["ETag"].strip('"'), entry["Size"])

    def entries(self, at: Location, start: str) -> Iterator[dict[str, Any]]:
        """Yield the entries of S3's listing with the prefix of a location, from a start key on."""
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

    @override
    def head(self, uri: str) -> ObjectInfo:
        at = parse(uri)
        if not spellable(at.key):
            response = self.send("head_object", uri)
            return ObjectInfo(uri, response["ETag"].strip('"'), response["ContentLength"])
        with self.requests.sent("head", uri):
            meta = obstore.head(self.store(at.bucket), at.key)
        return ObjectInfo(uri, str(meta["e_tag"]).strip('"'), meta["size"])

    @override
    def get(self, uri: str) -> Blob:
        at = parse(uri)
        if not spellable(at.key):
            data, etag = self._read_body(uri)
            return Blob(data, etag)
        with self.requests.sent("get", uri):
            result = obstore.get(self.store(at.bucket), at.key)
            return Blob(result.bytes().to_bytes(), str(result.meta["e_tag"]).strip('"'))

    def _read_body(self, uri: str, **arguments: Any) -> tuple[bytes, str]:
        async def read() -> tuple[bytes, str]:
            response = await self.request("get_object", uri, **arguments)
            async with response["Body"] as body:
                with translating("get", uri):
                    return await body.read(), response["ETag"].strip('"')

        return self.wait(read())

    @override
    def get_ranges(self, info: ObjectInfo, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        """Send If-Match with each request, so that versions cannot mix."""
        try:
            if len(ranges) == 1:
                return [self._read_range(info, *ranges[0])]
            return self.each(lambda span: self._read_range(info, *span), ranges)
        except PreconditionFailedError as error:
            raise ObjectChangedError(info.uri, info.etag, self.head(info.uri).etag) from error

    def _read_range(self, info: ObjectInfo, start: int, stop: int) -> memoryview:
        at = parse(info.uri)
        if not spellable(at.key):
            data, _ = self._read_body(
                info.uri, Range=f"bytes={start}-{stop - 1}", IfMatch=f'"{info.etag}"'
            )
            return _require_complete(memoryview(data), info, start, stop)
        options: GetOptions = {"range": (start, stop), "if_match": f'"{info.etag}"'}
        with self.requests.sent("get", info.uri):
            result = obstore.get(self.store(at.bucket), at.key, options=options)
            return _require_complete(memoryview(result.bytes()), info, start, stop)

    # -- writing ------------------------------------------------------------------------------

    @override
    def put(self, uri: str, data: bytes) -> None:
        self._put(uri, data, "overwrite", {})

    @override
    def put_new(self, uri: str, data: bytes) -> None:
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

    @override
    def put_if(self, uri: str, data: bytes, etag: str) -> None:
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
            # Ceph 16 compares the ETag with the header including its quotes.
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
            self.send("put_object", uri, Body=data, **condition)
            return
        with self.requests.sent("put", uri):
            obstore.put(self.store(at.bucket), at.key, data, mode=mode, use_multipart=False)

    @override
    def copy(self, source: str, target: str) -> None:
        """Copy a single version, so that parts cannot mix."""
        info = self.head(source)
        at = parse(source)
        origin = {
            "CopySource": {"Bucket": at.bucket, "Key": at.key},
            "CopySourceIfMatch": f'"{info.etag}"',
        }
        try:
            if info.size <= self.copy_bytes:
                self.send("copy_object", target, **origin)
            else:
                copy_in_parts(self, origin, target, info.size)
        except PreconditionFailedError as error:
            raise ObjectChangedError(source, info.etag, None) from error

    @override
    def delete(self, uri: str) -> None:
        with suppress(ObjectMissingError):
            self.send("delete_object", uri)


def _require_complete(data: memoryview, info: ObjectInfo, start: int, stop: int) -> memoryview:
    """Return a body; raise a transient error if it is short, as after a lost connection."""
    if len(data) != stop - start:
        error = ConnectionError(f"received {len(data)} of {stop - start} bytes")
        raise translate(error, "get", info.uri)
    return data
