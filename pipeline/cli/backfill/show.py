"""`chunkmap backfill list`, `status`, `logs` and `report`: what is, from storage alone."""

from __future__ import annotations

import time
from itertools import groupby
from typing import Any

import polars as pl
from rich.console import Group, RenderableType
from rich.text import Text

from pipeline.cli.backfill.calendar import calendar
from pipeline.cli.backfill.find import find
from pipeline.cli.output import clock, columns, live, out, pairs, print_json, say, size, speed
from pipeline.config.settings import load_settings
from pipeline.errors import UsageError
from pipeline.runs.admin.known_outputs import known_outputs
from pipeline.runs.backfill.calendar_layout import lay_out
from pipeline.runs.backfill.records import BackfillRecord
from pipeline.runs.backfill.recount import rule_of, windows_named
from pipeline.runs.backfill.status import (
    BackfillStatus,
    read_status,
    state_of,
)
from pipeline.runs.backfill.store import BackfillStore, backfills_of
from pipeline.runs.driver.following import is_driven_elsewhere
from pipeline.runs.driver.preflight import explain_unreachable_s3
from pipeline.storage import open_storage

WATCH_SECONDS = 2.0
MOST_ROWS = 60
"""Rows of a calendar that may scroll."""
BESIDES = 20
"""Lines of the screen that are not the calendar's."""
MOST_ERRORS = 5
MESSAGE = 300
"""Characters of an error's message."""


def list_all(output: str | None, environment: str | None, *, as_json: bool) -> None:
    """List the backfills of one output, or of all known ones."""
    settings = load_settings(environment)
    outputs = [output] if output else known_outputs(settings.state_dir)
    if not outputs:
        raise UsageError(
            "no output is known here",
            hint="name one: chunkmap backfill list --output s3://bucket/prefix/",
        )
    with explain_unreachable_s3(settings):
        storage = open_storage(settings)
        records = [one for uri in outputs for one in backfills_of(storage, uri)]
        found = [
            (one, _brief(BackfillStore(storage, one.output, one.backfill), one)) for one in records
        ]
    if as_json:
        print_json({"backfills": [one.model_dump() | brief for one, brief in found]})
        return
    if not found:
        say(f"no backfills of {', '.join(outputs)}")
    names = ("backfill", "job", "windows", "state", "done", "failed", "of", "created")
    for uri, group in groupby(found, key=lambda pair: pair[0].output):
        say(uri, mark="[bold]")
        rows = [
            (
                one.backfill,
                one.job,
                one.asked,
                brief["state"],
                f"{brief['done']:,}",
                f"{brief['failed']:,}",
                f"{one.todo:,}",
                time.strftime("%m-%d %H:%M", time.localtime(one.created)),
            )
            for one, brief in group
        ]
        out.print(columns(names, rows, right=("done", "failed", "of")))


def _brief(store: BackfillStore, record: BackfillRecord) -> dict[str, Any]:
    """How far a backfill is, as far as its driver has said: no window is counted."""
    driver = store.driver()
    counts = {"waiting": record.todo} if driver is None or not driver.progress else driver.progress
    state = state_of(store.control(), driver, counts, alive=is_driven_elsewhere(driver, ""))
    return {"state": state, "done": counts.get("done", 0), "failed": counts.get("failed", 0)}


def status(
    backfill: str, output: str | None, environment: str | None, *, watch: bool, as_json: bool
) -> None:
    """Show one backfill."""
    if watch and as_json:
        raise UsageError("--watch is for people, and --json prints one object: give one of them")
    settings = load_settings(environment)
    store = find(backfill, output, settings)
    if watch:
        _watch(store)
        return
    seen = read_status(store)
    if as_json:
        print_json(seen.to_dict())
    else:
        out.print(_shown(seen, MOST_ROWS))


