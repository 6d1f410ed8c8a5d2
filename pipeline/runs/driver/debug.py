"""Run one chunk of a job in this process, to debug it. Stores nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import polars as pl

from partitioning import Chunk, Plan
from pipeline.config.job import Job
from pipeline.config.settings import Settings
from pipeline.errors import UsageError
from pipeline.runs.driver.plan import (
    is_published,
    plan_input,
    runs_of_job,
    unfinished_runs,
)
from pipeline.runs.ledger.find import runs_of
from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.transforms.loading import Transform
from pipeline.runs.transforms.reach import allows
from pipeline.runs.worker.chunk import (
    arrange,
    filter_of,
    filter_polars,
    read_options,
    results_of,
    transform_of,
)
from pipeline.runs.worker.chunk_source import ChunkSource
from pipeline.runs.worker.groups import GroupMap
from pipeline.runs.worker.stage_slices import by_folder
from pipeline.storage import Storage, Tables


@dataclass(frozen=True, slots=True)
class DebugChunk:
    """A chunk that is ready to be mapped in this process."""

    chunk: Chunk
    run: str | None
    """Run whose plan has the chunk; None if the input was planned for this."""
    job: Job
    plan: Plan
    transform: Transform
    tables: Tables
    storage: Storage

    def source(self) -> ChunkSource:
        """Open the chunk for reading."""
        return ChunkSource(
            self.storage,
            self.chunk,
            self.plan.dtypes,
            filter_polars(filter_of(self.job), self.plan),
            options=read_options(self.job),
        )

    def map(self) -> dict[str, pl.DataFrame]:
        """Map the chunk as a worker would; return the result for each output, and store nothing.

        Raises as a worker would.
        """
        source = self.source()
        try:
            with self.tables.used():
                results = results_of(
                    self.transform, source.scan(), self.job, self.chunk.decoded_bytes
                )
        finally:
            source.close()
        for name, result in results.items() if self.job.reduce is None else ():
            job = self.job.of_output(name) if self.job.outputs else self.job
            by_folder(arrange(result, job), self.chunk, job, self.plan.dtypes)
        return results

    def step(self, run: StepThrough) -> None:
        """Call the transform on the chunk's frame through a debugger."""
        source, call = self.source(), self.transform.call
        try:
            with self.tables.used():
                if isinstance(call, GroupMap):
                    run(call.function, call.first_failed(source.scan()))
                else:
                    run(call, source.scan())
        finally:
            source.close()


StepThrough = Callable[[Callable[..., Any], pl.LazyFrame], object]
"""Function of a debugger that calls a function and stops at its first line."""


def find_chunk(
    job: Job, settings: Settings, storage: Storage, index: int, ledger: Ledger | None = None
) -> DebugChunk:
    """Find a chunk by its number, as failures name it.

    Args:
        job: The job, with the transform to debug.
        settings: Which modules are allowed; how to plan.
        storage: Where input and output are.
        index: Number of the chunk.
        ledger: Run whose plan has it, or a plan of pieces of its reduced result; default the
            unfinished, else the last run of the job. If it has not run yet, its input is planned.

    Raises:
        UsageError: The plan has no such chunk.
    """
    ledger = ledger or _last_run(job, storage)
    if ledger is None:
        planned = plan_input(job, settings, storage)
        plan, tables, transform = planned.result.plan, planned.tables, planned.transform
    else:
        plan, tables = ledger.plan(), Tables(ledger.record().tables)
        transform = transform_of(ledger, job, settings)
    if not 0 <= index < len(plan):
        unit = ledger.unit if ledger else "chunk"
        raise UsageError(
            f"there is no {unit} {index}: the plan has {len(plan):,}, from 0 to {len(plan) - 1:,}"
        )
    [chunk] = plan.chunks([index])
    run = ledger.run if ledger else None
    return DebugChunk(chunk, run, job, plan, transform, tables, storage)


def _last_run(job: Job, storage: Storage) -> Ledger | None:
    """Return the run that would be resumed, else the newest; None if there is none."""
    same = runs_of_job(job, storage, runs_of(storage, job.output.uri))
    published = [record for record in same if is_published(storage, record)]
    chosen = [*same, *unfinished_runs(same, published)]
    return Ledger(storage, chosen[-1].output, chosen[-1].run) if chosen else None


def user_traceback(error: BaseException, allow: Sequence[str]) -> TracebackType | None:
    """Cut a traceback after the last frame of the user's code; None if it has no such frame.

    Args:
        error: What a chunk raised.
        allow: Modules that may define transforms.
    """
    cause = error.__cause__ or error
    entries, trace = [], cause.__traceback__
    while trace is not None:
        entries.append(trace)
        trace = trace.tb_next
    is_users = [allows(allow, entry.tb_frame.f_globals.get("__name__", "")) for entry in entries]
    if not any(is_users):
        return None
    last = len(is_users) - 1 - is_users[::-1].index(True)
    result: TracebackType | None = None
    for entry in reversed(entries[: last + 1]):
        result = TracebackType(result, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
    return result
