"""Drive a backfill to its end: its runs, a few at a time, under the desired state that users set.

All state is in storage: the manifests list the windows that are done, the ledgers the chunks, and
`control.json` is the desired state.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import polars as pl

from partitioning import Plan
from partitioning.window_inputs import windows_of_plan
from pipeline import logs
from pipeline.config.settings import Settings
from pipeline.config.units import resolve_limit
from pipeline.errors import ChunkmapError, EngineUnavailableError, RunCancelledError
from pipeline.processes import was_interrupted
from pipeline.runs.backfill.orchestrator import BackfillOrchestrator, ExecutorOf
from pipeline.runs.backfill.output_windows import published_by
from pipeline.runs.backfill.progress import Ranks, WindowProgress
from pipeline.runs.backfill.records import BackfillResumeOptions, Control
from pipeline.runs.backfill.recount import LedgerCache, Recount
from pipeline.runs.backfill.run import (
    BackfillContext,
    BackfillRun,
    PublishWindows,
    WindowsFailedError,
)
from pipeline.runs.backfill.schedule import ScheduledRun, schedule_runs
from pipeline.runs.backfill.store import BackfillStore
from pipeline.runs.backfill.summary import (
    BackfillHeldError,
    BackfillIncompleteError,
    BackfillSummary,
    Canary,
)
from pipeline.runs.driver.following import is_driven_elsewhere
from pipeline.runs.driver.heartbeat import Heartbeat
from pipeline.runs.driver.publish_windows import publish_windows
from pipeline.storage.outages import best_effort, retry_until_available
from pipeline.table.claims import finish_open_claim
from pipeline.table.log import TableLog

log = logging.getLogger(__name__)

CONTROL_SECONDS = 5.0
"""Seconds between two heartbeats; each saves progress and applies control changes."""
IDLE_SECONDS = 0.5
"""Seconds that the main loop waits for a run to end."""
MAX_ACTIVE = 64
"""Upper limit of `max_active`: each run takes a thread and a client of the scheduler."""

FATAL_ERRORS = (RunCancelledError, EngineUnavailableError)
"""Errors of a run that end the backfill, since all other runs would fail too."""

Listener = Callable[[WindowProgress, str], None]
"""Callback, every half second, with the windows' progress and the phase."""


