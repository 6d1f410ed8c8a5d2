"""Make a backfill's report from storage alone; store it with its state and on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.config.job import Job
from pipeline.report.backfill_model import BackfillReport, Calendar
from pipeline.runs.backfill.calendar_layout import lay_out
from pipeline.runs.backfill.status import BackfillStatus, read_status
from pipeline.runs.backfill.store import BackfillStore
from pipeline.storage.documents import report_folder

MAX_CALENDAR_ROWS = 100
"""Maximum number of rows of the page's calendar."""
SCHEMA = "chunkmap.backfill-report"
VERSION = 1


def store_report(store: BackfillStore, folder: Path) -> tuple[str, str]:
    """Make the report, store it with the backfill's state, and keep a local copy.

    Args:
        store: Store of the backfill.
        folder: Folder of local state; the copy is in `reports/<id>/`.

    Returns:
        The page's URI and its local path.
    """
    status = read_status(store)
    html, text = render(report_of(status, store.job())), build_json(status)
    storage = store.storage
    storage.put(store.prefix + "report.html", html.encode())
    storage.put(store.prefix + "report.json", text.encode())
    local = report_folder(folder, store.backfill)
    (local / "report.html").write_text(html, encoding="utf-8")
    (local / "report.json").write_text(text, encoding="utf-8")
    return store.prefix + "report.html", str(local / "report.html")


def render(report: BackfillReport) -> str:
    """Render the report as one HTML page that loads nothing."""
    from pipeline.report.backfill_page import build_page
    from pipeline.report.page import render_page

    return render_page(build_page(report))


def build_json(status: BackfillStatus) -> str:
    """Render the report as one JSON object, on one line."""
    value = {"schema": SCHEMA, "version": VERSION, **status.to_dict()}
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def report_of(status: BackfillStatus, job: Job) -> BackfillReport:
    """Collect the data of the page."""
    record = status.record
    layout = lay_out(status.windows, record.grain, MAX_CALENDAR_ROWS)
    return BackfillReport(
        id=record.backfill,
        job=record.job,
        state=status.state,
        asked=record.asked,
        facts=_facts(status, job),
        counts=status.counts,
        todo=record.todo,
        windows=status.windows,
        calendar=Calendar(layout.unit, layout.rows, layout.columns, layout.cells),
        failures=status.errors,
        at=status.at,
        created=record.created,
        prefect_url=(status.driver.flow_run if status.driver else None) or "",
        command=next_command(status),
    )


def next_command(status: BackfillStatus) -> str:
    """Return the command to type next; empty while a driver runs, and when the backfill is over."""
    backfill = status.record.backfill
    if status.state == "paused":
        return f"chunkmap backfill resume {backfill}"
    if status.alive or status.state in ("done", "cancelled"):
        return ""
    verb = "retry" if status.state == "failed" else "resume"
    return f"chunkmap backfill {verb} {backfill}"


def _facts(status: BackfillStatus, job: Job) -> tuple[tuple[str, str], ...]:
    record, control = status.record, status.control
    return (
        ("Windows", f"{record.asked}, by {record.grain} of {record.column}"),
        ("Input", " ".join(job.input.uri)),
        ("Output", f"{record.output} (mode {record.mode})"),
        ("Transform", record.transform),
        ("Fingerprint", record.code),
        ("Runs", f"{record.runs:,}, {control.max_active} at a time, priority {control.priority}"),
        *_options(record.options.model_dump(exclude_defaults=True)),
        ("Driver", status.who),
    )


def _options(changed: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """Format the options that differ from their defaults."""
    shown_elsewhere = {"max_active", "priority"}
    return tuple(
        (name.replace("_", " ").capitalize(), "yes" if value is True else str(value))
        for name, value in changed.items()
        if name not in shown_elsewhere
    )
