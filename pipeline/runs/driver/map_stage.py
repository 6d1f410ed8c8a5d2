"""Map the chunks of a run in rounds, until none is left or no progress is possible.

Works with any `Executor`.
"""

from __future__ import annotations

import json
import math
import random
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import polars as pl

from partitioning import Plan
from pipeline.config.job import Job
from pipeline.config.sections import BatchSettings
from pipeline.config.units import format_size, resolve_limit
from pipeline.runs.driver.batching import Batcher, Throughput
from pipeline.runs.driver.executor import Executor, Outcome
from pipeline.runs.driver.in_flight import InFlightBatches
from pipeline.runs.driver.summary import MapProgress
from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.ledger.records import Failure, Progress
from pipeline.runs.worker.batch import Batch
from pipeline.runs.worker.null_types import MAX_TEXT, agreed_types, odd_attempts
from pipeline.storage.outages import best_effort, retry_until_available
from pipeline.table.column_types import has_nulls
from pipeline.table.columns import Columns

FUTILE_BATCHES = 5
"""Number of batches with a final error, before any batch works, that stops a run."""
PAUSE_SECONDS = 2.0
"""Seconds before the second round; doubled for each further round, with jitter."""
COUNT_SECONDS = 2.0
"""Minimum seconds between two counts of what is stored, while batches are in flight."""
COUNT_PAUSE_FACTOR = 1
"""Minimum pause after a count, as a multiple of the count's duration; 1 leaves half of the driver's
time for batches. Simulated, a million chunks on 1,000 workers take 55 minutes without a pause, 58
with this one, and 74 with 4 (more accumulates between counts)."""
HAND_BACKS = 20
"""Maximum number of times that a batch is resubmitted in one round because its worker shut down."""
MESSAGE_CHARACTERS = 10_000
"""Maximum length of a batch's error message; longer ones are cut."""
SEGMENT_FAILURES = 1_000
"""Maximum number of failures in a segment that the driver writes."""
RETYPE_PASSES = 2
"""Maximum number of times that chunks are mapped again for a column's type; one is usual."""
COMPACT_SECONDS = 60.0
"""Seconds between two compactions of the ledger's segments."""
COMPACT_SEGMENTS = 200
"""Minimum number of segments worth compacting: fewer are read within a second."""


