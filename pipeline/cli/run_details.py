"""Look into one run, from storage alone: `chunkmap logs` and `report`."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import get_args

import polars as pl

from pipeline.cli.attempts import show_attempts
from pipeline.cli.detached import log_of
from pipeline.cli.hints import command
from pipeline.cli.output import print_json, report_place, say
from pipeline.config.settings import Settings, load_settings
from pipeline.errors import UsageError
from pipeline.report.run_model import RunState
from pipeline.runs.admin.known_outputs import named_outputs
from pipeline.runs.backfill.listing import KnownRuns
from pipeline.runs.driver.heartbeat import read_driver
from pipeline.runs.driver.preflight import explain_unreachable_s3
from pipeline.runs.driver.report import fetch_report, store_report
from pipeline.runs.driver.then_stage import pieces_of
from pipeline.runs.ledger.attempts import attempts_of_run
from pipeline.runs.ledger.ledger import Ledger
from pipeline.storage import Storage, open_storage


def _known_runs(output: str | None, settings: Settings) -> KnownRuns:
    outputs = named_outputs(settings.state_dir, output)
    with explain_unreachable_s3(settings):
        return KnownRuns(open_storage(settings), outputs)


def logs(
    run: str,
    output: str | None,
    environment: str | None,
    chunks: list[int],
    *,
    only_failed: bool,
    limit: int,
    as_json: bool,
) -> None:
    """Show every attempt at the chunks of a run, and the tracebacks of those that failed."""
    settings = load_settings(environment)
    ledger = _known_runs(output, settings).ledger(run)
    progress = ledger.read()
    rows = attempts_of_run(ledger.run, progress)
    pieces = pieces_of(ledger, progress) if ledger.job().then is not None else None
    if pieces is not None and not chunks:
        of_pieces = attempts_of_run(ledger.run, pieces.progress, unit="piece")
        rows = pl.concat([rows, of_pieces]).sort("at")
    if chunks:
        rows = rows.filter(pl.col("index").is_in(chunks))
    if only_failed:
        rows = rows.filter(pl.col("outcome") == "failed")
    shown, log = rows.tail(limit), log_of(settings, "run", ledger.run)
    if as_json:
        local = str(log) if log.exists() else None
        attempts = shown.drop("window").to_dicts()
        print_json({"run": ledger.run, "log": local, "attempts": attempts})
        return
    if rows.is_empty():
        failed = "failed " if only_failed else ""
        of = f"chunk {', '.join(map(str, chunks))} of run" if chunks else "run"
        say(f"no {failed}attempt of {of} {ledger.run} is stored")
    else:
        show_attempts(shown, rows.height)
    if log.exists():
        say(f"the log of its driver in the background: {log}")


def report(
    run: str, output: str | None, environment: str | None, *, open_page: bool, as_json: bool
) -> None:
    """Fetch the report of a run to this machine, or make it now if the run has not ended."""
    settings = load_settings(environment)
    runs = _known_runs(output, settings)
    status = runs.find(run)
    ledger = runs.ledger(status.run)
    uri, local = ledger.prefix + "report.html", None
    if status.state in ("done", "failed"):
        local = fetch_report(runs.storage, uri, settings.state_dir, ledger.run)
    look = command("status", ledger.run, environment=environment, output=output)
    local = local or _make_report(runs.storage, ledger, status.state, settings, look=look)
    if as_json:
        print_json({"run": ledger.run, "report": uri, "local_report": local})
    else:
        say(report_place(uri, local))
    if open_page:
        webbrowser.open(Path(local).absolute().as_uri())


def _make_report(
    storage: Storage, ledger: Ledger, state: str, settings: Settings, *, look: str
) -> str:
    """Make the report of a run that has none, e.g. because its driver was killed."""
    driver = read_driver(storage, ledger.prefix)
    if driver is None:
        raise UsageError(
            f"run {ledger.run} has no report: no driver has mapped anything of it yet",
            hint=look,
        )
    states = {"silent": "interrupted", "cancelled": "interrupted"}
    word = state.partition(" ")[0]
    state = states.get(word, word)
    state = state if state in get_args(RunState) else "running"
    folder = settings.state_dir
    path = store_report(storage, ledger, driver, state, folder, settings=settings).path
    if not path:
        raise UsageError(
            f"{folder} cannot be written; the report is stored as {ledger.prefix}report.html",
            hint="name another folder: CHUNKMAP_STATE_DIR=~/.chunkmap (setting state_dir)",
        )
    return path
