"""The benchmark report's charts, as Vega-Lite with the page's colours (pipeline.report.page)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from pipeline.report.charts import COUNT_LABEL, SECONDS_LABEL

OURS, THEIRS, COLD = "var(--accent)", "var(--other)", "var(--upload)"
SERIES = (OURS, "var(--upload)", "var(--bad)", "var(--plan)", "var(--other)", "var(--read)")
"""Ours first, then peers."""
_ROW = 30
MEGABYTES_LABEL = "format(datum.value / 1e6, ',.0f') + ' MB'"


def times(rows: Sequence[dict[str, Any]], order: Sequence[str]) -> dict[str, Any]:
    """Medians as points with their intervals, every sample as a faint tick.

    Args:
        rows: title, ours (bool), kind (cold or warm), value, low, high, samples, shown.
        order: Titles from top to bottom.
    """
    ticks = [
        {"title": row["title"], "kind": row["kind"], "value": value, "ours": row["ours"]}
        for row in rows
        for value in row["samples"]
    ]
    y = alt.Y("title:N", sort=list(order), title=None, axis=alt.Axis(labelLimit=170))
    offset = alt.YOffset("kind:N", sort=["cold", "warm"], scale=alt.Scale(paddingOuter=0.3))
    colour = alt.Color(
        "kind:N",
        legend=None,
        scale=alt.Scale(domain=["cold", "warm"], range=[COLD, OURS]),
    )
    x = alt.X(
        "value:Q",
        title=None,
        scale=alt.Scale(domainMin=0, nice=True),
        axis=alt.Axis(labelExpr=SECONDS_LABEL, tickCount=5, labelOverlap="greedy", grid=True),
    )
    samples = (
        alt.Chart(alt.NamedData("samples"))
        .mark_tick(thickness=1, size=9, opacity=0.45)
        .encode(x=x, y=y, yOffset=offset, color=colour)
    )
    base = alt.Chart(alt.NamedData("medians")).encode(y=y, yOffset=offset, color=colour)
    rule = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q"), x2="high:Q")
    point = base.mark_point(size=58, filled=True, opacity=1, stroke="var(--paper)").encode(
        x=alt.X("value:Q"),
        tooltip=[
            alt.Tooltip("title:N", title="Who"),
            alt.Tooltip("kind:N", title="Iteration"),
            alt.Tooltip("shown:N", title="Median, 95% interval"),
            alt.Tooltip("count:Q", title="Samples"),
        ],
    )
    medians = [{name: row[name] for name in row if name != "samples"} for row in rows]
    height = max(60, len(order) * _ROW)
    chart = alt.layer(samples, rule, point).properties(width="container", height=height)
    return _spec(chart, {"samples": ticks, "medians": medians})


def bars(rows: Sequence[dict[str, Any]], order: Sequence[str], value_label: str) -> dict[str, Any]:
    """One bar a subject, ours in another colour.

    Args:
        rows: title, ours, value, shown.
        order: Titles from top to bottom.
        value_label: A Vega expression that labels the axis.
    """
    chart = (
        alt.Chart(alt.NamedData("bars"))
        .mark_bar(height=15, cornerRadiusEnd=2)
        .encode(
            x=alt.X(
                "value:Q",
                title=None,
                axis=alt.Axis(labelExpr=value_label, tickCount=5, grid=True),
            ),
            y=alt.Y("title:N", sort=list(order), title=None, axis=alt.Axis(labelLimit=170)),
            color=alt.condition("datum.ours", alt.value(OURS), alt.value(THEIRS)),
            tooltip=[
                alt.Tooltip("title:N", title="Who"),
                alt.Tooltip("shown:N", title="Median"),
            ],
        )
        .properties(width="container", height=max(60, len(order) * 26))
    )
    return _spec(chart, {"bars": list(rows)})


def scaling(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Draw speed-up over worker threads and the ideal line, both axes in powers of two.

    Args:
        rows: workers, speedup, low, high, shown.
    """
    top = max(row["workers"] for row in rows)
    axis = alt.Axis(labelExpr=COUNT_LABEL, values=[2**n for n in range(0, top.bit_length() + 1)])
    scale = alt.Scale(type="log", base=2, nice=False)
    x = alt.X("workers:Q", title="worker threads", scale=scale, axis=axis)
    ideal = (
        alt.Chart(alt.NamedData("ideal"))
        .mark_line(color="var(--soft)", strokeDash=[4, 4], strokeWidth=1)
        .encode(x=x, y=alt.Y("speedup:Q", title="times as fast", scale=scale, axis=axis))
    )
    base = alt.Chart(alt.NamedData("points")).encode(x=x)
    line = base.mark_line().encode(y="speedup:Q")
    rule = base.mark_rule(color=OURS).encode(y="low:Q", y2="high:Q")
    point = base.mark_point(size=50, filled=True, opacity=1).encode(
        y="speedup:Q",
        tooltip=[
            alt.Tooltip("workers:Q", title="Worker threads"),
            alt.Tooltip("shown:N", title="Speed-up"),
        ],
    )
    ends = [{"workers": n, "speedup": n / rows[0]["workers"]} for n in (rows[0]["workers"], top)]
    chart = alt.layer(ideal, line, rule, point).properties(width="container", height=260)
    return _spec(chart, {"ideal": ends, "points": list(rows)})


