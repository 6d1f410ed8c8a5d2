"""Drive a backfill to its end: its runs, a few at a time, under the desired state that users set.

Nothing that this process remembers is needed: which windows are done is in the manifests, which
chunks are done is in the ledgers, what is wished is in `control.json`.
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
from pipeline.runs.backfill.records import Control
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

LOOK_SECONDS = 5.0
"""How often a driver looks what users wish, and says that it is alive."""
IDLE_SECONDS = 0.5
"""How long the main loop waits for a run to end before it looks around."""
MOST_ACTIVE = 64
"""Runs at a time, whatever is wished: each is a thread and a client of the scheduler."""

FOR_ALL = (RunCancelledError, EngineUnavailableError)
"""Errors of a run that end the backfill: every other run would have them too."""

Listener = Callable[[WindowProgress, str], None]
"""Is told, every half second, how far the windows are and what goes on."""


@dataclass(frozen=True, slots=True)
class Again:
    """What to go on with when a backfill is taken up again."""

    only: tuple[str, ...] = ()
    """These windows; default all that are not done."""
    only_failed: bool = False
    """Those that had failed."""
    take_over: bool = False
    """Drive although another driver seems to be alive."""
    code: str = ""
    """Fingerprint of the code to run; default the one of the creation."""


@dataclass(slots=True)
class BackfillDriver:
    """One driver's work on one backfill."""

    store: BackfillStore
    settings: Settings
    orchestrator: BackfillOrchestrator
    again: Again = field(default_factory=Again)
    listen: Listener = lambda board, phase: None
    publish: PublishWindows = publish_windows
    stops: Callable[[], bool] = was_interrupted
    """Whether this process is to end."""
    heartbeat: Heartbeat = field(init=False)
    board: WindowProgress = field(init=False)
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
    _looked: float = 0.0
    _batches: int = 0

    def __post_init__(self) -> None:
        self.heartbeat = Heartbeat.of(self.store.storage, self.store.prefix, self.orchestrator.page)

    def run(self) -> BackfillSummary:
        """Bring the backfill to its end, or attach to whoever does.

        Raises:
            BackfillIncompleteError: some windows failed; the others are published.
            BackfillHeldError: the canary failed, or the backfill waits to be told to go on.
            RunCancelledError: somebody cancelled it.
        """
        with logs.log_ids(backfill=self.store.backfill):
            return self._ended()

    def _ended(self) -> BackfillSummary:
        if (
            is_driven_elsewhere(self.store.driver(), self.heartbeat.record.driver)
            and not self.again.take_over
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
        summary = self._summary(state)
        if state != "done":
            raise BackfillIncompleteError(summary)
        return summary

    def _watch(self) -> None:
        """Follow another driver until it ends or goes silent."""
        self.board = WindowProgress(self.store.windows())
        while is_driven_elsewhere(self.store.driver(), self.heartbeat.record.driver):
            progress = self.store.progress()
            if progress is not None:
                self.board.follow(progress)
            self.listen(self.board, "attached")
            time.sleep(LOOK_SECONDS / 2)

    def _open(self) -> None:
        windows, record = self.store.windows(), self.store.record()
        self.board = WindowProgress(windows)
        before = self.store.progress()
        if before is not None:
            self.board.recall(before)
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
            board=self.board,
            code=self.again.code or record.code,
            is_paused=lambda: self.control.paused,
            obey=self._obey,
            publish=self.publish,
        )
        published = published_by(table_log, record, windows)
        self.board.mark([label for label in self.board.labels if label in published], "done")
        # What the driver before had no time to say.
        untold = windows.filter(pl.col("label").is_in(self.board.unfinished(published)))
        Recount(LedgerCache(self.store), record, windows, self.board).count(
            untold["run"].unique().to_list()
        )
        failed = self._failed_before(before)
        todo = set(self.board.in_state("waiting"))
        wanted = todo & set(self.again.only) if self.again.only else todo
        wanted = wanted & failed if self.again.only_failed else wanted
        # What is not tried again stays failed.
        self.board.mark((failed & todo) - wanted, "failed")
        self._steps.extend(schedule_runs(windows, record.options, self.control, wanted))

    @staticmethod
    def _failed_before(progress: pl.DataFrame | None) -> set[str]:
        if progress is None:
            return set()
        return set(progress.filter(pl.col("state") == "failed")["label"].to_list())

    def _drive(self) -> None:
        plan, windows = self.store.plan(), self.store.windows()
        self._owner = owners(self._labels(plan), self.board)
        with ThreadPoolExecutor(MOST_ACTIVE, "run") as pool:
            try:
                while self._steps or self._active:
                    self._look()
                    while self._may_begin():
                        step = self._steps.popleft()
                        opened = (self.shared, plan, windows, self._owner, step.rank)
                        group = retry_until_available(partial(BackfillRun.open, *opened))
                        self._groups[step.rank] = group
                        work = pool.submit(copy_context().run, self._run, group, step)
                        self._active[work] = step
                    self._collect()
                    self.listen(self.board, self._phase())
            except BaseException as error:
                self._stopping = error
                wait(self._active)
                raise

    def _labels(self, plan: Plan) -> list[str]:
        """The window of each chunk."""
        rule = self.shared.job.window
        assert rule is not None, "no backfill without windows"
        return windows_of_plan(plan, rule.windowing())

    def _may_begin(self) -> bool:
        if not self._steps or self.control.paused:
            return False
        if len(self._active) >= min(self.control.max_active, MOST_ACTIVE):
            return False
        # All of the canary is over before anything else begins.
        others = any(step.is_canary for step in self._active.values())
        return self._steps[0].is_canary or not others

    def _run(self, group: BackfillRun, step: ScheduledRun) -> None:
        def work(executor_of: ExecutorOf) -> None:
            code = self.shared.code
            executor = executor_of(group.ledger.prefix, code, lambda: self.control.priority)
            group.drive(executor, step.only, publishes=step.publishes)

        name = f"canary: {group.name}" if step.is_canary else group.name
        with logs.log_ids(run=group.ledger.run):
            log.info("%s: begins, %d windows", name, len(group.labels))
            self.orchestrator.run(name, work)
            log.info("%s: done", name)

    def _collect(self) -> None:
        """Take note of the runs that have ended."""
        if not self._active:
            time.sleep(IDLE_SECONDS)
            return
        over, _ = wait(self._active, IDLE_SECONDS, FIRST_COMPLETED)
        for work in over:
            step = self._active.pop(work)
            group = self._groups.pop(step.rank)
            self._batches += group.mapper.batches if group.mapper else 0
            error = work.exception()
            if isinstance(error, ChunkmapError) and not isinstance(error, FOR_ALL):
                self._failed_windows(group, error)
            elif error is not None:
                raise error
            if step.is_canary and not any(one.is_canary for one in self._rest()):
                self._judge(group)

    def _rest(self) -> list[ScheduledRun]:
        return [*self._active.values(), *self._steps]

    def _failed_windows(self, group: BackfillRun, error: ChunkmapError) -> None:
        options = self.shared.record.options
        if isinstance(error, WindowsFailedError):
            labels = error.labels
        else:
            over = self.board.in_state("done", "skipped")
            labels = [label for label in group.labels if label not in over]
            self.board.mark(labels, "failed")
        self._failed += len(labels)
        self.notes.append(str(error))
        limit = options.max_failures
        if limit is not None and self._failed > resolve_limit(limit, self.shared.record.todo):
            self.notes.append(
                f"stopped: {self._failed:,} windows failed, and --max-failures is {limit}"
            )
            self._steps.clear()

    def _judge(self, group: BackfillRun) -> None:
        """Whether what the canary shows lets the others begin.

        Raises:
            BackfillHeldError: it does not.
        """
        options = self.shared.record.options
        counts = self.board.counts()
        self.canary = Canary(
            windows=len([w for w in group.labels if w in self.board.in_state("done", "staged")]),
            failed_windows=self._failed,
            chunks=counts["chunks_done"],
            failed_chunks=counts["chunks_failed"],
            speed=self.shared.pace.speed,
        )
        tried = self.canary.chunks + self.canary.failed_chunks
        if self.canary.failed_chunks > resolve_limit(options.canary_limit, tried):
            raise BackfillHeldError(self._summary("held"), failed=True)
        if options.canary_hold and self._steps:
            raise BackfillHeldError(self._summary("held"), failed=False)

    def _look(self) -> None:
        """Every few seconds: say how far we are, and see what is wished."""
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        with best_effort():
            self._save()
            self.control = self.store.control()
            self.control = self.orchestrator.agree(self.control) or self.control
        if self.control.retries > self._retries:
            self._retries = self.control.retries
            failed = self.board.in_state("failed")
            self.board.mark(failed, "waiting")
            self._failed -= len(failed)
            options, waiting = self.shared.record.options, self.board.in_state("waiting")
            self._steps.clear()
            self._steps.extend(schedule_runs(self.store.windows(), options, self.control, waiting))
        self._obey()

    def _obey(self) -> None:
        if self._stopping is not None or self.stops():
            raise KeyboardInterrupt
        if self.control.cancelled:
            raise RunCancelledError(
                f"backfill {self.store.backfill} was cancelled; windows that are published stay"
            )

    def _phase(self) -> str:
        if self.control.paused:
            return "paused"
        return "canary" if any(one.is_canary for one in self._active.values()) else "map"

    def _save(self, state: str | None = None) -> None:
        self.heartbeat.record.batches = self._batches
        self.heartbeat.record.progress = self.board.counts()
        self.store.write_progress(self.board.frame())
        self.heartbeat.write(state)

    def _state(self) -> str:
        return (
            "done"
            if not self.board.in_state("waiting", "mapping", "staged", "failed")
            else ("failed")
        )

    def _summary(self, state: str) -> BackfillSummary:
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
            counts=self.board.counts(),
            notes=(*([record.outside] if record.outside else []), *self.notes),
            canary=self.canary,
        )


def owners(labels: list[str], board: WindowProgress) -> Ranks:
    """By chunk, the rank of its window on the board."""
    return np.array([board.rank[label] for label in labels], dtype=np.int64)
