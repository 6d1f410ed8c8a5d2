"""Draw the durations of chunks or windows, for both kinds of report."""

from __future__ import annotations

import polars as pl

from pipeline.report import charts, run_figures
from pipeline.report.humanize import duration, plural
from pipeline.report.page import Block, Chart, Note


def durations_chart(thing: str, seconds: pl.Series, before: str = "") -> Block:
    """Draw a histogram of durations, or write a note if there are fewer than two.

    Args:
        thing: The noun for what took these durations, e.g. `chunk`.
        seconds: The durations; nulls are ignored.
        before: The beginning of the caption.
    """
    seconds = seconds.drop_nulls()
    stats = run_figures.durations(seconds)
    if stats is None or len(seconds) == 1:
        took = f"; it took {duration(stats.maximum)}" if stats else ""
        return Note(f"One {thing} has completed{took}.", half=True)
    bins, logarithmic = run_figures.histogram(seconds)
    median, high = stats.quantile(0.5), stats.quantile(0.95)
    text = (
        f"Half of the {thing}s took up to {duration(median)}, 95% up to {duration(high)}; "
        f"the slowest took {duration(stats.maximum)}."
    )
    marks = [(median, f"median {duration(median)}"), (high, f"95% {duration(high)}")]
    return Chart(
        f"Duration of {thing}s",
        charts.histogram(bins, logarithmic, marks),
        f"Histogram of the durations of {plural(len(seconds), thing)}. {text}",
        before + text + (" The axis is logarithmic." if logarithmic else ""),
        half=True,
    )