def cost_per_task(rows: Sequence[dict[str, Any]], order: Sequence[str]) -> dict[str, Any]:
    """Seconds of one task over the number of tasks, both logarithmic, a line a subject.

    Args:
        rows: title, tasks, value, low, high, shown.
        order: Titles, ours first: their colours.
    """
    colour = alt.Color(
        "title:N",
        legend=None,
        scale=alt.Scale(domain=list(order), range=list(SERIES[: len(order)])),
    )
    base = alt.Chart(alt.NamedData("points")).encode(
        x=alt.X(
            "tasks:Q",
            title="chunks or tasks",
            scale=alt.Scale(type="log", nice=False, padding=14),
            axis=alt.Axis(labelExpr=COUNT_LABEL, values=[10**n for n in range(1, 8)]),
        ),
        y=alt.Y(
            "value:Q",
            title="seconds for one",
            scale=alt.Scale(type="log", nice=True),
            axis=alt.Axis(
                labelExpr="datum.value < 0.001 ? format(datum.value * 1e6, '.3~g') + ' µs' : "
                + SECONDS_LABEL,
                values=[10.0**n for n in range(-6, 3)],
            ),
        ),
        color=colour,
    )
    line = base.mark_line(strokeWidth=1.6)
    rule = base.mark_rule(strokeWidth=2).encode(y="low:Q", y2="high:Q")
    point = base.mark_point(size=46, filled=True, opacity=1).encode(
        tooltip=[
            alt.Tooltip("title:N", title="Who"),
            alt.Tooltip("tasks:Q", title="Tasks", format=","),
            alt.Tooltip("shown:N", title="Each"),
        ]
    )
    chart = alt.layer(line, rule, point).properties(width="container", height=260)
    return _spec(chart, {"points": list(rows)})


def history(rows: Sequence[dict[str, Any]], order: Sequence[str]) -> dict[str, Any]:
    """Ratios of one workload over sessions, a line a peer; 1 is as fast as the peer.

    Args:
        rows: peer, session (a label, in order), ratio, low, high, commit.
        order: Sessions from left to right.
    """
    peers = list(dict.fromkeys(row["peer"] for row in rows))
    colour = alt.Color(
        "peer:N",
        legend=None,
        scale=alt.Scale(domain=peers, range=[SERIES[n % len(SERIES)] for n in range(len(peers))]),
    )
    base = alt.Chart(alt.NamedData("points")).encode(
        x=alt.X("session:N", sort=list(order), title=None, axis=alt.Axis(labelAngle=0)),
        y=alt.Y("ratio:Q", title="ours / theirs", scale=alt.Scale(domainMin=0, nice=True)),
        color=colour,
    )
    one = (
        alt.Chart(alt.NamedData("one"))
        .mark_rule(strokeDash=[4, 4], color="var(--soft)")
        .encode(y="ratio:Q")
    )
    rule = base.mark_rule().encode(y="low:Q", y2="high:Q")
    point = base.mark_point(size=46, filled=True, opacity=1).encode(
        tooltip=[
            alt.Tooltip("peer:N", title="Against"),
            alt.Tooltip("ratio:Q", title="Ratio", format=".2f"),
            alt.Tooltip("commit:N", title="Commit"),
        ]
    )
    chart = alt.layer(one, base.mark_line(), rule, point)
    return _spec(
        chart.properties(width="container", height=220),
        {"points": list(rows), "one": [{"ratio": 1}]},
    )


def _spec(chart: alt.TopLevelMixin, data: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    # The data goes in afterwards: Altair would check every row against its schema.
    spec = chart.to_dict()
    for key in ("$schema", "config"):
        spec.pop(key, None)
    return {**spec, "datasets": data}
