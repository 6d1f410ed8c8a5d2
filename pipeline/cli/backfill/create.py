"""Plan, create and drive backfills: `chunkmap backfill plan` and `create`."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli.backfill.plan_view import plan_to_dict, show_plan
from pipeline.cli.backfill.progress import BackfillDisplay
from pipeline.cli.detached import show_detached, start_detached
from pipeline.cli.hints import command
from pipeline.cli.output import bad, notes, print_json, say, show_pairs, warn
from pipeline.config.job import load_job
from pipeline.config.settings import Settings, load_settings
from pipeline.config.units import parse_size
from pipeline.errors import (
    ChunkmapError,
    ConflictError,
    RunInterruptedError,
    UsageError,
)
from pipeline.processes import command_started, record_interrupts, was_interrupted
from pipeline.quality.results import checks_text
from pipeline.report.humanize import byte_rate, byte_size, clock_time, duration, plural
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
from pipeline.runs.driver.origin import explain_code
from pipeline.runs.driver.preflight import explain_unreachable_s3, preflight
from pipeline.runs.transforms.loading import job_fingerprint
from pipeline.storage import open_storage

if TYPE_CHECKING:
    from pipeline.runs.backfill.progress import WindowProgress

MAX_NOTES = 10
"""Maximum number of a driver's notes to print; the report and `status` have the rest."""


def selection(
    start: str | None,
    end: str | None,
    last: str | None,
    values: list[str] | None,
    exclude: list[str] | None,
    *,
    allow_missing: bool,
) -> WindowSelection:
    """Build the window selection from the options.

    Raises:
        UsageError: The options contradict each other.
    """
    ways = {"--from and --to": start or end, "--last": last, "--values": values}
    used = [name for name, value in ways.items() if value]
    if len(used) > 1:
        raise UsageError(f"{' and '.join(used)} exclude each other: use one of them")
    return WindowSelection(
        start=start,
        end=end,
        last=last,
        values=_split(values),
        exclude=_split(exclude),
        allow_missing=allow_missing,
    )


def _split(texts: list[str] | None) -> tuple[str, ...]:
    return tuple(item.strip() for text in texts or () for item in text.split(",") if item.strip())


def options(**flags: Any) -> Options:
    """Build the options of a backfill from those of the command.

    Raises:
        UsageError: A limit is not a number or a share of 0% to 100%, or needs a canary.
    """
    for name in ("canary", "canary_limit", "max_failures"):
        if flags.get(name) is not None:
            flags[name] = _parse_limit(flags[name], "--" + name.replace("_", "-"))
    if flags.get("bytes_per_run") is not None:
        try:
            flags["bytes_per_run"] = parse_size(flags["bytes_per_run"])
        except ValueError as error:
            raise UsageError(f"--bytes-per-run: {error}") from error
    needs_canary = flags.get("canary_hold") or flags.get("canary_limit")
    if needs_canary and not flags.get("canary"):
        raise UsageError(
            "--canary-hold and --canary-limit need a canary", hint="add e.g. --canary 1%"
        )
    return Options(**flags)


def _parse_limit(text: str, flag: str) -> int | str:
    """Parse a number, or a share such as `5%`."""
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
    selection: WindowSelection,
    options: Options,
    environment: str | None,
    *,
    changes: Sequence[str] = (),
    accept_code: bool,
    as_json: bool,
) -> None:
    """Show what a backfill would do; write nothing."""
    from pipeline.runs.driver.estimate import forecast

    job, settings = load_job(path, changes), load_settings(environment)
    storage = open_storage(settings)
    with explain_unreachable_s3(settings):
        drafted = draft(job, settings, storage, selection, options, accept_code=accept_code)
        expected = None
        if drafted.plan is not None:
            record = drafted.record
            active = record.options.max_active
            expected = forecast(
                storage, job, settings, drafted.plan, runs=record.runs, max_active=active
            )
    if as_json:
        print_json(plan_to_dict(drafted, expected))
    else:
        show_plan(drafted, expected)