@dataclass(slots=True)
class BackfillDriver:
    """Drives one backfill: attach, or map and publish its runs."""

    store: BackfillStore
    settings: Settings
    orchestrator: BackfillOrchestrator
    resume: BackfillResumeOptions = field(default_factory=BackfillResumeOptions)
    listen: Listener = lambda progress, phase: None
    publish: PublishWindows = publish_windows
    stops: Callable[[], bool] = was_interrupted
    """Returns whether this process is to end."""
    heartbeat: Heartbeat = field(init=False)
    progress: WindowProgress = field(init=False)
    control: Control = field(init=False)
    shared: BackfillContext = field(init=False)
    notes: list[str] = field(default_factory=list)
    canary: Canary | None = None
    _owner: Ranks = field(init=False)
    _groups: dict[int, BackfillRun] = field(default_factory=dict)
    _steps: deque[ScheduledRun] = field(default_factory=deque)
    _active: dict[Future[None], ScheduledRun] = field(default_factory=dict)
    _stopping: BaseException | None = None
    _failed: int = 0
    _retries: int = 0
    _beat_at: float = 0.0
    _batches: int = 0

    def __post_init__(self) -> None:
        self.heartbeat = Heartbeat.of(self.store.storage, self.store.prefix, self.orchestrator.page)

    def run(self) -> BackfillSummary:
        """Drive the backfill to its end, or follow another driver that already does.

        Raises:
            BackfillIncompleteError: some windows failed; the others are published.
            BackfillHeldError: the canary failed, or the backfill pauses after it.
            RunCancelledError: the backfill was cancelled.
        """
        with logs.log_ids(backfill=self.store.backfill):
            return self._attach_or_drive()

    def _attach_or_drive(self) -> BackfillSummary:
        if (
            is_driven_elsewhere(self.store.driver(), self.heartbeat.record.driver)
            and not self.resume.take_over
        ):
            self._watch()
        self._open()
        state = "failed"
        try:
            with best_effort():
                self.heartbeat.write()
            self._drive()
            state = self._state()
        except RunCancelledError:
            state = "cancelled"
            raise
        except BackfillHeldError:
            state = "held"
            raise
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) or self.stops():
                state = "interrupted"
            raise
        finally:
            with best_effort():
                self._save(state)
            log.info("%s", state)
        summary = self._summarize(state)
        if state != "done":
            raise BackfillIncompleteError(summary)
        return summary

    def _watch(self) -> None:
        """Follow another driver until it ends or its heartbeat expires."""
        self.progress = WindowProgress(self.store.windows())
        while is_driven_elsewhere(self.store.driver(), self.heartbeat.record.driver):
            progress = self.store.progress()
            if progress is not None:
                self.progress.restore(progress)
            self.listen(self.progress, "attached")
            time.sleep(CONTROL_SECONDS / 2)

    def _open(self) -> None:
        windows, record = self.store.windows(), self.store.record()
        self.progress = WindowProgress(windows)
        before = self.store.progress()
        if before is not None:
            self.progress.restore_figures(before)
        table_log = TableLog(self.store.storage, self.store.output)
        finish_open_claim(table_log)
        self.control = self.store.control()
        self._retries = self.control.retries
        self.shared = BackfillContext(
            storage=self.store.storage,
            table_log=table_log,
            record=record,
            job=self.store.job(),
            limits=self.settings.batches,
            progress=self.progress,
            code=self.resume.code or record.code,
            is_paused=lambda: self.control.paused,
            check_control=self._apply_control,
            publish=self.publish,
        )
        published = published_by(table_log, record, windows)
        self.progress.mark([label for label in self.progress.labels if label in published], "done")
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
        self._steps.extend(schedule_runs(windows, record.options, self.control, wanted))

    @staticmethod
    def _failed_before(progress: pl.DataFrame | None) -> set[str]:
        if progress is None:
            return set()
        return set(progress.filter(pl.col("state") == "failed")["label"].to_list())

    def _drive(self) -> None:
        plan, windows = self.store.plan(), self.store.windows()
        self._owner = owners(self._labels(plan), self.progress)
        with ThreadPoolExecutor(MAX_ACTIVE, "run") as pool:
            try:
                while self._steps or self._active:
                    self._heartbeat()
                    while self._may_begin():
                        step = self._steps.popleft()
                        args = (self.shared, plan, windows, self._owner, step.rank)
                        group = retry_until_available(partial(BackfillRun.open, *args))
                        self._groups[step.rank] = group
                        work = pool.submit(copy_context().run, self._run, group, step)
                        self._active[work] = step
                    self._collect()
                    self.listen(self.progress, self._phase())
            except BaseException as error:
                self._stopping = error
                wait(self._active)
                raise

    def _labels(self, plan: Plan) -> list[str]:
        """Return the label of each chunk's window."""
        rule = self.shared.job.window
        assert rule is not None, "a backfill's job has windows"
        return windows_of_plan(plan, rule.windowing())

    def _may_begin(self) -> bool:
        if not self._steps or self.control.paused:
            return False
        if len(self._active) >= min(self.control.max_active, MAX_ACTIVE):
            return False
        # Nothing else begins before all of the canary has ended.
        in_canary = any(step.is_canary for step in self._active.values())
        return self._steps[0].is_canary or not in_canary

    def _run(self, group: BackfillRun, step: ScheduledRun) -> None:
        def work(executor_of: ExecutorOf) -> None:
            code = self.shared.code
            executor = executor_of(group.ledger.prefix, code, lambda: self.control.priority)
            group.drive(executor, step.only, publishes=step.publishes)

        name = f"canary: {group.name}" if step.is_canary else group.name
        with logs.log_ids(run=group.ledger.run):
            log.info("%s: started, %d windows", name, len(group.labels))
            self.orchestrator.run(name, work)
            log.info("%s: done", name)

    def _collect(self) -> None:
        """Handle the runs that have ended."""
        if not self._active:
            time.sleep(IDLE_SECONDS)
            return
        ended, _ = wait(self._active, IDLE_SECONDS, FIRST_COMPLETED)
        for work in ended:
            step = self._active.pop(work)
            group = self._groups.pop(step.rank)
            self._batches += group.map_stage.batches if group.map_stage else 0
            error = work.exception()
            if isinstance(error, ChunkmapError) and not isinstance(error, FATAL_ERRORS):
                self._mark_failed(group, error)
            elif error is not None:
                raise error
            if step.is_canary and not any(other.is_canary for other in self._unfinished()):
                self._check_canary(group)

    def _unfinished(self) -> list[ScheduledRun]:
        return [*self._active.values(), *self._steps]

    def _mark_failed(self, group: BackfillRun, error: ChunkmapError) -> None:
        options = self.shared.record.options
        if isinstance(error, WindowsFailedError):
            labels = error.labels
        else:
            over = self.progress.in_state("done", "skipped")
            labels = [label for label in group.labels if label not in over]
            self.progress.mark(labels, "failed")
        self._failed += len(labels)
        self.notes.append(str(error))
        limit = options.max_failures
        if limit is not None and self._failed > resolve_limit(limit, self.shared.record.todo):
            self.notes.append(
                f"stopped: {self._failed:,} windows failed, and --max-failures is {limit}"
            )
            self._steps.clear()

    def _check_canary(self, group: BackfillRun) -> None:
        """Check the canary's result before other runs begin.

        Raises:
            BackfillHeldError: the canary failed, or the backfill is to pause after it.
        """
        options = self.shared.record.options
        counts = self.progress.counts()
        self.canary = Canary(
            windows=len([w for w in group.labels if w in self.progress.in_state("done", "staged")]),
            failed_windows=self._failed,
            chunks=counts["chunks_done"],
            failed_chunks=counts["chunks_failed"],
            speed=self.shared.pace.speed,
        )
        attempted = self.canary.chunks + self.canary.failed_chunks
        if self.canary.failed_chunks > resolve_limit(options.canary_limit, attempted):
            raise BackfillHeldError(self._summarize("held"), failed=True)
        if options.canary_hold and self._steps:
            raise BackfillHeldError(self._summarize("held"), failed=False)

    def _heartbeat(self) -> None:
        """Every few seconds, save progress and apply control changes."""
        if time.monotonic() - self._beat_at < CONTROL_SECONDS:
            return
        self._beat_at = time.monotonic()
        with best_effort():
            self._save()
            self.control = self.store.control()
            self.control = self.orchestrator.sync_control(self.control) or self.control
        if self.control.retries > self._retries:
            self._retries = self.control.retries
            failed = self.progress.in_state("failed")
            self.progress.mark(failed, "waiting")
            self._failed -= len(failed)
            options, waiting = self.shared.record.options, self.progress.in_state("waiting")
            self._steps.clear()
            self._steps.extend(schedule_runs(self.store.windows(), options, self.control, waiting))
        self._apply_control()

    def _apply_control(self) -> None:
        if self._stopping is not None or self.stops():
            raise KeyboardInterrupt
        if self.control.cancelled:
            raise RunCancelledError(
                f"backfill {self.store.backfill} was cancelled; published windows are kept"
            )

    def _phase(self) -> str:
        if self.control.paused:
            return "paused"
        return "canary" if any(step.is_canary for step in self._active.values()) else "map"

    def _save(self, state: str | None = None) -> None:
        self.heartbeat.record.batches = self._batches
        self.heartbeat.record.progress = self.progress.counts()
        self.store.write_progress(self.progress.frame())
        self.heartbeat.write(state)

    def _state(self) -> str:
        left = self.progress.in_state("waiting", "mapping", "staged", "failed")
        return "failed" if left else "done"

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
            batches=self._batches,
            seconds=time.time() - self.heartbeat.record.started,
            counts=self.progress.counts(),
            notes=(*([record.outside] if record.outside else []), *self.notes),
            canary=self.canary,
        )


def owners(labels: list[str], progress: WindowProgress) -> Ranks:
    """Return the rank of each chunk's window."""
    return np.array([progress.rank[label] for label in labels], dtype=np.int64)
