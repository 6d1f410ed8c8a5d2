"""Read the status of runs from storage alone, without Prefect or Dask."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from difflib import get_close_matches

from pipeline.errors import (
    ChunkmapError,
    JobError,
    ObjectMissingError,
    StateError,
    UsageError,
)
from pipeline.runs.driver.heartbeat import DriverRecord, read_driver
from pipeline.runs.driver.session import is_driven_elsewhere
from pipeline.runs.driver.summary import failure_lines
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
    """State: done, failed, running, silent since …, interrupted, cancelled, new or damaged."""
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
    problems: tuple[str, ...] = ()
    """Problems of its stored state: entries that are not counted, damaged objects."""


def list_runs(storage: Storage, output: str) -> list[RunStatus]:
    """List the runs of an output, oldest first; damaged ones come last."""
    runs = find_runs(storage, output)
    uri = parse(output).uri.rstrip("/") + "/"
    states = [_state_or_damage(storage, record) for record in runs.records]
    damaged = [_damaged(run, uri, error) for run, error in runs.damaged.items()]
    return states + damaged


def _state_or_damage(storage: Storage, record: RunRecord) -> RunStatus:
    try:
        return _state(storage, record)
    except (StateError, ObjectMissingError, JobError) as error:
        damaged = _damaged(record.run, record.output, error)
        return replace(damaged, job=record.job, chunks=record.chunks, created=record.created)


def _damaged(run: str, output: str, error: ChunkmapError) -> RunStatus:
    """Return the status of a run whose state cannot be read."""
    problem = f"{error}. {error.hint}" if error.hint else str(error)
    figures = dict.fromkeys(
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
    progress = ledger.read()
    done, failed = progress.completions, progress.failed()
    seen = read_driver(storage, ledger.prefix)
    state, driver = _liveness(ledger, seen)
    return RunStatus(
        run=record.run,
        job=record.job,
        state=state,
        chunks=record.chunks,
        done=done.height,
        failed=failed.height,
        rows_in=int(done["rows_in"].sum()),
        rows_out=int(done["rows_out"].sum()),
        bytes_in=int(done["bytes_in"].sum()),
        bytes_out=int(done["bytes_out"].sum()),
        created=record.created,
        driver=driver,
        output=record.output,
        report=ledger.prefix + "report.html" if state in _REPORTED else "",
        page=(seen.flow_run if seen else None) or "",
        errors=failure_lines(failed),
        problems=progress.problems,
    )


def _liveness(ledger: Ledger, driver: DriverRecord | None) -> tuple[str, str]:
    who = f"process {driver.pid} on {driver.host}" if driver else "none yet"
    if ledger.published() is not None:
        return "done", who
    if driver is None:
        return "new", who
    if driver.state == "running" and not is_driven_elsewhere(driver, ""):
        return f"silent since {time.strftime('%H:%M:%S', time.localtime(driver.seen))}", who
    return driver.state, who


def find_run(runs: list[RunStatus], wanted: str) -> RunStatus:
    """Find the run whose id starts with `wanted`.

    Raises:
        UsageError: there is none, or more than one.
    """
    matches = [run for run in runs if run.run.startswith(wanted)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        names = ", ".join(run.run for run in matches)
        raise UsageError(f"{len(matches)} runs start with {wanted!r}: {names}")
    ids = [run.run for run in runs]
    near = get_close_matches(wanted, ids, 1, 0.5)
    if near:
        raise UsageError(f"there is no run {wanted!r}", hint=f"did you mean {near[0]}?")
    last = ", ".join(ids[-3:]) or "none"
    raise UsageError(f"there is no run {wanted!r}", hint=f"the latest runs are: {last}")