def create(
    path: Path,
    selection: WindowSelection,
    options: Options,
    environment: str | None,
    *,
    changes: Sequence[str] = (),
    accept_code: bool,
    take_over: bool,
    local: bool = False,
    detach: bool,
    as_json: bool,
) -> None:
    """Create a backfill, or find the unfinished one with the same request, and drive it."""
    job, settings = load_job(path, changes), load_settings(environment)
    storage = open_storage(settings)
    preflight(job, settings, storage)
    with explain_unreachable_s3(settings):
        drafted = draft(job, settings, storage, selection, options, accept_code=accept_code)
        created = create_backfill(storage, drafted)
    if created is None:
        outside = drafted.record.outside
        remarks = [*([outside] if outside else []), *drafted.notes]
        message = drafted.up_to_date
        if as_json:
            result = {"backfill": None, "state": "nothing to do", "message": message}
            print_json(result | {"notes": remarks})
        else:
            say(f"Nothing to do: {message}.")
            for note in remarks:
                warn(note)
        return
    store, is_new = created
    for note in drafted.notes:
        warn(note)
    remember_output(settings.state_dir, store.output)
    record = store.record()
    about = (
        f"{plural(record.todo, 'window')} of {record.job}, "
        f"{plural(record.chunks, 'chunk')} in {plural(record.runs, 'run')}"
    )
    origin = "new" if is_new else "resumed"
    say(f"backfill {store.backfill} ({origin}): {about}", console=notes)
    drive(
        store,
        settings,
        BackfillResumeOptions(accept_code=accept_code, take_over=take_over),
        environment,
        local=local,
        detach=detach,
        as_json=as_json,
    )


def drive_stored(
    backfill: str, output: str | None, environment: str | None, again: str, *, local: bool
) -> None:
    """Drive a backfill in the background process that `--detach` started.

    Args:
        backfill: The id of the backfill.
        output: The output of the backfill.
        environment: The environment of the settings.
        again: The fields of `BackfillResumeOptions`, as JSON.
        local: Use worker processes of this machine.
    """
    from pipeline.cli.backfill.find import find

    settings = load_settings(environment)
    store = find(backfill, output, settings)
    resume = BackfillResumeOptions(**json.loads(again))
    drive(store, settings, resume, environment, local=local, detach=False, as_json=False)


def drive(
    store: BackfillStore,
    settings: Settings,
    resume: BackfillResumeOptions,
    environment: str | None,
    *,
    local: bool = False,
    detach: bool,
    as_json: bool,
) -> None:
    """Drive a backfill here or in a background process, and show the result.

    Raises:
        BackfillIncompleteError, BackfillHeldError: The figures have been shown.
        ConflictError: The transform has changed since.
        RunInterruptedError: The user pressed Ctrl-C.
    """
    resume = _with_code(store, settings, resume)
    if detach:
        _detach(store, settings, environment, resume, local=local, as_json=as_json)
        return
    flags = [*["--accept-code"] * resume.accept_code, *["--local"] * local]
    again = command("backfill", "resume", store.backfill, *flags, environment=environment)
    summary = _drive_here(store, settings, resume, again, local=local, quiet=as_json)
    places = _places(store, settings)
    print_json(asdict(summary) | places) if as_json else _show(summary, places)


def _detach(
    store: BackfillStore,
    settings: Settings,
    environment: str | None,
    resume: BackfillResumeOptions,
    *,
    local: bool = False,
    as_json: bool,
) -> None:
    backfill = store.backfill
    arguments = ["backfill", "drive", backfill, "--output", store.output]
    arguments += ["--again", json.dumps(asdict(resume))]
    arguments += ["--environment", environment] if environment else []
    arguments += ["--local"] if local else []
    take_over = resume.take_over
    started = start_detached(
        "backfill", backfill, arguments, settings, store.driver, take_over=take_over
    )
    if as_json:
        print_json({"backfill": backfill, "output": store.output, **started})
        return
    named = {word: (word, backfill) for word in ("pause", "resume", "cancel")}
    commands = {
        name: command("backfill", *words, environment=environment)
        for name, words in {"watch": ("status", backfill, "--watch"), **named}.items()
    }
    show_detached(f"backfill {backfill}", started, commands)


def _with_code(
    store: BackfillStore, settings: Settings, resume: BackfillResumeOptions
) -> BackfillResumeOptions:
    """Add the current code to the options, after checking that it may be used."""
    record = store.record()
    code = job_fingerprint(store.job(), settings.transforms)
    if code != record.code and not resume.accept_code:
        raise ConflictError(
            f"backfill {record.backfill} is unfinished, and "
            f"{explain_code(record, code, store.job(), settings)}",
            hint="resume with the new code: --accept-code; or start over: chunkmap backfill "
            f"cancel {record.backfill}, then create it again",
        )
    refuse_replaced_tables(record)
    return replace(resume, code=code)


