"""Render tables as HTML, made with Great Tables and styled by the page."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape

import polars as pl
from great_tables import GT
from markupsafe import Markup

from pipeline.report import humanize
from pipeline.report.run_figures import FailureGroup

_STYLE = re.compile(r"<style>.*?</style>", re.DOTALL)
_NUMBERS = "right"


def table_html(
    frame: pl.DataFrame, labels: Mapping[str, str], *, numbers: Sequence[str], markup: Sequence[str]
) -> Markup:
    """Render a frame of texts as a table, with columns in the order of their labels.

    Args:
        frame: One String column per label; the columns of `markup` hold safe HTML.
        labels: Column name to heading; other columns are left out.
        numbers: Columns to align to the right.
        markup: Columns that are HTML already; all others are escaped.
    """
    shown = frame.select(list(labels)).with_columns(
        pl.col(name).map_elements(escape, return_dtype=pl.String)
        for name in labels
        if name not in markup
    )
    table = GT(shown).cols_label(dict(labels)).cols_align("left")
    # Without fmt(), GT would escape the cells again.
    table = table.fmt(str, columns=list(labels))
    if numbers:
        table = table.cols_align(_NUMBERS, columns=list(numbers))
    # The page styles .gt_table, for light, dark and print alike.
    return Markup(_STYLE.sub("", table.as_raw_html()))


def slowest_table(slowest: pl.DataFrame) -> Markup:
    """Render the slowest chunks (run_figures.slowest), each with a bar of its parts."""
    longest = float(slowest["seconds"].max() or 1.0)  # type: ignore[arg-type]
    rows = [_slow_row(row, longest) for row in slowest.iter_rows(named=True)]
    labels = {
        "chunk": "Chunk",
        "seconds": "Took",
        "parts": "Read · compute · stage",
        "worker": "Worker",
        "batch": "Batch",
        "rows_in": "Rows in",
        "size": "Read",
        "speed": "Rows/s",
    }
    return table_html(
        pl.DataFrame(rows, schema=dict.fromkeys(labels, pl.String)),
        labels,
        numbers=("seconds", "rows_in", "size", "speed"),
        markup=("chunk", "parts", "worker", "batch"),
    )


def failures_table(groups: Sequence[FailureGroup]) -> Markup:
    """Render the kinds of failure, with counts and the first line of an example."""
    rows = [
        {
            "error": name_html(group.error),
            "message": f'<span class="message">{escape(first_line(group.message))}</span>',
            "attempts": humanize.count(group.attempts),
            "chunks": humanize.count(group.chunks),
            "final": humanize.count(group.chunks_final),
            "kind": "yes" if group.transient else "no",
            "last": humanize.instant(group.last_at).removesuffix(" UTC"),
        }
        for group in groups
    ]
    labels = {
        "error": "Error",
        "message": "Example",
        "attempts": "Attempts",
        "chunks": "Chunks",
        "final": "Still failed",
        "kind": "Transient",
        "last": "Last seen (UTC)",
    }
    return table_html(
        pl.DataFrame(rows, schema=dict.fromkeys(labels, pl.String)),
        labels,
        numbers=("attempts", "chunks", "final"),
        markup=("error", "message"),
    )


def _slow_row(row: Mapping[str, object], longest: float) -> dict[str, str]:
    seconds, rows_in = float(str(row["seconds"])), int(str(row["rows_in"]))
    hint = f"{row['chunk']}, number {row['index']} of the plan"
    short = escape(str(row["chunk"])[:10])
    return {
        "chunk": f'<abbr class="mono" title="{escape(hint)}">{short}</abbr>',
        "seconds": humanize.duration(seconds),
        "parts": _meter(row, longest),
        "worker": name_html(str(row["worker"])),
        "batch": name_html(str(row["batch"])),
        "rows_in": humanize.count(rows_in),
        "size": humanize.byte_size(int(str(row["bytes_in"]))),
        "speed": humanize.short_count(rows_in / seconds) if seconds > 0 else "–",
    }


def _meter(row: Mapping[str, object], longest: float) -> str:
    parts = [(name, float(str(row[f"{name}_seconds"]))) for name in ("read", "compute", "stage")]
    words = ", ".join(f"{name} {humanize.duration(seconds)}" for name, seconds in parts)
    rest = max(0.0, float(str(row["seconds"])) - sum(seconds for _, seconds in parts))
    bars = "".join(
        f'<i style="width:{100 * seconds / longest:.1f}%;background:var(--{name})"></i>'
        for name, seconds in [*parts, ("other", rest)]
    )
    return f'<span class="meter" role="img" title="{words}" aria-label="{words}">{bars}</span>'


def name_html(text: str) -> str:
    """Render a name that may be long: cut to fit, with the full name as a tooltip."""
    return f'<span class="name" title="{escape(text)}">{escape(text)}</span>'


def first_line(text: str, limit: int = 240) -> str:
    """Find the first non-empty line of a message."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "(no message)")
    return line if len(line) <= limit else line[: limit - 1] + "…"
