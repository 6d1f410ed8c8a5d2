"""How long a backfill will take, and with how many workers, as far as earlier runs tell."""

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

RUNS_ASKED = 5
"""The last runs of the same transform and parameters, whose speeds are averaged."""
RUNS_OPENED = 60
"""Runs that are opened at most to find them."""
GOAL_SECONDS = 3600.0
"""So many workers are suggested that a backfill takes about this long."""
CHUNKS_PER_THREAD = 4
"""With fewer, threads would wait for the last ones."""
MOST_WORKERS = 512
UNKNOWN = 8
"""Workers that are suggested where no earlier run tells anything."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a backfill is expected to take."""

    thread_seconds: float | None
    """Of one worker thread that did it alone; None: no earlier run tells."""
    runs: tuple[str, ...]
    """The runs that tell it."""
    workers_then: int | None
    """The most that mapped one of these runs."""
    workers: int
    """Of the settings; if they do not say, of the earlier runs, or one for each core here."""
    threads: int
    """Of each worker."""
    seconds: float | None
    """With the settings' workers."""
    suggested_workers: int
    suggested_seconds: float | None
    memory_bytes: int
    """Of a worker: for each thread one chunk computed, the next one read ahead, and the last one's
    result waiting to be staged. From sizes, for results as large as what is read."""
    memory_set: int | None
    """What the settings give a worker."""

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        return asdict(self)


def forecast(storage: Storage, job: Job, settings: Settings, plan: Plan) -> Forecast:
    """Predict a plan's time and memory.

    Args:
        storage: Where earlier runs are.
        job: The job; runs of the same transform and parameters to its output tell its speed.
        settings: How many workers there are.
        plan: Of all windows that are to be done.
    """
    table = plan.chunk_table
    decoded = max(table["decoded_bytes"].to_pylist(), default=0)
    stored = max(table["stored_bytes"].to_pylist(), default=0)
    threads = settings.dask.threads_per_worker or 1
    told = _told(storage, job)
    workers = settings.dask.workers or (told.workers if told else os.cpu_count() or 1)
    alone = plan.decoded_bytes / told.speed if told else None
    suggested = _suggested(alone, len(plan), threads)
    return Forecast(
        thread_seconds=alone,
        runs=told.runs if told else (),
        workers_then=told.workers if told else None,
        workers=workers,
        threads=threads,
        seconds=_with(alone, workers, threads, len(plan)),
        suggested_workers=suggested,
        suggested_seconds=_with(alone, suggested, threads, len(plan)),
        memory_bytes=threads * (3 * decoded + stored),
        memory_set=settings.dask.memory_per_worker,
    )


def _with(alone: float | None, workers: int, threads: int, chunks: int) -> float | None:
    """Seconds with so many workers: whole rounds of chunks, since a chunk is never shared."""
    if alone is None or not chunks:
        return alone
    return alone / chunks * ceil(chunks / (workers * threads))


def _suggested(alone: float | None, chunks: int, threads: int) -> int:
    most = max(1, chunks // (CHUNKS_PER_THREAD * threads))
    # Where nothing is known of the speed: few, and a canary will tell.
    wanted = UNKNOWN if alone is None else ceil(alone / GOAL_SECONDS / threads)
    return max(1, min(wanted, most, MOST_WORKERS))


@dataclass(frozen=True, slots=True)
class _Told:
    speed: float
    """Decoded bytes that one thread maps in a second."""
    workers: int
    runs: tuple[str, ...]


def _told(storage: Storage, job: Job) -> _Told | None:
    decoded = busy = 0.0
    workers, runs = 0, []
    for record in list(reversed(runs_of(storage, job.output.uri)))[:RUNS_OPENED]:
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
        # Reading ahead and staging overlap with computing, so a thread is busy for as long as it
        # computes and waits for bytes.
        busy += float(
            done.select((pl.col("compute_seconds") + pl.col("read_seconds")).sum()).item()
        )
        workers = max(workers, done["worker"].n_unique())
        runs.append(record.run)
        if len(runs) == RUNS_ASKED:
            break
    if not runs or not decoded:
        return None
    return _Told(decoded / max(busy, 1e-9), max(workers, 1), tuple(runs))
