"""Do independent works of an ingest of files, in threads of this process or on a cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel

from pipeline.storage import Storage

MAX_THREADS = 4
"""Maximum number of works at a time in this process."""
SHARED_BYTES = 256 << 20
"""Bytes in memory above which a work is done alone in this process."""

R_co = TypeVar("R_co", bound=BaseModel, covariant=True)


class Work(Protocol[R_co]):
    """Something that any process can do, any number of times, with the same result."""

    @property
    def name(self) -> str:
        """What it is, for people."""
        ...

    @property
    def bytes(self) -> int:
        """Number of bytes that are read."""
        ...

    @property
    def held(self) -> int:
        """Number of those that are in memory at a time."""
        ...

    def do(self, storage: Storage) -> R_co:
        """Do it."""
        ...


class Workers(Protocol):
    """What does works."""

    def map(self, works: Sequence[Work[Any]]) -> Iterator[tuple[int, Any]]:
        """Do works; yield the number and the result of each as it is done, in any order.

        Raises:
            ChunkmapError: One of them failed, or was lost. Others may be done.
        """
        ...


@dataclass(frozen=True, slots=True)
class LocalWorkers:
    """Threads of this process. Polars and the storage leave the interpreter to others."""

    storage: Storage
    threads: int = min(MAX_THREADS, os.cpu_count() or 1)

    def map(self, works: Sequence[Work[Any]]) -> Iterator[tuple[int, Any]]:
        """Do works (see `Workers.map`)."""
        large = [i for i, work in enumerate(works) if work.held > SHARED_BYTES]
        small = [i for i, work in enumerate(works) if work.held <= SHARED_BYTES]
        if min(self.threads, len(small)) < 2:
            large, small = list(range(len(works))), []
        with ThreadPoolExecutor(self.threads) as pool:
            futures = {pool.submit(works[i].do, self.storage): i for i in small}
            try:
                for future in as_completed(futures):
                    yield futures[future], future.result()
            finally:
                for future in futures:
                    future.cancel()
        for i in large:
            yield i, works[i].do(self.storage)


def results(workers: Workers, works: Sequence[Work[Any]]) -> list[Any]:
    """Do works; return their results in order."""
    found = dict(workers.map(works))
    return [found[i] for i in range(len(works))]
