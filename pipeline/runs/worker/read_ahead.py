"""Choose how many chunks are read and staged at a time, by how long a worker waits for storage."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from threading import Lock

MAX_CHUNKS = 16
"""Maximum number of chunks read ahead of the one in computation, and of results being staged."""
MIN_WAIT_SECONDS = 0.005
"""Mean wait for a chunk that is too short to matter."""
LARGE_SHARE, SMALL_SHARE = 0.2, 0.02
"""Shares of time spent waiting from which on more, or up to which fewer, chunks overlap."""


@dataclass(slots=True)
class Overlap:
    """Number of chunks to transfer while one is computed: one, and more while storage is slow.

    The threads of a worker share it for each run: what one learns about storage, all use. They do
    not need to see each other's last changes.
    """

    chunks: int = 1
    _counted: int = 0
    _waited: float = 0.0
    _computed: float = 0.0

    def add(self, waited: float, computed: float) -> None:
        """Count a chunk that was transferred meanwhile, and adapt after some.

        Args:
            waited: Seconds that were waited for its transfer.
            computed: Seconds of computing since the wait before.
        """
        self._counted += 1
        self._waited += waited
        self._computed += computed
        # Chunks that are transferred together end together: only the first is waited for.
        if self._counted < 2 * (self.chunks + 1):
            return
        share = self._waited / max(self._waited + self._computed, 1e-9)
        is_short = self._waited < MIN_WAIT_SECONDS * self._counted
        if share > LARGE_SHARE and not is_short:
            self.chunks = min(2 * self.chunks, MAX_CHUNKS)
        elif share < SMALL_SHARE or is_short:
            self.chunks = max(1, self.chunks - 1)
        self._counted, self._waited, self._computed = 0, 0.0, 0.0


@dataclass(slots=True)
class ReadAhead(Overlap):
    """Number and columns of the chunks to read ahead."""

    columns: set[str] = field(default_factory=set)
    """Columns that the last chunk has read; they are prefetched for the next ones."""


class Turn:
    """Lets one thread at a time into its block, and tells since when none is inside."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._left = time.perf_counter()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._left = time.perf_counter()
        self._lock.release()

    def idle_seconds(self, since: float) -> float:
        """Seconds from a time of `perf_counter`, or from when the last thread left, until now."""
        if self._lock.locked():
            return 0.0
        return max(0.0, time.perf_counter() - max(since, self._left))
