"""Plan a run before a cluster is asked for anything, so that a bad input is refused in a second."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config.job import Job
from pipeline.config.settings import Settings
from pipeline.runs.driver.plan import PreparedRun, ResumeOptions, plan_run
from pipeline.storage import Storage


@dataclass(frozen=True, slots=True)
class EarlyPlan:
    """A run that was planned before its flow began."""

    run: PreparedRun
    started: float
    """When planning began, in seconds since the epoch."""
    seconds: float
    """Duration of planning."""


class _NeedsCluster(Exception):
    """Workers must read the footers of the input, because it has many objects."""


def plan_early(
    job: Job, settings: Settings, storage: Storage, resume: ResumeOptions
) -> EarlyPlan | None:
    """Plan a run as `plan_run` does, in this process.

    Returns:
        The run; None if workers must read the footers of its input (`planner.map_threshold`).
    """
    started = time.time()
    try:
        run = plan_run(job, settings, storage, resume, _refuse_mapping)
    except _NeedsCluster:
        return None
    return EarlyPlan(run, started, time.time() - started)


def _refuse_mapping(function: Any, groups: Sequence[Any]) -> Iterator[Any]:
    raise _NeedsCluster
