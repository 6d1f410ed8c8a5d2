"""Estimate the time of a plan from earlier runs, and the memory that a worker needs."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from partitioning import Plan
from pipeline.config.job import Job
from pipeline.runs.ledger.find import runs_of
from pipeline.runs.ledger.ledger import Ledger
from pipeline.storage import Storage


@dataclass(frozen=True, slots=True)
class Estimate:
    """Estimated time and memory of a plan."""

    seconds: float | None
    """Estimated wall time of the map stage, with the worker count of `run`. None if unknown."""
    workers: int | None
    """Number of workers of `run`."""
    run: str | None
    """Id of the last run of the same transform and parameters to this output."""
    memory_bytes: int
    """Estimated memory of one worker thread: one chunk in computation (read and result), the bytes
    of the next, read ahead, and the result of the last, waiting to be staged. Computed from sizes,
    for results as large as their input."""


def estimate(storage: Storage, job: Job, plan: Plan) -> Estimate:
    """Estimate a plan from the speed of the last run of the same transform and parameters."""
    table = plan.chunk_table
    decoded = max(table["decoded_bytes"].to_pylist(), default=0)
    stored = max(table["stored_bytes"].to_pylist(), default=0)
    memory = 3 * decoded + stored
    for record in reversed(runs_of(storage, job.output.uri)):
        ledger = Ledger(storage, record.output, record.run)
        earlier = ledger.job()
        if (earlier.transform, earlier.params) != (job.transform, job.params):
            continue
        measured = _speed(ledger)
        if measured is not None:
            speed, workers = measured
            return Estimate(plan.decoded_bytes / speed, workers, record.run, memory)
    return Estimate(None, None, None, memory)


def _speed(ledger: Ledger) -> tuple[float, int] | None:
    """Return a run's decoded bytes per second and worker count; None if it mapped nothing."""
    done = ledger.read().completions
    if done.is_empty():
        return None
    sizes = ledger.plan().chunk_table["decoded_bytes"].to_numpy()
    workers = max(1, done["worker"].n_unique())
    busy = float(done.select(pl.col("compute_seconds").sum() + pl.col("read_seconds").sum()).item())
    # Reading ahead and staging overlap with computing, so only computing and waiting for bytes
    # count.
    return float(sizes[done["index"].to_numpy()].sum()) / max(busy / workers, 1e-9), workers
