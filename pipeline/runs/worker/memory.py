"""Admit the chunks of a worker's threads to its memory, by what chunks have taken so far.

A plan knows the decoded bytes of a chunk, but not what its transform makes of them. The worker's
peak, per decoded byte of the chunks that were mapped at that time, is measured, and decides how
many of the next chunks are mapped at the same time. A chunk that takes twice the memory that was
planned thus halves what is admitted after it.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from threading import Condition

import psutil

FIRST_RATIO = 3.0
"""Memory per decoded byte until it is measured: the chunk, its result, and the next one's bytes."""
CHUNK_BYTES = 8 << 20
"""Bytes added to the decoded bytes of each chunk, for what does not depend on its size."""
OTHER_BYTES = 32 << 20
"""Growth of a process that is not taken for its chunks': caches, log lines, connections."""
USABLE_SHARE = 0.85
"""Share of a worker's memory that chunks may fill; at 95% Dask restarts the worker."""
AHEAD_SHARE = 0.25
"""Share of a worker's memory for bytes that are read ahead, without the next chunk of a thread."""
DEFAULT_AHEAD_BYTES = 256 << 20
"""Bytes that are read ahead by a process without a limit."""
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
FORGET = 0.1
"""Weight of a measurement that is lower than the ratio so far; a higher one counts at once."""
FULL_WEIGHT_BYTES = 128 << 20
"""Decoded bytes of chunks whose measurement has its full weight; that of smaller ones has less."""


@cache
def _process(pid: int) -> psutil.Process:
    return psutil.Process(pid)


@cache
def _pages_file(pid: int) -> int | None:
    """Open the file that tells the pages of this process; None where there is none."""
    try:
        return os.open(f"/proc/{pid}/statm", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None


def resident_bytes() -> int:
    """Return the memory of this process now."""
    pid = os.getpid()
    pages = _pages_file(pid)
    if pages is None:
        return int(_process(pid).memory_info().rss)
    return int(os.pread(pages, 128, 0).split()[1]) * _PAGE_BYTES


@cache
def _peak_files(pid: int) -> tuple[int, int] | None:
    """Open the files that tell and reset the peak of this process; None where there are none."""
    try:
        return (
            os.open(f"/proc/{pid}/status", os.O_RDONLY | os.O_CLOEXEC),
            os.open(f"/proc/{pid}/clear_refs", os.O_WRONLY | os.O_CLOEXEC),
        )
    except OSError:
        return None


def take_peak() -> int:
    """Return the most memory of this process since the last call; where unknown, what it has."""
    files = _peak_files(os.getpid())
    if files is None:
        return resident_bytes()
    _, _, rest = os.pread(files[0], 1 << 14, 0).partition(b"VmHWM:")
    with suppress(OSError):
        os.write(files[1], b"5")
    return int(rest.split(maxsplit=1)[0]) << 10 if rest else resident_bytes()


@dataclass(slots=True, eq=False)
class _Admitted:
    """A chunk that is being mapped."""

    size: int
    """Its decoded bytes, with CHUNK_BYTES."""
    least: int
    """Least size of all chunks that were mapped at the same time, with it."""
    peak: int = 0
    """Most memory of the process meanwhile."""


class WorkerMemory:
    """Admits chunks while their planned memory fits; one is always admitted."""

    def __init__(
        self,
        limit: int,
        take_peak: Callable[[], int] = take_peak,
    ) -> None:
        """Create it.

        Args:
            limit: Bytes of memory that the process may use; 0 for no limit.
            take_peak: Returns the most bytes that it has used since the last call.
        """
        self.ratio = FIRST_RATIO
        """Memory per decoded byte (see CHUNK_BYTES) that is planned for the next chunk."""
        self._limit = limit
        self._take_peak = take_peak
        take_peak()  # Forget the peak of imports.
        self._base = take_peak() if limit else 0
        self._highest = 0
        self._admitted: list[_Admitted] = []
        self._waiting: deque[object] = deque()
        self._ahead = 0
        self._changed = Condition()

    @contextmanager
    def admit(self, decoded_bytes: int) -> Iterator[None]:
        """Wait until a chunk of this size fits, or no other is mapped; map it in the block."""
        if not self._limit:
            yield
            return
        size = decoded_bytes + CHUNK_BYTES
        turn = object()
        with self._changed:
            self._waiting.append(turn)
            try:
                # In order, so that small chunks do not keep a large one out for ever.
                self._changed.wait_for(lambda: self._waiting[0] is turn and self._fits(size))
                self._measure()
                chunk = _Admitted(size, self._size + size)
                self._admitted.append(chunk)
            finally:
                self._waiting.remove(turn)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._measure()
                self._trust(chunk)
                self._admitted.remove(chunk)
                for other in self._admitted:
                    other.least = min(other.least, self._size)
                self._changed.notify_all()

    def reserve(self, stored_bytes: int) -> bool:
        """Reserve memory for bytes that are read ahead; return whether there is enough."""
        with self._changed:
            after = self._ahead + stored_bytes
            if not self._limit:
                fits = after <= DEFAULT_AHEAD_BYTES
            else:
                planned = self.ratio * self._size + after
                fits = after <= AHEAD_SHARE * self._limit and planned <= self._budget
            self._ahead += stored_bytes if fits else 0
            return fits

    def release(self, stored_bytes: int) -> None:
        """Free what `reserve` has reserved."""
        with self._changed:
            self._ahead -= stored_bytes
            self._changed.notify_all()

    @property
    def _budget(self) -> float:
        return USABLE_SHARE * self._limit - self._base

    def _fits(self, size: int) -> bool:
        planned = self.ratio * (self._size + size) + self._ahead
        return not self._admitted or planned <= self._budget

    @property
    def _size(self) -> int:
        return sum(chunk.size for chunk in self._admitted)

    def _measure(self) -> None:
        """Measure what the chunks take that have been mapped together since the last change."""
        peak = self._take_peak()
        for chunk in self._admitted:
            chunk.peak = max(chunk.peak, peak)
        # The allocator keeps pages of earlier chunks for a while: only a new peak is theirs.
        if self._admitted and peak > self._highest:
            self.ratio = max(self.ratio, self._ratio_of(peak, self._size))
        self._highest = max(self._highest, peak)

    def _trust(self, chunk: _Admitted) -> None:
        """Lower the ratio if a chunk has ended for which less would have been enough."""
        ratio = self._ratio_of(chunk.peak, chunk.least)
        if ratio < self.ratio:
            weight = FORGET * min(1.0, chunk.size / FULL_WEIGHT_BYTES)
            self.ratio += weight * (ratio - self.ratio)

    def _ratio_of(self, memory: int, size: int) -> float:
        return max(1.0, (memory - self._base - self._ahead - OTHER_BYTES) / size)


@cache
def worker_memory(limit: int) -> WorkerMemory:
    """Return the memory of this process, for all batches that it maps.

    Args:
        limit: Bytes that it may use; 0 for no limit.
    """
    return WorkerMemory(limit)
