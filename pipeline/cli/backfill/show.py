"""Show backfills from storage alone: `chunkmap backfill list`, `status`, `logs` and `report`."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import asdict
from itertools import groupby

import polars as pl
from rich.console import Group, RenderableType
from rich.text import Text

from pipeline.cli.attempts import show_attempts
from pipeline.cli.backfill.calendar import CalendarView
from pipeline.cli.backfill.find import find
from pipeline.cli.options import refuse_watching_as_json
from pipeline.cli.output import columns, live, out, pairs, print_json, say
from pipeline.config.settings import Settings, load_settings
from pipeline.errors import UsageError
from pipeline.quality.results import checks_text
from pipeline.report.humanize import (
    byte_rate,
    byte_size,
    clock_time,
    duration,
    plural,
    short_instant,
)
from pipeline.runs.admin.known_outputs import named_outputs
from pipeline.runs.backfill.calendar_layout import lay_out
from pipeline.runs.backfill.listing import brief_of
from pipeline.runs.backfill.recount import rule_of, windows_named
from pipeline.runs.backfill.status import (
    BackfillStatus,
    read_status,
)
from pipeline.runs.backfill.store import BackfillStore, backfills_of
from pipeline.runs.backfill.windows_table import unreadable_note
from pipeline.runs.driver.preflight import explain_unreachable_s3
from pipeline.runs.driver.summary import failure_place
from pipeline.storage import open_storage

WATCH_SECONDS = 2.0
MAX_ROWS = 60
"""Maximum rows of a calendar that may scroll."""
RESERVED_LINES = 20
"""Lines of the screen that the calendar leaves free."""
MAX_ERRORS = 5
"""Maximum number of errors, or of tracebacks, to print."""
MAX_MESSAGE = 300
"""Maximum characters of an error's message."""


def list_all(output: str | None, environment: str | None, *, as_json: bool) -> None:
    """List the backfills of one output, or of all known ones."""
    settings = load_settings(environment)
    outputs = named_outputs(settings.state_dir, output)
    with explain_unreachable_s3(settings):
        storage = open_storage(settings)
        records = [record for uri in outputs for record in backfills_of(storage, uri)]
        backfills = [(record, brief_of(storage, record)) for record in records]
    if as_json:
        backfills_json = [
            record.model_dump()
            | {"state": brief.state, "done": brief.windows_done, "failed": brief.windows_failed}
            for record, brief in backfills
        ]
        print_json({"backfills": backfills_json})
        return
    if not backfills:
        say(f"no backfills of {', '.join(outputs)}")
    names = ("backfill", "job", "windows", "state", "done", "failed", "of", "created (UTC)")
    for uri, group in groupby(backfills, key=lambda pair: pair[0].output):
        say(uri, mark="[bold]")
        rows = [
            (
                record.backfill,
                record.job,
                record.asked,
                brief.state,
                f"{brief.windows_done:,}",
                f"{brief.windows_failed:,}",
                f"{record.todo:,}",
                short_instant(record.created),
            )
            for record, brief in group
        ]
        out.print(columns(names, rows, right=("done", "failed", "of")))


def status(
    backfill: str, output: str | None, environment: str | None, *, watch: bool, as_json: bool
) -> None:
    """Show one backfill."""
    refuse_watching_as_json(watch=watch, as_json=as_json)
    settings = load_settings(environment)
    store = find(backfill, output, settings)
    if watch:
        _watch(store)
        return
    status = read_status(store)
    if as_json:
        print_json(status.to_dict())
    else:
        out.print(_render(status, MAX_ROWS))


def _watch(store: BackfillStore) -> None:
    """Show the status every few seconds, until the driver ends."""
    status = read_status(store)
    if not out.is_terminal:
        while _is_active(status):
            say(_one_line(status))
            time.sleep(WATCH_SECONDS)
            status = read_status(store)
        out.print(_render(status, MAX_ROWS))
        return
    rows = max(6, out.height - RESERVED_LINES)
    with live(_render(status, rows), out, auto_refresh=False) as page:
        while _is_active(status):
            time.sleep(WATCH_SECONDS)
            status = read_status(store)
            page.update(_render(status, rows), refresh=True)


def _is_active(status: BackfillStatus) -> bool:
    return status.alive or status.state == "new"


def _one_line(status: BackfillStatus) -> str:
    counts = status.counts
    return (
        f"{clock_time(time.time())} {status.state}: {counts['done']:,} of {status.todo:,} "
        f"windows, {counts['failed']:,} failed, {counts['chunks_done']:,} of "
        f"{plural(counts['chunks'], 'chunk')}"
    )


def _render(status: BackfillStatus, max_rows: int) -> RenderableType:
    record = status.record
    title = Text(f"{record.job} · backfill {record.backfill} · ", style="bold")
    title.append(status.state, style=_style(status.state))
    request = Text(f"{record.asked}, by {record.grain} of {record.column}", style="dim")
    parts: list[RenderableType] = [title, request, Text()]
    if status.windows.height:
        parts += [CalendarView(lay_out(status.windows, record.grain, max_rows)), Text()]
    parts.append(pairs(_figures(status)))
    parts += _error_lines(status)
    step = _next_step(status)
    if step:
        parts.append(Text.assemble(("next: ", "dim"), step))
    return Group(*parts)


def _style(state: str) -> str:
    styles = {"done": "green", "running": "blue", "failed": "red", "cancelled": "red"}
    return styles.get(state, "yellow")


