"""Map the chunks of a run in rounds, until none is left or no progress is possible.

Works with any `Executor`.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl

from partitioning import Plan
from pipeline.config.job import Job
from pipeline.config.sections import BatchSettings
from pipeline.config.units import resolve_limit
from pipeline.report.humanize import plural
from pipeline.runs.driver.batching import Batcher, Throughput
from pipeline.runs.driver.driver_failures import DriverFailures
from pipeline.runs.driver.executor import Executor, Outcome
from pipeline.runs.driver.in_flight import InFlightBatches
from pipeline.runs.driver.ledger_counter import LedgerCounter
from pipeline.runs.driver.result_types import OutputFacts, ResultTypes, SeveralResultTypes
from pipeline.runs.driver.summary import MapProgress
from pipeline.runs.driver.suspects import Suspects
from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.ledger.records import Progress
from pipeline.runs.worker.batch import Batch
from pipeline.storage.outages import retry_until_available

log = logging.getLogger(__name__)

PAUSE_SECONDS = 2.0
"""Seconds before the second round; doubled for each further round, with jitter."""
HAND_BACKS = 20
"""Maximum number of times that a batch is resubmitted in one round because its worker shut down."""
RETYPE_PASSES = 2
"""Maximum number of times that chunks are mapped again for a column's type; one is usual."""


def pause(past: int) -> None:
    """Wait before a round, the longer the more rounds have passed, for what may pass."""
    time.sleep(PAUSE_SECONDS * 2 ** (past - 1) * random.uniform(0.5, 1.5))


