"""The planner's reader over our storage: obstore where the objects are in S3."""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby, islice
from typing import Any

from partitioning import ObjectInfo, Tail, TailRequest
from pipeline.errors import (
    InvalidUriError,
    ObjectChangedError,
    ObjectMissingError,
    PreconditionFailedError,
    StorageError,
    Transient,
)
from pipeline.storage.s3_objects import S3Objects
from pipeline.storage.storage import Storage, own_storage

_BLOCK = 256
"""Tails asked for together; they are handed on, and their memory freed, block by block."""


class StorageReader:
    """Implements `partitioning.Reader`. Pickles as "the storage of whoever opens it"."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._listings: dict[str, builtins.list[ObjectInfo]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        # Credentials never travel: each process opens its own storage from its own settings.
        return own_reader, ()

    def list(self, uri_prefix: str) -> Iterator[ObjectInfo]:
        """See `Reader.list`. A reader lists a prefix once: it serves one planning."""
        if uri_prefix not in self._listings:
            self._listings[uri_prefix] = self._storage.objects(uri_prefix)
        yield from self._listings[uri_prefix]

    def head(self, uri: str) -> ObjectInfo:
        """See `Reader.head`."""
        try:
            return self._storage.head(uri)
        except ObjectMissingError as error:
            raise FileNotFoundError(str(error)) from error

    def read_tails(self, requests: Iterable[TailRequest], concurrency: int) -> Iterator[Tail]:
        """See `Reader.read_tails`."""
        pending = iter(requests)
        while block := list(islice(pending, _BLOCK)):
            # Inputs may be on several services.
            for backend, some in groupby(block, self._s3_of):
                if backend is not None:
                    yield from backend.wait(_tails(backend, list(some), concurrency))
                else:
                    with ThreadPoolExecutor(min(concurrency, 16)) as pool:
                        yield from pool.map(self._tail, some)

    def _s3_of(self, request: TailRequest) -> S3Objects | None:
        """The service that has an object; None for what is not in S3, or cannot be."""
        try:
            backend = self._storage.backend(request.object.uri)
        except InvalidUriError:
            return None  # Whoever reads it says why.
        return backend if isinstance(backend, S3Objects) else None

    def _tail(self, request: TailRequest) -> Tail:
        info = request.object
        span = (max(0, info.size - request.length), info.size)
        try:
            return Tail(info, bytes(self._storage.get_ranges(info, [span])[0]))
        except (StorageError, InvalidUriError) as error:
            return _unread(info, error)


def _unread(info: ObjectInfo, error: StorageError | InvalidUriError) -> Tail:
    """An object that cannot be read is bad; a store that does not answer makes no object bad."""
    if isinstance(error, Transient):
        raise error
    return Tail(info, None, str(error))


async def _tails(backend: S3Objects, requests: list[TailRequest], concurrency: int) -> list[Tail]:
    gate = asyncio.Semaphore(concurrency)

    async def one(request: TailRequest) -> Tail:
        info = request.object
        span = (max(0, info.size - request.length), info.size)
        async with gate:
            try:
                data = await backend.patiently(lambda: backend.read_range(info, *span))
            except PreconditionFailedError:
                return Tail(info, None, str(ObjectChangedError(info.uri, info.etag, None)))
            except (StorageError, InvalidUriError) as error:
                return _unread(info, error)
        return Tail(info, bytes(data))

    return await asyncio.gather(*map(one, requests))


def own_reader() -> StorageReader:
    """A reader over the storage that this process's own settings name."""
    return StorageReader(own_storage())
