"""`chunkmap backfill plan` and `create`, and driving one: from the job file to the summary."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli.backfill.detached import show_detached, start_detached
from pipeline.cli.backfill.plan_view import plan_to_dict, show_plan
from pipeline.cli.backfill.progress import BackfillDisplay
from pipeline.cli.output import bad, notes, print_json, say, show_pairs, size, warn
from pipeline.config.job import load_job
from pipeline.config.settings import Settings, load_settings
from pipeline.errors import (
    ChunkmapError,
    ConflictError,
    RunInterruptedError,
    UsageError,
)
from pipeline.processes import record_interrupts, was_interrupted
from pipeline.runs.admin.known_outputs import remember_output
from pipeline.runs.backfill.plan import (
    WindowSelection,
    draft,
    refuse_replaced_tables,
)
from pipeline.runs.backfill.plan import create as create_backfill
from pipeline.runs.backfill.records import BackfillResumeOptions, Options
from pipeline.runs.backfill.store import BackfillStore
from pipeline.runs.backfill.summary import (
    BackfillHeldError,
    BackfillIncompleteError,
    BackfillSummary,
)
from pipeline.runs.driver.following import is_driven_elsewhere
from pipeline.runs.driver.preflight import explain_unreachable_s3, preflight
from pipeline.runs.transforms.fingerprint import explain_difference
from pipeline.runs.transforms.loading import job_fingerprint
from pipeline.storage import open_storage

if TYPE_CHECKING:
    from pipeline.runs.backfill.progress import WindowProgress

MOST_NOTES = 10
"""Notes of a driver that are printed at most; the report and `status` have the rest."""


def asked(
    start: str | None,
    end: str | None,
    last: str | None,
    values: list[str] | None,
    exclude: list[str] | None,
    *,
    allow_missing: bool,
) -> WindowSelection:
    """Which windows the flags ask for.

    Raises:
        UsageError: they contradict each other.
    """
    ways = {"--from and --to": start or end, "--last": last, "--values": values}
    given = [name for name, value in ways.items() if value]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} exclude each other: give one of them")
    if (start is None) != (end is None):
        lacks, has = ("--to", "--from") if end is None else ("--from", "--to")
        raise UsageError(
            f"{has} is given and {lacks} is not",
            hint="--from 2024-01-01 --to 2025-01-01 is the year 2024: the end is not included",
        )
    return WindowSelection(
        start=start,
        end=end,
        last=last,
        values=_listed(values),
        exclude=_listed(exclude),
        allow_missing=allow_missing,
    )


def _listed(texts: list[str] | None) -> tuple[str, ...]:
    return tuple(one.strip() for text in texts or () for one in text.split(",") if one.strip())


def options(**given: Any) -> Options:
    """How the flags say to go about it.

    Raises:
        UsageError: a share is none, or above 100%.
    """
    for name in ("canary", "canary_limit", "max_failures"):
        if given.get(name) is not None:
            given[name] = _share(given[name], "--" + name.replace("_", "-"))
    held = given.get("canary_hold") or given.get("canary_limit")
    if held and not given.get("canary"):
        raise UsageError("there is no canary to hold or to limit", hint="add --canary 1%, say")
    return Options(**given)


def _share(text: str, flag: str) -> int | str:
    """A number, or a share such as `5%`."""
    wrong = f"{flag} {text} is neither a number nor a share such as 5%"
    try:
        if not text.rstrip().endswith("%"):
            number = int(text)
            if number < 0:
                raise ValueError
            return number
        share = float(text.rstrip("% "))
    except ValueError as error:
        raise UsageError(wrong) from error
    if not 0 <= share <= 100:
        raise UsageError(f"{flag} {text} is not between 0% and 100%")
    return text.strip()


def plan(
    path: Path,
    asked: WindowSelection,
    options: Options,
    environment: str | None,
    *,
    accept_code: bool,
    as_json: bool,
) -> None:
    """Show what a backfill would do; nothing is written."""
    from pipeline.runs.backfill.forecast import forecast

    job, settings = load_job(path), load_settings(environment)
    storage = open_storage(settings)
    with explain_unreachable_s3(settings):
        drafted = draft(job, settings, storage, asked, options, accept_code=accept_code)
        expected = forecast(storage, job, settings, drafted.plan) if drafted.plan else None
    if as_json:
        print_json(plan_to_dict(drafted, expected))
    else:
        show_plan(drafted, expected)


def create(
    path: Path,
    asked: WindowSelection,
    options: Options,
    environment: str | None,
    *,
    accept_code: bool,
    take_over: bool,
    detach: bool,
    as_json: bool,
) -> None:
    """Create a backfill, or find the unfinished one of the same request, and drive it."""
    job, settings = load_job(path), load_settings(environment)
    storage = open_storage(settings)
    preflight(job, settings, storage)
    with explain_unreachable_s3(settings):
        drafted = draft(job, settings, storage, asked, options, accept_code=accept_code)
        created = create_backfill(storage, drafted)
    if created is None:
        outside = drafted.record.outside
        left = [outside] if outside else []
        message = drafted.up_to_date
        if as_json:
            result = {"backfill": None, "state": "nothing to do", "message": message}
            print_json(result | {"notes": left})
        else:
            say(f"Nothing to do: {message}.")
            for note in left:
                warn(note)
        return
    store, is_new = created
    for note in drafted.notes:
        warn(note)
    remember_output(settings.state_dir, store.output)
    record = store.record()
    about = f"{record.todo:,} windows of {record.job}, {record.chunks:,} chunks in {record.runs:,}"
    verb = "new" if is_new else "unfinished since before"
    say(f"backfill {store.backfill} ({verb}): {about} runs", console=notes)
    drive(
        store,
        settings,
        BackfillResumeOptions(accept_code=accept_code, take_over=take_over),
        environment,
        detach=detach,
        as_json=as_json,
    )


def drive_stored(backfill: str, output: str | None, environment: str | None, again: str) -> None:
    """Drive a backfill that was detached.

    Args:
        backfill: Its id.
        output: Its output.
        environment: Of the settings.
        again: Fields of `BackfillResumeOptions`, as JSON.
    """
    from pipeline.cli.backfill.find import find

    settings = load_settings(environment)
    store = find(backfill, output, settings)
    drive(
        store,
        settings,
        BackfillResumeOptions(**json.loads(again)),
        environment,
        detach=False,
        as_json=False,
    )


def drive(
    store: BackfillStore,
    settings: Settings,
    resume: BackfillResumeOptions,
    environment: str | None,
    *,
    detach: bool,
    as_json: bool,
) -> None:
    """Drive a backfill here or in a process of its own, and show what came of it.

    Raises:
        BackfillIncompleteError, BackfillHeldError: after the figures were shown.
        ConflictError: the transform has changed since.
        RunInterruptedError: the user pressed Ctrl-C.
    """
    resume = _with_code(store, settings, resume)
    if detach:
        driver = store.driver()
        if driver is not None and is_driven_elsewhere(driver, "") and not resume.take_over:
            said = f"process {driver.pid} on {driver.host} drives it already"
            say(f"backfill {store.backfill}: {said}", console=notes)
            started = {"backfill": store.backfill, "output": store.output, "pid": driver.pid}
            started |= {"log": "where it was started"}
        else:
            started = start_detached(store, settings, environment, asdict(resume))
        print_json(started) if as_json else show_detached(started)
        return
    summary = _driven(store, settings, resume, quiet=as_json)
    places = _places(store, settings)
    print_json(asdict(summary) | places) if as_json else _show(summary, places)


def _with_code(
    store: BackfillStore, settings: Settings, resume: BackfillResumeOptions
) -> BackfillResumeOptions:
    """Add the current code to the options, after checking that it may be used."""
    record = store.record()
    code = job_fingerprint(store.job(), settings.transforms)
    if code != record.code and not resume.accept_code:
        raise ConflictError(
            f"backfill {record.backfill} is unfinished, and "
            f"{explain_difference(record.transform, record.code, code)}",
            hint="resume with the new code: --accept-code; or start over: chunkmap backfill "
            f"cancel {record.backfill}, then create it again",
        )
    refuse_replaced_tables(record)
    return replace(resume, code=code)


def _driven(
    store: BackfillStore, settings: Settings, resume: BackfillResumeOptions, *, quiet: bool
) -> BackfillSummary:
    display = BackfillDisplay(quiet=quiet)

    def listen(board: WindowProgress, phase: str) -> None:
        if was_interrupted():
            raise KeyboardInterrupt  # Somebody swallowed the first one.
        display.show(board, phase)

    try:
        from pipeline.flows.launch import launch_backfill

        with display, record_interrupts():
            return launch_backfill(store, settings, listen, resume)
    except (BackfillIncompleteError, BackfillHeldError) as error:
        places = _places(store, settings)
        if not quiet:
            _show(error.summary, places)
        raise
    except BaseException as error:
        if not (isinstance(error, KeyboardInterrupt) or was_interrupted()):
            raise
        raise RunInterruptedError(
            "interrupted: what is done is kept",
            hint=f"go on with: chunkmap backfill resume {store.backfill}",
        ) from error


def _places(store: BackfillStore, settings: Settings) -> dict[str, str]:
    """Write the report; where it is, here and in storage, and where Prefect shows the backfill."""
    from pipeline.runs.backfill.report import store_report

    report = local = ""
    # A report that cannot be stored is not worth the figures.
    with suppress(ChunkmapError):
        report, local = store_report(store, settings.state_dir)
    driver = store.driver()
    page = (driver.flow_run if driver else None) or ""
    return {"report": report, "local_report": local, "prefect_ui": page}


def _show(summary: BackfillSummary, places: dict[str, str]) -> None:
    """Show the figures."""
    counts = summary.counts
    rows = {
        "windows": _windows_line(summary),
        "chunks": f"{counts['chunks_done']:,} of {counts['chunks']:,} done, "
        f"{counts['chunks_failed']:,} failed",
        "rows": f"{counts['rows_in']:,} in, {counts['rows_out']:,} out",
        "bytes": f"{size(counts['bytes_in'])} read, {size(counts['bytes_out'])} written",
        "time": f"{summary.seconds:.1f} s, {summary.batches:,} batches",
        "output": summary.output,
        "report": places["local_report"] or places["report"] or "none",
        "Prefect UI": places["prefect_ui"] or "none",
    }
    if summary.canary is not None:
        rows = {"canary": _canary_line(summary), **rows}
    state = f"{summary.job} · backfill {summary.backfill}: {summary.state}"
    show_pairs(f"{state} ({time.strftime('%H:%M:%S')})", rows)
    for note in summary.notes[:MOST_NOTES]:
        (bad if summary.state == "failed" else warn)(note)
    if len(summary.notes) > MOST_NOTES:
        say(f"  … and {len(summary.notes) - MOST_NOTES:,} more")


def _windows_line(summary: BackfillSummary) -> str:
    counts = summary.counts
    left = counts["waiting"] + counts["mapping"] + counts["staged"]
    said = [f"{counts['done']:,} of {summary.todo:,} published", f"{counts['failed']:,} failed"]
    said += [f"{left:,} left"] if left else []
    skipped = counts["skipped"] + counts["empty"]
    said += [f"{skipped:,} had nothing to do"] if skipped else []
    return ", ".join(said)


def _canary_line(summary: BackfillSummary) -> str:
    canary = summary.canary
    assert canary is not None, "asked for before"
    tried = canary.chunks + canary.failed_chunks
    rate = 100 * canary.failed_chunks / tried if tried else 0.0
    return (
        f"{canary.windows:,} windows done, {canary.failed_windows:,} failed; "
        f"{canary.failed_chunks:,} of {tried:,} chunks failed ({rate:.1f}%); "
        f"{canary.speed / 1e6:,.1f} MB/s a thread, decoded"
    )
