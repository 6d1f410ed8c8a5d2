"""Draw the charts of a backfill's report, as Vega-Lite specifications built with Altair."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import altair as alt
import polars as pl

from pipeline.report.backfill_model import Calendar
from pipeline.report.charts import to_spec
from pipeline.report.humanize import duration, short_count

COLOURS: Mapping[str, str] = {
    "done": "var(--good)",
    "partly": "var(--seq-3)",
    "staged": "var(--read)",
    "mapping": "var(--accent)",
    "waiting": "var(--idle)",
    "failed": "var(--bad)",
    "skipped": "var(--other)",
    "empty": "var(--paper)",
}
LABELS: Mapping[str, str] = {
    "done": "published",
    "partly": "partly done",
    "staged": "mapped, not yet published",
    "mapping": "being mapped",
    "waiting": "waiting",
    "failed": "failed",
    "skipped": "skipped",
    "empty": "not in the input (–)",
}
_MARKS = {"failed": "×", "empty": "–"}
"""Characters in cells of states that colour alone must not show."""
_INKS = {"failed": "var(--paper)", "empty": "var(--faint)"}
DETAILS = {
    "rows_text": "Rows",
    "took": "Took",
    "error": "Error",
    "code": "Code",
    "run": "Run",
}
"""Columns of cells that tooltips show, if the report has them, with their titles."""
_MAX_LABELS = 40
"""Maximum rows to label; of more rows, only every n-th is labelled."""


def describe(calendar: Calendar, listed: Collection[str]) -> pl.DataFrame:
    """Add what a cell's tooltip says, and the link to its first window.

    Args:
        calendar: The calendar.
        listed: Labels of the windows that the page lists, which have an anchor.
    """
    cells = calendar.cells
    if "first" not in cells.columns:
        return cells
    text = pl.String
    many = {name: pl.col(f"{name}s").list.len() for name in ("run", "code", "error")}
    anchors = {label: f"#{anchor(label)}" for label in listed}
    return cells.with_columns(
        rows_text=pl.struct("rows_in", "rows_out").map_elements(
            lambda row: f"{short_count(row['rows_in'])} in, {short_count(row['rows_out'])} out",
            return_dtype=text,
        ),
        took=pl.col("seconds").map_elements(duration, return_dtype=text).fill_null("–"),
        link=pl.col("first").replace_strict(anchors, default="", return_dtype=text),
        **{
            name: pl.when(number > 2)
            .then(pl.format("{} different", number))
            .otherwise(pl.col(f"{name}s").list.join(", "))
            .fill_null("")
            for name, number in many.items()
        },
    )


def anchor(label: str) -> str:
    """Return the id of a window's row on the page."""
    return "window-" + re.sub(r"[^0-9A-Za-z._-]", lambda found: f"_{ord(found[0]):x}_", label)


def heat_map(calendar: Calendar, listed: Collection[str] = ()) -> dict[str, Any]:
    """Draw the windows as a calendar; a failed cell has a cross in addition to its colour.

    Args:
        calendar: The calendar.
        listed: Labels of the windows that the page lists; their cells link to them.
    """
    rows, columns = list(calendar.rows), list(calendar.columns)
    cells = describe(calendar, listed)
    shown = [name for name in (*DETAILS, "link") if name in cells.columns]
    data = cells.select(
        "name",
        *shown,
        "windows",
        "done",
        "failed",
        "chunks",
        "chunks_done",
        "chunks_failed",
        row_name=pl.col("row").replace_strict(dict(enumerate(rows)), return_dtype=pl.String),
        column_name=pl.col("column").replace_strict(
            dict(enumerate(columns)), return_dtype=pl.String
        ),
        state=pl.col("state").replace_strict(dict(LABELS), return_dtype=pl.String),
        colour=pl.col("state").replace_strict(dict(COLOURS), return_dtype=pl.String),
        mark=pl.col("state").replace_strict(_MARKS, default="", return_dtype=pl.String),
        ink=pl.col("state").replace_strict(_INKS, default="", return_dtype=pl.String),
    )
    step = -(-len(rows) // _MAX_LABELS) or 1
    shown_columns = columns if calendar.unit in ("hour", "day", "month", "year") else []
    base = alt.Chart(alt.NamedData("cells")).encode(
        x=alt.X(
            "column_name:N",
            title=None,
            sort=columns,
            scale=alt.Scale(domain=columns, paddingInner=0.08, paddingOuter=0.02),
            axis=alt.Axis(
                orient="top",
                labelAngle=0,
                ticks=False,
                domain=False,
                values=shown_columns,
                labelOverlap="greedy",
            ),
        ),
        y=alt.Y(
            "row_name:N",
            title=None,
            sort=rows,
            scale=alt.Scale(domain=rows, paddingInner=0.08, paddingOuter=0.02),
            axis=alt.Axis(values=rows[::step], labelLimit=150),
        ),
        tooltip=[
            alt.Tooltip("name:N", title="Window" if calendar.unit in _SINGLE else "Windows"),
            alt.Tooltip("state:N", title="State"),
            alt.Tooltip("windows:Q", title="Windows", format=","),
            alt.Tooltip("done:Q", title="Published", format=","),
            alt.Tooltip("failed:Q", title="Failed", format=","),
            alt.Tooltip("chunks_done:Q", title="Chunks done", format=","),
            alt.Tooltip("chunks:Q", title="Chunks", format=","),
            *(alt.Tooltip(f"{name}:N", title=DETAILS[name]) for name in shown if name != "link"),
        ],
    )
    if "link" in shown:
        base = base.encode(href=alt.Href("link:N"))
    squares = base.mark_rect(
        aria=False, stroke="var(--line)", strokeWidth=0.6, cornerRadius=2
    ).encode(color=alt.Color("colour:N", scale=None))
    height = max(40, min(1400, len(rows) * 20))
    layers: list[alt.Chart] = [squares]
    if calendar.cells.filter(pl.col("state").is_in(list(_MARKS))).height:
        marks = base.mark_text(fontSize=13, fontWeight=600, aria=False)
        layers.append(marks.encode(text="mark:N", color=alt.Color("ink:N", scale=None)))
    chart = alt.layer(*layers).properties(width="container", height=height)
    return to_spec(chart, {"cells": data.to_dicts()})


_SINGLE = ("hour", "day", "month", "value")


def throughput(windows: pl.DataFrame, axis: str) -> dict[str, Any]:
    """Draw the rows out of each period, in order of time.

    Args:
        windows: Columns period, rows_out, seconds, shown.
        axis: A Vega expression that labels the axis.
    """
    periods = windows["period"].to_list()
    bars = (
        alt.Chart(alt.NamedData("periods"))
        .mark_bar(aria=False)
        .encode(
            x=alt.X(
                "period:N",
                title=None,
                sort=periods,
                axis=alt.Axis(
                    labelAngle=0,
                    labelOverlap="greedy",
                    labelLimit=90,
                    ticks=False,
                    values=periods[:: -(-len(periods) // 8) or 1],
                ),
            ),
            y=alt.Y("rows_out:Q", title=None, axis=alt.Axis(labelExpr=axis, tickCount=4)),
            tooltip=[
                alt.Tooltip("period:N", title="Windows of"),
                alt.Tooltip("rows_out:Q", title="Rows out", format=","),
                alt.Tooltip("shown:N", title="Thread time"),
            ],
        )
    )
    chart = bars.properties(width="container", height=210)
    return to_spec(chart, {"periods": windows.to_dicts()})