def _watch(store: BackfillStore) -> None:
    """Look again and again, until its driver ends."""
    seen = read_status(store)
    if not out.is_terminal:
        while _goes_on(seen):
            say(_one_line(seen))
            time.sleep(WATCH_SECONDS)
            seen = read_status(store)
        out.print(_shown(seen, MOST_ROWS))
        return
    rows = max(6, out.height - BESIDES)
    with live(_shown(seen, rows), out, auto_refresh=False) as page:
        while _goes_on(seen):
            time.sleep(WATCH_SECONDS)
            seen = read_status(store)
            page.update(_shown(seen, rows), refresh=True)


def _goes_on(seen: BackfillStatus) -> bool:
    return seen.alive or seen.state == "new"


def _one_line(seen: BackfillStatus) -> str:
    counts = seen.counts
    return (
        f"{time.strftime('%H:%M:%S')} {seen.state}: {counts['done']:,} of {seen.todo:,} windows, "
        f"{counts['failed']:,} failed, {counts['chunks_done']:,} of {counts['chunks']:,} chunks"
    )


def _shown(seen: BackfillStatus, most_rows: int) -> RenderableType:
    record = seen.record
    title = Text(f"{record.job} · backfill {record.backfill} · ", style="bold")
    title.append(seen.state, style=_tone(seen.state))
    asked = Text(f"{record.asked}, by {record.grain} of {record.column}", style="dim")
    parts: list[RenderableType] = [title, asked, Text()]
    if seen.windows.height:
        parts += [calendar(lay_out(seen.windows, record.grain, most_rows)), Text()]
    parts.append(pairs(_figures(seen)))
    parts += _error_lines(seen)
    following = _next(seen)
    if following:
        parts.append(Text.assemble(("next: ", "dim"), following))
    return Group(*parts)


def _tone(state: str) -> str:
    tones = {"done": "green", "running": "blue", "failed": "red", "cancelled": "red"}
    return tones.get(state, "yellow")


def _figures(seen: BackfillStatus) -> dict[str, object]:
    counts, record = seen.counts, seen.record
    states = ("done", "staged", "mapping", "waiting", "failed", "skipped", "empty")
    said = ", ".join(f"{counts[state]:,} {state}" for state in states if counts[state])
    rows: dict[str, object] = {
        "windows": f"{record.windows:,}: {said}",
        "chunks": f"{counts['chunks_done']:,} of {counts['chunks']:,} done, "
        f"{counts['chunks_failed']:,} failed",
        "rows": f"{counts['rows_in']:,} in, {counts['rows_out']:,} out",
        "bytes": f"{size(counts['bytes_in'])} read, {size(counts['bytes_out'])} written",
    }
    if seen.rows_per_second is not None and seen.bytes_per_second is not None:
        rows["speed"] = f"{seen.rows_per_second:,.0f} rows/s, {speed(seen.bytes_per_second, 1.0)}"
    if seen.alive and not seen.control.paused:
        rows["ETA"] = "unknown yet" if seen.eta_seconds is None else clock(seen.eta_seconds)
    control = seen.control
    rows["driver"] = seen.who + (
        f", max-active {control.max_active}, priority {control.priority}" if seen.alive else ""
    )
    if record.outside is not None:
        rows["left out"] = record.outside
    rows["output"] = record.output
    if seen.driver is not None and seen.driver.flow_run:
        rows["Prefect UI"] = seen.driver.flow_run
    return rows


def _error_lines(seen: BackfillStatus) -> list[RenderableType]:
    lines: list[RenderableType] = []
    for group in seen.errors[:MOST_ERRORS]:
        first = group.message.partition("\n")[0][:MESSAGE]
        lines.append(
            Text.assemble(
                ("  ✗ ", "red"),
                f"{group.chunks:,} chunks in {group.windows:,} windows: {group.error}: {first} "
                f"(window {group.window}, chunk {group.index}, say)",
            )
        )
    more = len(seen.errors) - MOST_ERRORS
    if more > 0:
        lines.append(Text(f"    … and {more:,} other sorts", style="dim"))
    if seen.errors_in > seen.errors_of:
        lines.append(
            Text(
                f"    (the failures of {seen.errors_of:,} of {seen.errors_in:,} runs were read)",
                style="dim",
            )
        )
    return lines


