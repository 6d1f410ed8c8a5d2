"""Plan a run before a cluster is asked for anything, so that a bad input is refused in a second."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from threading import Thread
from typing import Any

from pipeline.config.job import Job
from pipeline.config.settings import Settings
from pipeline.runs.driver.plan import PreparedRun, ResumeOptions, plan_run
from pipeline.storage import Storage


@dataclass(frozen=True, slots=True)
class EarlyPlan:
    """A run that was planned before its flow began, or while it began."""

    run: PreparedRun | None
    """None if the flow must plan it."""
    started: float
    """When planning began, in seconds since the epoch."""
    seconds: float
    """Duration of planning, or of waiting for its end."""


class _NeedsCluster(Exception):
    """Workers must read the footers of the input, because it has many objects."""


def plan_early(job: Job, settings: Settings, storage: Storage, resume: ResumeOptions) -> EarlyPlan:
    """Plan a run as `plan_run` does, in this process.

    Returns:
        The run; none if workers must read the footers of its input (`planner.map_threshold`).
    """
    started = time.time()
    try:
        run = plan_run(job, settings, storage, resume, _refuse_mapping)
    except _NeedsCluster:
        run = None
    return EarlyPlan(run, started, time.time() - started)


def _refuse_mapping(function: Any, groups: Sequence[Any]) -> Iterator[Any]:
    raise _NeedsCluster


class BackgroundPlan:
    """Plans a run in a thread, while Prefect and Dask are started: both mostly wait."""

    def __init__(self, plan: Callable[[], EarlyPlan]) -> None:
        """Start to plan.

        Args:
            plan: Plans the run.
        """
        self._plan = plan
        self._result: EarlyPlan | None = None
        self._error: BaseException | None = None
        # A daemon, so that Ctrl-C need not wait for it.
        self._thread = Thread(target=self._run, name="plan", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result = self._plan()
        except BaseException as error:
            self._error = error

    def result(self) -> EarlyPlan:
        """Wait for the plan; its time is that of the first wait. Raises what planning raises."""
        started = time.time()
        if self._thread.is_alive():
            self._thread.join()
            if self._result is not None:
                self._result = EarlyPlan(self._result.run, started, time.time() - started)
        if self._error is not None:
            raise self._error
        assert self._result is not None, "planning returns or raises"
        return self._result
