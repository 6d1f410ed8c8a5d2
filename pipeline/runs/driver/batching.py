"""Chunks left -> batches. Pure.

Guided self-scheduling: a batch takes a share of the work that is left, so the first are large and
the last are small, and all workers end at about the same time (Polychronopoulos and Kuck, 1987:
share = left / (2 x threads)). Bounds on seconds and chunks keep a lost batch cheap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.runs.worker.batch import Batch, spec_of

GUESSED_SPEED = 100e6
"""Decoded bytes a thread maps in a second, until the first batches have been measured."""
PROBE = 8
"""Most chunks in a batch before the first has been measured."""
LEAST_SHARE = 10
"""The last batches are not smaller than this part of a whole one, unless that would leave a thread
without one: workers that end a tenth of a batch apart are close enough."""
SHARED_SECONDS = 0.04
"""What a batch takes of what all threads have in common, half of it Prefect's server. So many
threads must not ask for batches more often than that: with a thousand, whole ones run for 80 s."""
OVERLAPPING = 8
"""Chunks that a whole batch holds at least, however long they take: within one the next is read and
the last is staged while one is computed, but its first and its last have nobody beside them."""
CHUNK_OVERHEAD = 1e6
"""A chunk costs about as much as this many decoded bytes, however small it is (about 10 ms)."""


@dataclass(slots=True)
class Throughput:
    """What batches have taken so far. Shared by all that map the same transform side by side."""

    cost: float = 0.0
    """Decoded bytes and overhead."""
    seconds: float = 0.0
    """Of the threads that mapped them."""

    @property
    def speed(self) -> float:
        """Cost units that a thread maps in a second."""
        return self.cost / self.seconds if self.is_known else GUESSED_SPEED

    @property
    def is_known(self) -> bool:
        """Whether a batch has been measured."""
        return self.seconds >= 1e-9

    def measured(self, chunks: int, decoded_bytes: int, seconds: float) -> None:
        """Learn from a finished batch."""
        self.cost += decoded_bytes + chunks * CHUNK_OVERHEAD
        self.seconds += seconds


class Batcher:
    """Cuts what is left into batches, one at a time, with sizes that follow the measured speed."""

    def __init__(
        self,
        prefix: str,
        indices: Sequence[int],
        decoded_bytes: Sequence[int],
        *,
        seconds: float,
        max_chunks: int,
        pace: Throughput | None = None,
        shared: float = SHARED_SECONDS,
        types: str = "",
    ) -> None:
        """Start.

        Args:
            prefix: Begins the name of each batch.
            indices: What is left, ascending.
            decoded_bytes: Estimated size of each of them.
            seconds: How long a batch should run at most, while threads are few and chunks small.
            max_chunks: Most chunks in a batch.
            pace: What is known of the speed, and learns more. Default: nothing.
            shared: Seconds that a batch takes of what all threads have in common.
            types: See `Batch.types`.
        """
        self.pace = pace or Throughput()
        self._prefix = prefix
        self._indices = indices
        self._costs = [size + CHUNK_OVERHEAD for size in decoded_bytes]
        self._left = sum(self._costs)
        self._seconds = seconds
        self._max_chunks = max_chunks
        self._shared = shared
        self._types = types
        self._position = 0
        self._number = 0
        self._last: float | None = None
        """Cost units of each thread's last batch, once less than a least one for each is left."""

    def take(self, threads: int) -> Batch | None:
        """The next batch for a cluster of so many threads, or None when all is handed out."""
        if self._position >= len(self._indices):
            return None
        budget = self._budget(max(1, threads))
        start, cost = self._position, 0.0
        # Until the speed is known, a batch is a probe: chunks may take a second as well as a
        # millisecond, and the first of them must come back soon.
        most = self._max_chunks if self.pace.is_known else min(PROBE, self._max_chunks)
        while self._position < len(self._indices) and self._position - start < most:
            following = self._costs[self._position]
            # To the nearest whole chunk: within a batch, one is read while another is computed.
            if self._position > start and cost + following / 2 > budget:
                break
            cost += following
            self._position += 1
        self._left -= cost
        self._number += 1
        name = f"{self._prefix}{self._number:05d}"
        return Batch(name, spec_of(self._indices[start : self._position]), self._types)

    def _budget(self, threads: int) -> float:
        """Cost units of the next batch."""
        shared, speed, share = threads * self._shared, self.pace.speed, self._left / threads
        several = OVERLAPPING * self._left / (len(self._indices) - self._position)
        most = max(max(self._seconds, 2 * shared) * speed, several)
        if not self.pace.is_known:
            return min(share / 2, most)
        least = max(self._seconds / LEAST_SHARE, shared) * speed
        if self._last is None and share < least:
            # Rounded up to a whole chunk, lest a few of them be left over.
            self._last = share + 0.49 * self._costs[self._position]
        return min(max(share / 2, least if self._last is None else self._last), most)