def _next(seen: BackfillStatus) -> str:
    """The command that most likely comes next."""
    backfill = seen.record.backfill
    if seen.alive:
        return f"chunkmap backfill resume {backfill}" if seen.state == "paused" else ""
    if seen.state in ("done", "cancelled"):
        return ""
    if seen.counts["failed"] and seen.errors and seen.state == "failed":
        example = f"chunkmap backfill logs {backfill} --window {seen.errors[0].window}"
        return f"{example}; mend it, then: chunkmap backfill retry {backfill}"
    if seen.state == "failed":
        return f"chunkmap backfill retry {backfill}"
    return f"chunkmap backfill resume {backfill}"


def logs(
    backfill: str,
    output: str | None,
    environment: str | None,
    texts: list[str],
    *,
    only_failed: bool,
    limit: int,
    as_json: bool,
) -> None:
    """Show every try of some windows' chunks."""
    from pipeline.runs.backfill.attempts import attempts

    store = find(backfill, output, load_settings(environment))
    seen = read_status(store)
    labels = _labels(store, seen, texts)
    tries = attempts(store, seen.windows, labels)
    if only_failed:
        tries = tries.filter(pl.col("outcome") == "failed")
    shown = tries.tail(limit)
    if as_json:
        states = seen.windows.filter(pl.col("label").is_in(labels)).to_dicts()
        print_json({"backfill": store.backfill, "windows": states, "attempts": shown.to_dicts()})
        return
    if tries.height > shown.height:
        say(f"the last {shown.height:,} of {tries.height:,} tries (--limit N shows more)")
    _show_tries(shown, labels)


def _labels(store: BackfillStore, seen: BackfillStatus, texts: list[str]) -> list[str]:
    if texts:
        listed = [one for text in texts for one in text.split(",") if one]
        return windows_named(listed, seen.windows, rule_of(store))
    failing = seen.windows.filter(pl.col("failed") > 0)["label"].to_list()
    if not failing:
        raise UsageError(
            f"no window of backfill {store.backfill} has failures", hint="name one: --window W"
        )
    return failing


def _show_tries(tries: pl.DataFrame, labels: list[str]) -> None:
    if tries.is_empty():
        say(f"no try of {', '.join(labels[:3])}{' …' if len(labels) > 3 else ''} is stored yet")
        return
    rows = [
        (
            time.strftime("%m-%d %H:%M:%S", time.localtime(row["at"])),
            row["window"],
            row["index"],
            row["outcome"],
            f"{row['seconds']:.2f} s" if row["seconds"] is not None else "",
            row["worker"],
            f"{row['rows_in']:,} → {row['rows_out']:,} rows"
            if row["rows_in"] is not None
            else f"{row['error']}: {(row['message'] or '').partition(chr(10))[0][:MESSAGE]}",
        )
        for row in tries.iter_rows(named=True)
    ]
    names = ("at", "window", "chunk", "outcome", "took", "worker", "")
    out.print(columns(names, rows, right=("chunk", "took")))
    traces = tries.filter(pl.col("trace").fill_null("") != "").unique("trace", keep="last")
    for row in traces.sort("at").tail(MOST_ERRORS).iter_rows(named=True):
        say("")
        say(f"chunk {row['index']} of {row['window']} on {row['worker']}", mark="[bold red]")
        say(row["trace"].rstrip())


def report(backfill: str, output: str | None, environment: str | None, *, as_json: bool) -> None:
    """Write the report as it stands, beside the backfill's state and here."""
    from pipeline.runs.backfill.report import store_report

    settings = load_settings(environment)
    store = find(backfill, output, settings)
    uri, local = store_report(store, settings.state_dir)
    if as_json:
        print_json({"backfill": store.backfill, "report": uri, "local_report": local})
        return
    say(f"{local} (stored as {uri})")
