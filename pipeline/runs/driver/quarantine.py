"""Objects in quarantine: those that could not be read, and the record that is kept of them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import polars as pl

from partitioning import Plan
from partitioning.model import Status
from pipeline.config.job import Job
from pipeline.config.masking import mask_text
from pipeline.config.units import resolve_limit
from pipeline.errors import QuarantineLimitError
from pipeline.printable import printable_line
from pipeline.runs.driver.commit import LeftOut
from pipeline.runs.ledger.records import Progress, RunRecord
from pipeline.table.manifest import QUARANTINED

_SHOWN = 3
"""Objects that an error names."""


def refuse_many_quarantined(job: Job, plan: Plan, uris: Collection[str]) -> None:
    """Refuse to go on without more objects than the job allows.

    Args:
        job: The job.
        plan: Of its input, or of a run of a backfill.
        uris: Of the objects that could not be read.

    Raises:
        QuarantineLimitError: naming both numbers and the first objects.
    """
    limit = job.input.max_quarantined
    if limit is None or not uris:
        return
    status = plan.table("objects")["status"].to_numpy()
    planned = int((status == Status.PLANNED).sum())
    # Part of a plan has no row for objects that it does not read.
    objects = planned + len(set(uris).intersection(one.uri for one in plan.skipped))
    most = resolve_limit(limit, objects)
    if len(uris) > most:
        named = [printable_line(mask_text(uri)) for uri in sorted(uris)[:_SHOWN]]
        shown = ", ".join(named) + (" …" if len(uris) > _SHOWN else "")
        raise QuarantineLimitError(
            f"{len(uris):,} of {objects:,} objects cannot be read, and input.max_quarantined is "
            f"{limit} ({most:,} objects): {shown}; nothing of them is published",
            hint="repair these objects, or raise input.max_quarantined and run the job again: what "
            "is mapped is kept",
        )


def unreadable_uris(
    plan: Plan, progress: Progress, is_own: Callable[[str], bool] = lambda uri: True
) -> set[str]:
    """URIs of the objects that planning or mapping could not read.

    Args:
        plan: Of the run.
        progress: Of the run.
        is_own: Whether an object that planning could not read is the run's.
    """
    found = progress.completions["left_out"].explode(empty_as_null=False).drop_nulls()
    uris = set(found.str.split("\t").list.first().to_list())
    return uris | {one.uri for one in plan.skipped if is_own(one.uri)}


def left_out_of(
    job: Job,
    record: RunRecord,
    plan: Plan,
    done: pl.DataFrame,
    is_own: Callable[[str], bool] = lambda uri: True,
) -> LeftOut:
    """What a commit goes without.

    Args:
        job: The job.
        record: Of the run.
        plan: Of the run.
        done: Completions whose rows are in the commit (schema COMPLETIONS).
        is_own: Whether an object that planning could not read belongs to this commit.
    """
    if job.input.on_bad_object == "fail":
        return LeftOut()
    rows: list[tuple[Any, ...]] = [
        (one.uri, one.etag, one.size, [], _words(one.reason), record.run, "", record.created)
        for one in plan.skipped
        if is_own(one.uri)
    ]
    named = [f"{row[0]}\t{row[4]}" for row in rows]
    without = done.filter(pl.col("left_out").list.len() > 0)
    named += without["left_out"].explode(empty_as_null=False).to_list()
    chunks = plan.chunks(without["index"].to_list())
    columns = without.select("started", "seconds", "left_out").iter_rows()
    for chunk, (started, seconds, left_out) in zip(chunks, columns, strict=True):
        reasons = dict(one.split("\t", 1) for one in left_out if "\t" in one)
        rows += [
            (
                part.uri,
                part.etag,
                part.size,
                [part.row_group_start, part.row_group_stop],
                _words(reasons[part.uri]),
                record.run,
                chunk.id,
                started + seconds,
            )
            for part in chunk.fragments
            if part.uri in reasons
        ]
    if job.input.on_bad_object != "quarantine":
        rows = []
    return LeftOut(tuple(named), pl.DataFrame(rows, schema=QUARANTINED, orient="row"))


def _words(reason: str) -> str:
    """A reason without secrets, and without what a terminal would obey."""
    return printable_line(mask_text(reason))
