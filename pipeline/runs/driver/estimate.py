"""Estimate the time of a plan from earlier runs, and the memory that a worker needs."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any

import polars as pl

from partitioning import Plan
from pipeline.config.job import Job
from pipeline.config.settings import Settings
from pipeline.runs.ledger.find import runs_of
from pipeline.runs.ledger.ledger import Ledger
from pipeline.storage import Storage

MAX_RUNS_USED = 5
"""Maximum number of earlier runs whose speed is averaged."""
MAX_RUNS_OPENED = 60
"""Maximum number of runs that are opened to find these."""
GOAL_SECONDS = 3600.0
"""Duration of the backfill with the suggested number of workers."""
CHUNKS_PER_THREAD = 4
"""Minimum number of chunks per thread; with fewer, threads would wait for the last chunks."""
MAX_WORKERS = 512
DEFAULT_WORKERS = 8
"""Suggested number of workers if there is no earlier run."""


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
    memory = _thread_memory(plan)
    measured = _measure(storage, job, max_runs=1)
    if measured is None:
        return Estimate(None, None, None, memory)
    seconds = plan.decoded_bytes / (measured.speed * measured.workers)
    return Estimate(seconds, measured.workers, measured.runs[0], memory)


@dataclass(frozen=True, slots=True)
class Forecast:
    """Expected time and memory of a backfill."""

    thread_seconds: float | None
    """Seconds of a single worker thread for all of it; None if there is no earlier run."""
    runs: tuple[str, ...]
    """Ids of the earlier runs that were measured."""
    workers_then: int | None
    """Largest number of workers of one of these runs."""
    workers: int
    """Number of workers in the settings; by default that of the earlier runs, or the cores here."""
    threads: int
    """Threads per worker."""
    seconds: float | None
    """Expected duration with `workers`."""
    suggested_workers: int
    suggested_seconds: float | None
    memory_bytes: int
    """Expected memory of a worker: for each thread, one chunk in computation, the next one read
    ahead, and the last result waiting to be staged. From sizes, for results as large as their
    input."""
    memory_set: int | None
    """Memory of a worker in the settings."""

    def to_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return asdict(self)


def forecast(storage: Storage, job: Job, settings: Settings, plan: Plan) -> Forecast:
    """Predict a plan's time and memory.

    Args:
        storage: Where earlier runs are.
        job: The job; its speed is that of runs of the same transform and parameters to its output.
        settings: Settings with the number of workers.
        plan: Plan of all windows to do.
    """
    threads = settings.dask.threads_per_worker or 1
    measured = _measure(storage, job, MAX_RUNS_USED)
    workers = settings.dask.workers or (measured.workers if measured else os.cpu_count() or 1)
    alone = plan.decoded_bytes / measured.speed if measured else None
    suggested = _suggested(alone, len(plan), threads)
    return Forecast(
        thread_seconds=alone,
        runs=measured.runs if measured else (),
        workers_then=measured.workers if measured else None,
        workers=workers,
        threads=threads,
        seconds=_seconds_with(alone, workers, threads, len(plan)),
        suggested_workers=suggested,
        suggested_seconds=_seconds_with(alone, suggested, threads, len(plan)),
        memory_bytes=threads * _thread_memory(plan),
        memory_set=settings.dask.memory_per_worker,
    )


def _seconds_with(alone: float | None, workers: int, threads: int, chunks: int) -> float | None:
    """Compute the seconds with some workers, in whole chunks per thread."""
    if alone is None or not chunks:
        return alone
    return alone / chunks * ceil(chunks / (workers * threads))


def _suggested(alone: float | None, chunks: int, threads: int) -> int:
    most = max(1, chunks // (CHUNKS_PER_THREAD * threads))
    # If the speed is unknown, suggest few; a canary will show it.
    wanted = DEFAULT_WORKERS if alone is None else ceil(alone / GOAL_SECONDS / threads)
    return max(1, min(wanted, most, MAX_WORKERS))


@dataclass(frozen=True, slots=True)
class _Measured:
    speed: float
    """Decoded bytes that one thread maps per second."""
    workers: int
    runs: tuple[str, ...]


def _thread_memory(plan: Plan) -> int:
    table = plan.chunk_table
    decoded = max(table["decoded_bytes"].to_pylist(), default=0)
    stored = max(table["stored_bytes"].to_pylist(), default=0)
    return int(3 * decoded + stored)


def _measure(storage: Storage, job: Job, max_runs: int) -> _Measured | None:
    """Measure the last runs of the same transform and parameters; None if there is none."""
    decoded = busy = 0.0
    workers, runs = 0, []
    for record in list(reversed(runs_of(storage, job.output.uri)))[:MAX_RUNS_OPENED]:
        if record.transform != job.transform:
            continue
        ledger = Ledger(storage, record.output, record.run)
        if ledger.job().params != job.params:
            continue
        done = ledger.read().completions
        if done.is_empty():
            continue
        sizes = ledger.plan().chunk_table["decoded_bytes"].to_numpy()
        decoded += float(sizes[done["index"].to_numpy()].sum())
        # Reading ahead and staging overlap with computing, so only computing and waiting for bytes
        # count.
        busy += float(
            done.select((pl.col("compute_seconds") + pl.col("read_seconds")).sum()).item()
        )
        workers = max(workers, done["worker"].n_unique())
        runs.append(record.run)
        if len(runs) == max_runs:
            break
    if not runs or not decoded:
        return None
    return _Measured(decoded / max(busy, 1e-9), max(workers, 1), tuple(runs))
