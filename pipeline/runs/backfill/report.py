"""Make a backfill's report from storage alone; store it with its state and on this machine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.config.job import Job
from pipeline.config.settings import Settings
from pipeline.masking import mask
from pipeline.report.backfill_model import BackfillReport, Calendar
from pipeline.report.run_model import Attempt, CodeVersion, Requests
from pipeline.runs.backfill.calendar_layout import lay_out
from pipeline.runs.backfill.records import REQUESTS
from pipeline.runs.backfill.status import BackfillStatus, read_status
from pipeline.runs.backfill.store import BackfillStore
from pipeline.runs.driver.report import (
    attempts_of,
    filter_text,
    keep_copy,
    prices_of,
    pruned_of,
    value_text,
)
from pipeline.runs.ledger.records import Origin
from pipeline.table.log import TableLog

MAX_CALENDAR_ROWS = 100
"""Maximum number of rows of the page's calendar."""
SCHEMA = "chunkmap.backfill-report"
VERSION = 1


def store_report(
    store: BackfillStore, folder: Path, settings: Settings | None = None
) -> tuple[str, str]:
    """Make the report, store it with the backfill's state, and keep a local copy.

    Args:
        store: Store of the backfill.
        folder: Folder of local state; the copy is in `reports/<id>/`.
        settings: Settings with prices and the threads of a worker.

    Returns:
        The page's URI and its local path, which is empty if the folder cannot be written.
    """
    status = read_status(store)
    report = report_of(status, store.job(), codes_of(store, status), settings)
    html, text = render(report), build_json(status, report)
    storage = store.storage
    storage.put(store.prefix + "report.html", html.encode())
    storage.put(store.prefix + "report.json", text.encode())
    local = keep_copy(folder, store.backfill, {"report.html": html, "report.json": text})
    return store.prefix + "report.html", local


def render(report: BackfillReport) -> str:
    """Render the report as one HTML page that loads nothing."""
    from pipeline.report.backfill_page import build_page
    from pipeline.report.page import render_page

    return render_page(build_page(report))


def build_json(status: BackfillStatus, report: BackfillReport) -> str:
    """Render the report as one JSON object, on one line."""
    from pipeline.report.backfill_page import active_seconds, rows_filtered

    value = {
        "schema": SCHEMA,
        "version": VERSION,
        **status.to_dict(),
        "seconds": active_seconds(report),
        "attempts": [asdict(attempt) for attempt in report.attempts],
        "versions": [asdict(version) for version in report.versions],
        "requests": asdict(report.requests),
        "rows_filtered": rows_filtered(report.windows),
        "windows": report.windows.to_dicts(),
    }
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def report_of(
    status: BackfillStatus,
    job: Job,
    codes: Mapping[str, str] | None = None,
    settings: Settings | None = None,
    run_pages: str = "",
) -> BackfillReport:
    """Compose the data of the page.

    Args:
        status: Status of the backfill.
        job: Its job.
        codes: Fingerprints by window (see `codes_of`).
        settings: Settings with prices and the threads of a worker.
        run_pages: Beginning of the addresses of its runs' pages; empty if they have none.
    """
    codes = codes or {}
    record = status.record
    windows = _described(status, codes)
    layout = lay_out(windows, record.grain, MAX_CALENDAR_ROWS)
    attempts = attempts_of(status.driver)
    requests = Requests(*(int(windows[name].sum() or 0) for name in REQUESTS))
    for attempt in attempts:
        requests = requests.plus(attempt.requests)
    return BackfillReport(
        id=record.backfill,
        job=record.job,
        state=status.state,
        asked=record.asked,
        facts=_facts(status, job),
        counts=status.counts,
        todo=record.todo,
        windows=windows,
        calendar=Calendar(layout.unit, layout.rows, layout.columns, layout.cells),
        failures=status.errors,
        at=status.at,
        created=record.created,
        prefect_url=(status.driver.flow_run if status.driver else None) or "",
        command=status.next_command,
        attempts=attempts,
        versions=_versions(windows, attempts),
        pruned=pruned_of(record.origin or Origin()),
        requests=requests,
        threads=(settings.dask.threads_per_worker if settings else None) or 1,
        prices=prices_of(settings),
        run_pages=run_pages,
    )


def codes_of(store: BackfillStore, status: BackfillStatus) -> dict[str, str]:
    """Return the fingerprints of the code that made each published window, by its label."""
    table_log = TableLog(store.storage, store.output)
    runs = set(status.windows["run"].drop_nulls().to_list())
    entries = table_log.entries(status.record.base)
    return {entry.window: entry.code for entry in entries if entry.window and entry.run in runs}


def _described(status: BackfillStatus, codes: Mapping[str, str]) -> pl.DataFrame:
    """Add the code and the error of each window."""
    text = pl.String
    return status.windows.with_columns(
        code=pl.col("label").replace_strict(codes, default="", return_dtype=text),
        error=pl.col("label").replace_strict(status.reasons, default="", return_dtype=text),
    )


def _versions(windows: pl.DataFrame, attempts: Sequence[Attempt]) -> tuple[CodeVersion, ...]:
    """List the versions of the code that made the published windows, in the order of attempts."""
    commits = {attempt.code: attempt.commit for attempt in attempts}
    made = windows.filter(pl.col("code") != "").sort("ended", maintain_order=True)
    groups = made.group_by("code", maintain_order=True).agg("label", pl.col("done").sum())
    return tuple(
        CodeVersion(code, commits.get(code, ""), int(chunks), tuple(sorted(labels)))
        for code, labels, chunks in groups.iter_rows()
    )


def _facts(status: BackfillStatus, job: Job) -> tuple[tuple[str, str], ...]:
    record, control = status.record, status.control
    commit = record.origin.commit if record.origin else ""
    selected = filter_text(job)
    params = mask(job.params)
    return (
        ("Windows", f"{record.asked}, by {record.grain} of {record.column}"),
        ("Input", " ".join(job.input.uri)),
        ("Output", f"{record.output} (mode {record.mode})"),
        ("Transform", record.transform),
        *((f"Parameter {name}", value_text(value)) for name, value in params.items()),
        *([("Filter", selected)] if selected else []),
        *([("Columns", ", ".join(job.input.columns))] if job.input.columns else []),
        ("Fingerprint", record.code),
        *([("Commit", commit)] if commit else []),
        *([("Columns of the output", ", ".join(record.columns))] if record.columns else []),
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
