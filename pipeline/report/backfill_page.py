"""Build the page of a backfill, from top to bottom."""

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
    link,
)
from pipeline.report.tables import first_line, name_html, table_html

MAX_FAILED = 200
"""Maximum failed windows to list."""
MAX_SLOW = 15
"""Maximum slow windows to list."""
MAX_GROUPS = 15
"""Maximum kinds of failure to show."""
MAX_TEXT = 8_000
"""Maximum characters of an error's message or traceback."""
MAX_PERIODS = 120
"""Maximum bars of the chart of rows."""
_STATES: dict[str, Tone] = {"done": "good", "failed": "bad", "cancelled": "bad", "running": "plain"}


def build_page(report: BackfillReport) -> Page:
    """Build the page of a backfill."""
    sections = [
        Section("Windows", _windows(report)),
        _failures(report),
        _progress(report),
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
    """Add up the seconds in which at least one window was mapped, so without pauses."""
    spans = windows.select("started", "ended").drop_nulls().sort("started")
    total, reached = 0.0, float("-inf")
    for start, end in spans.iter_rows():
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _summary(report: BackfillReport) -> str:
    counts = report.counts
    text = (
        f"{count(counts['done'])} of {plural(report.todo, 'window')} ({report.asked}) "
        f"{'is' if counts['done'] == 1 else 'are'} published"
    )
    if counts["failed"]:
        text += f", {count(counts['failed'])} failed"
    left = counts["waiting"] + counts["mapping"] + counts["staged"]
    if left:
        text += f", {count(left)} left"
    return (
        f"{text}. {short_count(counts['rows_in'])} rows in, {short_count(counts['rows_out'])} out."
    )


def _notice(report: BackfillReport) -> Notice | None:
    if report.state == "done":
        return Notice("Every requested window is published.", report.command, "good")
    if not report.command:
        return None
    text = "What to do next: run this. Completed work is kept."
    if report.counts["failed"]:
        text = "What to do next: fix the cause (see the failures below), then run this."
    return Notice(text, report.command, "bad" if report.counts["failed"] else "warn")


def _cards(report: BackfillReport) -> tuple[Card, ...]:
    counts, seconds = report.counts, active_seconds(report.windows)
    failed, share = counts["failed"], counts["done"] / report.todo if report.todo else 1.0
    skipped = counts["skipped"] + counts["empty"]
    return (
        Card("Windows published", count(counts["done"]), f"of {count(report.todo)} to do"),
        Card(
            "Windows failed",
            count(failed),
            f"{percent(failed / report.todo)} of them" if report.todo else "",
            "bad" if failed else "plain",
        ),
        Card("Skipped", count(skipped), f"{count(counts['empty'])} not in the input"),
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
            rate(counts["rows_in"] / seconds, "rows") if seconds else "no chunk is mapped yet",
        ),
    )


def _windows(report: BackfillReport) -> tuple[Block, ...]:
    calendar, counts = report.calendar, report.counts
    if not calendar.cells.height:
        return (Note("No window was requested."),)
    shown = calendar.cells["state"].unique().to_list()
    text = ", ".join(
        f"{count(counts.get(state, 0))} {label}"
        for state, label in backfill_charts.LABELS.items()
        if counts.get(state, 0)
    )
    unit = calendar.unit if calendar.unit[0].isdigit() else f"one {calendar.unit}"
    return (
        Chart(
            "Calendar",
            backfill_charts.heat_map(calendar),
            f"Calendar of {plural(report.windows.height, 'window')}: {text}.",
            f"A cell is {unit}. {text[:1].upper() + text[1:]}.",
            tuple(
                LegendItem(label, backfill_charts.COLOURS[state])
                for state, label in backfill_charts.LABELS.items()
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
        blocks.append(Table("By kind", _kinds(report.failures[:MAX_GROUPS])))
        blocks += [
            Example(
                f"{group.error} in window {group.window}, chunk {group.index}"
                + (f", at {group.line}" if group.line else "")
                + f", on {group.worker}",
                (f"{group.where}\n\n" if group.where else "")
                + (group.trace or group.message or "(no message)")[:MAX_TEXT],
                open=at == 0,
            )
            for at, group in enumerate(report.failures[:MAX_GROUPS])
        ]
    if bad.height:
        more = bad.height - MAX_FAILED
        caption = f"The first {MAX_FAILED} of {count(bad.height)}." if more > 0 else ""
        blocks.append(Table("Failed windows", _failed_table(bad.head(MAX_FAILED)), caption))
    lead = f"{plural(bad.height, 'window')} failed; the other windows are not affected."
    return Section("Failures", tuple(blocks), lead)


def _kinds(groups: tuple[BackfillFailure, ...]) -> Markup:
    rows = [
        {
            "error": name_html(group.error),
            "message": f'<span class="message">{escape(first_line(group.message))}</span>',
            "windows": count(group.windows),
            "chunks": count(group.chunks),
            "window": name_html(group.window),
        }
        for group in groups
    ]
    labels = {
        "error": "Error",
        "message": "Message",
        "windows": "Windows",
        "chunks": "Chunks",
        "window": "Example window",
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


def _progress(report: BackfillReport) -> Section | None:
    done = report.windows.filter(pl.col("done") > 0).with_columns(
        seconds=(pl.col("ended") - pl.col("started")).clip(1e-3)
    )
    if done.is_empty():
        return None
    return Section(
        "Progress",
        (
            durations_chart(
                "window",
                done["seconds"],
                "From the start of the first chunk to the end of the last. ",
            ),
            _rows(done),
            _slowest(done),
        ),
    )


def _rows(done: pl.DataFrame) -> Block:
    length = next((n for n in (None, 10, 7, 4) if _periods(done, n) <= MAX_PERIODS), 4)
    period = pl.col("label").str.slice(0, length).alias("period")
    data = done.group_by(period, maintain_order=True).agg(
        pl.col("rows_out").sum(), pl.col("busy").sum().alias("seconds")
    )
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
        "busy": "Thread time",
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
        for row in done.sort("seconds", descending=True).head(MAX_SLOW).iter_rows(named=True)
    ]
    frame = pl.DataFrame(rows, schema=dict.fromkeys(labels, pl.String))
    numbers = ("took", "busy", "chunks", "rows", "size")
    return Table("Slowest windows", table_html(frame, labels, numbers=numbers, markup=()))


def _facts(report: BackfillReport) -> tuple[Block, ...]:
    items: list[tuple[str, Any]] = [("Backfill", report.id), *report.facts]
    items.append(("Created", instant(report.created)))
    if report.prefect_url:
        items.append(("Prefect", link(report.prefect_url)))
    skipped_for = report.windows.filter(pl.col("skipped").is_not_null())["skipped"]
    reasons = skipped_for.str.replace(r"run [0-9a-f]{16}", "an earlier run").value_counts(sort=True)
    skipped = tuple((count(number), reason) for reason, number in reasons.head(20).iter_rows())
    blocks: list[Block] = [Facts("Request", tuple(items), half=bool(skipped))]
    if skipped:
        blocks.append(Facts("Why windows were skipped", skipped, half=True))
    return tuple(blocks)
