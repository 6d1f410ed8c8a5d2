"""Rounds: map what is left, look again, until nothing is left or nothing more can be done.

Knows no executor: whatever can run a batch and say what became of it will do.
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
from pipeline.runs.worker.null_types import MOST_TEXT, agreed_types, odd_attempts
from pipeline.storage.outages import best_effort, retry_until_available
from pipeline.table.column_types import has_nulls
from pipeline.table.columns import Columns

FUTILE_BATCHES = 5
"""So many batches that cannot work at all, before any that does, end a run."""
PAUSE_SECONDS = 2.0
"""Wait before the second round; doubled for each further one, jittered."""
LOOK_SECONDS = 2.0
"""How often the driver counts what is stored while batches are under way."""
LOOK_PAUSES = 1
"""It pauses at least so many times as long as the last count took, which leaves it half of its time
for batches. Simulated, a million chunks on a thousand workers are mapped in 55 minutes without a
pause, 58 with this one, 74 with one four times as long: there is then much to catch up with."""
HAND_BACKS = 20
"""How often a batch is handed out again because its worker was told to leave, in one round."""
MESSAGE_CHARACTERS = 10_000
"""Longer messages, of what ended a batch, are cut."""
SEGMENT_FAILURES = 1_000
"""Failures that the driver writes into one segment."""
TYPINGS = 2
"""How often chunks are mapped again for types that others have found; once is usual."""
FOLD_SECONDS = 60.0
"""How often the driver folds the ledger's segments."""
FOLD_SEGMENTS = 200
"""Fewer are not worth it: they are read within a second."""


@dataclass(frozen=True, slots=True)
class OutputFacts:
    """What a run needs to know of its output while it is mapped."""

    types: Callable[[], Columns] = dict
    """Types that its columns have: for those that are nothing but nulls in a chunk."""
    published: Callable[[], Collection[str]] = tuple
    """Ids of the run's chunks that it has already: they stay as they are."""