def _figures(status: BackfillStatus) -> dict[str, object]:
    counts, record = status.counts, status.record
    states = ("done", "staged", "mapping", "waiting", "failed", "skipped", "empty")
    by_state = ", ".join(f"{counts[state]:,} {state}" for state in states if counts[state])
    rows: dict[str, object] = {
        "windows": f"{record.windows:,}: {by_state}",
        "chunks": f"{counts['chunks_done']:,} of {counts['chunks']:,} done, "
        f"{counts['chunks_failed']:,} failed",
        "rows": f"{counts['rows_in']:,} in, {counts['rows_out']:,} out",
        "bytes": f"{byte_size(counts['bytes_in'])} read, {byte_size(counts['bytes_out'])} written",
    }
    checks = checks_text(counts["checks"], counts["warnings"], counts["rejected"])
    if checks:
        rows["checks"] = checks
    if status.rows_per_second is not None and status.bytes_per_second is not None:
        rows["speed"] = (
            f"{status.rows_per_second:,.0f} rows/s, {byte_rate(status.bytes_per_second)}"
        )
    if status.alive and not status.control.paused:
        eta = status.eta_seconds
        rows["ETA"] = "unknown yet" if eta is None else duration(eta)
    control = status.control
    rows["driver"] = status.who + (
        f", max-active {control.max_active}, priority {control.priority}" if status.alive else ""
    )
    if record.outside is not None:
        rows["left out"] = record.outside
    unreadable = unreadable_note(status.windows)
    if unreadable is not None:
        rows["unreadable"] = unreadable
    rows["output"] = record.output
    if status.driver is not None and status.driver.flow_run:
        rows["Prefect UI"] = status.driver.flow_run
    return rows


def _error_lines(status: BackfillStatus) -> list[RenderableType]:
    lines: list[RenderableType] = []
    for group in status.errors[:MAX_ERRORS]:
        first_line = group.message.partition("\n")[0][:MAX_MESSAGE]
        how_many = f"{plural(group.chunks, 'chunk')} in {plural(group.windows, 'window')}"
        lines.append(
            Text.assemble(("  ✗ ", "red"), f"{how_many}: {group.error}: {first_line}"),
        )
        place = (f"window {group.window}", *failure_place(asdict(group)))
        lines += [Text(f"    {text}", style="dim") for text in place]
    for label, results in list(status.refused.items())[:MAX_ERRORS]:
        text = "; ".join(result.line for result in results)[:MAX_MESSAGE]
        lines.append(Text.assemble(("  ✗ ", "red"), f"window {label} is refused: {text}"))
    more = len(status.errors) - MAX_ERRORS
    if more > 0:
        lines.append(Text(f"    … and {plural(more, 'other error')}", style="dim"))
    if status.errors_in > status.errors_of:
        lines.append(
            Text(
                f"    (read from {status.errors_of:,} of {plural(status.errors_in, 'run')} "
                "with failures)",
                style="dim",
            )
        )
    return lines


def _next_step(status: BackfillStatus) -> str:
    """Suggest the next command, after a look at the errors, or return an empty text."""
    command = status.next_command
    if status.state != "failed" or not (status.counts["failed"] and status.errors):
        return command
    backfill, window = status.record.backfill, status.errors[0].window
    return f"chunkmap backfill logs {backfill} --window {window}; fix the cause, then: {command}"


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
    """Show every attempt at the chunks of some windows."""
    from pipeline.runs.backfill.attempts import attempts

    store = find(backfill, output, load_settings(environment))
    status = read_status(store)
    labels = _labels(store, status, texts)
    rows = attempts(store, status.windows, labels)
    if only_failed:
        rows = rows.filter(pl.col("outcome") == "failed")
    shown = rows.tail(limit)
    if as_json:
        states = status.windows.filter(pl.col("label").is_in(labels)).to_dicts()
        print_json({"backfill": store.backfill, "windows": states, "attempts": shown.to_dicts()})
        return
    if rows.is_empty():
        windows = ", ".join(labels[:3]) + (" …" if len(labels) > 3 else "")
        say(f"no attempt at {windows} is stored yet")
    else:
        show_attempts(shown, rows.height)


def _labels(store: BackfillStore, status: BackfillStatus, texts: list[str]) -> list[str]:
    """Resolve the windows that the options name; by default those with failures."""
    if texts:
        names = [name for text in texts for name in text.split(",") if name]
        return windows_named(names, status.windows, rule_of(store))
    failing = status.windows.filter(pl.col("failed") > 0)["label"].to_list()
    if not failing:
        raise UsageError(
            f"no window of backfill {store.backfill} has failures", hint="name one: --window W"
        )
    return failing


def report(
    backfill: str,
    output: str | None,
    environment: str | None,
    *,
    serve: bool = False,
    port: int = 0,
    as_json: bool,
) -> None:
    """Write the current report, next to the backfill's state and to a local file; or serve it."""
    from pipeline.runs.backfill.report import store_report

    settings = load_settings(environment)
    store = find(backfill, output, settings)
    if serve:
        _serve(store, settings, port, as_json=as_json)
        return
    uri, local = store_report(store, settings.state_dir, settings)
    if as_json:
        print_json({"backfill": store.backfill, "report": uri, "local_report": local})
        return
    say(f"{local} (stored as {uri})" if local else f"stored as {uri}")


def _serve(store: BackfillStore, settings: Settings, port: int, *, as_json: bool) -> None:
    """Serve the report on this machine until Ctrl-C."""
    from pipeline.runs.backfill.live_report import LiveReport, ReportServer

    with ReportServer(LiveReport(store, settings), port) as server:
        if as_json:
            print_json({"backfill": store.backfill, "url": server.url})
        else:
            say(f"{server.url} follows backfill {store.backfill}, for this machine only")
            say("Ctrl-C ends the page, not the backfill", mark="[dim]")
        with suppress(KeyboardInterrupt):
            server.serve_forever()
