"""Implement the planner's reader on the storage layer, with async reads for objects in S3."""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from partitioning import ObjectInfo, Reader, Tail, TailRequest
from pipeline.errors import (
    InvalidUriError,
    ObjectChangedError,
    ObjectMissingError,
    PreconditionFailedError,
    StorageError,
    Transient,
)
from pipeline.storage.storage import Storage, own_storage

if TYPE_CHECKING:
    from pipeline.storage.s3_objects import S3Objects

_BLOCK_SIZE = 256
"""Number of tails that are read together. Blocks are yielded one by one, which limits memory."""


class StorageReader(Reader):
    """Reads objects for the planner. When unpickled, it uses the storage of that process."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._listings: dict[str, builtins.list[ObjectInfo]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        # Credentials are not pickled: each process opens storage with its own settings.
        return own_reader, ()

    @override
    def list(self, uri_prefix: str) -> Iterator[ObjectInfo]:
        """A reader lists each prefix once, since it serves a single planning."""
        if uri_prefix not in self._listings:
            self._listings[uri_prefix] = self._storage.objects(uri_prefix)
        yield from self._listings[uri_prefix]

    @override
    def head(self, uri: str) -> ObjectInfo:
        try:
            return self._storage.head(uri)
        except ObjectMissingError as error:
            raise FileNotFoundError(str(error)) from error

    @override
    def read_tails(self, requests: Iterable[TailRequest], concurrency: int) -> Iterator[Tail]:
        pending = iter(requests)
        while block := list(islice(pending, _BLOCK_SIZE)):
            # Inputs may be on several services.
            for backend, group in groupby(block, self._s3_of):
                if backend is not None:
                    yield from backend.wait(_read_tails(backend, list(group), concurrency))
                else:
                    with ThreadPoolExecutor(min(concurrency, 16)) as pool:
                        yield from pool.map(self._read_tail, group)

    def _s3_of(self, request: TailRequest) -> S3Objects | None:
        """Return the S3 service of an object; None if it is not in S3 or its URI is invalid."""
        try:
            backend = self._storage.backend(request.object.uri)
        except InvalidUriError:
            return None  # Reading it raises the error.
        if not request.object.uri.startswith("s3"):
            return None
        from pipeline.storage.s3_objects import S3Objects

        return backend if isinstance(backend, S3Objects) else None

    def _read_tail(self, request: TailRequest) -> Tail:
        info = request.object
        span = (max(0, info.size - request.length), info.size)
        try:
            return Tail(info, bytes(self._storage.get_ranges(info, [span])[0]))
        except (StorageError, InvalidUriError) as error:
            return _unreadable(info, error)


def _unreadable(info: ObjectInfo, error: StorageError | InvalidUriError) -> Tail:
    """Return the tail of an unreadable object; raise transient errors, which are not its fault."""
    if isinstance(error, Transient):
        raise error
    return Tail(info, None, str(error))


async def _read_tails(
    backend: S3Objects, requests: list[TailRequest], concurrency: int
) -> list[Tail]:
    gate = asyncio.Semaphore(concurrency)

    async def read(request: TailRequest) -> Tail:
        info = request.object
        span = (max(0, info.size - request.length), info.size)
        async with gate:
            try:
                data = await backend.retry(lambda: backend.read_range(info, *span))
            except PreconditionFailedError:
                return Tail(info, None, str(ObjectChangedError(info.uri, info.etag, None)))
            except (StorageError, InvalidUriError) as error:
                return _unreadable(info, error)
        return Tail(info, bytes(data))

    return await asyncio.gather(*map(read, requests))


def own_reader() -> StorageReader:
    """Return a reader on the storage of this process's settings."""
    return StorageReader(own_storage())
