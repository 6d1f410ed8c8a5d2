"""How long chunks, or windows, took: one picture for both kinds of report."""

from __future__ import annotations

import polars as pl

from pipeline.report import charts, run_figures
from pipeline.report.humanize import duration, plural
from pipeline.report.page import Block, Chart, Note


def durations_chart(thing: str, seconds: pl.Series, before: str = "") -> Block:
    """A histogram, or a note where one would say nothing.

    Args:
        thing: What took so long: `chunk`.
        seconds: Of each; nulls do not count.
        before: Begins the text below it.
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
        f"How long {thing}s took",
        charts.histogram(bins, logarithmic, marks),
        f"Histogram of the durations of {plural(len(seconds), thing)}. {text}",
        before + text + (" The axis is logarithmic." if logarithmic else ""),
        half=True,
    )
