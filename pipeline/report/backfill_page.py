"""What is on a backfill's page, from top to bottom."""

from __future__ import annotations

from html import escape
from typing import Any

import polars as pl
from markupsafe import Markup

from pipeline.report import backfill_charts, charts
from pipeline.report.backfill_model import BackfillFailure, BackfillReport
from pipeline.report.durations import durations_chart
from pipeline.report.humanize import (
    byte_size,
    count,
    duration,
    instant,
    percent,
    plural,
    rate,
    short_count,
)
from pipeline.report.page import (
    Block,
    Card,
    Chart,
    Example,
    Facts,
    LegendItem,
    Note,
    Notice,
    Page,
    Section,
    Table,
    Tone,
)
from pipeline.report.tables import first_line, name_html, table_html

MOST_FAILED = 200
"""Failed windows that are listed."""
MOST_SLOW = 15
MOST_GROUPS = 15
MOST_TEXT = 8_000
MOST_PERIODS = 120
_STATES: dict[str, Tone] = {"done": "good", "failed": "bad", "cancelled": "bad", "running": "plain"}


def build_page(report: BackfillReport) -> Page:
    """The page of a backfill."""
    sections = [
        Section("Windows", _windows(report)),
        _failures(report),
        _course(report),
        Section("The backfill", _facts(report)),
    ]
    state = report.state[:1].upper() + report.state[1:]
    return Page(
        title=report.job,
        kicker="chunkmap backfill report",
        summary=_summary(report),
        badge=state,
        badge_tone=_STATES.get(report.state, "warn"),
        notice=_notice(report),
        cards=_cards(report),
        sections=tuple(section for section in sections if section is not None),
        footer=f"Backfill {report.id}, as of {instant(report.at)}. Sizes are in decimal units "
        "(1 MB is 1,000,000 bytes); bytes are as stored, compressed.",
    )


def active_seconds(windows: pl.DataFrame) -> float:
    """How long at least one window was at work: pauses do not count."""
    spans = windows.select("started", "ended").drop_nulls().sort("started")
    total, reached = 0.0, float("-inf")
    for start, end in spans.iter_rows():
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _summary(report: BackfillReport) -> str:
    counts = report.counts
    said = (
        f"{count(counts['done'])} of {plural(report.todo, 'window')} ({report.asked}) "
        f"{'is' if counts['done'] == 1 else 'are'} published"
    )
    if counts["failed"]:
        said += f", {count(counts['failed'])} failed"
    left = counts["waiting"] + counts["mapping"] + counts["staged"]
    if left:
        said += f", {count(left)} left"
    return (
        f"{said}. {short_count(counts['rows_in'])} rows in, {short_count(counts['rows_out'])} out."
    )


def _notice(report: BackfillReport) -> Notice | None:
    if report.state == "done":
        return Notice("Every window that was to be done is published.", report.command, "good")
    if not report.command:
        return None
    words = "What to do next. What is done is kept."
    if report.counts["failed"]:
        words = "What to do next: mend the cause (see the failures below), then run this."
    return Notice(words, report.command, "bad" if report.counts["failed"] else "warn")


def _cards(report: BackfillReport) -> tuple[Card, ...]:
    counts, seconds = report.counts, active_seconds(report.windows)
    failed, share = counts["failed"], counts["done"] / report.todo if report.todo else 1.0
    alone = counts["skipped"] + counts["empty"]
    return (
        Card("Windows published", count(counts["done"]), f"of {count(report.todo)} to be done"),
        Card(
            "Windows failed",
            count(failed),
            f"{percent(failed / report.todo)} of them" if report.todo else "",
            "bad" if failed else "plain",
        ),
        Card("Left alone", count(alone), f"{count(counts['empty'])} not in the input"),
        Card("Done", percent(share), f"{count(counts['chunks_done'])} chunks"),
        Card("Rows in", short_count(counts["rows_in"])),
        Card("Rows out", short_count(counts["rows_out"])),
        Card(
            "Read",
            byte_size(counts["bytes_in"]),
            f"written {byte_size(counts['bytes_out'])}",
        ),
        Card(
            "Time",
            duration(seconds),
            rate(counts["rows_in"] / seconds, "rows") if seconds else "nothing is mapped yet",
        ),
    )


def _windows(report: BackfillReport) -> tuple[Block, ...]:
    calendar, counts = report.calendar, report.counts
    if not calendar.cells.height:
        return (Note("No window was asked for."),)
    shown = calendar.cells["state"].unique().to_list()
    words = ", ".join(
        f"{count(counts.get(state, 0))} {said}"
        for state, said in backfill_charts.WORDS.items()
        if counts.get(state, 0)
    )
    unit = calendar.unit if calendar.unit[0].isdigit() else f"one {calendar.unit}"
    return (
        Chart(
            "Calendar",
            backfill_charts.heat_map(calendar),
            f"Calendar of {plural(report.windows.height, 'window')}: {words}.",
            f"A cell is {unit}. {words[:1].upper() + words[1:]}.",
            tuple(
                LegendItem(said, backfill_charts.COLOURS[state])
                for state, said in backfill_charts.WORDS.items()
                if state in shown
            ),
        ),
    )


