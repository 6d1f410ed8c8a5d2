"""Batches in flight: how long each may take, and backups for stragglers."""

from __future__ import annotations

import time
from collections.abc import Iterator

from pipeline.config.sections import BatchSettings
from pipeline.runs.driver.executor import Executor, Outcome
from pipeline.runs.worker.batch import Batch


class InFlightBatches:
    """The batches that are under way, with how long each may take."""

    def __init__(self, executor: Executor, limits: BatchSettings) -> None:
        self._executor = executor
        self._limits = limits
        self._since: dict[str, float] = {}
        self._copies: dict[str, int] = {}
        self._batches: dict[str, Batch] = {}
        self.least = ""
        """The least name of all batches that have been under way since `looked`: only they can have
        stored anything since. Empty if there were none."""

    def __len__(self) -> int:
        return len(self._batches)

    def send(self, batch: Batch) -> None:
        """Submit a batch for the first time."""
        self._batches[batch.name] = batch
        self.least = min(self.least or batch.name, batch.name)
        self._copies[batch.name] = 1
        self._since[batch.name] = time.monotonic()
        self._executor.submit(batch)

    def landed(self, seconds: float) -> Iterator[Outcome]:
        """The outcome of each batch that came in: of its first copy to finish, or its last."""
        for outcome in self._executor.wait(seconds):
            name = outcome.batch.name
            if name not in self._batches:
                continue
            self._copies[name] -= 1
            if outcome.kind == "finished" or not self._copies[name]:
                self._executor.drop(self._batches.pop(name))
                yield outcome

    def looked(self) -> None:
        """Note that all was read that batches have stored."""
        self.least = min(self._batches, default="")

    def resubmit_stragglers(self, expected_seconds: float) -> None:
        """Submit batches once more that are far past their time, without waiting for the first.

        Two completions of one chunk are harmless, and a stopped worker never ends a batch.
        """
        factor, least = self._limits.straggler_factor, self._limits.straggler_seconds
        latest = time.monotonic() - max(least, factor * expected_seconds)
        for name, batch in self._batches.items():
            if self._since[name] < latest and self._copies[name] == 1:
                self._copies[name] += 1
                self._executor.submit(batch)

    def abandon(self) -> None:
        """Drop everything."""
        for batch in self._batches.values():
            self._executor.drop(batch)
        self._batches.clear()
