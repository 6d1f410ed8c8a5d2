"""Read the status of runs from storage alone, without Prefect or Dask."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

from pipeline.errors import (
    ChunkmapError,
    JobError,
    ObjectMissingError,
    StateError,
)
from pipeline.report.humanize import clock_time
from pipeline.runs.driver.heartbeat import DriverRecord, read_driver
from pipeline.runs.driver.session import is_driven_elsewhere
from pipeline.runs.driver.summary import ThenFigures, failure_lines
from pipeline.runs.driver.then_stage import pieces_of
from pipeline.runs.ledger.find import find_runs
from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.ledger.records import RunRecord
from pipeline.storage import Storage, parse

log = logging.getLogger(__name__)

_REPORTED = ("done", "failed")
"""States in which a driver leaves a report."""


@dataclass(frozen=True, slots=True)
class RunStatus:
    """Status of one run."""

    run: str
    job: str
    state: str
    """State: done, expired (published, and its state deleted), failed, running, silent since …,
    interrupted, cancelled, new or damaged."""
    chunks: int
    done: int
    failed: int
    rows_in: int
    rows_out: int
    bytes_in: int
    bytes_out: int
    created: float
    """Time of creation, in Unix seconds."""
    driver: str
    """Description of the last driver."""
    output: str
    report: str
    """URI of the report's HTML page; empty if there is none yet."""
    page: str
    """URL of the run's page in Prefect's UI; empty if it was driven without Prefect."""
    errors: tuple[str, ...]
    then: ThenFigures | None = None
    """Pieces of the reduced result; None if the job has no `then`, or it did not begin."""
    problems: tuple[str, ...] = ()
    """Problems of its stored state: entries that are not counted, damaged objects."""


def list_runs(storage: Storage, output: str) -> list[RunStatus]:
    """List the runs of an output, oldest first; damaged ones come last."""
    runs = find_runs(storage, output)
    uri = parse(output).uri.rstrip("/") + "/"
    states = [status_of(storage, record) for record in runs.records]
    damaged = [damaged_run(run, uri, error) for run, error in runs.damaged.items()]
    return states + damaged


def status_of(storage: Storage, record: RunRecord) -> RunStatus:
    """Read the status of a run; a run whose state is damaged has the state `damaged`."""
    try:
        return _state(storage, record)
    except (StateError, ObjectMissingError, JobError) as error:
        damaged = damaged_run(record.run, record.output, error)
        return replace(damaged, job=record.job, chunks=record.chunks, created=record.created)


def damaged_run(run: str, output: str, error: ChunkmapError) -> RunStatus:
    """Return the status of a run whose state cannot be read."""
    problem = f"{error}. {error.hint}" if error.hint else str(error)
    figures: dict[str, Any] = dict.fromkeys(
        ("chunks", "done", "failed", "rows_in", "rows_out", "bytes_in", "bytes_out"), 0
    )
    return RunStatus(
        run=run,
        job="?",
        state="damaged",
        **figures,
        created=0.0,
        driver="unknown",
        output=output,
        report="",
        page="",
        errors=(),
        problems=(problem,),
    )


def _state(storage: Storage, record: RunRecord) -> RunStatus:
    ledger = Ledger(storage, record.output, record.run)
    # Of several outputs, the first has the driver's record, the failures and the report.
    first = Ledger(storage, record.first_output, record.run)
    progress = ledger.read()
    done = progress.completions
    failed = (first.read() if record.outputs else progress).failed()
    pieces = pieces_of(ledger, progress) if ledger.job().then is not None else None
    errors = failure_lines(failed)
    if pieces is not None:
        errors += failure_lines(pieces.progress.failed(), "piece")
    seen = read_driver(storage, first.prefix)
    state, driver = _liveness(ledger, seen)
    made = done if pieces is None else pieces.progress.completions
    return RunStatus(
        run=record.run,
        job=record.job,
        state=state,
        chunks=record.chunks,
        done=done.height,
        failed=failed.height,
        rows_in=int(done["rows_in"].sum()),
        rows_out=int(made["rows_out"].sum()),
        bytes_in=int(done["bytes_in"].sum()),
        bytes_out=int(made["bytes_out"].sum()),
        created=record.created,
        driver=driver,
        output=record.output,
        report=first.prefix + "report.html" if state in _REPORTED else "",
        page=(seen.flow_run if seen else None) or "",
        errors=errors,
        then=None if pieces is None else pieces.figures,
        problems=progress.problems + (() if pieces is None else pieces.progress.problems),
    )


def _liveness(ledger: Ledger, driver: DriverRecord | None) -> tuple[str, str]:
    who = f"process {driver.pid} on {driver.host}" if driver else "none yet"
    if ledger.published() is not None:
        # Without a driver's record, its state may have expired.
        return "expired" if driver is None and ledger.is_expired() else "done", who
    if driver is None:
        return "new", who
    if driver.state == "running" and not is_driven_elsewhere(driver, ""):
        return f"silent since {clock_time(driver.seen)}", who
    return driver.state, who
