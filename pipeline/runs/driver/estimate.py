"""How long a plan will take and how much memory a worker needs, as far as earlier runs tell."""

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
    """What a plan is expected to take."""

    seconds: float | None
    """Wall time of the mapping, with as many workers as the run it is told by; None: unknown."""
    workers: int | None
    """Of that run."""
    run: str | None
    """The run that tells it: the last of the same transform and parameters to this output."""
    memory_bytes: int
    """Of one worker thread: one chunk computed (read and result), the bytes of the next one read
    ahead, and the result of the last one waiting to be staged. An estimate from sizes, for results
    as large as what is read; not a measurement."""


def estimate(storage: Storage, job: Job, plan: Plan) -> Estimate:
    """Estimate a plan by the speed of the last run of the same transform and parameters."""
    table = plan.chunk_table
    decoded = max(table["decoded_bytes"].to_pylist(), default=0)
    stored = max(table["stored_bytes"].to_pylist(), default=0)
    memory = 3 * decoded + stored
    for record in reversed(runs_of(storage, job.output.uri)):
        ledger = Ledger(storage, record.output, record.run)
        before = ledger.job()
        if (before.transform, before.params) != (job.transform, job.params):
            continue
        told = _speed(ledger)
        if told is not None:
            speed, workers = told
            return Estimate(plan.decoded_bytes / speed, workers, record.run, memory)
    return Estimate(None, None, None, memory)


def _speed(ledger: Ledger) -> tuple[float, int] | None:
    """Decoded bytes a second of a whole run, and its workers; None if it has mapped nothing."""
    done = ledger.read().completions
    if done.is_empty():
        return None
    sizes = ledger.plan().chunk_table["decoded_bytes"].to_numpy()
    workers = max(1, done["worker"].n_unique())
    busy = float(done.select(pl.col("compute_seconds").sum() + pl.col("read_seconds").sum()).item())
    # Reading ahead and staging overlap with computing, so a worker is busy for as long as it
    # computes and waits for bytes.
    return float(sizes[done["index"].to_numpy()].sum()) / max(busy / workers, 1e-9), workers
