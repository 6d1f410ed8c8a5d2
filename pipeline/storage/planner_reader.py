"""Implement the planner's reader on the storage layer."""

from __future__ import annotations

import builtins
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from typing_extensions import override

from partitioning import ObjectInfo, Reader, Tail, TailRequest
from pipeline.concurrency import map_ahead
from pipeline.errors import (
    InvalidUriError,
    ObjectMissingError,
    StorageError,
    Transient,
)
from pipeline.storage.storage import Storage, own_storage

_AHEAD = 256
"""Number of tails that are read ahead of the one that is taken, which limits memory."""


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
        with ThreadPoolExecutor(concurrency) as pool:
            yield from map_ahead(pool, self._read_tail, requests, _AHEAD)

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


def own_reader() -> StorageReader:
    """Return a reader on the storage of this process's settings."""
    return StorageReader(own_storage())
