"""Show the plan of a backfill: windows by month, totals, skipped windows, expected time."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import polars as pl

from pipeline.cli.output import columns, out, say, show_pairs, warn
from pipeline.report.humanize import byte_size, duration, plural
from pipeline.runs.backfill.plan import Draft
from pipeline.runs.backfill.selection import EMPTY
from pipeline.runs.driver.estimate import Forecast

MAX_ROWS = 60
"""Maximum rows of the table by month; longer tables are by year."""
MAX_RANGES = 6
"""Maximum ranges of windows to print in one line."""
_RUN = re.compile(r"\brun [0-9a-f]{16}\b")


def plan_to_dict(drafted: Draft, expected: Forecast | None) -> dict[str, Any]:
    """What `plan --json` prints."""
    windows = drafted.windows
    return {
        **drafted.record.model_dump(),
        "exists": drafted.existing is not None,
        "months": by_period(windows, drafted.record.grain).to_dicts(),
        "skipped": [{"why": why, "windows": labels} for why, labels in skipped(windows)],
        "missing": windows.filter(pl.col("skipped") == EMPTY)["label"].to_list(),
        "forecast": expected.to_dict() if expected else None,
        "notes": list(drafted.notes),
        "window_list": windows.to_dicts(),
    }


def show_plan(drafted: Draft, expected: Forecast | None) -> None:
    """Print the plan."""
    record, windows = drafted.record, drafted.windows
    say(f"{record.job}: {record.asked}, by {record.grain} of {record.column}", mark="[bold]")
    _show_table(windows, record.grain)
    rows: dict[str, object] = {
        "to do": f"{plural(record.todo, 'window')} of {record.windows:,}, in "
        f"{plural(record.runs, 'run')} of {plural(record.chunks, 'chunk')}",
        "rows": f"{record.rows:,}",
        "bytes": f"{byte_size(expected.bytes_to_read if expected else 0)} to read, "
        f"{byte_size(record.decoded_bytes)} decoded",
        "output": f"{record.output}, mode {record.mode}",
    }
    if record.outside is not None:
        rows["left out"] = record.outside
    canary = windows.filter(pl.col("canary"))["label"].to_list()
    if canary:
        rows["canary"] = f"{plural(len(canary), 'window')} first: {ranges(canary, windows)}"
    if record.options.all_or_nothing:
        rows["commit"] = "all windows together, or none"
    show_pairs("\ntotal (nothing was written)", rows)
    _show_skipped(windows)
    if expected is not None:
        _show_forecast(expected)
    for note in drafted.notes:
        warn(note)
    if drafted.existing is not None:
        warn(
            f"this is the unfinished backfill {record.backfill}: `create` resumes it, and "
            f"`chunkmap backfill status {record.backfill}` shows its progress"
        )


def by_period(windows: pl.DataFrame, grain: str) -> pl.DataFrame:
    """Count windows and work in one row per month, or per year if there are many months."""
    length = 7 if grain != "value" else None
    period = pl.col("label").str.slice(0, length) if length else pl.col("label")
    if length and windows.select(period.n_unique()).item() > MAX_ROWS:
        period = pl.col("label").str.slice(0, 4)
    todo = pl.col("skipped").is_null()
    return windows.group_by(period.alias("period"), maintain_order=True).agg(
        pl.len().alias("windows"),
        todo.sum().alias("todo"),
        (pl.col("skipped") == EMPTY).sum().alias("missing"),
        (~todo & (pl.col("skipped") != EMPTY)).sum().alias("skipped"),
        pl.col("chunks", "rows", "stored_bytes", "decoded_bytes").sum(),
    )


def _show_table(windows: pl.DataFrame, grain: str) -> None:
    table = by_period(windows, grain)
    names = ("", "windows", "to do", "skipped", "not in input", "chunks", "rows", "to read")
    figures = ("windows", "todo", "skipped", "missing", "chunks", "rows")
    total = table.select(pl.col(*figures, "stored_bytes").sum()).row(0, named=True)
    shown = table.head(MAX_ROWS)
    rest = table.height - shown.height
    rows = [_row(row["period"], row) for row in shown.iter_rows(named=True)]
    rows += [(f"… {rest:,} more", *[""] * 7)] if rest else []
    out.print(columns(names, [*rows, _row("total", total)], right=names[1:]))


def _row(name: str, row: dict[str, Any]) -> tuple[str, ...]:
    keys = ("windows", "todo", "skipped", "missing", "chunks", "rows")
    return (
        name,
        *(f"{row[key]:,}" if row[key] else "–" for key in keys),
        byte_size(row["stored_bytes"]),
    )


def skipped(windows: pl.DataFrame) -> list[tuple[str, list[str]]]:
    """Group the skipped windows by reason; runs named in a reason are not distinguished."""
    groups: dict[str, list[str]] = {}
    for label, why in (
        windows.filter(pl.col("skipped").is_not_null()).select("label", "skipped").iter_rows()
    ):
        groups.setdefault(_RUN.sub("an earlier run", why), []).append(label)
    return sorted(groups.items(), key=lambda group: -len(group[1]))


def _show_skipped(windows: pl.DataFrame) -> None:
    groups = skipped(windows)
    if not groups:
        return
    rows = {f"{len(labels):,} {why}": ranges(labels, windows) for why, labels in groups}
    show_pairs("\nskipped", rows)


def ranges(labels: Sequence[str], windows: pl.DataFrame) -> str:
    """Format windows briefly, with consecutive windows as a range."""
    rank = {label: at for at, label in enumerate(windows["label"].to_list())}
    found = list(_to_ranges(sorted(labels, key=rank.__getitem__), rank))
    shown = ", ".join(found[:MAX_RANGES])
    return shown + (f" and {len(found) - MAX_RANGES:,} more" if len(found) > MAX_RANGES else "")


def _to_ranges(labels: Iterable[str], rank: dict[str, int]) -> Iterable[str]:
    first = last = None
    for label in labels:
        if first is None or last is None:
            first = last = label
        elif rank[label] == rank[last] + 1:
            last = label
        else:
            yield first if first == last else f"{first}..{last}"
            first = last = label
    if first is not None:
        yield first if first == last else f"{first}..{last}"


def _show_forecast(expected: Forecast) -> None:
    rows: dict[str, object] = {}
    if expected.seconds is None or expected.suggested_seconds is None:
        rows["time"] = "unknown: no earlier run of this transform to this output (try --canary)"
        rows["workers"] = f"start with {expected.suggested_workers}, and check the canary"
    else:
        rows["time"] = (
            f"{duration(expected.seconds)} with {plural(expected.workers, 'worker')} of "
            f"{plural(expected.threads, 'thread')}, estimated from "
            f"{plural(len(expected.runs), 'earlier run')}"
        )
        rows["workers"] = (
            f"{expected.suggested_workers} would take {duration(expected.suggested_seconds)}, if "
            "storage keeps up"
        )
    memory = f"about {byte_size(expected.memory_bytes)} per worker, estimated from sizes"
    if expected.memory_set is not None:
        memory += f" (its limit is {byte_size(expected.memory_set)})"
    rows["memory"] = memory
    show_pairs("\nexpected", rows)
    if expected.memory_set is not None and expected.memory_bytes > expected.memory_set:
        warn(
            f"a worker needs about {byte_size(expected.memory_bytes)} and its limit is "
            f"{byte_size(expected.memory_set)}: lower chunks.target, or raise "
            "dask.memory_per_worker"
        )


def _sum(windows: pl.DataFrame, name: str) -> int:
    return int(windows[name].sum())
