"""Admit the chunks of a worker's threads to its memory, by what chunks have taken so far.

A plan knows the decoded bytes of a chunk, but not what its transform makes of them. The worker's
peak, per decoded byte of the chunks that were mapped at that time, is measured, and decides how
many of the next chunks are mapped at the same time. A chunk that takes twice the memory that was
planned thus halves what is admitted after it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from threading import Condition

import psutil

FIRST_RATIO = 3.0
"""Memory per decoded byte until it is measured: the chunk, its result, and the next one's bytes."""
CHUNK_BYTES = 8 << 20
"""Bytes added to the decoded bytes of each chunk, for what does not depend on its size."""
MIN_MEASURED_BYTES = 32 << 20
"""Decoded bytes of chunks below which the memory of other things would be taken for theirs."""
USABLE_SHARE = 0.85
"""Share of a worker's memory that chunks may fill; at 95% Dask restarts the worker."""
AHEAD_SHARE = 0.25
"""Share of a worker's memory for bytes that are read ahead, without the next chunk of a thread."""
DEFAULT_AHEAD_BYTES = 256 << 20
"""Bytes that are read ahead by a process without a limit."""
FORGET = 0.1
"""Weight of a measurement that is lower than the ratio so far; a higher one counts at once."""


def resident_bytes() -> int:
    """Return the memory of this process now."""
    return int(psutil.Process().memory_info().rss)


def peak_bytes() -> int:
    """Return the most memory that this process has had; where unknown, what it has now."""
    try:
        status = Path("/proc/self/status").read_bytes()
    except OSError:
        return resident_bytes()
    _, _, rest = status.partition(b"VmHWM:")
    return int(rest.split()[0]) << 10 if rest else resident_bytes()


class WorkerMemory:
    """Admits chunks while their planned memory fits; one is always admitted."""

    def __init__(
        self,
        limit: int,
        resident: Callable[[], int] = resident_bytes,
        peak: Callable[[], int] = peak_bytes,
    ) -> None:
        """Create it.

        Args:
            limit: Bytes of memory that the process may use; 0 for no limit.
            resident: Returns the bytes that it uses.
            peak: Returns the most bytes that it has used.
        """
        self.ratio = FIRST_RATIO
        """Memory per decoded byte (see CHUNK_BYTES) that is planned for the next chunk."""
        self._limit = limit
        self._resident, self._peak = resident, peak
        self._base = resident() if limit else 0
        self._highest = 0
        self._admitted: list[int] = []
        """Decoded bytes of each chunk that is being mapped, with CHUNK_BYTES."""
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
                self._admitted.append(size)
            finally:
                self._waiting.remove(turn)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._measure()
                self._admitted.remove(size)
                self._changed.notify_all()

    def reserve(self, stored_bytes: int) -> bool:
        """Reserve memory for bytes that are read ahead; return whether there is enough."""
        with self._changed:
            after = self._ahead + stored_bytes
            if not self._limit:
                fits = after <= DEFAULT_AHEAD_BYTES
            else:
                planned = self.ratio * sum(self._admitted) + after
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
        planned = self.ratio * (sum(self._admitted) + size) + self._ahead
        return not self._admitted or planned <= self._budget

    def _measure(self) -> None:
        """Measure the memory per decoded byte of the chunks that are being mapped."""
        size = sum(self._admitted)
        if size < MIN_MEASURED_BYTES:
            return
        peak = self._peak()
        # The allocator keeps pages of earlier chunks for a while: only a new peak is theirs alone.
        if peak > self._highest:
            self._highest = peak
            self.ratio = max(self.ratio, self._ratio_of(peak, size))
        lower = self._ratio_of(self._resident(), size)
        if lower < self.ratio:
            self.ratio += FORGET * (lower - self.ratio)

    def _ratio_of(self, memory: int, size: int) -> float:
        return max(1.0, (memory - self._base - self._ahead) / size)


@cache
def worker_memory(limit: int) -> WorkerMemory:
    """Return the memory of this process, for all batches that it maps.

    Args:
        limit: Bytes that it may use; 0 for no limit.
    """
    return WorkerMemory(limit)