def _drive_here(
    store: BackfillStore,
    settings: Settings,
    resume: BackfillResumeOptions,
    again: str,
    *,
    local: bool = False,
    quiet: bool,
) -> BackfillSummary:
    """Drive a backfill in this process; `again` is the command that resumes it, for messages."""
    display = BackfillDisplay(again, quiet=quiet)

    def listen(progress: WindowProgress, phase: str) -> None:
        if was_interrupted():
            raise KeyboardInterrupt  # A library swallowed the first one.
        display.show(progress, phase)

    try:
        began = command_started()
        with display, record_interrupts(display.stopping):
            if local:
                from pipeline.local.launch import backfill_locally
                from pipeline.local.workers import LocalWorkers

                with LocalWorkers(settings) as workers:
                    return backfill_locally(store, settings, listen, resume, workers, began=began)
            from pipeline.flows.launch import launch_backfill

            return launch_backfill(store, settings, listen, resume, began=began)
    except (BackfillIncompleteError, BackfillHeldError) as error:
        places = _places(store, settings)
        if not quiet:
            _show(error.summary, places)
        raise
    except BaseException as error:
        if not (isinstance(error, KeyboardInterrupt) or was_interrupted()):
            raise
        raise RunInterruptedError(
            "interrupted: completed chunks are kept",
            hint=f"resume with: {again}",
        ) from error


def _places(store: BackfillStore, settings: Settings) -> dict[str, str]:
    """Write the report; return its address, the local copy's, and that of Prefect's page."""
    from pipeline.runs.backfill.report import store_report

    report = local = ""
    # The figures are shown even if the report cannot be stored.
    with suppress(ChunkmapError):
        report, local = store_report(store, settings.state_dir, settings)
    driver = store.driver()
    page = (driver.flow_run if driver else None) or ""
    return {"report": report, "local_report": local, "prefect_ui": page}


def _show(summary: BackfillSummary, places: dict[str, str]) -> None:
    """Show the figures."""
    counts = summary.counts
    checks = checks_text(counts["checks"], counts["warnings"], counts["rejected"])
    rows = {
        "windows": _windows_line(summary),
        "chunks": f"{counts['chunks_done']:,} of {counts['chunks']:,} done, "
        f"{counts['chunks_failed']:,} failed",
        "rows": f"{counts['rows_in']:,} in, {counts['rows_out']:,} out",
        "bytes": f"{byte_size(counts['bytes_in'])} read, {byte_size(counts['bytes_out'])} written",
        **({"checks": checks} if checks else {}),
        "time": f"{duration(summary.seconds)}, {plural(summary.batches, 'batch', 'batches')}",
        "output": summary.output,
        "report": places["local_report"] or places["report"] or "none",
        "Prefect UI": places["prefect_ui"] or "none",
    }
    if summary.canary is not None:
        rows = {"canary": _canary_line(summary), **rows}
    state = f"{summary.job} · backfill {summary.backfill}: {summary.state}"
    show_pairs(f"{state} ({clock_time(time.time())})", rows)
    for note in summary.notes[:MAX_NOTES]:
        (bad if summary.state == "failed" else warn)(note)
    if len(summary.notes) > MAX_NOTES:
        say(f"  … and {len(summary.notes) - MAX_NOTES:,} more")


def _windows_line(summary: BackfillSummary) -> str:
    counts = summary.counts
    left = counts["waiting"] + counts["mapping"] + counts["staged"]
    parts = [f"{counts['done']:,} of {summary.todo:,} published", f"{counts['failed']:,} failed"]
    parts += [f"{left:,} left"] if left else []
    skipped = counts["skipped"] + counts["empty"]
    parts += [f"{skipped:,} skipped"] if skipped else []
    return ", ".join(parts)


def _canary_line(summary: BackfillSummary) -> str:
    canary = summary.canary
    assert canary is not None, "the caller has checked"
    attempted = canary.chunks + canary.failed_chunks
    rate = 100 * canary.failed_chunks / attempted if attempted else 0.0
    return (
        f"{plural(canary.windows, 'window')} done, {canary.failed_windows:,} failed; "
        f"{canary.failed_chunks:,} of {plural(attempted, 'chunk')} failed ({rate:.1f}%); "
        f"{byte_rate(canary.speed)} per thread, decoded"
    )
