"""The curve of time against workers: as text, and as a page for the browser."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import polars as pl
from markupsafe import Markup

from benchmarks.report.charts import OURS
from benchmarks.simulation.answer import Answer
from benchmarks.simulation.curve import EFFICIENT, Point, efficient_up_to
from pipeline.report import humanize
from pipeline.report.charts import COUNT_LABEL, SECONDS_LABEL
from pipeline.report.page import Card, Chart, Facts, Page, Section, Table, render_page
from pipeline.report.tables import table_html

WIDTH, HEIGHT = 64, 14
LENGTHS = [0.1, 1, 10, 60, 600, 3600, 36_000, 86_400, 864_000, 8_640_000]
"""Seconds that an axis of time is labelled at."""
LENGTH_LABEL = f"datum.value < 86400 ? ({SECONDS_LABEL}) : format(datum.value / 86400, ',') + ' d'"


def plot(points: Sequence[Point]) -> str:
    """Time against workers on two logarithmic axes, for a terminal.

    `●` is simulated; `·` is as fast as the first point would be with every worker as useful.
    """
    ideal = [points[0].seconds * points[0].workers / point.workers for point in points]
    times = [point.seconds for point in points]
    low, high = math.log(min(*times, *ideal)), math.log(max(*times, *ideal))
    left, right = math.log(points[0].workers), math.log(points[-1].workers)
    rows = [[" "] * WIDTH for _ in range(HEIGHT)]

    def put(workers: int, seconds: float, mark: str) -> None:
        x = round((math.log(workers) - left) / max(right - left, 1e-9) * (WIDTH - 1))
        y = round((high - math.log(seconds)) / max(high - low, 1e-9) * (HEIGHT - 1))
        rows[y][x] = mark

    for point, best in zip(points, ideal, strict=True):
        put(point.workers, best, "·")
        put(point.workers, point.seconds, "●")
    labels = {0: humanize.duration(math.exp(high)), HEIGHT - 1: humanize.duration(math.exp(low))}
    wide = max(map(len, labels.values()))
    lines = [f"{labels.get(n, ''):>{wide}} ┤{''.join(row).rstrip()}" for n, row in enumerate(rows)]
    lines.append(" " * wide + " └" + "─" * WIDTH)
    first, last = f"{points[0].workers:,}", f"{points[-1].workers:,} workers"
    lines.append(" " * (wide + 2) + first + last.rjust(WIDTH - len(first)))
    return "\n".join(lines)


def build_page(answer: Answer, points: Sequence[Point], sources: Mapping[str, str]) -> str:
    """The answer as one self-contained HTML page, its charts drawn by Altair.

    Args:
        answer: Of the case.
        points: Of the curve.
        sources: Name of a parameter to its value and where it comes from.
    """
    case, limit = answer.case, answer.limit
    return render_page(
        Page(
            title=f"{case.chunks:,} chunks, {humanize.byte_size(case.stored_bytes)}, "
            f"{case.workers:,} workers",
            kicker="chunkmap simulation",
            summary=f"{humanize.duration(answer.seconds)}, limited by {limit.name}; "
            f"next would be {answer.next_limit.name}.",
            cards=(
                Card("Time", humanize.duration(answer.seconds)),
                Card("Efficiency", humanize.percent(answer.efficiency), "of all workers' time"),
                Card("Limit", limit.name, limit.advice),
                Card("Next limit", answer.next_limit.name, answer.next_limit.advice),
                Card("80% efficient", efficient(points)),
                Card("Cost", f"${sum(answer.dollars.values()):,.2f}"),
            ),
            sections=(
                Section("Workers", (_time_chart(points), _efficiency_chart(points))),
                Section(
                    "Where the time goes",
                    (
                        _table("Phases", answer.phases),
                        _table("Worker threads, while mapping", answer.threads),
                        _table("Driver, while mapping", answer.driver),
                        _limits(answer),
                    ),
                ),
                Section(
                    "What it takes",
                    (
                        Facts(
                            "Requests",
                            tuple((k, humanize.count(v)) for k, v in answer.requests.items()),
                            half=True,
                        ),
                        Facts(
                            "US dollars",
                            tuple((k, f"{v:,.2f}") for k, v in answer.dollars.items()),
                            half=True,
                        ),
                    ),
                ),
                Section("Parameters", (Facts("Each with its source", tuple(sources.items())),)),
            ),
            footer="Simulated, not measured; how far to trust it: docs/guides/benchmarks.md.",
        )
    )


def efficient(points: Sequence[Point]) -> str:
    """Where workers are worth it, in words."""
    found = efficient_up_to(points)
    if found is not None:
        return f"up to about {humanize.count(found)} workers"
    if points[-1].efficiency >= EFFICIENT:
        return f"beyond {points[-1].workers:,} workers"
    return f"with fewer than {points[0].workers:,} workers"


def _time_chart(points: Sequence[Point]) -> Chart:
    rows = [
        {
            "workers": point.workers,
            "seconds": point.seconds,
            "ideal": points[0].seconds * points[0].workers / point.workers,
            "limit": point.limit,
            "shown": humanize.duration(point.seconds),
        }
        for point in points
    ]
    log = alt.Scale(type="log", nice=False, padding=14)
    base = alt.Chart(alt.NamedData("points")).encode(
        x=alt.X("workers:Q", title="workers", scale=log, axis=_workers_axis(points))
    )
    y = alt.Y(
        "seconds:Q",
        title="time",
        scale=alt.Scale(type="log", nice=True),
        axis=alt.Axis(labelExpr=LENGTH_LABEL, values=LENGTHS),
    )
    ideal = base.mark_line(color="var(--soft)", strokeDash=[4, 4], strokeWidth=1).encode(
        y="ideal:Q"
    )
    line = base.mark_line(color=OURS).encode(y=y)
    point = base.mark_point(size=50, filled=True, opacity=1, color=OURS).encode(
        y=y,
        tooltip=[
            alt.Tooltip("workers:Q", title="Workers", format=","),
            alt.Tooltip("shown:N", title="Time"),
            alt.Tooltip("limit:N", title="Limit"),
        ],
    )
    said = "; ".join(f"{point.workers:,}: {humanize.duration(point.seconds)}" for point in points)
    return Chart(
        "Time against workers",
        _spec(alt.layer(ideal, line, point), rows),
        f"Time by number of workers: {said}.",
        "The dashed line: every worker as useful as those of the first point.",
        half=True,
    )


def _workers_axis(points: Sequence[Point]) -> alt.Axis:
    return alt.Axis(labelExpr=COUNT_LABEL, values=[point.workers for point in points])


def _efficiency_chart(points: Sequence[Point]) -> Chart:
    rows = [{"workers": point.workers, "efficiency": point.efficiency} for point in points]
    base = alt.Chart(alt.NamedData("points")).encode(
        x=alt.X(
            "workers:Q",
            title="workers",
            scale=alt.Scale(type="log", nice=False, padding=14),
            axis=_workers_axis(points),
        ),
        y=alt.Y("efficiency:Q", title="efficiency", scale=alt.Scale(domain=[0, 1])),
    )
    least = (
        alt.Chart(alt.InlineData([{"least": EFFICIENT}]))
        .mark_rule(strokeDash=[4, 4], color="var(--soft)")
        .encode(y="least:Q")
    )
    drawn = (
        least,
        base.mark_line(color=OURS),
        base.mark_point(size=50, filled=True, opacity=1, color=OURS),
    )
    said = "; ".join(f"{point.workers:,}: {humanize.percent(point.efficiency)}" for point in points)
    return Chart(
        "Efficiency against workers",
        _spec(alt.layer(*drawn), rows),
        f"Efficiency by number of workers: {said}.",
        f"80%: {efficient(points)}.",
        half=True,
    )


def _spec(chart: Any, rows: list[dict[str, Any]]) -> dict[str, Any]:
    spec = chart.properties(width="container", height=260).to_dict()
    for key in ("$schema", "config"):
        spec.pop(key, None)
    return {**spec, "datasets": {**spec.get("datasets", {}), "points": rows}}


def _table(title: str, seconds: Mapping[str, float]) -> Table:
    total = sum(seconds.values()) or 1.0
    rows = [
        (name, humanize.duration(value), humanize.percent(value / total))
        for name, value in seconds.items()
    ]
    return Table(title, _html(("", "time", "share"), rows), half=True)


def _limits(answer: Answer) -> Table:
    rows = [
        (
            part.name,
            humanize.duration(part.seconds),
            "–" if part.binds_from is None else humanize.count(part.binds_from),
            part.advice,
        )
        for part in answer.parts
    ]
    head = ("", "alone it would take", "binds from workers", "what helps")
    return Table("What limits", _html(head, rows))


def _html(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    names = [f"c{number}" for number in range(len(head))]
    frame = pl.DataFrame([dict(zip(names, row, strict=True)) for row in rows])
    return table_html(frame, dict(zip(names, head, strict=True)), numbers=names[1:3], markup=())
