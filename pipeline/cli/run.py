"""Run a job from its file to the summary: `chunkmap run`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli.hints import command, with_values
from pipeline.cli.output import bad, print_json, report_place, say, show_pairs, warn
from pipeline.cli.run_progress import Display
from pipeline.config.job import Job, load_job
from pipeline.config.settings import Settings, load_settings
from pipeline.errors import RunInterruptedError
from pipeline.processes import command_started, record_interrupts, was_interrupted
from pipeline.report.humanize import byte_rate, byte_size, duration, plural

if TYPE_CHECKING:
    from pipeline.local.workers import LocalWorkers
    from pipeline.runs.driver.plan import ResumeOptions
    from pipeline.runs.driver.summary import RunSummary


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a run, and where to inspect it."""

    summary: RunSummary
    page: str
    """Address of the flow run in Prefect's UI, or of the UI if the server does not know the run."""
    watched: bool
    """Whether another process drove the run for at least some time."""
    bytes_in: int
    """Bytes read by this command, without those of earlier attempts."""

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        return asdict(self.summary) | {"prefect_ui": self.page}


def run(
    path: Path,
    environment: str | None,
    *,
    changes: Sequence[str] = (),
    accept_code: bool,
    replan: bool,
    rebuild: bool = False,
    take_over: bool,
    local: bool = False,
    detach: bool = False,
    as_json: bool,
) -> None:
    """Run a job file and show the result, or drive the run in the background."""
    job, settings = load_job(path, changes), load_settings(environment)
    with local_workers(settings, wanted=local and not detach) as workers:
        from pipeline.runs.driver.plan import ResumeOptions

        resume = ResumeOptions(
            accept_code=accept_code, replan=replan, rebuild=rebuild, take_over=take_over
        )
        if detach and _detach(job, settings, environment, resume, local=local, as_json=as_json):
            return
        flags = [*with_values("--set", changes), *["--accept-code"] * accept_code]
        again = command("run", str(path), *flags, *["--local"] * local, environment=environment)
        began = command_started()
        outcome = run_job(job, settings, again, resume, quiet=as_json, began=began, workers=workers)
    show(outcome, as_json=as_json)


@contextmanager
def local_workers(settings: Settings, *, wanted: bool) -> Iterator[LocalWorkers | None]:
    """Start worker processes of this machine, if wanted; they end with the block.

    Do so first: they are ready when the run is planned.
    """
    if not wanted:
        yield None
        return
    from pipeline.local.workers import LocalWorkers

    with LocalWorkers(settings) as workers:
        yield workers


def debug(
    path: Path,
    environment: str | None,
    index: int,
    flags: Mapping[str, bool],
    *,
    changes: Sequence[str] = (),
) -> int:
    """Map one chunk of a job in this terminal; returns the exit code.

    Args:
        path: The job file.
        environment: Name of the environment.
        index: Number of the chunk.
        flags: Whether each of the other options is given.
        changes: Changes to the job.
    """
    from pipeline.cli.debug import debug_chunk, refuse_beside

    refuse_beside("--debug-chunk", flags)
    return debug_chunk(load_job(path, changes), load_settings(environment), index)


