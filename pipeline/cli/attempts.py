"""Print attempts at chunks: a line each, then the last tracebacks."""

from __future__ import annotations

import polars as pl

from pipeline.cli.output import columns, out, say
from pipeline.report.humanize import duration, plural, short_instant

MAX_TRACES = 5
"""Maximum number of tracebacks to print."""
MAX_MESSAGE = 300
"""Maximum characters of an error's message in a line."""


def show_attempts(attempts: pl.DataFrame, total: int) -> None:
    """Print attempts (schema ATTEMPTS).

    Args:
        attempts: The attempts, at least one.
        total: Number of attempts that there are.
    """
    if total > attempts.height:
        say(f"the last {attempts.height:,} of {plural(total, 'attempt')} (--limit N shows more)")
    has_windows = attempts["window"].null_count() < attempts.height
    both = attempts["unit"].n_unique() > 1
    rows = [_row(row, has_windows=has_windows, both=both) for row in attempts.iter_rows(named=True)]
    window = ("window",) if has_windows else ()
    units = attempts["unit"].unique()
    number = units[0] if len(units) == 1 else "chunk or piece"
    names = ("at (UTC)", *window, number, "outcome", "took", "worker", "")
    out.print(columns(names, rows, right=(number, "took")))
    traces = attempts.filter(pl.col("trace").fill_null("") != "").unique("trace", keep="last")
    for row in traces.sort("at").tail(MAX_TRACES).iter_rows(named=True):
        say("")
        of_window = f" of {row['window']}" if has_windows else ""
        say(f"{row['unit']} {row['index']}{of_window} on {row['worker']}", mark="[bold red]")
        if row["where"]:
            say(row["where"])
        say(row["trace"].rstrip())


def _row(row: dict[str, object], *, has_windows: bool, both: bool) -> tuple[object, ...]:
    at, seconds = row["at"], row["seconds"]
    assert isinstance(at, float)
    first_line = str(row["message"] or "").partition("\n")[0][:MAX_MESSAGE]
    return (
        short_instant(at, seconds=True),
        *([row["window"]] if has_windows else []),
        f"{row['unit']} {row['index']}" if both else row["index"],
        row["outcome"],
        duration(seconds) if isinstance(seconds, float) else "",
        row["worker"],
        f"{row['error']}: {first_line}"
        if row["rows_in"] is None
        else f"{row['rows_in']:,} → {row['rows_out']:,} rows",
    )
