"""Rounds: map what is left, look again, until nothing is left or nothing more can be done.

Knows no engine: whatever can run a batch and say what became of it will do.
"""

from __future__ import annotations

import math
import random
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import polars as pl

from partitioning import Plan
from pipeline.batches import Batch, Batcher
from pipeline.job import Job
from pipeline.ledger import Failure, Ledger, Progress
from pipeline.mapping import BatchResult, map_batch
from pipeline.settings import BatchSettings

Kind = Literal["finished", "error", "killed", "cancelled", "lost"]
"""What became of a batch: `killed` took its worker with it, `lost` vanished with the scheduler."""
PAUSE_SECONDS = 2.0
"""Wait before the second round; doubled for each further one, jittered."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one batch."""

    batch: Batch
    kind: Kind
    result: BatchResult | None = None
    """Only of a finished one."""
    detail: str = ""
    """What is known otherwise."""


class Engine(Protocol):
    """What runs batches."""

    @property
    def threads(self) -> int:
        """Batches that run at the same time."""
        ...

    def submit(self, batch: Batch) -> None:
        """Start a batch, or queue it."""
        ...

    def wait(self, seconds: float) -> list[Outcome]:
        """Outcomes that have come in; waits at most so long for the first."""
        ...


class SerialEngine:
    """Runs each batch at once, in this process: the oracle of the others."""

    threads = 1

    def __init__(self, run_uri: str, fingerprint: str) -> None:
        self._run = run_uri, fingerprint
        self._outcomes: list[Outcome] = []

    def submit(self, batch: Batch) -> None:
        """See `Engine.submit`."""
        try:
            result = map_batch(*self._run, batch)
            self._outcomes.append(Outcome(batch, "finished", result))
        except Exception as error:
            self._outcomes.append(
                Outcome(batch, "error", detail=f"{type(error).__name__}: {error}")
            )

    def wait(self, seconds: float) -> list[Outcome]:
        """See `Engine.wait`."""
        outcomes, self._outcomes = self._outcomes, []
        return outcomes


@dataclass(frozen=True, slots=True)
class MapProgress:
    """How far the mapping is, as far as the driver knows."""

    chunks: int
    """Planned."""
    done: int
    failed: int
    rows_in: int
    rows_out: int
    bytes_in: int
    bytes_out: int
    round: int
    batches: int
    """Batches handed out by this driver."""
    seconds: float
    """Since this driver began to map."""
    resumed: int
    """Chunks that were done before."""


@dataclass(slots=True)
class Mapper:
    """Drives the rounds of one run."""

    ledger: Ledger
    plan: Plan
    job: Job
    limits: BatchSettings
    engine: Engine
    listen: Callable[[MapProgress], None] = lambda _: None
    started: float = field(default_factory=time.time)
    batches: int = 0
    rounds: int = 0
    resumed: int = 0
    details: list[str] = field(default_factory=list)
    """What batches that failed as a whole said."""
    _suspects: dict[int, int] = field(default_factory=dict)
    """Chunks of batches that killed their worker, with how often."""
    _totals: dict[str, int] = field(default_factory=dict)

    def run(self) -> Progress:
        """Map until nothing is left, the rounds are used up, or only terminal failures remain."""
        progress = self.ledger.read()
        self.resumed = progress.completions.height
        self._count(progress)
        while self.rounds < self.job.rounds:
            left = self._worth_mapping(progress)
            if not left:
                break
            if self.rounds:
                time.sleep(PAUSE_SECONDS * 2 ** (self.rounds - 1) * random.uniform(0.5, 1.5))
            self.rounds += 1
            self._round(left)
            progress = self.ledger.read()
            self._count(progress)
        self._tell()
        return progress

    def _worth_mapping(self, progress: Progress) -> list[int]:
        """What is left, less what has failed for good since this driver began."""
        recent = progress.failures.filter(pl.col("at") >= self.started, ~pl.col("transient"))
        hopeless = set(recent["index"].to_list())
        return [index for index in progress.left(len(self.plan)) if index not in hopeless]

    def _round(self, left: list[int]) -> None:
        suspects = [index for index in left if index in self._suspects]
        others = [index for index in left if index not in self._suspects]
        # Suspects go first and in ever smaller batches, so that the culprit ends up alone.
        worst = max((self._suspects[index] for index in suspects), default=0)
        size = (
            1
            if self.rounds >= self.job.rounds
            else math.isqrt(len(suspects)) // worst
            if worst
            else 1
        )
        for indices, most in ((suspects, max(1, size)), (others, self.limits.max_chunks)):
            if indices:
                self._map(indices, most)

    def _map(self, indices: Sequence[int], most: int) -> None:
        sizes = self.plan.chunk_table["decoded_bytes"].to_numpy()
        batcher = Batcher(
            f"r{self.rounds}-{uuid.uuid4().hex[:4]}-",
            indices,
            [int(sizes[index]) for index in indices],
            threads=self.engine.threads,
            seconds=self.limits.seconds,
            max_chunks=most,
        )
        ahead = self.engine.threads * self.limits.in_flight_per_thread
        in_flight = 0
        while True:
            while in_flight < ahead and (batch := batcher.take()) is not None:
                self.engine.submit(batch)
                self.batches += 1
                in_flight += 1
            if not in_flight:
                return
            for outcome in self.engine.wait(1.0):
                in_flight -= 1
                self._settle(outcome, batcher)
            self._tell()

    def _settle(self, outcome: Outcome, batcher: Batcher) -> None:
        result = outcome.result
        if result is not None:
            batcher.measured(result.done + result.failed, result.decoded_bytes, result.seconds)
            for name in ("done", "failed", "rows_in", "rows_out", "bytes_in", "bytes_out"):
                self._totals[name] += getattr(result, name)
            return
        self.details.append(outcome.detail)
        if outcome.kind == "killed":
            for index in outcome.batch.indices:
                self._suspects[index] = self._suspects.get(index, 0) + 1
            if len(outcome.batch) == 1:
                self._record_killer(outcome)
        elif outcome.kind == "error":
            # The batch never got to its chunks; its reason is theirs.
            self._record(outcome.batch.indices, "BatchError", outcome.detail, transient=True)

    def _record_killer(self, outcome: Outcome) -> None:
        message = (
            f"the worker died while this chunk was alone in its batch ({outcome.detail}); if it "
            f"ran out of memory, plan again with a chunks.target below "
            f"{self.job.chunks.target >> 20} MiB"
        )
        self._record(outcome.batch.indices, "WorkerKilledError", message, transient=False)

    def _record(self, indices: Iterable[int], error: str, message: str, *, transient: bool) -> None:
        failures = [
            Failure(
                chunk=chunk.id,
                index=chunk.index,
                batch="driver",
                attempt=uuid.uuid4().hex,
                worker="driver",
                at=time.time(),
                error=error,
                message=message,
                transient=transient,
                trace="",
            )
            for chunk in self.plan.chunks(indices)
        ]
        self.ledger.write_segment(f"driver-{uuid.uuid4().hex}", failures)

    def _count(self, progress: Progress) -> None:
        done = progress.completions
        self._totals = {
            name: int(done[name].sum()) for name in ("rows_in", "rows_out", "bytes_in", "bytes_out")
        }
        self._totals |= {"done": done.height, "failed": progress.failed().height}

    def _tell(self) -> None:
        self.listen(
            MapProgress(
                chunks=len(self.plan),
                round=self.rounds,
                batches=self.batches,
                seconds=time.time() - self.started,
                resumed=self.resumed,
                **self._totals,
            )
        )
