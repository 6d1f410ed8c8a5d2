"""Draw charts as Vega-Lite specifications, built with Altair.

Each builder takes data frames and returns a specification as a dict that contains the data. Colours
are the page's CSS variables; sizes follow the page's width. Titles, legends and text alternatives
belong to the page (page.Chart), not to the drawing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import altair as alt
import polars as pl

from pipeline.report.run_figures import Share
from pipeline.report.run_model import PARTS
from pipeline.report.run_timeline import ticks

VALIDATED = False
"""Whether to validate each chart against the schema of Vega-Lite."""
COLOURS: Mapping[str, str] = {
    name: f"var(--{name})"
    for name in ("read", "compute", "encode", "upload", "other", "idle", "plan", "bad")
}
SEQUENCE = tuple(f"var(--seq-{step})" for step in range(1, 6))
SECONDS_LABEL = (
    "datum.value == 0 ? '0' : datum.value < 1 ? format(datum.value * 1000, '.4~g') + ' ms' : "
    "datum.value < 60 ? format(datum.value, '.4~g') + ' s' : "
    "datum.value < 3600 ? format(datum.value / 60, '.4~g') + ' min' : "
    "format(datum.value / 3600, '.4~g') + ' h'"
)
"""Vega expression that labels an axis of seconds with the unit of each tick."""
BYTES_LABEL = "replace(format(datum.value, '.3~s'), /([a-zA-Z]?)$/, ' $1') + 'B/s'"
COUNT_LABEL = "format(datum.value, datum.value >= 10000 ? '.3~s' : ',')"


def share_bar(shares: Sequence[Share], colours: Sequence[str]) -> dict[str, Any]:
    """Draw one bar divided into the parts of a whole, in order."""
    rows, before = [], 0.0
    for share, colour in zip(shares, colours, strict=True):
        rows.append(
            {
                "part": share.name,
                "start": before,
                "stop": before + share.share,
                "seconds": round(share.seconds, 3),
                "share": share.share,
                "colour": colour,
            }
        )
        before += share.share
    chart = (
        alt.Chart(alt.NamedData("shares"), width="container", height=30)
        .mark_bar(height=26, stroke="var(--paper)", strokeWidth=1)
        .encode(
            x=alt.X(
                "start:Q", axis=None, scale=alt.Scale(domain=[0, max(before, 1e-9)], padding=0)
            ),
            x2=alt.X2("stop:Q"),
            color=alt.Color("colour:N", scale=None),
            tooltip=[
                alt.Tooltip("part:N", title="Part"),
                alt.Tooltip("seconds:Q", title="Seconds", format=",.1f"),
                alt.Tooltip("share:Q", title="Share", format=".1%"),
            ],
        )
    )
    return to_spec(chart, {"shares": rows})


def timeline(
    spans: pl.DataFrame,
    failures: pl.DataFrame,
    rows: Sequence[str],
    seconds: float,
    pauses: Sequence[tuple[float, float]] = (),
) -> dict[str, Any]:
    """Draw every chunk as a bar of its parts and the rest, on its worker's row.

    Args:
        spans: Columns row, lane, start, those of PARTS, stop (the end of each part, in active
            seconds), and those of the tooltip: chunk, index, batch, attempt, worker, took,
            rows_in, rows_out.
        failures: Columns row, at (active seconds), chunk, error.
        rows: The rows from top to bottom.
        seconds: The run's active seconds, the length of the axis.
        pauses: The start of each pause (active seconds) and its length.
    """
    lanes = int(spans["lane"].max() or 0) + 1  # type: ignore[arg-type]
    y: dict[str, Any] = {"y": _rows_axis(rows)}
    if lanes > 1:
        y["yOffset"] = alt.YOffset("lane:O", scale=alt.Scale(paddingInner=0.15))
    tooltip = [
        alt.Tooltip("chunk:N", title="Chunk"),
        alt.Tooltip("index:Q", title="Number in the plan", format=","),
        alt.Tooltip("worker:N", title="Worker"),
        alt.Tooltip("batch:N", title="Batch"),
        alt.Tooltip("attempt:N", title="Attempt"),
        alt.Tooltip("took:N", title="Took"),
        alt.Tooltip("parts:N", title="Read, compute, encode, upload"),
        alt.Tooltip("rows_in:Q", title="Rows in", format=","),
        alt.Tooltip("rows_out:Q", title="Rows out", format=","),
    ]
    # A hairline separates bars that are wide enough.
    hairline = 0.6 if spans.height <= 400 else 0
    base = alt.Chart(alt.NamedData("chunks")).encode(**y, tooltip=tooltip)

    def part(start: str, stop: str, colour: str) -> alt.Chart:
        bar: alt.Chart = base.mark_bar(
            color=COLOURS[colour], stroke="var(--paper)", strokeWidth=hairline, aria=False
        ).encode(x=_time_axis(start, seconds), x2=alt.X2(f"{stop}:Q"))
        return bar

    layers: list[alt.Chart] = [
        part("start", "stop", "other"),
        *(part(before, name, name) for before, name in pairwise(("start", *PARTS))),
    ]
    layers += _marks(bool(failures.height), bool(pauses), rows, seconds)
    height = max(70, min(620, len(rows) * lanes * 22, 90 + len(rows) * lanes * 12))
    return layered(layers, height, _add_marks({"chunks": spans.to_dicts()}, failures, pauses))


def utilisation(
    cells: pl.DataFrame,
    failures: pl.DataFrame,
    rows: Sequence[str],
    seconds: float,
    pauses: Sequence[tuple[float, float]] = (),
) -> dict[str, Any]:
    """Draw how busy each row of workers was, from run_timeline.utilisation, as a heat map.

    The other arguments are as for timeline().
    """
    data = cells.select(
        "row",
        pl.col("start", "stop").round(4),
        "chunks",
        pl.col("busy").round(3),
    )
    base = (
        alt.Chart(alt.NamedData("cells"))
        .mark_rect(aria=False)
        .encode(
            x=_time_axis("start", seconds),
            x2=alt.X2("stop:Q"),
            y=_rows_axis(rows),
            color=alt.Color(
                "busy:Q",
                legend=None,
                scale=alt.Scale(type="quantize", domain=[0, 1], range=list(SEQUENCE)),
            ),
            tooltip=[
                alt.Tooltip("row:N", title="Worker"),
                alt.Tooltip("busy:Q", title="Busy", format=".0%"),
                alt.Tooltip("chunks:Q", title="Chunks", format=","),
            ],
        )
    )
    layers = [base, *_marks(bool(failures.height), bool(pauses), rows, seconds)]
    height = max(70, min(620, len(rows) * 24))
    return layered(layers, height, _add_marks({"cells": data.to_dicts()}, failures, pauses))


def rate_over_time(
    series: pl.DataFrame, mean: float, seconds: float, value_label: str
) -> dict[str, Any]:
    """Draw a rate in steps over active seconds, with its mean.

    Args:
        series: Columns start, stop (active seconds), value, shown (the value as a text).
        mean: The value of the dashed line.
        seconds: The length of the time axis.
        value_label: A Vega expression that labels the axis of values.
    """
    rows = series.to_dicts()
    if rows:
        rows.append({**rows[-1], "start": rows[-1]["stop"]})
    base = alt.Chart(alt.NamedData("series")).encode(
        x=_time_axis("start", seconds),
        y=alt.Y(
            "value:Q",
            title=None,
            axis=alt.Axis(labelExpr=value_label, tickCount=4),
            scale=alt.Scale(domainMin=0, nice=True, padding=0),
        ),
    )
    area = base.mark_area(interpolate="step-after", line={"interpolate": "step-after"}, aria=False)
    # Invisible bars show a tooltip at any position of the pointer.
    hover = base.mark_bar(opacity=0, aria=False).encode(
        x2=alt.X2("stop:Q"), tooltip=[alt.Tooltip("shown:N", title="Rate")]
    )
    rule = (
        alt.Chart(alt.NamedData("mean"))
        .mark_rule(strokeDash=[4, 4], color="var(--soft)")
        .encode(y=alt.Y("value:Q"))
    )
    return layered((area, rule, hover), 190, {"series": rows, "mean": [{"value": mean}]})


def histogram(
    bins: pl.DataFrame, logarithmic: bool, marks: Sequence[tuple[float, str]]
) -> dict[str, Any]:
    """Draw counts of durations (run_figures.histogram), with marked values such as the median."""
    top = float(bins["count"].max() or 1)  # type: ignore[arg-type]
    axis = alt.Axis(labelExpr=SECONDS_LABEL, tickCount=6, labelOverlap="greedy")
    scale = alt.Scale(zero=False, nice=False, padding=0)
    if logarithmic:
        low, high = bins["start"][0], bins["stop"][-1]
        steps = [digit * 10.0**power for power in range(-6, 7) for digit in (1, 2, 5)]
        axis.values = [step for step in steps if low <= step <= high]
        scale = alt.Scale(type="log", nice=False, padding=0)
    x = alt.X("start:Q", title=None, scale=scale, axis=axis)
    bars = (
        alt.Chart(alt.NamedData("bins"))
        .mark_bar(stroke="var(--paper)", strokeWidth=1, aria=False)
        .encode(
            x=x,
            x2=alt.X2("stop:Q"),
            y=alt.Y(
                "count:Q",
                title=None,
                axis=alt.Axis(labelExpr=COUNT_LABEL, tickCount=4, tickMinStep=1),
                scale=alt.Scale(domain=[0, top * 1.25], nice=False, padding=0),
            ),
            y2=alt.Y2Datum(0),
            tooltip=[
                alt.Tooltip("start:Q", title="From (s)", format=",.3~f"),
                alt.Tooltip("stop:Q", title="To (s)", format=",.3~f"),
                alt.Tooltip("count:Q", title="Chunks", format=","),
            ],
        )
    )
    marked = alt.Chart(alt.NamedData("marks")).encode(x=alt.X("value:Q"))
    rules = marked.mark_rule(color="var(--ink)", strokeWidth=1, strokeDash=[4, 4]).encode(
        y=alt.Y("y:Q"), y2=alt.Y2Datum(0)
    )
    labels = marked.mark_text(align="left", dx=4, baseline="top").encode(
        y=alt.Y("y:Q"), text=alt.Text("label:N")
    )
    halo = marked.mark_text(
        align="left", dx=4, baseline="top", stroke="var(--paper)", strokeWidth=3
    ).encode(y=alt.Y("y:Q"), text=alt.Text("label:N"))
    # Labels are above the bars, each lower than the last, so that close labels do not overlap.
    placed = [
        {"value": value, "label": label, "y": top * (1.24 - 0.11 * place)}
        for place, (value, label) in enumerate(marks)
    ]
    return layered((bars, rules, halo, labels), 210, {"bins": bins.to_dicts(), "marks": placed})


def _time_axis(field: str, seconds: float) -> alt.X:
    pad = "(datum.value % 60 < 10 ? '0' : '') + floor(datum.value % 60)"
    clock, title = SECONDS_LABEL, None
    if 90 < seconds <= 7200:
        clock, title = f"floor(datum.value / 60) + ':' + {pad}", "min:s since the start"
    elif 7200 < seconds <= 4 * 86_400:
        minutes = pad.replace("datum.value", "floor(datum.value / 60)")
        clock, title = f"floor(datum.value / 3600) + ':' + {minutes}", "h:min since the start"
    elif seconds > 4 * 86_400:
        clock, title = "format(datum.value / 86400, '.3~g') + ' d'", None
    return alt.X(
        f"{field}:Q",
        title=title,
        scale=alt.Scale(domain=[0, max(seconds, 1e-3)], nice=False, padding=0),
        axis=alt.Axis(values=ticks(seconds), labelExpr=clock, labelOverlap="greedy"),
    )


def _rows_axis(rows: Sequence[str]) -> alt.Y:
    return alt.Y(
        "row:N",
        title=None,
        sort=list(rows),
        scale=alt.Scale(domain=list(rows), paddingInner=0.18, paddingOuter=0.1),
        axis=alt.Axis(
            labels=len(rows) <= 60,
            labelLimit=150,
            labelExpr="replace(datum.label, /^[a-z]+:\\/\\//, '')",
        ),
    )


def _marks(failures: bool, pauses: bool, rows: Sequence[str], seconds: float) -> list[alt.Chart]:
    layers = []
    if pauses:
        base = alt.Chart(alt.NamedData("pauses")).encode(x=_time_axis("at", seconds))
        layers.append(base.mark_rule(strokeDash=[2, 3], strokeWidth=1.5, color="var(--soft)"))
        layers.append(
            base.mark_text(align="left", baseline="bottom", dx=4).encode(
                y=alt.value(-2), text=alt.Text("label:N")
            )
        )
    if failures:
        layers.append(
            alt.Chart(alt.NamedData("failures"))
            .mark_point(
                shape="diamond",
                size=46,
                color="var(--bad)",
                stroke="var(--paper)",
                strokeWidth=0.8,
                opacity=1,
            )
            .encode(
                x=_time_axis("at", seconds),
                y=_rows_axis(rows),
                tooltip=[
                    alt.Tooltip("error:N", title="Failed with"),
                    alt.Tooltip("chunk:N", title="Chunk"),
                    alt.Tooltip("row:N", title="Worker"),
                ],
            )
        )
    return layers


def _add_marks(
    data: dict[str, Any], failures: pl.DataFrame, pauses: Sequence[tuple[float, float]]
) -> dict[str, Any]:
    from pipeline.report.humanize import duration

    if failures.height:
        data["failures"] = failures.to_dicts()
    if pauses:
        data["pauses"] = [
            {"at": at, "label": f"paused for {duration(length)}"} for at, length in pauses
        ]
    return data


def layered(
    layers: Sequence[alt.Chart], height: int, data: dict[str, list[dict[str, Any]]]
) -> dict[str, Any]:
    """Draw charts over each other, as wide as the page; return a specification with their data.

    `alt.layer` would copy each chart several times, in search of parameters that they share: most
    of the time of a small run's report.
    """
    drawn = [to_spec(layer, {}) for layer in layers]
    for layer in drawn:
        del layer["datasets"]
    return {"layer": drawn, "width": "container", "height": height, "datasets": data}


def to_spec(chart: alt.TopLevelMixin, data: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Convert a chart to a specification that contains its data."""
    # The data are added afterwards, since Altair would copy every row. Tests validate the charts;
    # validating them here would take a third of a report's time.
    spec = chart.to_dict(validate=VALIDATED)
    for key in ("$schema", "config"):
        spec.pop(key, None)
    return {**spec, "datasets": data}
