"""The runs of a backfill that wait, and those that are driven in threads."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from dataclasses import dataclass, field

from pipeline.runs.backfill.records import Control
from pipeline.runs.backfill.run import BackfillRun
from pipeline.runs.backfill.schedule import ScheduledRun

IDLE_SECONDS = 0.5
"""Seconds to wait for a run to end."""
MAX_ACTIVE = 64
"""Upper limit of `max_active`: each run takes a thread and a client of the scheduler."""


@dataclass(frozen=True, slots=True)
class ActiveRun:
    """A run that a thread drives."""

    step: ScheduledRun
    run: BackfillRun


@dataclass(slots=True)
class RunQueue:
    """Runs that wait, in order, and runs that are active."""

    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(MAX_ACTIVE, "run"))
    _waiting: deque[ScheduledRun] = field(default_factory=deque)
    _active: dict[Future[None], ActiveRun] = field(default_factory=dict)

    def replace(self, steps: Iterable[ScheduledRun]) -> None:
        """Replace the runs that wait."""
        self._waiting = deque(steps)

    @property
    def is_empty(self) -> bool:
        """Whether no run waits or is active."""
        return not self._waiting and not self._active

    @property
    def has_waiting(self) -> bool:
        """Whether some runs wait."""
        return bool(self._waiting)

    @property
    def is_in_canary(self) -> bool:
        """Whether a part of the canary is active."""
        return any(active.step.is_canary for active in self._active.values())

    @property
    def has_canary(self) -> bool:
        """Whether a part of the canary waits or is active."""
        return self.is_in_canary or any(step.is_canary for step in self._waiting)

    @property
    def active_labels(self) -> set[str]:
        """Labels of the windows of active runs."""
        return {label for active in self._active.values() for label in active.step.only}

    def take(self, control: Control) -> ScheduledRun | None:
        """Take the next run that may begin now, under a desired state; None if none may."""
        if control.paused or len(self._active) >= min(control.max_active, MAX_ACTIVE):
            return None
        # Two drivers of one run would map the same chunks, and one's failure would end the other.
        ranks = {active.step.rank for active in self._active.values()}
        step = next((step for step in self._waiting if step.rank not in ranks), None)
        # Nothing else begins before all of the canary has ended.
        if step is None or (self.is_in_canary and not step.is_canary):
            return None
        self._waiting.remove(step)
        return step

    def start(self, active: ActiveRun, drive: Callable[[ActiveRun], None]) -> None:
        """Drive a run in a thread."""
        self._active[self._pool.submit(copy_context().run, drive, active)] = active

    def collect(self) -> Iterator[tuple[ActiveRun, BaseException | None]]:
        """Wait for up to half a second; yield the runs that have ended, with their errors."""
        if not self._active:
            time.sleep(IDLE_SECONDS)
            return
        ended, _ = wait(self._active, IDLE_SECONDS, FIRST_COMPLETED)
        for work in ended:
            yield self._active.pop(work), work.exception()

    def close(self) -> None:
        """Wait for the active runs; start no others."""
        wait(self._active)
        self._pool.shutdown()