def _detach(
    job: Job,
    settings: Settings,
    environment: str | None,
    resume: ResumeOptions,
    *,
    local: bool,
    as_json: bool,
) -> bool:
    """Plan a run here and drive it in a background process; return False if nothing is left.

    What is wrong with the job, its input or its output is an error here, not in a log.
    """
    from pipeline.cli.detached import show_detached, start_detached
    from pipeline.runs.admin.known_outputs import remember_output
    from pipeline.runs.driver.heartbeat import read_driver
    from pipeline.runs.driver.plan import plan_run
    from pipeline.runs.driver.preflight import explain_unreachable_s3, preflight
    from pipeline.storage import open_storage

    storage = open_storage(settings)
    preflight(job, settings, storage)
    with explain_unreachable_s3(settings):
        planned = plan_run(job, settings, storage, resume)
    ledger = planned.ledger
    if ledger.published() is not None:
        return False
    for note in planned.notes:
        warn(note)
    remember_output(settings.state_dir, ledger.output)
    flags = {"--accept-code": resume.accept_code, "--take-over": resume.take_over}
    flags["--local"] = local
    arguments = ["retry", ledger.run, "--output", ledger.output]
    arguments += [flag for flag, is_set in flags.items() if is_set]
    arguments += ["--environment", environment] if environment else []
    started = start_detached(
        "run",
        ledger.run,
        arguments,
        settings,
        lambda: read_driver(storage, ledger.prefix),
        take_over=resume.take_over,
    )
    if as_json:
        print_json({"run": ledger.run, "output": ledger.output, **started})
        return True
    words = ("status", "logs", "report", "cancel")
    show_detached(
        f"{job.name} · run {ledger.run}",
        started,
        {word: command(word, ledger.run, environment=environment) for word in words},
    )
    return True


def run_job(
    job: Job,
    settings: Settings,
    again: str,
    resume: ResumeOptions | None = None,
    *,
    quiet: bool = False,
    began: float | None = None,
    workers: LocalWorkers | None = None,
) -> Outcome:
    """Run a job.

    Args:
        job: The job.
        settings: Where and how to run it.
        again: The command that resumes the run, for the hint after Ctrl-C.
        resume: How to resume an unfinished run.
        quiet: Show no progress.
        began: Unix seconds when the command started; default now.
        workers: Worker processes of this machine to use instead of Prefect and Dask.

    Raises:
        RunIncompleteError: Some chunks failed. Unless quiet, the summary has been shown.
        RunInterruptedError: The user pressed Ctrl-C.
    """
    from pipeline.runs.driver.plan import ResumeOptions
    from pipeline.runs.driver.preflight import preflight
    from pipeline.runs.driver.summary import MapProgress, RunIncompleteError
    from pipeline.storage import open_storage

    began = time.time() if began is None else began
    display = Display(quiet=quiet)

    def listen(phase: str, progress: MapProgress | None) -> None:
        if was_interrupted():
            raise KeyboardInterrupt  # A library swallowed the first one.
        display.phase(phase)
        if progress is not None:
            display.mapping(progress, "then" if phase == "then" else "map")

    def outcome_of(summary: RunSummary) -> Outcome:
        here = _with_local_report(summary, settings)
        page = "" if workers is not None else _page(here, settings)
        return Outcome(here, page, display.watched, display.bytes_in)

    try:
        # First of all, so that an invalid job does not show up in Prefect as a failed run.
        resume = resume or ResumeOptions()
        if workers is not None:
            from pipeline.local.launch import run_locally

            show_plan = display.planned
            with display, record_interrupts(display.stopping):
                summary = run_locally(
                    job, settings, listen, resume, workers, planned=show_plan, began=began
                )
            return outcome_of(summary)
        preflight(job, settings, open_storage(settings))
        from pipeline.flows.launch import launch, prepare

        with display, record_interrupts(display.stopping):
            listen("plan", None)
            early = prepare(job, settings, resume)
            if early.run is not None:
                display.planned(early.run)
            summary = launch(job, settings, listen, resume, early=early, began=began)
    except RunIncompleteError as error:
        if not quiet:
            show(outcome_of(error.summary))
        raise
    except BaseException as error:
        if not (isinstance(error, KeyboardInterrupt) or was_interrupted()):
            raise
        raise RunInterruptedError(
            "interrupted: completed chunks are kept", hint=f"resume with: {again}"
        ) from error
    return outcome_of(summary)


def _with_local_report(summary: RunSummary, settings: Settings) -> RunSummary:
    from pipeline.runs.driver.report import fetch_report
    from pipeline.storage import open_storage

    if summary.local_report:
        return summary
    local = None
    with suppress(OSError):  # Its folder cannot be written: the stored report is shown.
        local = fetch_report(
            open_storage(settings), summary.report, settings.state_dir, summary.run
        )
    return replace(summary, local_report=local or "")


