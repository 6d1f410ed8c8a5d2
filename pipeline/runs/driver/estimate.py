"""Estimate the time of a plan from earlier runs, and the memory that a worker needs."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from math import ceil, inf
from typing import Any

import polars as pl

from partitioning import Plan
from pipeline.config.job import Job
from pipeline.config.settings import Settings
from pipeline.runs.driver.bytes_to_read import bytes_to_read
from pipeline.runs.driver.heartbeat import read_driver
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


WORKER_BYTES = 250_000_000
"""Memory of a worker before it maps anything, for Python, Polars, Arrow, Dask and Prefect."""
MIN_OVERHEAD_SECONDS = 1.0
"""Minimum seconds of a run that do not depend on its data: planning, task runs, publish, report."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Estimated time, memory and reading of a plan."""

    seconds: float | None
    """Estimated duration from planning to report, with the worker count of `run`. None if there is
    no earlier run."""
    overhead_seconds: float
    """Part of `seconds` that does not depend on the data."""
    workers: int | None
    """Number of workers of `run`."""
    run: str | None
    """Id of the last run of the same transform and parameters to this output."""
    memory_bytes: int
    """Estimated memory of a worker: what its process needs to exist, and that of its threads. Each
    has one chunk in computation (read and result), the bytes of the next, read ahead, and the
    result of the last, waiting to be staged. From sizes, for results as large as their input, or
    from what `run` has measured."""
    bytes_to_read: int
    """Bytes to read: the columns, the footers, and the whole of small objects."""


def estimate(
    storage: Storage, job: Job, plan: Plan, threads: int = 1, before: float = inf
) -> Estimate:
    """Estimate a plan from its sizes and the last run of the same transform and parameters.

    Args:
        storage: Where earlier runs are.
        job: The job.
        plan: Plan of its input.
        threads: Threads per worker.
        before: Only runs created before this count, in Unix seconds.
    """
    measured = _measure(storage, job, max_runs=1, before=before)
    memory, to_read = _worker_memory(plan, threads, measured), bytes_to_read(plan)
    if measured is None:
        return Estimate(None, MIN_OVERHEAD_SECONDS, None, None, memory, to_read)
    alone = plan.decoded_bytes / measured.speed
    mapping = _seconds_with(alone, measured.workers, threads, len(plan)) or 0.0
    return Estimate(
        seconds=mapping + measured.overhead,
        overhead_seconds=measured.overhead,
        workers=measured.workers,
        run=measured.runs[0],
        memory_bytes=memory,
        bytes_to_read=to_read,
    )


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
    """Expected duration with `workers`, with the overhead of each run."""
    suggested_workers: int
    suggested_seconds: float | None
    memory_bytes: int
    """Expected memory of a worker (see `Estimate.memory_bytes`)."""
    bytes_to_read: int
    """Bytes to read (see `Estimate.bytes_to_read`)."""
    memory_set: int | None
    """Memory of a worker in the settings."""

    def to_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return asdict(self)


def forecast(
    storage: Storage,
    job: Job,
    settings: Settings,
    plan: Plan,
    *,
    runs: int = 1,
    max_active: int = 1,
) -> Forecast:
    """Predict a plan's time and memory.

    Args:
        storage: Where earlier runs are.
        job: The job; its speed is that of runs of the same transform and parameters to its output.
        settings: Settings with the number of workers.
        plan: Plan of all windows to do.
        runs: Number of runs of the backfill.
        max_active: Runs at a time.
    """
    threads = settings.dask.threads_per_worker or 1
    measured = _measure(storage, job, MAX_RUNS_USED)
    workers = settings.dask.workers or (measured.workers if measured else os.cpu_count() or 1)
    alone = plan.decoded_bytes / measured.speed if measured else None
    suggested = _suggested(alone, len(plan), threads)
    overhead = (measured.overhead if measured else MIN_OVERHEAD_SECONDS) * ceil(runs / max_active)

    def with_overhead(seconds: float | None) -> float | None:
        return None if seconds is None else seconds + overhead

    return Forecast(
        thread_seconds=alone,
        runs=measured.runs if measured else (),
        workers_then=measured.workers if measured else None,
        workers=workers,
        threads=threads,
        seconds=with_overhead(_seconds_with(alone, workers, threads, len(plan))),
        suggested_workers=suggested,
        suggested_seconds=with_overhead(_seconds_with(alone, suggested, threads, len(plan))),
        memory_bytes=_worker_memory(plan, threads, measured),
        bytes_to_read=bytes_to_read(plan),
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
    overhead: float
    """Largest overhead of a run, in seconds."""
    memory: int
    """Largest memory of a worker, in bytes; 0 if no run has recorded it."""
    thread_memory: int
    """Largest memory of a thread in these runs, as estimated from sizes."""


def _worker_memory(plan: Plan, threads: int, measured: _Measured | None) -> int:
    sized = _thread_memory(plan)
    if measured is None or not measured.memory:
        return WORKER_BYTES + threads * sized
    # Larger chunks take more than was measured.
    growth = max(1.0, sized / max(1, measured.thread_memory))
    return WORKER_BYTES + int(max(0, measured.memory - WORKER_BYTES) * growth)


def _thread_memory(plan: Plan) -> int:
    table = plan.chunk_table
    decoded = max(table["decoded_bytes"].to_pylist(), default=0)
    stored = max(table["stored_bytes"].to_pylist(), default=0)
    return int(3 * decoded + stored)


def _measure(storage: Storage, job: Job, max_runs: int, before: float = inf) -> _Measured | None:
    """Measure the last runs of the same transform and parameters; None if there is none."""
    decoded = busy = overhead = 0.0
    memory = thread_memory = 0
    workers, runs = 0, []
    for record in list(reversed(runs_of(storage, job.output.uri)))[:MAX_RUNS_OPENED]:
        if record.transform != job.transform or record.created >= before:
            continue
        ledger = Ledger(storage, record.output, record.run)
        if ledger.job().params != job.params:
            continue
        done = ledger.read().completions
        if done.is_empty():
            continue
        plan = ledger.plan()
        sizes = plan.chunk_table["decoded_bytes"].to_numpy()
        decoded += float(sizes[done["index"].to_numpy()].sum())
        # Reading ahead and staging overlap with computing, so only computing and waiting for bytes
        # count.
        seconds = float(
            done.select((pl.col("compute_seconds") + pl.col("read_seconds")).sum()).item()
        )
        busy += seconds
        of_run = done["worker"].n_unique()
        overhead = max(overhead, _overhead(storage, ledger, seconds / max(1, of_run)))
        memory = max(memory, int(done.select(pl.col("memory").max()).item()))
        thread_memory = max(thread_memory, _thread_memory(plan))
        workers = max(workers, of_run)
        runs.append(record.run)
        if len(runs) == max_runs:
            break
    if not runs or not decoded:
        return None
    speed = decoded / max(busy, 1e-9)
    return _Measured(speed, max(workers, 1), tuple(runs), overhead, memory, thread_memory)


def _overhead(storage: Storage, ledger: Ledger, mapping: float) -> float:
    """Return the seconds of a run besides mapping, at least the minimum.

    Only a run of one driver tells; a run of a backfill has none of its own.
    """
    driver = read_driver(storage, ledger.prefix)
    if driver is None or driver.earlier or driver.state != "done":
        return MIN_OVERHEAD_SECONDS
    whole = sum(seconds for _, _, seconds in driver.phases)
    return max(MIN_OVERHEAD_SECONDS, whole - mapping)
