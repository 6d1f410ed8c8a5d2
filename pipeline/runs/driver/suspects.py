"""Find the chunks that kill their worker, or make whole batches fail."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.runs.driver.executor import Outcome
from pipeline.runs.worker.batch import Batch

FUTILE_BATCHES = 5
"""Number of batches with a final error, before any batch works, that stops a run."""


@dataclass(slots=True)
class Suspects:
    """Chunks of batches that killed their worker or failed as a whole.

    They are mapped in ever smaller batches, until the culprit is alone in one.
    """

    counts: dict[int, int] = field(default_factory=dict)
    """Number of such batches that a chunk was in, by its index."""
    errors: list[str] = field(default_factory=list)
    """Errors of the batches that failed as a whole."""
    _killed_alone: list[Outcome] = field(default_factory=list)
    _final_errors: int | None = 0
    """Number of batches with a final error; None once a batch has worked."""

    def clear_final_errors(self) -> None:
        """Note that a batch has worked: no later error is everybody's."""
        self._final_errors = None

    def add(self, outcome: Outcome) -> None:
        """Add a batch that failed as a whole."""
        self.errors.append(outcome.detail)
        if outcome.kind == "killed":
            self._count(outcome.batch)
            if len(outcome.batch) == 1:
                self._killed_alone.append(outcome)
        elif outcome.kind == "error":
            if outcome.is_final and self._final_errors is not None:
                self._final_errors += 1
            if not outcome.is_transient:
                self._count(outcome.batch)

    def futile_reason(self) -> str:
        """Why no batch can work, if several ended with a final error and none has worked."""
        if (self._final_errors or 0) < FUTILE_BATCHES:
            return ""
        return (
            f"{self._final_errors} batches failed before their first chunk, and none has "
            f"worked: {self.errors[-1]}"
        )

    def take_killed_alone(self) -> list[Outcome]:
        """Return, once, the one-chunk batches whose worker died, of that chunk or of another."""
        outcomes, self._killed_alone = self._killed_alone, []
        return outcomes

    def batch_size(self, indices: Sequence[int], *, is_last_round: bool) -> int:
        """Return the maximum size of a batch of suspects: the square root at first, then 1."""
        worst = max((self.counts[index] for index in indices), default=1)
        return 1 if worst > 1 or is_last_round else max(1, math.isqrt(len(indices)))

    def _count(self, batch: Batch) -> None:
        for index in batch.indices:
            self.counts[index] = self.counts.get(index, 0) + 1