def _page(summary: RunSummary, settings: Settings) -> str:
    """The address of the flow run if this server knows it, else the server's address."""
    from pipeline.runs.driver.heartbeat import read_driver
    from pipeline.runs.ledger.ledger import Ledger
    from pipeline.storage import open_storage

    server = (settings.prefect.api_url or "").removesuffix("/api")
    storage = open_storage(settings)
    driver = read_driver(storage, Ledger(storage, summary.output, summary.run).prefix)
    page = driver.flow_run if driver else None
    return page if page and page.startswith(server) else server


def show(outcome: Outcome, *, as_json: bool = False) -> None:
    """Print the result of a run."""
    summary = outcome.summary
    if as_json:
        print_json(outcome.to_dict())
        return
    for note in summary.notes:
        warn(note)
    if summary.mapped == 0 and summary.state == "done":
        _show_complete(outcome)
        return
    rows = {
        "state": summary.state + (f", manifest {summary.manifest}" if summary.manifest else ""),
        "rows": rows_text(summary.rows_in, summary.rows_out, summary.rows_filtered),
        "bytes": f"{byte_size(summary.bytes_in)} read, {byte_size(summary.bytes_out)} written",
        "chunks": f"{summary.chunks:,} ({summary.mapped:,} mapped now, {summary.failed:,} failed)",
        "groups": _groups(summary),
        "batches": f"{summary.batches:,} in {plural(summary.rounds, 'round')}",
        "time": _time(outcome),
        **_outputs(summary),
        "report": report_place(summary.report, summary.local_report),
        "Prefect UI": outcome.page,
    }
    show_pairs(f"{summary.job} · run {summary.run}", _known(rows))
    for line in summary.errors:
        bad(line)


def _groups(summary: RunSummary) -> str:
    """Say how many pieces of the reduced result are mapped; empty if the job maps none."""
    then = summary.then
    if then is None:
        return ""
    failed = f", {then.failed:,} failed" if then.failed else ""
    return (
        f"{then.done:,} of {plural(then.pieces, 'piece')} mapped{failed} ({then.rows_in:,} reduced "
        f"rows in, {then.rows_out:,} out)"
    )


def _outputs(summary: RunSummary) -> dict[str, str]:
    """Name the output; of several, each with its rows."""
    if not summary.outputs:
        return {"output": summary.output}
    return {
        f"output {each.name}": f"{each.output}, {plural(each.rows, 'row')}"
        + (f", manifest {each.manifest}" if each.manifest else "")
        for each in summary.outputs
    }


def _time(outcome: Outcome) -> str:
    """Say how long the command took, and the parts of it; they add up."""
    summary = outcome.summary
    text = duration(summary.seconds)
    if summary.phases:
        text += ": " + ", ".join(f"{name} {duration(took)}" for name, took in summary.phases)
    mapped = sum(took for name, took in summary.phases if name == "map")
    if outcome.bytes_in and mapped:
        text += f" ({byte_rate(outcome.bytes_in / mapped)} read while mapping)"
    return text


def rows_text(rows_in: int, rows_out: int, filtered: int) -> str:
    """Say how many rows went in and out, and how many the job's filter removed before."""
    removed = f" ({filtered:,} filtered out)" if filtered else ""
    return f"{rows_in:,} in{removed}, {rows_out:,} out"


def _show_complete(outcome: Outcome) -> None:
    summary = outcome.summary
    left = f"0 of {plural(summary.chunks, 'chunk')} were left to map"
    how = "another process completed it" if outcome.watched else left
    say(
        f"Run {summary.run} is complete: {how}. {summary.rows_in:,} rows in, "
        f"{summary.rows_out:,} rows out, published in manifest {summary.manifest}."
    )
    places = {
        **_outputs(summary),
        "report": report_place(summary.report, summary.local_report),
        "Prefect UI": outcome.page,
    }
    show_pairs("", _known(places))


def _known(rows: dict[str, str]) -> dict[str, str]:
    """Leave out what is unknown."""
    return {name: value for name, value in rows.items() if value}
