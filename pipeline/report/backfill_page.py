"""Build the page of a backfill, from top to bottom."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import polars as pl
from markupsafe import Markup

from pipeline.report import backfill_charts, charts
from pipeline.report.backfill_model import BackfillFailure, BackfillReport
from pipeline.report.durations import durations_chart
from pipeline.report.humanize import (
    byte_rate,
    byte_size,
    count,
    duration,
    instant,
    money,
    percent,
    plural,
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
from pipeline.report.run_figures import Cost, cost_of
from pipeline.report.run_text import requests_card
from pipeline.report.tables import (
    attempts_table,
    costs_table,
    first_line,
    name_html,
    table_html,
    versions_table,
)

MAX_FAILED = 200
"""Maximum failed windows to list."""
MAX_LISTED = 1_000
"""Maximum windows to list, and for the calendar to link to."""
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
        _attempts(report),
        _list(report),
        _cost(report),
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
        is_live=bool(report.run_pages),
    )


def active_seconds(report: BackfillReport) -> float:
    """Add up the seconds of all attempts, until now if one is running.

    Without attempts, as in reports of earlier releases: the seconds in which at least one window
    was mapped.
    """
    if report.attempts:
        spans = pl.DataFrame(
            [(attempt.started, attempt.finished) for attempt in report.attempts],
            schema={"started": pl.Float64, "ended": pl.Float64},
            orient="row",
        )
    else:
        spans = report.windows.select("started", "ended").drop_nulls()
    total, reached = 0.0, float("-inf")
    for start, end in spans.sort("started").iter_rows():
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def rows_filtered(windows: pl.DataFrame) -> int:
    """Count the planned rows of completed windows that no transform has seen."""
    if "rows" not in windows.columns:
        return 0
    whole = windows.filter((pl.col("done") > 0) & (pl.col("done") == pl.col("chunks")))
    return max(0, int((whole["rows"] - whole["rows_in"]).sum()))


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
    counts, seconds = report.counts, active_seconds(report)
    filtered = rows_filtered(report.windows)
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
        Card(
            "Rows in",
            short_count(counts["rows_in"]),
            f"{short_count(filtered)} filtered out" if filtered else "",
        ),
        Card("Rows out", short_count(counts["rows_out"])),
        Card("Read", byte_size(counts["bytes_in"]), _read_note(report)),
        Card("Written", byte_size(counts["bytes_out"])),
        Card("Time", duration(seconds), _time_note(report)),
        Card(
            "Rows/s",
            short_count(counts["rows_in"] / seconds) if seconds else "–",
            byte_rate(counts["bytes_in"] / seconds) if seconds else "nothing is mapped yet",
        ),
        requests_card(report.requests),
        _thread_card(report),
    )


def _read_note(report: BackfillReport) -> str:
    pruned = report.pruned
    return f"of {byte_size(pruned.bytes_to_read)} planned" if pruned is not None else "compressed"


def _time_note(report: BackfillReport) -> str:
    if len(report.attempts) > 1:
        return f"in {plural(len(report.attempts), 'attempt')}"
    if report.attempts:
        phases = (f"{part.name} {duration(part.seconds)}" for part in report.attempts[0].phases)
        return ", ".join(phases)
    return ""


def _thread_card(report: BackfillReport) -> Card:
    busy = float(report.windows["busy"].sum() or 0.0)
    costs = _costs(report)
    price = ""
    if costs and report.prices is not None:
        price = f"costs {money(sum(cost.cost for cost in costs), report.prices.currency)}"
    return Card("Thread time", duration(busy), price or "of chunks; idle time is not in")


def _costs(report: BackfillReport) -> list[Cost]:
    busy = float(report.windows["busy"].sum() or 0.0)
    return cost_of(report.prices, report.requests, busy / report.threads)


def _cost(report: BackfillReport) -> Section | None:
    costs = _costs(report)
    if not costs or report.prices is None:
        return None
    text = (
        "Use times the prices of the settings (section prices). Worker time is that of chunks, "
        f"with {plural(report.threads, 'thread')} per worker; idle workers cost as much."
    )
    table = costs_table(costs, report.prices.currency)
    return Section("Cost", (Table("", table, text),))


def _attempts(report: BackfillReport) -> Section | None:
    """List attempts and code versions, if there is more than one of either."""
    if len(report.attempts) < 2 and len(report.versions) < 2:
        return None
    blocks: list[Block] = []
    if report.attempts:
        caption = "Finished work of each attempt is kept by the next."
        blocks.append(Table("Attempts", attempts_table(report.attempts), caption))
    if report.versions:
        blocks.append(Table("Code that made the windows", versions_table(report.versions)))
    return Section("Attempts and code", tuple(blocks))


def listed_windows(report: BackfillReport) -> pl.DataFrame:
    """Select the windows to list: all, or of many the failed and the latest ones."""
    todo = report.windows.filter(~pl.col("state").is_in(["skipped", "empty"]))
    if todo.height <= MAX_LISTED:
        return todo
    ranked = todo.with_row_index("rank").sort(
        pl.col("state") == "failed", "ended", descending=True, nulls_last=True
    )
    return ranked.head(MAX_LISTED).sort("rank").drop("rank")


def _list(report: BackfillReport) -> Section | None:
    """List windows with run, rows, time, error and code; the calendar links here."""
    listed = listed_windows(report)
    if listed.is_empty() or not {"code", "error"} <= set(listed.columns):
        return None
    labels = {
        "label": "Window",
        "state": "State",
        "rows": "Rows in",
        "rows_out": "Rows out",
        "took": "Took",
        "run": "Run",
        "code": "Code",
        "error": "Error",
    }
    rows = [_window_row(row, report.run_pages) for row in listed.iter_rows(named=True)]
    frame = pl.DataFrame(rows, schema=dict.fromkeys(labels, pl.String))
    table = table_html(
        frame,
        labels,
        numbers=("rows", "rows_out", "took"),
        markup=("label", "run", "code", "error"),
    )
    more = report.windows.height - listed.height
    text = plural(listed.height, "window")
    text += f"; {count(more)} more, skipped or done before these, are not listed." if more else "."
    return Section("Every window", (Table("", table, text),))


def _window_row(row: Mapping[str, Any], run_pages: str) -> dict[str, str]:
    name, run = backfill_charts.anchor(row["label"]), escape(row["run"] or "")
    took = row["ended"] - row["started"] if row["started"] and row["ended"] else None
    page = f'<a class="mono" href="{escape(run_pages)}{run}">{run}</a>'
    error = escape(first_line(row["error"])) if row["error"] else ""
    return {
        "label": f'<span id="{escape(name)}">{escape(row["label"])}</span>',
        "state": backfill_charts.LABELS.get(row["state"], row["state"]),
        "rows": count(row["rows_in"] or 0),
        "rows_out": count(row["rows_out"] or 0),
        "took": "–" if took is None else duration(took),
        "run": page if run and run_pages else f'<span class="mono">{run}</span>',
        "code": f'<span class="mono">{escape(row["code"])}</span>',
        "error": f'<span class="message">{error}</span>',
    }


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
            backfill_charts.heat_map(calendar, listed_windows(report)["label"].to_list()),
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
        return Section("Failures", (Note(_no_failures(report)),))
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


def _no_failures(report: BackfillReport) -> str:
    """Say that no window has failed, or that those which had are done now."""
    before = [attempt for attempt in report.attempts[:-1] if attempt.errors]
    if not before:
        return "No window failed."
    reasons = "; ".join(error for attempt in before for error in attempt.errors[:2])
    return (
        f"No window is failed now. In {plural(len(before), 'earlier attempt')} some were: {reasons}"
    )


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