@dataclass(slots=True)
class MapStage:
    """Drives the rounds of one run."""

    ledger: Ledger
    plan: Plan
    job: Job
    limits: BatchSettings
    executor: Executor
    listen: Callable[[MapProgress], None] = lambda _: None
    only_failed: bool = False
    """Map the chunks that have failed before, and no others."""
    only: Collection[int] | None = None
    """Map these chunks and no others."""
    saw: Callable[[Progress], None] = lambda _: None
    """Is told what is stored, each time that it is counted."""
    is_held: Callable[[], bool] = lambda: False
    """While it says so, no further batch is handed out."""
    output: OutputFacts = OutputFacts()
    pace: Throughput = field(default_factory=Throughput)
    started: float = field(default_factory=time.time)
    batches: int = 0
    rounds: int = 0
    resumed: int = 0
    stopped: str = ""
    """Why it ended before its time: more failures than the job allows, or batches that cannot."""
    details: list[str] = field(default_factory=list)
    """What batches that failed as a whole said."""
    _suspects: dict[int, int] = field(default_factory=dict)
    """Chunks of batches that killed their worker or failed as a whole, with how often."""
    _totals: dict[str, int] = field(default_factory=dict)
    _accused: list[Outcome] = field(default_factory=list)
    """Of batches of one chunk whose worker died: that chunk did it, or another on that worker."""
    _series: list[str] = field(default_factory=lambda: [f"driver-{uuid.uuid4().hex[:8]}-"])
    """What the names of this driver's batches begin with; its own records come first."""
    _failed_before: int = 0
    _wanted: set[int] | None = None
    _handed_back: dict[str, int] = field(default_factory=dict)
    """How often batches came back because their worker was told to leave."""
    _looked: float = 0.0
    _look_seconds: float = 0.0
    """How long the last look took."""
    _folded: float = field(default_factory=time.monotonic)
    _known: Columns = field(default_factory=dict)
    """Types of the output's columns."""
    _types: Columns = field(default_factory=dict)
    """Types of columns that some chunks have no type for."""
    _futile: int | None = 0
    """Batches that could not come to their chunks, and never would; None once one has."""

    def run(self) -> Progress:
        """Map until nothing is left, the rounds are used up, or only terminal failures remain."""
        progress = retry_until_available(self.ledger.read)
        self.resumed = progress.completions.height
        failed = set(progress.failed()["index"].to_list())
        self._failed_before = len(failed)
        self._wanted = None if self.only is None else set(self.only)
        if self.only_failed:
            self._wanted = failed if self._wanted is None else failed & self._wanted
        self._count(progress)
        if self._worth_mapping(progress):
            self._known = retry_until_available(self.output.types)
            self._types = agreed_types(progress, self._known)
        progress = self._in_rounds(progress)
        for _ in range(TYPINGS):
            if self.stopped or not self._type_nulls(progress):
                break
            progress = self._in_rounds(retry_until_available(self.ledger.read))
        if self._say_what_was_lost(progress):
            progress = retry_until_available(self.ledger.read)
            self._count(progress)
        self._tell()
        return progress

    def _in_rounds(self, progress: Progress) -> Progress:
        before = self.rounds
        while self.rounds < before + self.job.rounds and not self.stopped:
            left = self._worth_mapping(progress)
            if not left:
                break
            past = self.rounds - before
            if past:
                time.sleep(PAUSE_SECONDS * 2 ** (past - 1) * random.uniform(0.5, 1.5))
            self.rounds += 1
            self._round(left)
            progress = retry_until_available(self.ledger.read)
            self._count(progress)
            self._types = agreed_types(progress, self._known)
        return progress

    def _type_nulls(self, progress: Progress) -> bool:
        """Leave chunks again that had no type for a column which others have a type for.

        Returns:
            Whether there were any.
        """
        self._types = agreed_types(progress, self._known)
        odd = odd_attempts(progress, self._types)
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

    def _say_what_was_lost(self, progress: Progress) -> bool:
        """Record a failure of the chunks whose batches never came to them, round after round."""
        told = set(self._own(progress.failures)["index"].to_list())
        lost = [index for index in self._worth_mapping(progress) if index not in told]
        if not lost or self.stopped or not self.details:
            return False
        message = f"its batch was lost in each of {self.rounds} rounds: {self.details[-1]}"
        self._record(lost, "BatchLostError", message, transient=True)
        return True

    def _worth_mapping(self, progress: Progress) -> list[int]:
        """What is left, less what has failed for good since this driver began."""
        final = self._own(progress.failures).filter(~pl.col("transient"))
        hopeless = set(final["index"].to_list())
        left = [index for index in progress.left(len(self.plan)) if index not in hopeless]
        return left if self._wanted is None else [i for i in left if i in self._wanted]

    def _own(self, failures: pl.DataFrame) -> pl.DataFrame:
        """Failures of this driver's own batches. By name: workers' clocks may differ from ours."""
        series = failures["batch"].str.replace(r"\d+$", "")
        return failures.filter(series.is_in(self._series))

    def _round(self, left: list[int]) -> None:
        suspects = [index for index in left if index in self._suspects]
        others = [index for index in left if index not in self._suspects]
        # Suspects go first and in ever smaller batches, so that the culprit ends up alone.
        for indices, most in (
            (suspects, self._suspect_batch(suspects)),
            (others, self.limits.max_chunks),
        ):
            if indices and not self.stopped:
                self._map(indices, most)
        accused, self._accused = self._accused, []
        for outcome in accused:
            if not self.stopped:
                self._try_alone(outcome)

    def _try_alone(self, accused: Outcome) -> None:
        """Map a chunk with nothing else under way: if the worker dies now, the chunk is to blame.

        Not before: Dask counts a worker's death against all that it was given, the chunks of its
        other threads and those that had not even begun.
        """
        if self._has_said_why(accused.batch):
            return
        self._map(accused.batch.indices, 1)
        again, self._accused = self._accused, []
        for outcome in again:
            if not self._has_said_why(outcome.batch):
                self._blame(outcome)

    def _suspect_batch(self, suspects: Sequence[int]) -> int:
        """Most chunks in a batch of suspects: the square root, then single ones."""
        worst = max((self._suspects[index] for index in suspects), default=1)
        if worst > 1 or self.rounds >= self.job.rounds:
            return 1
        return max(1, math.isqrt(len(suspects)))

    def _map(self, indices: Sequence[int], most: int) -> None:
        sizes = self.plan.chunk_table["decoded_bytes"].to_numpy()
        self._series.append(f"r{self.rounds}-{uuid.uuid4().hex[:4]}-")
        batcher = Batcher(
            self._series[-1],
            indices,
            sizes[indices].tolist(),
            seconds=self.limits.seconds,
            max_chunks=most,
            pace=self.pace,
            types=self._types_text(),
        )
        flights = InFlightBatches(self.executor, self.limits)
        try:
            self._fly(batcher, flights)
        finally:
            flights.abandon()

    def _types_text(self) -> str:
        known = {name: kind for name, kind in self._known.items() if not has_nulls(kind)}
        text = json.dumps(known | self._types)
        if len(text) > MOST_TEXT:
            text = json.dumps(self._types)
        return text if self._types or known else ""

    def _fly(self, batcher: Batcher, flights: InFlightBatches) -> None:
        more = True
        while more or flights:
            threads = self.executor.threads
            most = 0 if self.is_held() else threads * self.limits.in_flight_per_thread
            while more and len(flights) < most:
                batch = batcher.take(threads)
                more = batch is not None
                if batch is not None:
                    flights.send(batch)
                    self.batches += 1
            for outcome in flights.landed(1.0):
                self._settle(outcome)
                if outcome.result is not None and outcome.result.left:
                    self._send_again(outcome.batch, flights)
            if not more:
                flights.resubmit_stragglers(self.limits.seconds)
            self._look(flights)
            self._tell()
            self._fold_if_due()
            if self.stopped or self._too_many_failures():
                return

    def _send_again(self, batch: Batch, flights: InFlightBatches) -> None:
        """Hand out a batch whose worker was told to leave.

        Whoever takes it up finds in the ledger what is done of it. One that comes back time after
        time waits for the next round: workers that leave do not do that.
        """
        times = self._handed_back.get(batch.name, 0)
        if times < HAND_BACKS:
            self._handed_back[batch.name] = times + 1
            flights.send(batch)

    def _too_many_failures(self) -> bool:
        limit = self.job.max_failures
        if limit is None:
            return False
        failed = self._totals["failed"] - self._failed_before
        most = resolve_limit(limit, len(self.plan))
        if failed > most:
            self.stopped = f"{failed:,} chunks failed, and max_failures is {limit}"
        return bool(self.stopped)

    def _fold_if_due(self) -> None:
        if time.monotonic() - self._folded < FOLD_SECONDS:
            return
        self._folded = time.monotonic()
        if self.ledger.unfolded > FOLD_SEGMENTS:
            with best_effort():
                self.ledger.fold()

    def _look(self, flights: InFlightBatches) -> None:
        """Count what is stored: batches store their chunks long before they come back.

        What others store meanwhile (another driver, a worker that was given up) is counted when
        the round is over.
        """
        # With a thousand workers a look takes most of a minute: there must be time for batches.
        pause = max(LOOK_SECONDS, LOOK_PAUSES * self._look_seconds)
        clock = time.monotonic()
        if clock - self._looked >= pause:
            with best_effort():
                self._count(self.ledger.read(flights.least))
                flights.looked()
                self._look_seconds = time.monotonic() - clock

    def _settle(self, outcome: Outcome) -> None:
        result = outcome.result
        if result is not None:
            self._futile = None
            self.pace.measured(result.done + result.failed, result.decoded_bytes, result.seconds)
            if result.failed and self.job.max_failures is not None:
                self._looked = 0.0  # Whether there are too many is to be known now.
            return
        self.details.append(outcome.detail)
        if outcome.kind == "killed":
            self._suspect(outcome.batch)
            if len(outcome.batch) == 1:
                self._accused.append(outcome)
        elif outcome.kind == "error":
            # The batch did not get to its end; its reason is its chunks'.
            self._record(outcome.batch.indices, "BatchError", outcome.detail, transient=True)
            self._stop_if_futile(outcome)
            if not outcome.is_transient:
                self._suspect(outcome.batch)

    def _suspect(self, batch: Batch) -> None:
        """Note that one of a batch's chunks may be what ends whole batches."""
        for index in batch.indices:
            self._suspects[index] = self._suspects.get(index, 0) + 1

    def _stop_if_futile(self, outcome: Outcome) -> None:
        """What no batch can do is not tried with a hundred of them."""
        if self._futile is None or not outcome.is_final:
            return
        self._futile += 1
        if self._futile >= FUTILE_BATCHES:
            self.stopped = (
                f"{self._futile} batches ended before their first chunk, and none came to one: "
                f"{outcome.detail}"
            )

    def _has_said_why(self, batch: Batch) -> bool:
        """Whether a chunk hung, and its worker recorded that before it ended itself."""
        return retry_until_available(partial(self.ledger.of_batch, batch.name)).failures.height > 0

    def _blame(self, outcome: Outcome) -> None:
        [chunk] = self.plan.chunks(outcome.batch.indices)
        message = (
            f"the worker died while this chunk, of {format_size(chunk.decoded_bytes)} decoded, was "
            f"the only one under way: {outcome.detail}. If it ran out of memory, plan again "
            f"(--replan) with a chunks.target below {format_size(self.job.chunks.target)}"
        )
        self._record(outcome.batch.indices, "WorkerKilledError", message, transient=False)

    def _record(self, indices: Iterable[int], error: str, message: str, *, transient: bool) -> None:
        failures = [
            Failure(
                chunk=chunk.id,
                index=chunk.index,
                batch=self._series[0],
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
        # Not all of a large plan at once: readers refuse segments without bounds.
        for start in range(0, len(failures), SEGMENT_FAILURES):
            segment = f"driver-{uuid.uuid4().hex}"
            some = failures[start : start + SEGMENT_FAILURES]
            retry_until_available(partial(self.ledger.write_segment, segment, some))

    def _count(self, progress: Progress) -> None:
        self._looked = time.monotonic()
        self.saw(progress)
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
