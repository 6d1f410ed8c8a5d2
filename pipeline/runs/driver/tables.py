"""Tables as inputs (`input.table`), and what cannot become one (`output.table`)."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec

from partitioning import PlanRequest
from pipeline.config.job import Job
from pipeline.errors import JobError, UsageError
from pipeline.storage import Storage, as_prefix, parse
from pipeline.table.columns import Columns
from pipeline.table.errors import plain_run
from pipeline.table.log import TableLog
from pipeline.table.manifest import Manifest


def pinned_request(storage: Storage, job: Job, request: PlanRequest) -> PlanRequest:
    """Return the request for the files of the table that a job reads; the same, if it reads none.

    Raises:
        UsageError: The library is missing.
        InputError: There is no such table or version, or chunkmap cannot read it.
    """
    if job.input.table is None:
        return request
    _require_library("input.table")
    # Only tables need it, and commands are to start fast.
    from pipeline.table.delta.input import pinned_files

    uri = as_prefix(parse(job.input.table).uri)
    pinned = pinned_files(storage, uri, job.input.version)
    return replace(request, uri=(uri,), pinned=pinned, hive_types=pinned.hive_types, schema="union")


def _require_library(key: str) -> None:
    if find_spec("deltalake") is None:
        raise UsageError(
            f"{key} needs the package deltalake, which is not installed",
            hint="pip install 'chunkmap[tables]'",
        )


def refuse_tables(table_log: TableLog, manifest: Manifest, job: Job, columns: Columns) -> None:
    """Refuse a job whose output cannot be the table that it is, or is to be.

    Args:
        table_log: Table log of the output.
        manifest: Current manifest of the output.
        job: The job.
        columns: Columns of the result's files for any data; empty if they depend on it. Those of
            `output.partition_by` may be among them.

    Raises:
        UsageError: The output is a table and the job says nothing of it, the library is missing, or
            the store cannot keep two writers apart.
        JobError: No table can have a column of the result.
        SchemaChangedError: The table has other columns, and the job does not ask to change them.
    """
    if job.output.table is None:
        if manifest.table:
            raise plain_run(table_log.output, f"job {job.name}")
        return
    if manifest.adopted:
        raise UsageError(
            f"{table_log.output} has adopted files, and cannot become a table",
            hint="choose another output, or drop output.table",
        )
    _require_library("output.table")
    if not table_log.storage.is_conditional(table_log.output):
        raise UsageError(
            f"{table_log.output} cannot be a Delta table: the service ignores conditions on writes "
            "(s3.conditional_writes), with which Delta keeps writers apart",
            hint="choose an output on another service, or drop output.table",
        )
    # Only tables need it, and commands are to start fast.
    from pipeline.table.delta.types import column_problems, name_problems

    in_key = job.output.partition_by or ()
    own = {name: kind for name, kind in columns.items() if name not in in_key}
    problems = [*column_problems(own), *name_problems(in_key)]
    if problems:
        raise JobError(
            f"{table_log.output} cannot be a Delta table: {'; '.join(problems)}",
            hint=f"change what {job.transform} returns, or drop output.table",
        )
    if manifest.table and own:
        from pipeline.table.delta.commit import refuse_changes

        widens = job.output.schema_ == "widen"
        refuse_changes(
            table_log, f"job {job.name}", own, mode=job.output.mode, widens=lambda: widens
        )
