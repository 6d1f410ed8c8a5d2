"""Drive a backfill to its end: its runs, a few at a time, under the desired state that users set.

All state is in storage: the manifests list the windows that are done, the ledgers the chunks, and
`control.json` is the desired state.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import polars as pl

from partitioning.window_inputs import windows_of_plan
from pipeline import logs, traces
from pipeline.config.settings import Settings
from pipeline.config.units import resolve_limit
from pipeline.errors import ChunkmapError, EngineUnavailableError, RunCancelledError
from pipeline.report.humanize import plural
from pipeline.runs.backfill.desired_state import DesiredState
from pipeline.runs.backfill.orchestrator import BackfillOrchestrator, ExecutorOf
from pipeline.runs.backfill.output_windows import published_by
from pipeline.runs.backfill.progress import Ranks, WindowProgress
from pipeline.runs.backfill.queue import ActiveRun, RunQueue
from pipeline.runs.backfill.records import BackfillResumeOptions
from pipeline.runs.backfill.recount import LedgerCache, Recount
from pipeline.runs.backfill.run import (
    BackfillContext,
    BackfillRun,
    Publish,
    WindowsFailedError,
)
from pipeline.runs.backfill.schedule import schedule_runs
from pipeline.runs.backfill.store import BackfillStore
from pipeline.runs.backfill.summary import (
    BackfillHeldError,
    BackfillIncompleteError,
    BackfillSummary,
    Canary,
)
from pipeline.runs.backfill.windows_table import unreadable_note
from pipeline.runs.driver.heartbeat import Heartbeat
from pipeline.runs.driver.publish import publish_run
from pipeline.runs.driver.session import drive_session, follow
from pipeline.storage.outages import best_effort, retry_until_available
from pipeline.table.claims import finish_open_claim
from pipeline.table.log import TableLog

log = logging.getLogger(__name__)

FATAL_ERRORS = (RunCancelledError, EngineUnavailableError)
"""Errors of a run that end the backfill, since all other runs would fail too."""

Listener = Callable[[WindowProgress, str], None]
"""Callback, every half second, with the windows' progress and the phase."""


@dataclass(slots=True)
class Outcome:
    """Result of this driver so far."""

    batches: int = 0
    failed: int = 0
    """Windows that failed."""
    notes: list[str] = field(default_factory=list)
    left_out: tuple[str, ...] = ()
    """Notes about the part of the input that no run reads."""
    canary: Canary | None = None


