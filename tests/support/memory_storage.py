"""A backend in memory: what S3 promises, and nothing else. The contract tests hold it to that."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from threading import RLock

from partitioning import ObjectInfo
from pipeline.errors import (
    AlreadyExistsError,
    ObjectChangedError,
    ObjectMissingError,
    PreconditionFailedError,
)
from pipeline.storage import Blob, RetryPolicy, StagedObject, Storage
from pipeline.storage.backend import ObjectStart
from pipeline.storage.tokens import TokenRule

AT_ONCE = RetryPolicy(attempts=4, seconds=30.0, wait_initial=0.0, wait_max=0.0)
"""Tries again without waiting."""


@dataclass(frozen=True)
class _Stored:
    data: bytes
    attempt: str = ""

    @cached_property
    def etag(self) -> str:
        return hashlib.md5(self.data).hexdigest()


@dataclass
class MemoryBackend:
    """Objects and uploads by URI; every call happens whole."""

    stored: dict[str, _Stored] = field(default_factory=dict)
    uploads: dict[str, tuple[str, bytes, str]] = field(default_factory=dict)
    """Upload id -> (final URI, bytes, attempt)."""
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _lock: RLock = field(default_factory=RLock)

    def storage(self) -> Storage:
        return Storage({"s3": self}, AT_ONCE)

    def objects(self, prefix: str) -> Iterator[ObjectInfo]:
        with self._lock:
            found = [self.head(uri) for uri in self.stored if uri.startswith(prefix)]
        return iter(found)

    def after(self, folder: str, name: str) -> Iterator[ObjectInfo]:
        found = self.objects(folder)
        rests = ((info, info.uri.removeprefix(folder)) for info in found)
        return (info for info, rest in rests if rest > name and "/" not in rest)

    def head(self, uri: str) -> ObjectInfo:
        blob = self.get(uri)
        return ObjectInfo(uri, blob.etag, len(blob.data))

    def get(self, uri: str) -> Blob:
        with self._lock:
            if uri not in self.stored:
                raise ObjectMissingError(uri)
            return Blob(self.stored[uri].data, self.stored[uri].etag)

    def get_ranges(self, info: ObjectInfo, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        blob = self.get(info.uri)
        if blob.etag != info.etag:
            raise ObjectChangedError(info.uri, info.etag, blob.etag)
        return [memoryview(blob.data)[start:stop] for start, stop in ranges]

    def put(self, uri: str, data: bytes) -> None:
        with self._lock:
            self.stored[uri] = _Stored(data)

    def put_new(self, uri: str, data: bytes) -> None:
        with self._lock:
            if uri in self.stored:
                raise AlreadyExistsError(uri)
            self.put(uri, data)

    def put_if(self, uri: str, data: bytes, etag: str) -> None:
        with self._lock:
            if uri not in self.stored or self.stored[uri].etag != etag:
                raise PreconditionFailedError(uri)
            self.put(uri, data)

    def copy(self, source: str, target: str) -> None:
        with self._lock:
            self.put(target, self.get(source).data)

    def delete(self, uri: str) -> None:
        with self._lock:
            self.stored.pop(uri, None)

    def stage(
        self, uri: str, data: memoryview, attempt: str, area: str, sha256: str | None = None
    ) -> StagedObject:
        with self._lock:
            upload = f"upload-{next(self._numbers)}"
            self.uploads[upload] = (uri, bytes(data), attempt)
        return StagedObject(uri, upload, ("part",), len(data), attempt)

    def can_extend(self, source: str, uri: str, size: int) -> bool:
        return True

    def extend(
        self, start: ObjectStart, tail: memoryview, uri: str, attempt: str, area: str
    ) -> StagedObject:
        [kept] = self.get_ranges(start.info, [(0, start.size)])
        return self.stage(uri, memoryview(bytes(kept) + bytes(tail)), attempt, area)

    def missing(self, staged: Sequence[StagedObject]) -> list[StagedObject]:
        with self._lock:
            return [i for i in staged if not self._is_staged(i) and not self._is_ours(i)]

    def _is_staged(self, item: StagedObject) -> bool:
        # An upload belongs to its key: by another one it is not found.
        return item.upload in self.uploads and self.uploads[item.upload][0] == item.uri

    def _is_ours(self, item: StagedObject) -> bool:
        return item.uri in self.stored and self.stored[item.uri].attempt == item.attempt

    def complete(self, staged: Sequence[StagedObject]) -> list[StagedObject]:
        gone = []
        with self._lock:
            for item in staged:
                if self._is_staged(item):
                    uri, data, attempt = self.uploads.pop(item.upload)
                    self.stored[uri] = _Stored(data, attempt)
                elif not self._is_ours(item):
                    gone.append(item)
        return gone

    def abort(self, staged: Sequence[StagedObject]) -> None:
        with self._lock:
            for item in staged:
                if self._is_staged(item):
                    del self.uploads[item.upload]

    def abort_days(self, uri: str) -> float | None:
        return None

    def token_rule(self, output: str, area: str) -> TokenRule:
        return TokenRule(output, None, r"^upload-[0-9]+$")

    def staged_under(self, prefix: str, area: str) -> Iterator[StagedObject]:
        with self._lock:
            found = [
                StagedObject(uri, upload, (), 0, "")
                for upload, (uri, _, _) in self.uploads.items()
                if uri.startswith(prefix)
            ]
        return iter(found)