@dataclass(slots=True)
class MapStage:
    """Maps the chunks of one run in rounds."""

    ledger: Ledger
    plan: Plan
    job: Job
    limits: BatchSettings
    executor: Executor
    listen: Callable[[MapProgress], None] = lambda _: None
    only_failed: bool = False
    """Whether to map only the chunks that failed before."""
    only: Collection[int] | None = None
    """Indices of the chunks to map; None for all."""
    on_count: Callable[[Progress], None] = lambda _: None
    """Callback with what is stored, after each count."""
    is_paused: Callable[[], bool] = lambda: False
    """Returns whether no further batch may be submitted now."""
    output: OutputFacts = field(default_factory=OutputFacts)
    further: Mapping[str, tuple[Callable[[Progress], Progress], OutputFacts]] = field(
        default_factory=dict
    )
    """Per output after the first: its progress, given that of the first, and its facts."""
    pace: Throughput = field(default_factory=Throughput)
    started: float = field(default_factory=time.time)
    batches: int = 0
    rounds: int = 0
    resumed: int = 0
    stopped: str = ""
    """Reason why the stage stopped early: too many failures, or no batch can work."""
    suspects: Suspects = field(default_factory=Suspects)
    failures: DriverFailures = field(init=False)
    _types: ResultTypes = field(init=False)
    _counter: LedgerCounter = field(init=False)
    _failed_before: int = 0
    _wanted: set[int] | None = None
    _handed_back: dict[str, int] = field(default_factory=dict)
    """Number of times that a batch came back because its worker shut down."""

    def __post_init__(self) -> None:
        self.failures = DriverFailures(self.ledger, self.plan)
        self._types = ResultTypes(self.output)
        if self.further:
            types = {n: (read, ResultTypes(facts)) for n, (read, facts) in self.further.items()}
            self._types = SeveralResultTypes(self.output, further=types)
        self._counter = LedgerCounter(self.ledger, self.on_count)

    def run(self) -> Progress:
        """Map until no chunk is left, the rounds are used up, or only final failures remain."""
        progress = retry_until_available(self.ledger.read)
        self.resumed = progress.completions.height
        failed = set(progress.failed()["index"].to_list())
        self._failed_before = len(failed)
        self._wanted = None if self.only is None else set(self.only)
        if self.only_failed:
            self._wanted = failed if self._wanted is None else failed & self._wanted
        self._counter.count(progress)
        if self._left(progress):
            self._types.load(progress)
        progress = self._run_rounds(progress)
        for _ in range(RETYPE_PASSES):
            if self.stopped or not self._retype_nulls(progress):
                break
            progress = self._run_rounds(retry_until_available(self.ledger.read))
        if self._record_lost(progress):
            progress = retry_until_available(self.ledger.read)
            self._counter.count(progress)
        self._report()
        return progress

    def _run_rounds(self, progress: Progress) -> Progress:
        before = self.rounds
        while self.rounds < before + self.job.rounds and not self.stopped:
            left = self._left(progress)
            if not left:
                break
            past = self.rounds - before
            if past:
                pause(past)
            self.rounds += 1
            self._run_round(left)
            progress = retry_until_available(self.ledger.read)
            self._counter.count(progress)
            self._types.update(progress)
        return progress

    def _retype_nulls(self, progress: Progress) -> bool:
        """Set aside completions whose all-null columns have a type in other chunks.

        Returns:
            Whether there were any; their chunks must be mapped again.
        """
        odd = self._types.odd_attempts(progress)
        if odd.is_empty():
            return False
        if self.only is not None:
            odd = odd.filter(pl.col("index").is_in(list(self.only)))
        self.ledger.set_aside(odd["attempt"].to_list())
        if self._wanted is not None:
            self._wanted |= set(odd["index"].to_list())
        return odd.join(progress.completions, on="attempt", how="semi").height > 0

    def _record_lost(self, progress: Progress) -> bool:
        """Record a failure for each chunk whose batch was lost in every round."""
        recorded = set(self.failures.own(progress.failures)["index"].to_list())
        lost = [index for index in self._left(progress) if index not in recorded]
        errors = self.suspects.errors
        if not lost or self.stopped or not errors:
            return False
        message = f"its batch was lost in each of {self.rounds} rounds: {errors[-1]}"
        self.failures.record(lost, "BatchLostError", message, transient=True)
        return True

    def _left(self, progress: Progress) -> list[int]:
        """List the chunks that are left, without those that failed for good in this driver."""
        final = self.failures.own(progress.failures).filter(~pl.col("transient"))
        failed = set(final["index"].to_list())
        left = [index for index in progress.left(len(self.plan)) if index not in failed]
        return left if self._wanted is None else [i for i in left if i in self._wanted]

    def _run_round(self, left: list[int]) -> None:
        suspects = [index for index in left if index in self.suspects.counts]
        others = [index for index in left if index not in self.suspects.counts]
        is_last = self.rounds >= self.job.rounds
        # Suspects go first, in ever smaller batches, until the culprit is alone in one.
        for indices, max_chunks in (
            (suspects, self.suspects.batch_size(suspects, is_last_round=is_last)),
            (others, self.limits.max_chunks),
        ):
            if indices and not self.stopped:
                self._map(indices, max_chunks)
        for outcome in self.suspects.take_killed_alone():
            if not self.stopped:
                self._map_alone(outcome)

    def _map_alone(self, outcome: Outcome) -> None:
        """Map a chunk with nothing else in flight: if the worker dies again, the chunk did it.

        A single death proves nothing: Dask blames it on all tasks of the worker, also those of
        other threads and those that had not begun.
        """
        if self.failures.has_failure(outcome.batch):
            return
        self._map(outcome.batch.indices, 1)
        for repeated in self.suspects.take_killed_alone():
            if not self.failures.has_failure(repeated.batch):
                self.failures.record_killed(repeated, self.job.chunks.target)

    def _map(self, indices: Sequence[int], max_chunks: int) -> None:
        sizes = self.plan.chunk_table["decoded_bytes"].to_numpy()
        batcher = Batcher(
            self.failures.new_prefix(self.rounds),
            indices,
            sizes[indices].tolist(),
            seconds=self.limits.seconds,
            max_chunks=max_chunks,
            pace=self.pace,
            types=self._types.to_text(),
        )
        in_flight = InFlightBatches(self.executor, self.limits)
        try:
            self._run_batches(batcher, in_flight)
        finally:
            in_flight.drop_all()

    def _run_batches(self, batcher: Batcher, in_flight: InFlightBatches) -> None:
        while not batcher.is_done or in_flight:
            if not self.is_paused():
                self.batches += in_flight.fill(batcher)
            self._report()
            for outcome in in_flight.wait_completed(1.0):
                self._handle(outcome)
                if outcome.result is not None and outcome.result.left:
                    self._resubmit(outcome.batch, in_flight)
            if batcher.is_done:
                in_flight.resubmit_stragglers(self.limits.seconds)
            self._counter.count_if_due(in_flight)
            self._counter.compact_if_due()
            if self.stopped or self._too_many_failures():
                return

    def _resubmit(self, batch: Batch, in_flight: InFlightBatches) -> None:
        """Submit a batch again whose worker was shut down.

        The next worker reads in the ledger which of its chunks are done. A batch that comes back
        too often waits for the next round: a shutdown is not the reason then.
        """
        times = self._handed_back.get(batch.name, 0)
        if times < HAND_BACKS:
            self._handed_back[batch.name] = times + 1
            in_flight.submit(batch)

    def _too_many_failures(self) -> bool:
        limit = self.job.max_failures
        if limit is None:
            return False
        failed = self._counter.totals["failed"] - self._failed_before
        if failed > resolve_limit(limit, len(self.plan)):
            self.stopped = f"{plural(failed, self.ledger.unit)} failed, and max_failures is {limit}"
        return bool(self.stopped)

    def _handle(self, outcome: Outcome) -> None:
        result = outcome.result
        if result is not None:
            self.suspects.clear_final_errors()
            self.pace.add(result.done + result.failed, result.decoded_bytes, result.seconds)
            if result.failed and self.job.max_failures is not None:
                self._counter.count_soon()  # Count now, to check the limit.
            return
        log.warning("batch %s: %s: %s", outcome.batch.name, outcome.kind, outcome.detail)
        self.suspects.add(outcome)
        if outcome.kind == "error":
            # The batch failed as a whole: record its error for each of its chunks.
            indices = outcome.batch.indices
            self.failures.record(indices, "BatchError", outcome.detail, transient=True)
            self.stopped = self.stopped or self.suspects.futile_reason()

    def _report(self) -> None:
        self.listen(
            MapProgress(
                chunks=len(self.plan),
                round=self.rounds,
                batches=self.batches,
                seconds=time.time() - self.started,
                resumed=self.resumed,
                errors=self._counter.errors,
                unit=self.ledger.unit,
                **self._counter.totals,
            )
        )
