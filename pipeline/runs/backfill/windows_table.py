"""Build the table of a backfill's windows: what there is to do, and in which run. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from math import ceil

import polars as pl

from partitioning import Plan
from partitioning.window_inputs import label_of_folder, windows_of_plan
from partitioning.windows import Windowing
from pipeline.config.units import resolve_limit
from pipeline.masking import mask_text
from pipeline.printable import printable_line
from pipeline.report.humanize import plural
from pipeline.runs.backfill.records import MAX_RUNS, MIN_RUN_BYTES, WINDOWS, Options
from pipeline.runs.backfill.selection import EMPTY, WindowDecision, group_into_runs, spread

EMPTIED = "the input has no rows of it any more, and the output keeps those from before"
"""Reason why a window of which the output has rows is skipped."""
_UNREADABLE = r"can(not)? be read\b.*: "
"""Pattern of the reasons why a window with unreadable objects is skipped."""
_FIGURES = ("rows", "stored_bytes", "decoded_bytes")


def chunks_of(plan: Plan | None, rule: Windowing) -> pl.DataFrame:
    """Return one row per chunk, in the plan's order: its window's label, its rows and bytes."""
    if plan is None:
        return pl.DataFrame(schema={"label": pl.String, **dict.fromkeys(_FIGURES, pl.Int64)})
    frame = pl.DataFrame(pl.from_arrow(plan.chunk_table.select(list(_FIGURES))))
    return frame.select(
        pl.Series("label", windows_of_plan(plan, rule), dtype=pl.String),
        pl.col(_FIGURES).cast(pl.Int64),
    )


def unreadable_objects(plan: Plan | None, rule: Windowing) -> dict[str, list[str]]:
    """Return the objects that planning could not read, each with its reason, by window label."""
    objects: dict[str, list[str]] = {}
    for bad in plan.skipped if plan is not None else ():
        label = label_of_folder(rule, bad.uri.rpartition("/")[0])
        if label is not None:
            text = printable_line(mask_text(f"{bad.uri}: {bad.reason}"))
            objects.setdefault(label, []).append(text)
    return objects


def unreadable_note(windows: pl.DataFrame) -> str | None:
    """Return a note about the windows of which nothing can be read; None if there are none.

    Args:
        windows: Windows of a backfill (schema WINDOWS).
    """
    labels = windows.filter(pl.col("skipped").str.contains(_UNREADABLE))["label"].to_list()
    if not labels:
        return None
    return (
        f"nothing of {plural(len(labels), 'window')} (for example {labels[0]}) can be read: the "
        "output lacks these rows, or keeps those from before; fix the objects, and run the "
        "backfill again"
    )


def emptied_note(labels: Sequence[str]) -> str | None:
    """Return a note about windows of the output without rows in the input; None if there are none.

    Args:
        labels: Their labels.
    """
    if not labels:
        return None
    verb = "has" if len(labels) == 1 else "have"
    return (
        f"{plural(len(labels), 'window')} (for example {min(labels)}) of the output {verb} no rows "
        "in the input any more: the output keeps those from before"
    )


def windows_table(
    choices: list[WindowDecision],
    chunks: pl.DataFrame,
    options: Options,
    unreadable: Mapping[str, Sequence[str]],
) -> pl.DataFrame:
    """Return one row per window (schema WINDOWS without `run`).

    Args:
        choices: Decision about each window, in the order of time.
        chunks: Result of `chunks_of`.
        options: Options that group windows into runs.
        unreadable: Result of `unreadable_objects`.
    """
    names = ("label", "start", "end", "skipped", "inputs")
    requested = pl.DataFrame(
        [_row(choice) for choice in choices],
        schema={name: WINDOWS[name] for name in names},
        orient="row",
    )
    sums = chunks.group_by("label").agg(
        pl.len().cast(pl.Int64).alias("chunks"), pl.col(_FIGURES).sum()
    )
    joined = requested.join(sums, on="label", how="left", maintain_order="left")
    filled = joined.with_columns(pl.col("chunks", *_FIGURES).fill_null(0))
    # A window whose rows are all filtered out, or cannot be read, has objects and no chunk.
    is_empty = pl.col("skipped").is_null() & (pl.col("chunks") == 0)
    published = [choice.window.label for choice in choices if choice.is_published]
    is_gone = (is_empty | (pl.col("skipped") == EMPTY)) & pl.col("label").is_in(published)
    reasons = {
        choice.window.label: _unreadable_reason(choice, unreadable[choice.window.label])
        for choice in choices
        if choice.window.label in unreadable
    }
    reason = (
        pl.when(is_empty & pl.col("label").is_in(list(reasons)))
        .then(pl.col("label").replace_strict(reasons, default=None, return_dtype=pl.String))
        .when(is_gone)
        .then(pl.lit(EMPTIED))
        .when(is_empty)
        .then(pl.lit("the filter excludes all of it"))
        .otherwise("skipped")
    )
    windows = filled.with_columns(skipped=reason)
    todo = windows.filter(pl.col("skipped").is_null()).select("label", "decoded_bytes")
    sizes: dict[str, int] = dict(todo.iter_rows())
    canary = _canary(list(sizes), options)
    ranks = {label: rank for rank, run in enumerate(_runs(sizes, canary, options)) for label in run}
    return windows.with_columns(
        group=pl.col("label").replace_strict(ranks, default=None, return_dtype=pl.Int64),
        canary=pl.col("label").is_in(canary),
    )


def members_of(windows: pl.DataFrame, chunks: pl.DataFrame) -> dict[int, list[int]]:
    """Return the indices of each run's chunks, ascending, by the run's rank."""
    indexed = chunks.select("label").with_row_index("chunk")
    joined = indexed.join(windows.select("label", "group"), on="label", maintain_order="left")
    return {
        rank: members["chunk"].to_list()
        for (rank,), members in joined.group_by("group", maintain_order=True)
    }


def _row(choice: WindowDecision) -> tuple[str, str, str | None, str | None, str | None]:
    window = choice.window
    end = None if window.end is None else window.end.isoformat()
    inputs = choice.input.inputs if choice.input else None
    return window.label, _moment(window.start), end, choice.skipped, inputs


def _unreadable_reason(choice: WindowDecision, objects: Sequence[str]) -> str:
    """Say why nothing of a window can be read, with the first of its unreadable objects."""
    count = max(choice.input.objects if choice.input else 0, len(objects))
    if len(objects) < count:
        return (
            f"{len(objects):,} of its {plural(count, 'object')} cannot be read, and there are no "
            f"other rows: {objects[0]}"
        )
    if count == 1:
        return f"its only object cannot be read: {objects[0]}"
    return f"none of its {plural(count, 'object')} can be read: {objects[0]}"


def _moment(start: datetime | str) -> str:
    return start if isinstance(start, str) else start.isoformat()


def _canary(labels: list[str], options: Options) -> list[str]:
    """Choose the windows that go first, spread evenly over all."""
    if not options.canary:
        return []
    count = ceil(resolve_limit(options.canary, len(labels)))
    return [labels[rank] for rank in spread(count, len(labels))]


def _runs(sizes: dict[str, int], canary: list[str], options: Options) -> list[list[str]]:
    """Return the windows of each run, in the order in which runs begin.

    Args:
        sizes: Decoded bytes of each window, by its label, in the order of time.
        canary: Labels of the windows that go first.
        options: Options that group windows into runs.
    """
    if options.all_or_nothing:
        return [list(sizes)] if sizes else []
    if options.windows_per_run:
        sizes, target = dict.fromkeys(sizes, 1), options.windows_per_run
    else:
        target = options.bytes_per_run or max(MIN_RUN_BYTES, sum(sizes.values()) // MAX_RUNS)
    return group_into_runs(sizes, canary, target, backwards=options.backwards)
