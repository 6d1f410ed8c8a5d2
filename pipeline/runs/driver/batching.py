"""Cut the chunks that are left into batches. Pure.

Guided self-scheduling: a batch takes a share of the remaining work, so the first batches are large,
the last are small, and all workers end at about the same time (Polychronopoulos and Kuck, 1987:
share = left / (2 x threads)). Limits on seconds and chunks keep a lost batch cheap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.runs.worker.batch import Batch, spec_of

GUESSED_SPEED = 100e6
"""Assumed speed of a thread, in decoded bytes per second, until the first batch is measured."""
MAX_PROBE_CHUNKS = 8
"""Maximum number of chunks in a batch until the first batch is measured."""
MIN_BATCH_DIVISOR = 10
"""Divisor of a full batch that gives the smallest one. Smaller batches are made only if a thread
would get none: it is good enough if workers end a tenth of a batch apart."""
SHARED_SECONDS = 0.04
"""Seconds that a batch occupies what all threads share (driver and Prefect server, half each).
Batches get longer with more threads, to limit that load: about 80 s with 1,000 threads."""
MIN_BATCH_CHUNKS = 8
"""Minimum number of chunks in a full batch, however long they take. Within a batch, reading and
staging overlap with computing, except for its first and its last chunk."""
CHUNK_OVERHEAD = 1e6
"""Fixed cost of a chunk, in decoded bytes (about 10 ms)."""


@dataclass(slots=True)
class Throughput:
    """Measured speed of batches; shared by all runs that map the same transform in parallel."""

    cost: float = 0.0
    """Decoded bytes and overhead of the measured batches."""
    seconds: float = 0.0
    """Thread seconds of the measured batches."""
    remembered: float = 0.0
    """Speed of an earlier run of the same code, until a batch is measured; 0 if there is none."""

    @property
    def speed(self) -> float:
        """Cost units that a thread maps per second."""
        return self.cost / self.seconds if self.is_measured else self.remembered or GUESSED_SPEED

    @property
    def is_known(self) -> bool:
        """Whether a batch has been measured, now or in an earlier run."""
        return self.is_measured or self.remembered > 0

    @property
    def is_measured(self) -> bool:
        """Whether a batch has been measured."""
        return self.seconds >= 1e-9

    def add(self, chunks: int, decoded_bytes: int, seconds: float) -> None:
        """Add the figures of a finished batch."""
        self.cost += decoded_bytes + chunks * CHUNK_OVERHEAD
        self.seconds += seconds


class Batcher:
    """Cuts the remaining chunks into batches, one at a time, sized by the measured speed."""

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
            prefix: Start of each batch's name.
            indices: Indices of the remaining chunks, ascending.
            decoded_bytes: Estimated size of each of these chunks.
            seconds: Target duration of a batch; longer with many threads or large chunks.
            max_chunks: Maximum number of chunks in a batch.
            pace: Measured speed, updated by the caller. Default: nothing measured yet.
            shared: Seconds that a batch occupies what all threads share.
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
        """Cost of each thread's last batch, once less than a smallest batch per thread is left."""

    @property
    def is_done(self) -> bool:
        """Whether no chunk is left."""
        return self._position >= len(self._indices)

    def take(self, threads: int) -> Batch | None:
        """Return the next batch for a cluster of this many threads; None if no chunk is left."""
        if self.is_done:
            return None
        budget = self._budget(max(1, threads))
        start, cost = self._position, 0.0
        # Until the speed is known, batches are small: a chunk may take a millisecond or a second,
        # and the first measurement is needed soon.
        most = self._max_chunks if self.pace.is_known else min(MAX_PROBE_CHUNKS, self._max_chunks)
        while self._position < len(self._indices) and self._position - start < most:
            following = self._costs[self._position]
            # Round to the nearest whole chunk.
            if self._position > start and cost + following / 2 > budget:
                break
            cost += following
            self._position += 1
        self._left -= cost
        self._number += 1
        name = f"{self._prefix}{self._number:05d}"
        return Batch(name, spec_of(self._indices[start : self._position]), self._types)

    def _budget(self, threads: int) -> float:
        """Return the cost of the next batch."""
        shared, speed, share = threads * self._shared, self.pace.speed, self._left / threads
        several = MIN_BATCH_CHUNKS * self._left / (len(self._indices) - self._position)
        most = max(max(self._seconds, 2 * shared) * speed, several)
        if not self.pace.is_known:
            return min(share / 2, most)
        least = max(self._seconds / MIN_BATCH_DIVISOR, shared) * speed
        if self._last is None and share < least:
            # Round up to a whole chunk, so that no chunks are left over.
            self._last = share + 0.49 * self._costs[self._position]
        if self._last is not None:
            # If chunks take longer since then, a last batch must not take longer than the least.
            least = min(self._last, least + 0.49 * self._costs[self._position])
        return min(max(share / 2, least), most)