@dataclass(slots=True)
class BackfillDriver:
    """Drives one backfill: attach, or map and publish its runs."""

    store: BackfillStore
    settings: Settings
    orchestrator: BackfillOrchestrator
    resume: BackfillResumeOptions = field(default_factory=BackfillResumeOptions)
    listen: Listener = lambda progress, phase: None
    publish: Publish = publish_run
    desired: DesiredState = field(init=False)
    heartbeat: Heartbeat = field(init=False)
    progress: WindowProgress = field(init=False)
    shared: BackfillContext = field(init=False)
    queue: RunQueue = field(default_factory=RunQueue)
    outcome: Outcome = field(default_factory=Outcome)

    def __post_init__(self) -> None:
        self.heartbeat = Heartbeat.of(self.store.storage, self.store.prefix, self.orchestrator.page)
        self.desired = DesiredState(self.store, self.orchestrator)

    def run(self) -> BackfillSummary:
        """Drive the backfill to its end, or follow another driver that already does.

        Raises:
            BackfillIncompleteError: some windows failed; the others are published.
            BackfillHeldError: the canary failed, or the backfill pauses after it.
            RunCancelledError: the backfill was cancelled.
        """
        store, endpoint = self.store, self.settings.traces.endpoint
        facts = {"chunkmap.backfill": store.backfill, "chunkmap.output": store.output}
        with (
            logs.log_ids(backfill=store.backfill),
            self.heartbeat.traced(endpoint, f"backfill {store.backfill}", facts),
        ):
            return self._attach_or_drive()

    def _attach_or_drive(self) -> BackfillSummary:
        if not self.resume.take_over:
            self._follow()
        self._open()
        name = f"backfill of {self.shared.record.job}"
        self.heartbeat.runs(self.shared.code, self.shared.record.transform)
        with drive_session(name, self._save, self.desired.is_interrupted) as session:
            with self.heartbeat.phase("map"):
                self._drive()
            left = self.progress.in_state("waiting", "mapping", "staged", "failed")
            session.state = "failed" if left else "done"
        summary = self._summarize(session.state)
        if session.state != "done":
            raise BackfillIncompleteError(summary)
        return summary

    def _follow(self) -> None:
        """Follow another driver until it ends or its heartbeat expires."""
        self.progress = WindowProgress(self.store.windows())
        for _ in follow(self.heartbeat):
            progress = self.store.progress()
            if progress is not None:
                self.progress.restore(progress)
            self.listen(self.progress, "attached")

    def _open(self) -> None:
        windows, record = self.store.windows(), self.store.record()
        left_out = (record.outside, unreadable_note(windows))
        self.outcome.left_out = tuple(note for note in left_out if note)
        self.progress = WindowProgress(windows)
        before = self.store.progress()
        if before is not None:
            self.progress.restore_figures(before)
        table_log = TableLog(self.store.storage, self.store.output)
        finish_open_claim(table_log)
        self.desired.load()
        self.shared = BackfillContext(
            storage=self.store.storage,
            table_log=table_log,
            record=record,
            job=self.store.job(),
            limits=self.settings.batches,
            progress=self.progress,
            code=self.resume.code or record.code,
            is_paused=lambda: self.desired.control.paused,
            check_control=self.desired.check,
            publish=self.publish,
        )
        published = published_by(table_log, record, windows)
        self.progress.mark([label for label in self.progress.labels if label in published], "done")
        self.progress.note_checks(published.values())
        # Count what the last driver did not save.
        uncounted = windows.filter(pl.col("label").is_in(self.progress.unfinished(published)))
        Recount(LedgerCache(self.store), record, windows, self.progress).count_runs(
            uncounted["run"].unique().to_list()
        )
        failed = self._failed_before(before)
        todo = set(self.progress.in_state("waiting"))
        wanted = todo & set(self.resume.only) if self.resume.only else todo
        wanted = wanted & failed if self.resume.only_failed else wanted
        # Failed windows that are not retried stay failed.
        self.progress.mark((failed & todo) - wanted, "failed")
        self._schedule(windows, wanted)

    @staticmethod
    def _failed_before(progress: pl.DataFrame | None) -> set[str]:
        if progress is None:
            return set()
        return set(progress.filter(pl.col("state") == "failed")["label"].to_list())

    def _drive(self) -> None:
        plan, windows = self.store.plan(), self.store.windows()
        rule = self.shared.job.window
        assert rule is not None, "a backfill's job has windows"
        owner = owners(windows_of_plan(plan, rule.windowing()), self.progress)
        self.desired.check()
        try:
            while not self.queue.is_empty:
                self._heartbeat()
                while (step := self.queue.take(self.desired.control)) is not None:
                    args = (self.shared, plan, windows, owner, step.rank)
                    run = retry_until_available(partial(BackfillRun.open, *args))
                    self.queue.start(ActiveRun(step, run), self._run)
                for ended, error in self.queue.collect():
                    self._handle_end(ended, error)
                self.listen(self.progress, self._phase())
        except BaseException:
            self.desired.stopping = True
            raise
        finally:
            self.queue.close()

    def _run(self, active: ActiveRun) -> None:
        """Drive a run to its end. Called in a thread."""
        step, run = active.step, active.run

        def work(executor_of: ExecutorOf) -> None:
            priority = lambda: self.desired.control.priority  # noqa: E731
            executor = executor_of(run.ledger.prefix, self.shared.code, priority)
            run.drive(executor, step.only, publishes=step.publishes)

        name = f"canary: {run.name}" if step.is_canary else run.name
        facts = {"chunkmap.run": run.ledger.run}
        with logs.log_ids(run=run.ledger.run), traces.span(f"run {name}", facts):
            windows = plural(len(run.labels), "window")
            log.info("%s: started, %s of %s", name, windows, plural(len(run.plan), "chunk"))
            self.orchestrator.run(name, work)
            log.info("%s: done", name)

    def _handle_end(self, ended: ActiveRun, error: BaseException | None) -> None:
        map_stage = ended.run.map_stage
        self.outcome.batches += map_stage.batches if map_stage else 0
        if isinstance(error, ChunkmapError) and not isinstance(error, FATAL_ERRORS):
            self._mark_failed(ended.run, error)
        elif error is not None:
            raise error
        if ended.step.is_canary and not self.queue.has_canary:
            self._check_canary(ended.run)

    def _mark_failed(self, run: BackfillRun, error: ChunkmapError) -> None:
        options, outcome = self.shared.record.options, self.outcome
        if isinstance(error, WindowsFailedError):
            labels = error.labels
        else:
            over = self.progress.in_state("done", "skipped")
            labels = [label for label in run.labels if label not in over]
            self.progress.mark(labels, "failed")
        outcome.failed += len(labels)
        outcome.notes.append(str(error))
        log.info("%s: %s", run.name, error)
        limit = options.max_failures
        if limit is not None and outcome.failed > resolve_limit(limit, self.shared.record.todo):
            outcome.notes.append(
                f"stopped: {plural(outcome.failed, 'window')} failed, and --max-failures is {limit}"
            )
            self.queue.replace([])

    def _check_canary(self, run: BackfillRun) -> None:
        """Check the canary's result before other runs begin.

        Raises:
            BackfillHeldError: the canary failed, or the backfill is to pause after it.
        """
        options = self.shared.record.options
        counts = self.progress.counts()
        over = self.progress.in_state("done", "staged")
        canary = self.outcome.canary = Canary(
            windows=len([label for label in run.labels if label in over]),
            failed_windows=self.outcome.failed,
            chunks=counts["chunks_done"],
            failed_chunks=counts["chunks_failed"],
            speed=self.shared.pace.speed,
        )
        attempted = canary.chunks + canary.failed_chunks
        if canary.failed_chunks > resolve_limit(options.canary_limit, attempted):
            raise BackfillHeldError(self._summarize("held"), failed=True)
        if options.canary_hold and self.queue.has_waiting:
            raise BackfillHeldError(self._summarize("held"), failed=False)

    def _heartbeat(self) -> None:
        """Every few seconds, save progress and apply the desired state."""
        if not self.desired.is_due:
            return
        self.desired.read_at = time.monotonic()
        with best_effort():
            self._save()
            self.desired.refresh()
        if self.desired.take_retry():
            failed = self.progress.in_state("failed")
            waiting = set(self.progress.in_state("waiting")) - self.queue.active_labels
            self.progress.mark(failed, "waiting")
            self.outcome.failed -= len(failed)
            self._schedule(self.store.windows(), waiting.union(failed))
        self.desired.check()

    def _schedule(self, windows: pl.DataFrame, wanted: Collection[str]) -> None:
        options = self.shared.record.options
        self.queue.replace(schedule_runs(windows, options, self.desired.control, wanted))

    def _phase(self) -> str:
        if self.desired.control.paused:
            return "paused"
        return "canary" if self.queue.is_in_canary else "map"

    def _save(self, state: str | None = None) -> None:
        self.heartbeat.record.batches = self.outcome.batches
        self.heartbeat.record.progress = self.progress.counts()
        self.heartbeat.fail(self.outcome.notes)
        self.store.write_progress(self.progress.frame())
        self.heartbeat.write(state)

    def _summarize(self, state: str) -> BackfillSummary:
        record = self.shared.record
        return BackfillSummary(
            backfill=record.backfill,
            job=record.job,
            output=record.output,
            state=state,
            asked=record.asked,
            windows=record.windows,
            todo=record.todo,
            runs=record.runs,
            batches=self.outcome.batches,
            seconds=time.time() - self.heartbeat.record.started,
            counts=self.progress.counts(),
            notes=(*self.outcome.left_out, *self.outcome.notes),
            canary=self.outcome.canary,
        )


def owners(labels: list[str], progress: WindowProgress) -> Ranks:
    """Return the rank of each chunk's window."""
    return np.array([progress.rank[label] for label in labels], dtype=np.int64)
