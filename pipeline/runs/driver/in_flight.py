"""Track the batches in flight, and resubmit stragglers speculatively."""

from __future__ import annotations

import time
from collections.abc import Iterator

from pipeline.config.sections import BatchSettings
from pipeline.runs.driver.batching import Batcher
from pipeline.runs.driver.executor import Executor, Outcome
from pipeline.runs.worker.batch import Batch


class InFlightBatches:
    """Batches in flight; resubmits stragglers speculatively."""

    def __init__(self, executor: Executor, limits: BatchSettings) -> None:
        self._executor = executor
        self._limits = limits
        self._since: dict[str, float] = {}
        self._copies: dict[str, int] = {}
        self._batches: dict[str, Batch] = {}
        self.first_name = ""
        """Smallest name of the batches in flight since `mark_read`: only these can have stored
        segments since. Empty if there were none."""

    def __len__(self) -> int:
        return len(self._batches)

    def submit(self, batch: Batch) -> None:
        """Submit a batch that is not in flight."""
        self._batches[batch.name] = batch
        self.first_name = min(self.first_name or batch.name, batch.name)
        self._copies[batch.name] = 1
        self._since[batch.name] = time.monotonic()
        self._executor.submit(batch)

    def fill(self, batcher: Batcher) -> int:
        """Submit batches until enough are in flight for the cluster's threads; return how many."""
        threads, submitted = self._executor.threads, 0
        while len(self) < threads * self._limits.in_flight_per_thread:
            batch = batcher.take(threads)
            if batch is None:
                break
            self.submit(batch)
            submitted += 1
        return submitted

    def wait_completed(self, seconds: float) -> Iterator[Outcome]:
        """Yield the outcome of each batch that ended: of its first copy to finish, or its last."""
        for outcome in self._executor.wait(seconds):
            name = outcome.batch.name
            if name not in self._batches:
                continue
            self._copies[name] -= 1
            if outcome.kind == "finished" or not self._copies[name]:
                self._executor.drop(self._batches.pop(name))
                yield outcome

    def mark_read(self) -> None:
        """Record that all segments stored so far have been read."""
        self.first_name = min(self._batches, default="")

    def resubmit_stragglers(self, expected_seconds: float) -> None:
        """Submit a second copy of each batch that is far past its expected time.

        Two completions of one chunk are harmless, and a hung worker never ends its batch.
        """
        factor, least = self._limits.straggler_factor, self._limits.straggler_seconds
        latest = time.monotonic() - max(least, factor * expected_seconds)
        for name, batch in self._batches.items():
            if self._since[name] < latest and self._copies[name] == 1:
                self._copies[name] += 1
                self._executor.submit(batch)

    def drop_all(self) -> None:
        """Drop all batches in flight."""
        for batch in self._batches.values():
            self._executor.drop(batch)
        self._batches.clear()