@dataclass(frozen=True, slots=True)
class OutputFacts:
    """Facts about the output that a map stage needs."""

    types: Callable[[], Columns] = dict
    """Returns the types of the output's columns, for columns that are all null in a chunk."""
    published: Callable[[], Collection[str]] = tuple
    """Returns the ids of the run's published chunks, which are not mapped again."""


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
    output: OutputFacts = OutputFacts()
    pace: Throughput = field(default_factory=Throughput)
    started: float = field(default_factory=time.time)
    batches: int = 0
    rounds: int = 0
    resumed: int = 0
    stopped: str = ""
    """Reason why the stage stopped early: too many failures, or no batch can work."""
    details: list[str] = field(default_factory=list)
    """Errors of the batches that failed as a whole."""
    _suspects: dict[int, int] = field(default_factory=dict)
    """Number of batches with this chunk that killed their worker or failed as a whole."""
    _totals: dict[str, int] = field(default_factory=dict)
    _killed_alone: list[Outcome] = field(default_factory=list)
    """Outcomes of one-chunk batches whose worker died: by that chunk, or another one there."""
    _prefixes: list[str] = field(default_factory=lambda: [f"driver-{uuid.uuid4().hex[:8]}-"])
    """Name prefixes of this driver's batches; the first is that of its own records."""
    _failed_before: int = 0
    _wanted: set[int] | None = None
    _handed_back: dict[str, int] = field(default_factory=dict)
    """Number of times that a batch came back because its worker shut down."""
    _counted_at: float = 0.0
    _count_seconds: float = 0.0
    """Duration of the last count."""
    _compacted_at: float = field(default_factory=time.monotonic)
    _output_types: Columns = field(default_factory=dict)
    """Types of the output's columns."""
    _null_types: Columns = field(default_factory=dict)
    """Types of the columns that are all null in some chunks."""
    _final_errors: int | None = 0
    """Number of batches with a final error; None once a batch has worked."""

    def run(self) -> Progress:
        """Map until no chunk is left, the rounds are used up, or only final failures remain."""
        progress = retry_until_available(self.ledger.read)
        self.resumed = progress.completions.height
        failed = set(progress.failed()["index"].to_list())
        self._failed_before = len(failed)
        self._wanted = None if self.only is None else set(self.only)
        if self.only_failed:
            self._wanted = failed if self._wanted is None else failed & self._wanted
        self._count(progress)
        if self._left(progress):
            self._output_types = retry_until_available(self.output.types)
            self._null_types = agreed_types(progress, self._output_types)
        progress = self._run_rounds(progress)
        for _ in range(RETYPE_PASSES):
            if self.stopped or not self._retype_nulls(progress):
                break
            progress = self._run_rounds(retry_until_available(self.ledger.read))
        if self._record_lost(progress):
            progress = retry_until_available(self.ledger.read)
            self._count(progress)
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
                time.sleep(PAUSE_SECONDS * 2 ** (past - 1) * random.uniform(0.5, 1.5))
            self.rounds += 1
            self._run_round(left)
            progress = retry_until_available(self.ledger.read)
            self._count(progress)
            self._null_types = agreed_types(progress, self._output_types)
        return progress

    def _retype_nulls(self, progress: Progress) -> bool:
        """Set aside completions whose all-null columns have a type in other chunks.

        Returns:
            Whether there were any; their chunks must be mapped again.
        """
        self._null_types = agreed_types(progress, self._output_types)
        odd = odd_attempts(progress, self._null_types)
        if odd.is_empty():
            return False
        published = retry_until_available(self.output.published)
        odd = odd.filter(~pl.col("chunk").is_in(list(published)))
        if self.only is not None:
            odd = odd.filter(pl.col("index").is_in(list(self.only)))
        self.ledger.set_aside(odd["attempt"].to_list())
        if self._wanted is not None:
            self._wanted |= set(odd["index"].to_list())
        return odd.join(progress.completions, on="attempt", how="semi").height > 0

    def _record_lost(self, progress: Progress) -> bool:
        """Record a failure for each chunk whose batch was lost in every round."""
        recorded = set(self._own_failures(progress.failures)["index"].to_list())
        lost = [index for index in self._left(progress) if index not in recorded]
        if not lost or self.stopped or not self.details:
            return False
        message = f"its batch was lost in each of {self.rounds} rounds: {self.details[-1]}"
        self._record(lost, "BatchLostError", message, transient=True)
        return True

    def _left(self, progress: Progress) -> list[int]:
        """List the chunks that are left, without those that failed for good in this driver."""
        final = self._own_failures(progress.failures).filter(~pl.col("transient"))
        failed = set(final["index"].to_list())
        left = [index for index in progress.left(len(self.plan)) if index not in failed]
        return left if self._wanted is None else [i for i in left if i in self._wanted]

    def _own_failures(self, failures: pl.DataFrame) -> pl.DataFrame:
        """Select the failures of this driver's batches, by name: workers' clocks may differ."""
        prefixes = failures["batch"].str.replace(r"\d+$", "")
        return failures.filter(prefixes.is_in(self._prefixes))

    def _run_round(self, left: list[int]) -> None:
        suspects = [index for index in left if index in self._suspects]
        others = [index for index in left if index not in self._suspects]
        # Suspects go first, in ever smaller batches, until the culprit is alone in one.
        for indices, max_chunks in (
            (suspects, self._suspect_batch_size(suspects)),
            (others, self.limits.max_chunks),
        ):
            if indices and not self.stopped:
                self._map(indices, max_chunks)
        outcomes, self._killed_alone = self._killed_alone, []
        for outcome in outcomes:
            if not self.stopped:
                self._map_alone(outcome)

    def _map_alone(self, outcome: Outcome) -> None:
        """Map a chunk with nothing else in flight: if the worker dies again, the chunk did it.

        A single death proves nothing: Dask blames it on all tasks of the worker, also those of
        other threads and those that had not begun.
        """
        if self._has_failure(outcome.batch):
            return
        self._map(outcome.batch.indices, 1)
        again, self._killed_alone = self._killed_alone, []
        for repeated in again:
            if not self._has_failure(repeated.batch):
                self._blame(repeated)

    def _suspect_batch_size(self, suspects: Sequence[int]) -> int:
        """Return the maximum size of a batch of suspects: the square root at first, then 1."""
        worst = max((self._suspects[index] for index in suspects), default=1)
        if worst > 1 or self.rounds >= self.job.rounds:
            return 1
        return max(1, math.isqrt(len(suspects)))

    def _map(self, indices: Sequence[int], max_chunks: int) -> None:
        sizes = self.plan.chunk_table["decoded_bytes"].to_numpy()
        self._prefixes.append(f"r{self.rounds}-{uuid.uuid4().hex[:4]}-")
        batcher = Batcher(
            self._prefixes[-1],
            indices,
            sizes[indices].tolist(),
            seconds=self.limits.seconds,
            max_chunks=max_chunks,
            pace=self.pace,
            types=self._types_text(),
        )
        in_flight = InFlightBatches(self.executor, self.limits)
        try:
            self._run_batches(batcher, in_flight)
        finally:
            in_flight.drop_all()

    def _types_text(self) -> str:
        typed = {name: kind for name, kind in self._output_types.items() if not has_nulls(kind)}
        text = json.dumps(typed | self._null_types)
        if len(text) > MAX_TEXT:
            text = json.dumps(self._null_types)
        return text if self._null_types or typed else ""

    def _run_batches(self, batcher: Batcher, in_flight: InFlightBatches) -> None:
        more = True
        while more or in_flight:
            threads = self.executor.threads
            limit = 0 if self.is_paused() else threads * self.limits.in_flight_per_thread
            while more and len(in_flight) < limit:
                batch = batcher.take(threads)
                more = batch is not None
                if batch is not None:
                    in_flight.submit(batch)
                    self.batches += 1
            for outcome in in_flight.wait_completed(1.0):
                self._handle(outcome)
                if outcome.result is not None and outcome.result.left:
                    self._resubmit(outcome.batch, in_flight)
            if not more:
                in_flight.resubmit_stragglers(self.limits.seconds)
            self._count_if_due(in_flight)
            self._report()
            self._compact_if_due()
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
        failed = self._totals["failed"] - self._failed_before
        if failed > resolve_limit(limit, len(self.plan)):
            self.stopped = f"{failed:,} chunks failed, and max_failures is {limit}"
        return bool(self.stopped)

    def _compact_if_due(self) -> None:
        if time.monotonic() - self._compacted_at < COMPACT_SECONDS:
            return
        self._compacted_at = time.monotonic()
        if self.ledger.uncompacted > COMPACT_SEGMENTS:
            with best_effort():
                self.ledger.compact()

    def _count_if_due(self, in_flight: InFlightBatches) -> None:
        """Count what is stored: batches store their chunks long before they end.

        What others store meanwhile (another driver, a worker counted as lost) is counted at the
        end of the round.
        """
        # With 1,000 workers a count takes most of a minute; leave time for batches.
        pause = max(COUNT_SECONDS, COUNT_PAUSE_FACTOR * self._count_seconds)
        clock = time.monotonic()
        if clock - self._counted_at >= pause:
            with best_effort():
                self._count(self.ledger.read(in_flight.first_name))
                in_flight.mark_read()
                self._count_seconds = time.monotonic() - clock

    def _handle(self, outcome: Outcome) -> None:
        result = outcome.result
        if result is not None:
            self._final_errors = None
            self.pace.add(result.done + result.failed, result.decoded_bytes, result.seconds)
            if result.failed and self.job.max_failures is not None:
                self._counted_at = 0.0  # Count now, to check the limit.
            return
        self.details.append(outcome.detail)
        if outcome.kind == "killed":
            self._suspect(outcome.batch)
            if len(outcome.batch) == 1:
                self._killed_alone.append(outcome)
        elif outcome.kind == "error":
            # The batch failed as a whole: record its error for each of its chunks.
            self._record(outcome.batch.indices, "BatchError", outcome.detail, transient=True)
            self._stop_if_futile(outcome)
            if not outcome.is_transient:
                self._suspect(outcome.batch)

    def _suspect(self, batch: Batch) -> None:
        """Count that one of a batch's chunks may be what makes whole batches fail."""
        for index in batch.indices:
            self._suspects[index] = self._suspects.get(index, 0) + 1

    def _stop_if_futile(self, outcome: Outcome) -> None:
        """Stop if several batches ended with a final error and none has worked."""
        if self._final_errors is None or not outcome.is_final:
            return
        self._final_errors += 1
        if self._final_errors >= FUTILE_BATCHES:
            self.stopped = (
                f"{self._final_errors} batches failed before their first chunk, and none has "
                f"worked: {outcome.detail}"
            )

    def _has_failure(self, batch: Batch) -> bool:
        """Whether the worker recorded a failure (e.g. of a chunk that hung) before it ended."""
        return retry_until_available(partial(self.ledger.of_batch, batch.name)).failures.height > 0

    def _blame(self, outcome: Outcome) -> None:
        [chunk] = self.plan.chunks(outcome.batch.indices)
        message = (
            f"the worker died while this chunk, of {format_size(chunk.decoded_bytes)} decoded, was "
            f"the only one in flight: {outcome.detail}. If it ran out of memory, plan again "
            f"(--replan) with a chunks.target below {format_size(self.job.chunks.target)}"
        )
        self._record(outcome.batch.indices, "WorkerKilledError", message, transient=False)

    def _record(self, indices: Iterable[int], error: str, message: str, *, transient: bool) -> None:
        failures = [
            Failure(
                chunk=chunk.id,
                index=chunk.index,
                batch=self._prefixes[0],
                attempt=uuid.uuid4().hex,
                worker="driver",
                at=time.time(),
                error=error,
                message=message[:MESSAGE_CHARACTERS],
                transient=transient,
                trace="",
            )
            for chunk in self.plan.chunks(indices)
        ]
        # In several segments: readers limit the size of one.
        for start in range(0, len(failures), SEGMENT_FAILURES):
            segment = f"driver-{uuid.uuid4().hex}"
            part = failures[start : start + SEGMENT_FAILURES]
            retry_until_available(partial(self.ledger.write_segment, segment, part))

    def _count(self, progress: Progress) -> None:
        self._counted_at = time.monotonic()
        self.on_count(progress)
        done = progress.completions
        self._totals = {
            name: int(done[name].sum()) for name in ("rows_in", "rows_out", "bytes_in", "bytes_out")
        }
        self._totals |= {"done": done.height, "failed": progress.failed().height}

    def _report(self) -> None:
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