def _failures(report: BackfillReport) -> Section | None:
    bad = report.windows.filter(pl.col("state") == "failed")
    if bad.is_empty() and not report.failures:
        return Section("Failures", (Note("No window failed."),))
    blocks: list[Block] = []
    if report.failures:
        blocks.append(Table("By kind", _kinds(report.failures[:MOST_GROUPS])))
        blocks += [
            Example(
                f"{one.error} in window {one.window}, chunk {one.index}, on {one.worker}",
                (one.trace or one.message or "(no message)")[:MOST_TEXT],
                open=at == 0,
            )
            for at, one in enumerate(report.failures[:MOST_GROUPS])
        ]
    if bad.height:
        more = bad.height - MOST_FAILED
        caption = f"The first {MOST_FAILED} of {count(bad.height)}." if more > 0 else ""
        blocks.append(Table("Failed windows", _failed_table(bad.head(MOST_FAILED)), caption))
    lead = f"{plural(bad.height, 'window')} failed; all others are not touched by it."
    return Section("Failures", tuple(blocks), lead)


def _kinds(groups: tuple[BackfillFailure, ...]) -> Markup:
    rows = [
        {
            "error": name_html(one.error),
            "message": f'<span class="message">{escape(first_line(one.message))}</span>',
            "windows": count(one.windows),
            "chunks": count(one.chunks),
            "window": name_html(one.window),
        }
        for one in groups
    ]
    labels = {
        "error": "Error",
        "message": "Example",
        "windows": "Windows",
        "chunks": "Chunks",
        "window": "Such as",
    }
    frame = pl.DataFrame(rows, schema=dict.fromkeys(labels, pl.String))
    return table_html(
        frame, labels, numbers=("windows", "chunks"), markup=("error", "message", "window")
    )


def _failed_table(bad: pl.DataFrame) -> Markup:
    labels = {
        "label": "Window",
        "chunks": "Chunks",
        "done": "Done",
        "failed": "Failed",
        "run": "Run",
        "ended": "Last chunk done (UTC)",
    }
    rows = [
        {
            "label": row["label"],
            "chunks": count(row["chunks"]),
            "done": count(row["done"] or 0),
            "failed": count(row["failed"] or 0),
            "run": row["run"] or "",
            "ended": instant(row["ended"]).removesuffix(" UTC") if row["ended"] else "–",
        }
        for row in bad.iter_rows(named=True)
    ]
    frame = pl.DataFrame(rows, schema=dict.fromkeys(labels, pl.String))
    return table_html(frame, labels, numbers=("chunks", "done", "failed"), markup=())


def _course(report: BackfillReport) -> Section | None:
    done = report.windows.filter(pl.col("done") > 0).with_columns(
        seconds=(pl.col("ended") - pl.col("started")).clip(1e-3)
    )
    if done.is_empty():
        return None
    return Section(
        "How it went",
        (
            durations_chart(
                "window", done["seconds"], "From the first chunk's begin to the last one's end. "
            ),
            _rows(done),
            _slowest(done),
        ),
    )


def _rows(done: pl.DataFrame) -> Block:
    length = next((n for n in (None, 10, 7, 4) if _periods(done, n) <= MOST_PERIODS), 4)
    by = done.group_by(pl.col("label").str.slice(0, length).alias("period"), maintain_order=True)
    data = by.agg(pl.col("rows_out").sum(), pl.col("busy").sum().alias("seconds"))
    data = data.with_columns(shown=pl.col("seconds").map_elements(duration, return_dtype=pl.String))
    total = int(data["rows_out"].sum())
    text = f"{short_count(total)} rows out of {plural(done.height, 'window')}."
    return Chart(
        "Rows out",
        backfill_charts.throughput(data, charts.COUNT_LABEL),
        f"Rows out by window or period. {text}",
        text,
        half=True,
    )


def _periods(done: pl.DataFrame, length: int | None) -> int:
    return int(done.select(pl.col("label").str.slice(0, length).n_unique()).item())


def _slowest(done: pl.DataFrame) -> Table:
    labels = {
        "label": "Window",
        "took": "Took",
        "busy": "Threads' time",
        "chunks": "Chunks",
        "rows": "Rows in",
        "size": "Read",
        "run": "Run",
    }
    rows = [
        {
            "label": row["label"],
            "took": duration(row["seconds"]),
            "busy": duration(row["busy"]),
            "chunks": count(row["done"]),
            "rows": count(row["rows_in"]),
            "size": byte_size(row["bytes_in"]),
            "run": row["run"] or "",
        }
        for row in done.sort("seconds", descending=True).head(MOST_SLOW).iter_rows(named=True)
    ]
    frame = pl.DataFrame(rows, schema=dict.fromkeys(labels, pl.String))
    numbers = ("took", "busy", "chunks", "rows", "size")
    return Table("Slowest windows", table_html(frame, labels, numbers=numbers, markup=()))


def _facts(report: BackfillReport) -> tuple[Block, ...]:
    from pipeline.report.page import link

    items: list[tuple[str, Any]] = [("Backfill", report.id), *report.facts]
    items.append(("Created", instant(report.created)))
    if report.prefect_url:
        items.append(("Prefect", link(report.prefect_url)))
    why = report.windows.filter(pl.col("skipped").is_not_null())["skipped"]
    reasons = why.str.replace(r"run [0-9a-f]{16}", "an earlier run").value_counts(sort=True)
    skipped = tuple((count(number), reason) for reason, number in reasons.head(20).iter_rows())
    blocks: list[Block] = [Facts("What was asked for", tuple(items), half=bool(skipped))]
    if skipped:
        blocks.append(Facts("Why windows were left alone", skipped, half=True))
    return tuple(blocks)
