"""Drive one run of a backfill: map some windows as one set of chunks, commit them one by one."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from threading import Lock

import numpy as np
import polars as pl

from partitioning import Plan
from pipeline import traces
from pipeline.config.job import Job
from pipeline.config.sections import BatchSettings
from pipeline.errors import ChecksFailedError, RunFailedError
from pipeline.report.humanize import plural
from pipeline.runs.backfill.output_windows import materialised_windows
from pipeline.runs.backfill.progress import Ranks, WindowProgress
from pipeline.runs.backfill.records import BackfillRecord
from pipeline.runs.driver.batching import Throughput
from pipeline.runs.driver.drafts import WindowChunks, in_window
from pipeline.runs.driver.executor import Executor
from pipeline.runs.driver.map_stage import MapStage
from pipeline.runs.driver.merge_stage import MergeStage
from pipeline.runs.driver.publish import publish_run, until_published
from pipeline.runs.driver.quarantine import refuse_many_quarantined, unreadable_uris
from pipeline.runs.driver.result_types import OutputFacts
from pipeline.runs.driver.schemas import output_facts
from pipeline.runs.driver.summary import MapProgress, failure_lines
from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.ledger.records import Progress
from pipeline.runs.worker.null_types import open_chunks
from pipeline.storage import Storage
from pipeline.storage.outages import best_effort, retry_until_available
from pipeline.table.columns import Columns
from pipeline.table.errors import CommitsConflictError, ForeignClaimError, UploadsVanishedError
from pipeline.table.log import TableLog

log = logging.getLogger(__name__)

PUBLISH_SECONDS = 30.0
"""Seconds between two publishes of completed windows while the run is still being mapped."""
CLAIM_SECONDS = 60.0
"""Seconds that a run waits for another run to complete its claim on the output."""

Publish = Callable[..., int]
"""Function like `publish_run`. Benchmarks that stage nothing replace it."""


class WindowsFailedError(RunFailedError):
    """Some windows of a run failed; the others are published.

    Attributes:
        labels: Labels of these windows.
    """

    def __init__(self, run: str, labels: list[str], reasons: tuple[str, ...]) -> None:
        named = ", ".join(labels[:3]) + (" …" if len(labels) > 3 else "")
        why = f": {reasons[0]}" if reasons else ""
        super().__init__(f"{plural(len(labels), 'window')} of run {run} failed ({named}){why}")
        self.labels = labels


@dataclass(frozen=True, slots=True)
class BackfillContext:
    """What the runs of one backfill share in one driver."""

    storage: Storage
    table_log: TableLog
    """Log of the output; used only while holding `publishing`."""
    record: BackfillRecord
    job: Job
    limits: BatchSettings
    progress: WindowProgress
    code: str
    """Fingerprint of the code that this driver runs."""
    is_paused: Callable[[], bool]
    """Returns whether no further batch may be submitted now."""
    check_control: Callable[[], None]
    """Raises if the driver is to stop."""
    publish: Publish = publish_run
    pace: Throughput = field(default_factory=Throughput)
    publishing: Lock = field(default_factory=Lock)
    """Lock of publishing: runs that publish in parallel would only conflict at the pointer."""


@dataclass(slots=True)
class BackfillRun:
    """A run of a backfill. It may be driven repeatedly: finished work is skipped."""

    shared: BackfillContext
    rank: int
    ledger: Ledger
    plan: Plan
    labels: list[str]
    """Labels of its windows, in the order of time."""
    owner: Ranks
    """Rank of each chunk's window."""
    inputs: dict[str, str]
    """Digest of each window's objects and options (see `selection.digest_inputs`)."""
    map_stage: MapStage | None = None
    _published: float = field(default_factory=time.monotonic)
    _full: list[str] = field(default_factory=list)
    _conflicts: dict[str, str] = field(default_factory=dict)
    """Why a completed window was not published over what other runs have, by its label."""
    _others: set[str] = field(default_factory=set)
    """Those of these windows that the output has."""
    _refused: dict[str, str] = field(default_factory=dict)
    """What checks say of a completed window that they refuse, by its label."""
    _voided: list[str] = field(default_factory=list)
    """Attempts whose uploads had vanished when windows were published while others were mapped."""
    _is_mapped: bool = False
    """Whether the map stage has ended, so that the types of columns are final."""
    _output_types: Columns = field(default_factory=dict)

    @classmethod
    def open(
        cls, shared: BackfillContext, plan: Plan, windows: pl.DataFrame, owner: Ranks, rank: int
    ) -> BackfillRun:
        """Create the run, or open it if it exists.

        Args:
            shared: Context of all runs.
            plan: Plan of the whole backfill.
            windows: Windows of the whole backfill (schema WINDOWS).
            owner: Rank of each chunk's window, for the whole backfill.
            rank: Rank of the run.
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
            types=record.types,
            origin=record.origin,
        )
        labels = mine["label"].to_list()
        inputs = dict(zip(labels, mine["inputs"].to_list(), strict=True))
        return cls(shared, rank, ledger, part, labels, owner[chunks], inputs)

    @property
    def name(self) -> str:
        """Name of the run for users: its first and last window."""
        first, last = self.labels[0], self.labels[-1]
        return first if first == last else f"{first} to {last}"

    def drive(
        self, executor: Executor, only: Collection[str] | None = None, *, publishes: bool = True
    ) -> None:
        """Map and publish.

        Args:
            executor: Executor of the batches.
            only: Labels of the windows to map; default all that are left.
            publishes: Publish the windows that are done.

        Raises:
            WindowsFailedError: some windows failed.
            RunCancelledError: the backfill was cancelled (see `BackfillContext.check_control`).
        """
        window_progress = self.shared.progress
        wanted = [label for label in self.labels if only is None or label in only]
        retry_until_available(self.ledger.clear_cancel)
        done = set(window_progress.in_state("done"))
        window_progress.mark([label for label in wanted if label not in done], "mapping")

        def map_and_publish(vanished: UploadsVanishedError | None) -> Progress:
            progress = self._map(executor, wanted, vanished)
            if self._voided:
                # The map stage may have ended without their chunks.
                attempts, self._voided = self._voided, []
                raise UploadsVanishedError(attempts)
            if publishes:
                self._merge(executor, vanished)
                self._publish_in_turn(vanished)
            return progress

        try:
            self._raise_for_failed(until_published(self.ledger, map_and_publish), wanted)
        except BaseException:
            # Workers stop after their current chunk; resuming clears it.
            with best_effort():
                self.ledger.cancel()
            begun = set(window_progress.in_state("mapping", "staged"))
            window_progress.mark([label for label in wanted if label in begun], "waiting")
            raise

    def _map(
        self, executor: Executor, wanted: list[str], vanished: UploadsVanishedError | None
    ) -> Progress:
        shared = self.shared
        ranks = [shared.progress.rank[label] for label in wanted]
        mine = np.isin(self.owner, ranks)
        if vanished is not None:
            # A commit of this run may wait for chunks of windows that are not in `wanted`.
            mine |= np.isin(self.plan.chunk_ids, list(vanished.chunks_of(self.ledger.run)))
        chunks = np.flatnonzero(mine).tolist()
        facts = output_facts(shared.job, self.ledger.record(), shared.table_log)
        with shared.publishing:
            self._output_types = retry_until_available(facts.types)
        self._is_mapped = False
        self.map_stage = MapStage(
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
        progress = self.map_stage.run()
        self._is_mapped = True
        self._on_count(progress)
        return progress

    def _merge(self, executor: Executor, vanished: UploadsVanishedError | None) -> None:
        """Merge the results of complete windows into files, if the job says so.

        Raises as `MergeStage.run`.
        """
        shared = self.shared
        if not shared.job.output.merges:
            return
        labels = set(self._full).intersection(shared.progress.in_state("staged"))
        if vanished is not None:
            # A commit of this run may wait for files of windows that are done or not wanted.
            named = {f"{self.ledger.run}-{label}": label for label in self.labels}
            commits = (commit.partition(".")[0] for commit in vanished.commits)
            labels |= {named[commit] for commit in commits if commit in named}
        stage = MergeStage(
            storage=shared.storage,
            ledger=self.ledger,
            plan=self.plan,
            job=shared.job,
            limits=shared.limits,
            executor=executor,
            windows={label: self._chunks_of(label) for label in self.labels if label in labels},
            tick=shared.check_control,
            is_paused=shared.is_paused,
        )
        stage.run()
        self._refused |= stage.refused
        shared.progress.mark(stage.refused, "failed")

    def _published_chunks(self, facts: OutputFacts) -> Collection[str]:
        if self.shared.job.output.merges:
            done = set(self.shared.progress.in_state("done"))
            return [c for label in self.labels if label in done for c in self._chunks_of(label)]
        with self.shared.publishing:
            return facts.published()

    def _on_count(self, progress: Progress) -> None:
        window_progress = self.shared.progress
        full = window_progress.update(progress, self.owner, self.labels)
        if not self._is_mapped:
            # Other chunks may still give a type to columns that are all null.
            waiting = open_chunks(progress, self._output_types)
            untyped = {window_progress.labels[self.owner[index]] for index in waiting}
            full = [label for label in full if label not in untyped]
        self._full = full
        mapped = set(window_progress.in_state("mapping"))
        if self.shared.record.options.all_or_nothing:
            # An earlier attempt has mapped windows that are not retried now.
            mapped.update(window_progress.in_state("waiting"))
        window_progress.mark([label for label in self._full if label in mapped], "staged")

    def _listen(self, progress: MapProgress) -> None:
        self.shared.check_control()
        due = time.monotonic() - self._published >= PUBLISH_SECONDS
        # Results are merged when all of them are mapped.
        waits = self.shared.record.options.all_or_nothing or self.shared.job.output.merges
        if due and not waits:
            self._published = time.monotonic()
            # If uploads vanished, their chunks are mapped again at the end.
            try:
                self._publish(None)
            except UploadsVanishedError as error:
                self.ledger.void(error.attempts)
                self._voided += error.attempts
            except ForeignClaimError:
                pass  # Published later, once the other run has completed its claim.

    def _publish_in_turn(self, vanished: UploadsVanishedError | None) -> None:
        """Publish; wait if another run must first complete its claim on the output.

        Raises:
            ForeignClaimError: it has not done so within CLAIM_SECONDS.
        """
        deadline = time.monotonic() + CLAIM_SECONDS
        while True:
            try:
                return self._publish(vanished)
            except ForeignClaimError:
                if time.monotonic() > deadline:
                    raise
                self.shared.check_control()
                time.sleep(1.0)

    def _publish(self, vanished: UploadsVanishedError | None) -> None:
        """Publish the windows that are done: one commit each, together in one manifest."""
        shared, window_progress = self.shared, self.shared.progress
        options = shared.record.options
        if options.all_or_nothing and len(self._full) < len(self.labels):
            return
        staged = set(window_progress.in_state("staged"))
        windows = {
            label: WindowChunks(self._chunks_of(label), self.inputs.get(label, ""))
            for label in self._full
            if label in staged
        }
        if options.all_or_nothing and not staged.union(window_progress.in_state("done")).issuperset(
            self.labels
        ):
            windows = {}  # Some are not retried after they failed.
        if not windows and vanished is None:
            return
        lost: Collection[str] = ()
        is_own = in_window(shared.job.window.windowing(), *self.labels)  # type: ignore[union-attr]
        unreadable = unreadable_uris(self.plan, self.ledger.read(), is_own)
        refuse_many_quarantined(shared.job, self.plan, unreadable)
        try:
            publish = partial(
                shared.publish,
                shared.storage,
                self.ledger,
                vanished,
                windows=windows,
                together=options.all_or_nothing,
                table_log=shared.table_log,
            )
            with shared.publishing, traces.span("publish"):
                retry_until_available(publish)
        except ChecksFailedError as error:
            refused = windows if options.all_or_nothing else error.windows
            self._refused |= {label: str(error) for label in refused}
        except CommitsConflictError as error:
            # Other runs have published these windows meanwhile.
            lost = windows if options.all_or_nothing else error.windows
            self._conflicts |= {label: str(error) for label in lost}
            if error.refusal is not None:
                self._refused |= {label: str(error.refusal) for label in error.refusal.windows}
        with shared.publishing:
            published = retry_until_available(self._published_windows)
        done = [label for label in windows if label in published]
        window_progress.mark(done, "done")
        log.info("%s: published %s", self.name, plural(len(done), "window"))
        # With reprocess missing, a conflict is fine where the output lacks the window no more.
        if lost and options.reprocess == "missing" and not options.all_or_nothing:
            with shared.publishing:
                rule = shared.job.window.windowing()  # type: ignore[union-attr]
                find = partial(materialised_windows, shared.table_log, rule)
                self._others |= retry_until_available(find).keys() & set(lost)
        window_progress.mark([w for w in self._conflicts if w in self._others], "skipped")
        window_progress.mark([w for w in self._conflicts if w not in self._others], "failed")
        window_progress.mark(self._refused, "failed")

    def _published_windows(self) -> set[str]:
        """Return the windows that the output has of this run; take what checks have found in them.

        What is not listed is not published, whatever the publish has said of other windows.
        """
        log = self.shared.table_log
        own = [e for e in log.entries(self.shared.record.base) if e.run == self.ledger.run]
        self.shared.progress.note_checks(own)
        # A run may have been published as a whole, also without the chunks that had failed.
        whole = [entry for entry in own if entry.window is None]
        chunks = {c for commit in log.load_all(whole) for c in commit.files["chunk"].to_list()}
        is_complete = any(not entry.missing for entry in whole)
        of_whole = [
            label
            for label in (self.labels if whole else ())
            if is_complete or chunks.issuperset(self._chunks_of(label))
        ]
        return {entry.window for entry in own if entry.window is not None}.union(of_whole)

    def _chunks_of(self, label: str) -> list[str]:
        ids = self.plan.chunk_ids
        return [ids[i] for i in np.flatnonzero(self.owner == self.shared.progress.rank[label])]

    def _raise_for_failed(self, progress: Progress, wanted: list[str]) -> None:
        """Mark the windows that are not done as failed, and raise if there are any."""
        window_progress = self.shared.progress
        over = set(window_progress.in_state("done", "staged", "skipped"))
        failed = [label for label in wanted if label not in over]
        if not failed:
            return
        window_progress.mark(failed, "failed")
        ours = {window_progress.rank[label] for label in failed}
        errors = progress.failed()
        mine = [int(self.owner[index]) in ours for index in errors["index"].to_list()]
        reasons = failure_lines(errors.filter(pl.Series(mine, dtype=pl.Boolean)))
        reasons += tuple(dict.fromkeys([*self._refused.values(), *self._conflicts.values()]))
        raise WindowsFailedError(self.ledger.run, failed, reasons)
