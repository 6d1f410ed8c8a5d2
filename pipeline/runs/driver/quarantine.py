"""Limit and record the objects that could not be read (quarantine)."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import polars as pl

from partitioning import Plan
from partitioning.model import Status
from pipeline.config.job import Job
from pipeline.config.units import resolve_limit
from pipeline.errors import QuarantineLimitError
from pipeline.masking import mask_text
from pipeline.printable import printable_line
from pipeline.report.humanize import plural
from pipeline.runs.driver.commit import LeftOut
from pipeline.runs.ledger.check_files import CheckedResult, rejected_name
from pipeline.runs.ledger.records import Progress, RunRecord
from pipeline.table.manifest import NO_REJECTED, QUARANTINED, REJECTED

_SHOWN = 3
"""Maximum number of objects that an error names."""


def refuse_many_quarantined(job: Job, plan: Plan, uris: Collection[str]) -> None:
    """Raise if more objects could not be read than the job allows.

    Args:
        job: The job.
        plan: Plan of its input, or of a run of a backfill.
        uris: URIs of the objects that could not be read.

    Raises:
        QuarantineLimitError: names both numbers and the first objects.
    """
    limit = job.input.max_quarantined
    if limit is None or not uris:
        return
    status = plan.table("objects")["status"].to_numpy()
    planned = int((status == Status.PLANNED).sum())
    # The plan of a part of the input has no rows for objects outside of it.
    objects = planned + len(set(uris).intersection(skipped.uri for skipped in plan.skipped))
    most = resolve_limit(limit, objects)
    if len(uris) > most:
        named = [printable_line(mask_text(uri)) for uri in sorted(uris)[:_SHOWN]]
        shown = ", ".join(named) + (" …" if len(uris) > _SHOWN else "")
        raise QuarantineLimitError(
            f"{len(uris):,} of {plural(objects, 'object')} cannot be read, and "
            "input.max_quarantined is "
            f"{limit} ({plural(most, 'object')}): {shown}; nothing was published",
            hint="fix these objects, or raise input.max_quarantined; then run the job again: "
            "finished work is kept",
        )


def unreadable_uris(
    plan: Plan, progress: Progress, is_own: Callable[[str], bool] = lambda uri: True
) -> set[str]:
    """Collect the URIs of the objects that planning or mapping could not read.

    Args:
        plan: Plan of the run.
        progress: Progress of the run.
        is_own: Tells whether an object that planning could not read belongs to the run.
    """
    left_out = progress.completions["left_out"].explode(empty_as_null=False).drop_nulls()
    uris = set(left_out.str.split("\t").list.first().to_list())
    return uris | {skipped.uri for skipped in plan.skipped if is_own(skipped.uri)}


def left_out_of(
    job: Job,
    record: RunRecord,
    plan: Plan,
    done: pl.DataFrame,
    is_own: Callable[[str], bool] = lambda uri: True,
) -> LeftOut:
    """Collect the objects that a commit leaves out.

    Args:
        job: The job.
        record: Record of the run.
        plan: Plan of the run.
        done: Completions whose rows are in the commit (schema COMPLETIONS).
        is_own: Tells whether an object that planning could not read belongs to this commit.
    """
    if job.input.on_bad_object == "fail":
        return LeftOut()
    rows: list[tuple[Any, ...]] = [
        (bad.uri, bad.etag, bad.size, [], _clean(bad.reason), record.run, "", record.created)
        for bad in plan.skipped
        if is_own(bad.uri)
    ]
    named = [f"{row[0]}\t{row[4]}" for row in rows]
    without = done.filter(pl.col("left_out").list.len() > 0)
    named += without["left_out"].explode(empty_as_null=False).to_list()
    chunks = plan.chunks(without["index"].to_list())
    columns = without.select("started", "seconds", "left_out").iter_rows()
    for chunk, (started, seconds, left_out) in zip(chunks, columns, strict=True):
        reasons = dict(named.split("\t", 1) for named in left_out if "\t" in named)
        rows += [
            (
                part.uri,
                part.etag,
                part.size,
                [part.row_group_start, part.row_group_stop],
                _clean(reasons[part.uri]),
                record.run,
                chunk.id,
                started + seconds,
            )
            for part in chunk.fragments
            if part.uri in reasons
        ]
    if job.input.on_bad_object != "quarantine" or not rows:
        return LeftOut(tuple(named))
    return LeftOut(tuple(named), pl.DataFrame(rows, schema=QUARANTINED, orient="row"))


def rejected_of(job: Job, record: RunRecord, done: pl.DataFrame) -> pl.DataFrame:
    """List the chunks with rows in quarantine (schema REJECTED).

    Args:
        job: The job.
        record: Record of the run.
        done: Completions whose rows are in the commit (schema COMPLETIONS).
    """
    rows = job.checks.rows
    if rows is None or rows.severity != "quarantine":
        return NO_REJECTED
    columns = done.select("chunk", "attempt", "rows_out", "checked").iter_rows()
    rejected = [
        (chunk, attempt, count, rejected_name(record.run, attempt))
        for chunk, attempt, made, text in columns
        if (count := CheckedResult.of(attempt, made, text).failing.count)
    ]
    return pl.DataFrame(rejected, schema=REJECTED, orient="row")


def _clean(reason: str) -> str:
    """Remove secrets and terminal control characters from a reason."""
    return printable_line(mask_text(reason))
