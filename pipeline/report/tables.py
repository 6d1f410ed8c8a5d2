"""Render tables as HTML, made with Great Tables and styled by the page."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape

import polars as pl
from great_tables import GT
from markupsafe import Markup

from pipeline.report import humanize
from pipeline.report.run_figures import Cost, FailureGroup
from pipeline.report.run_model import PARTS, Attempt, Checked, CodeVersion, Estimated
from pipeline.report.run_text import CHECK_OUTCOMES

_STYLE = re.compile(r"<style>.*?</style>", re.DOTALL)
_NUMBERS = "right"
MAX_URI = 48
"""Maximum characters of a file's name to show; the tooltip has all."""


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
        "parts": "Read · compute · encode · upload",
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


def estimates_table(estimates: Sequence[Estimated]) -> Markup:
    """Render estimates next to the figures of the run."""
    formats = {"seconds": humanize.duration, "bytes": humanize.byte_size}

    def text(value: float | None, unit: str) -> str:
        return "unknown" if value is None else formats[unit](value)

    rows = [
        {
            "name": each.name,
            "expected": text(each.expected, each.unit),
            "actual": text(each.actual, each.unit),
            "ratio": f"{each.actual / each.expected:.2f}" if each.actual and each.expected else "–",
        }
        for each in estimates
    ]
    labels = {"name": "", "expected": "Estimate", "actual": "Actual", "ratio": "Actual / estimate"}
    frame = pl.DataFrame(rows, schema=dict.fromkeys(labels, pl.String))
    return table_html(frame, labels, numbers=("expected", "actual", "ratio"), markup=())


def checks_table(checks: Sequence[Checked]) -> Markup:
    """Render what checks of the result have found."""
    rows = [
        {
            "name": check.name,
            "outcome": CHECK_OUTCOMES[check.outcome],
            "found": f'<span class="message">{escape(check.found)}</span>',
        }
        for check in checks
    ]
    labels = {"name": "Check", "outcome": "Outcome", "found": "Found"}
    frame = pl.DataFrame(rows, schema=dict.fromkeys(labels, pl.String))
    return table_html(frame, labels, numbers=(), markup=("found",))


def failures_table(groups: Sequence[FailureGroup], unit: str = "chunk") -> Markup:
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
        "chunks": f"{unit.capitalize()}s",
        "final": "Still failed",
        "kind": "Transient",
        "last": "Last seen (UTC)",
    }
    # Names of columns are ids of the page, which may have a table of each unit.
    names = {name: name if unit == "chunk" else f"{unit}-{name}" for name in labels}
    return table_html(
        pl.DataFrame(rows, schema=dict.fromkeys(labels, pl.String)).rename(names),
        {names[name]: label for name, label in labels.items()},
        numbers=tuple(names[name] for name in ("attempts", "chunks", "final")),
        markup=(names["error"], names["message"]),
    )


def attempts_table(attempts: Sequence[Attempt]) -> Markup:
    """Render what each driver did, oldest first."""
    labels = {
        "number": "",
        "started": "Started (UTC)",
        "took": "Took",
        "phases": "Of which",
        "state": "Ended",
        "code": "Code",
        "errors": "Failures then",
        "driver": "Driver",
    }
    rows = [
        {
            "number": str(number),
            "started": humanize.instant(attempt.started).removesuffix(" UTC"),
            "took": humanize.duration(attempt.finished - attempt.started),
            "phases": ", ".join(
                f"{phase.name} {humanize.duration(phase.seconds)}" for phase in attempt.phases
            ),
            "state": attempt.state,
            "code": code_html(attempt.code, attempt.commit),
            "errors": f'<span class="message">{escape("; ".join(attempt.errors)) or "none"}</span>',
            "driver": name_html(attempt.driver),
        }
        for number, attempt in enumerate(attempts, 1)
    ]
    frame = pl.DataFrame(rows, schema=dict.fromkeys(labels, pl.String))
    return table_html(frame, labels, numbers=("took",), markup=("code", "errors", "driver"))


def code_html(code: str, commit: str) -> str:
    """Render a fingerprint, and the git commit if it is known."""
    shown = f'<span class="mono">{escape(code or "unknown")}</span>'
    return f'{shown}<br>commit <span class="mono">{escape(commit)}</span>' if commit else shown


def versions_table(versions: Sequence[CodeVersion]) -> Markup:
    """Render the versions of the code with the chunks and windows that they made."""
    labels = {"code": "Code", "chunks": "Chunks", "windows": "Windows"}
    has_windows = any(version.windows for version in versions)
    rows = [
        {
            "code": code_html(version.code, version.commit),
            "chunks": humanize.count(version.chunks),
            "windows": windows_text(version.windows),
        }
        for version in versions
    ]
    if not has_windows:
        del labels["windows"]
    frame = pl.DataFrame(rows, schema=dict.fromkeys(("code", "chunks", "windows"), pl.String))
    return table_html(frame, labels, numbers=("chunks",), markup=("code",))


def windows_text(windows: Sequence[str], limit: int = 8) -> str:
    """Name some windows, and say how many more there are."""
    shown = ", ".join(windows[:limit])
    more = len(windows) - limit
    return f"{shown} and {humanize.count(more)} more" if more > 0 else shown


def files_table(files: pl.DataFrame) -> Markup:
    """Render files (schema FILE_SCHEMA) with their sizes."""
    labels = {"name": "File", "size": "Size", "rows": "Rows"}
    if files["rows"].null_count() == files.height:
        del labels["rows"]
    rows = [
        {
            "name": f'<span class="name" title="{escape(uri)}">{escape(_tail(uri))}</span>',
            "size": humanize.byte_size(size),
            "rows": "" if count is None else humanize.count(count),
        }
        for uri, size, count in files.select("uri", "bytes", "rows").iter_rows()
    ]
    frame = pl.DataFrame(rows, schema=dict.fromkeys(("name", "size", "rows"), pl.String))
    return table_html(frame, labels, numbers=("size", "rows")[: len(labels) - 1], markup=("name",))


def _tail(uri: str) -> str:
    """Keep the end of a URI, which tells files apart."""
    return uri if len(uri) <= MAX_URI else "…" + uri[-MAX_URI:]


def costs_table(costs: Sequence[Cost], currency: str) -> Markup:
    """Render uses times prices, and their sum."""
    labels = {"name": "Use", "amount": "Amount", "price": "Price", "cost": "Cost"}
    rows = [
        {
            "name": cost.name,
            "amount": humanize.duration(cost.amount)
            if cost.name == "worker time"
            else humanize.count(cost.amount),
            "price": f"{cost.price:g} {currency} per "
            + ("hour" if cost.name == "worker time" else "1,000"),
            "cost": humanize.money(cost.cost, currency),
        }
        for cost in costs
    ]
    total = humanize.money(sum(cost.cost for cost in costs), currency)
    rows.append({"name": "total", "amount": "", "price": "", "cost": total})
    frame = pl.DataFrame(rows, schema=dict.fromkeys(labels, pl.String))
    return table_html(frame, labels, numbers=("amount", "price", "cost"), markup=())


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
    parts = [(name, float(str(row[name]))) for name in PARTS]
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
