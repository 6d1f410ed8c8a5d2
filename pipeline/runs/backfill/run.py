"""One run of a backfill: some windows mapped as one set of chunks, committed one by one."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from threading import Lock

import numpy as np
import polars as pl

from partitioning import Plan
from pipeline.config.job import Job
from pipeline.config.sections import BatchSettings
from pipeline.errors import RunFailedError
from pipeline.runs.backfill.progress import Ranks, WindowProgress
from pipeline.runs.backfill.records import BackfillRecord
from pipeline.runs.driver.batching import Throughput
from pipeline.runs.driver.executor import Executor
from pipeline.runs.driver.map_stage import MapStage
from pipeline.runs.driver.publish import PUBLISH_ATTEMPTS, output_facts
from pipeline.runs.driver.publish_windows import in_window, publish_windows
from pipeline.runs.driver.quarantine import refuse_many_quarantined, unreadable_uris
from pipeline.runs.driver.result_types import OutputFacts
from pipeline.runs.driver.summary import MapProgress, failure_lines
from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.ledger.records import Progress
from pipeline.runs.worker.null_types import open_chunks
from pipeline.storage import Storage
from pipeline.storage.outages import best_effort, retry_until_available
from pipeline.table.columns import Columns
from pipeline.table.errors import CommitsConflictError, ForeignClaimError, UploadsVanishedError
from pipeline.table.log import TableLog

PUBLISH_SECONDS = 30.0
"""How often windows that are done are published while others of their run are still mapped."""
CLAIM_SECONDS = 60.0
"""How long a run waits for another one to mend the claim that it has left on the output."""

PublishWindows = Callable[..., int | None]
"""Publishes windows, as `publish_windows` does. Benchmarks that stage nothing publish nothing."""


class WindowsFailedError(RunFailedError):
    """Some windows of a run could not be done; the others are published.

    Attributes:
        labels: Of these windows.
    """

    def __init__(self, run: str, labels: list[str], reasons: tuple[str, ...]) -> None:
        named = ", ".join(labels[:3]) + (" …" if len(labels) > 3 else "")
        why = f": {reasons[0]}" if reasons else ""
        super().__init__(f"{len(labels):,} windows of run {run} failed ({named}){why}")
        self.labels = labels


@dataclass(frozen=True, slots=True)
class BackfillContext:
    """What the runs of one backfill share while one driver drives them."""

    storage: Storage
    table_log: TableLog
    """Of the output; only whoever holds `publishing` uses it."""
    record: BackfillRecord
    job: Job
    limits: BatchSettings
    board: WindowProgress
    code: str
    """Fingerprint of the code that this driver runs."""
    is_paused: Callable[[], bool]
    """Whether no further batch may be handed out."""
    obey: Callable[[], None]
    """Raises when the driver is to stop."""
    publish: PublishWindows = publish_windows
    pace: Throughput = field(default_factory=Throughput)
    publishing: Lock = field(default_factory=Lock)
    """Held while a run publishes: side by side, runs would only lose races for the pointer."""


@dataclass(slots=True)
class BackfillRun:
    """A run of a backfill. Drive it as often as is needed: what is done is not done again."""

    shared: BackfillContext
    rank: int
    ledger: Ledger
    plan: Plan
    labels: list[str]
    """Its windows, in the order of time."""
    owner: Ranks
    """By chunk, the rank of its window on the board."""
    inputs: dict[str, str]
    """By window, the digest of its objects."""
    mapper: MapStage | None = None
    _published: float = field(default_factory=time.monotonic)
    _full: list[str] = field(default_factory=list)
    _conflicts: dict[str, str] = field(default_factory=dict)
    _is_mapped: bool = False
    """Whether nothing is under way: then every column has the type that it will have."""
    _output_types: Columns = field(default_factory=dict)
    """By window, why it was not published though it is done."""

    @classmethod
    def open(
        cls, shared: BackfillContext, plan: Plan, windows: pl.DataFrame, owner: Ranks, rank: int
    ) -> BackfillRun:
        """Create the run, or find it.

        Args:
            shared: By all runs.
            plan: Of the whole backfill.
            windows: Of the whole backfill (schema WINDOWS).
            owner: By chunk of the whole backfill, the rank of its window.
            rank: Of the run.
        """
        mine = windows.with_row_index("rank").filter(pl.col("group") == rank)
        chunks = np.flatnonzero(np.isin(owner, mine["rank"].to_numpy()))
        part, record = plan.take(chunks.tolist()), shared.record
        ledger = Ledger.create(
            shared.storage,
            shared.job,
            part,
            record.code,
            record.base,
            backfill=record.backfill,
            tables=record.tables,
            columns=record.columns,
        )
        labels = mine["label"].to_list()
        inputs = dict(zip(labels, mine["inputs"].to_list(), strict=True))
        return cls(shared, rank, ledger, part, labels, owner[chunks], inputs)

    @property
    def name(self) -> str:
        """For people: its windows."""
        first, last = self.labels[0], self.labels[-1]
        return first if first == last else f"{first} to {last}"

    def drive(
        self, executor: Executor, only: Collection[str] | None = None, *, publishes: bool = True
    ) -> None:
        """Map and publish.

        Args:
            executor: What maps the batches.
            only: Windows to map; default all that are left.
            publishes: Publish what is done.

        Raises:
            WindowsFailedError: some windows could not be done.
            RunCancelledError, and what else `BackfillContext.obey` raises: it was told to stop.
        """
        board, wanted = self.shared.board, [w for w in self.labels if only is None or w in only]
        retry_until_available(self.ledger.clear_cancel)
        board.mark([w for w in wanted if w not in board.in_state("done")], "mapping")
        vanished: UploadsVanishedError | None = None
        try:
            for _ in range(PUBLISH_ATTEMPTS):
                progress = self._map(executor, wanted, vanished)
                try:
                    if publishes:
                        self._publish_in_turn(vanished)
                    return self._told(progress, wanted)
                except UploadsVanishedError as error:
                    self.ledger.void(error.attempts)
                    vanished = error
            assert vanished is not None, "each try ends with a return or uploads that vanished"
            raise vanished
        except BaseException:
            # Workers stop after the chunk at hand; whoever goes on with the run clears it.
            with best_effort():
                self.ledger.cancel()
            board.mark([w for w in wanted if w in board.in_state("mapping", "staged")], "waiting")
            raise

    def _map(
        self, executor: Executor, wanted: list[str], vanished: UploadsVanishedError | None
    ) -> Progress:
        shared = self.shared
        ranks = [shared.board.rank[label] for label in wanted]
        mine = np.isin(self.owner, ranks)
        if vanished is not None:
            # A commit of this run may wait for chunks of windows that are not asked for now.
            mine |= np.isin(self.plan.chunk_ids, list(vanished.chunks_of(self.ledger.run)))
        chunks = np.flatnonzero(mine).tolist()
        facts = output_facts(shared.job, self.ledger.record(), shared.table_log)
        with shared.publishing:
            self._output_types = retry_until_available(facts.types)
        self._is_mapped = False
        self.mapper = MapStage(
            ledger=self.ledger,
            plan=self.plan,
            job=shared.job,
            limits=shared.limits,
            executor=executor,
            listen=self._listen,
            only=chunks,
            on_count=self._on_count,
            is_paused=shared.is_paused,
            output=OutputFacts(lambda: self._output_types, partial(self._published_chunks, facts)),
            pace=shared.pace,
        )
        progress = self.mapper.run()
        self._is_mapped = True
        self._on_count(progress)
        return progress

    def _published_chunks(self, facts: OutputFacts) -> Collection[str]:
        with self.shared.publishing:
            return facts.published()

    def _on_count(self, progress: Progress) -> None:
        board = self.shared.board
        full = board.saw(progress, self.owner, self.labels)
        if not self._is_mapped:
            # Others may still say what type a column of nulls is to have.
            waiting = open_chunks(progress, self._output_types)
            held = {board.labels[self.owner[index]] for index in waiting}
            full = [label for label in full if label not in held]
        self._full = full
        mapping = set(board.in_state("mapping"))
        board.mark([label for label in self._full if label in mapping], "staged")

    def _listen(self, progress: MapProgress) -> None:
        self.shared.obey()
        due = time.monotonic() - self._published >= PUBLISH_SECONDS
        if due and not self.shared.record.options.all_or_nothing:
            self._published = time.monotonic()
            # What has vanished is found again, and mended, once all is mapped.
            try:
                self._publish(None)
            except UploadsVanishedError as error:
                self.ledger.void(error.attempts)
            except ForeignClaimError:
                pass  # Its turn comes later.

    def _publish_in_turn(self, vanished: UploadsVanishedError | None) -> None:
        """Publish, once another run that has claimed the output and lost uploads has mended that.

        Raises:
            ForeignClaimError: it has not in a minute.
        """
        deadline = time.monotonic() + CLAIM_SECONDS
        while True:
            try:
                return self._publish(vanished)
            except ForeignClaimError:
                if time.monotonic() > deadline:
                    raise
                self.shared.obey()
                time.sleep(1.0)

    def _publish(self, vanished: UploadsVanishedError | None) -> None:
        """Publish the windows that are done: each is a commit, together they are one manifest."""
        shared, board = self.shared, self.shared.board
        if shared.record.options.all_or_nothing and len(self._full) < len(self.labels):
            return
        staged = set(board.in_state("staged"))
        windows = {label: self._chunks_of(label) for label in self._full if label in staged}
        if not windows and vanished is None:
            return
        is_own = in_window(shared.job.window.windowing(), *self.labels)  # type: ignore[union-attr]
        unreadable = unreadable_uris(self.plan, self.ledger.read(), is_own)
        refuse_many_quarantined(shared.job, self.plan, unreadable)
        try:
            publish = partial(
                shared.publish,
                shared.storage,
                self.ledger,
                windows,
                self.inputs,
                vanished,
                together=shared.record.options.all_or_nothing,
                table_log=shared.table_log,
            )
            with shared.publishing:
                retry_until_available(publish)
        except CommitsConflictError as error:
            # Somebody else has published these meanwhile; the others are published, or none.
            together = shared.record.options.all_or_nothing
            lost = windows if together else error.windows
            self._conflicts |= {label: str(error) for label in lost}
        board.mark([label for label in windows if label not in self._conflicts], "done")
        # The output was to get what it lacks, and lacks them no more.
        options = shared.record.options
        missing = options.reprocess == "missing" and not options.all_or_nothing
        board.mark(self._conflicts, "skipped" if missing else "failed")

    def _chunks_of(self, label: str) -> list[str]:
        ids = self.plan.chunk_ids
        return [ids[i] for i in np.flatnonzero(self.owner == self.shared.board.rank[label])]

    def _told(self, progress: Progress, wanted: list[str]) -> None:
        """What is not done by now has failed."""
        board = self.shared.board
        over = set(board.in_state("done", "staged", "skipped"))
        failed = [label for label in wanted if label not in over]
        if not failed:
            return
        board.mark(failed, "failed")
        ours = {board.rank[label] for label in failed}
        errors = progress.failed()
        mine = [int(self.owner[index]) in ours for index in errors["index"].to_list()]
        reasons = failure_lines(errors.filter(pl.Series(mine, dtype=pl.Boolean)))
        reasons += tuple(dict.fromkeys(self._conflicts.values()))
        raise WindowsFailedError(self.ledger.run, failed, reasons)
