"""Make the report of a run from its ledger; store it with the run's state and on this machine."""

from __future__ import annotations

import json
import logging
import os
import platform
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import polars as pl

from partitioning import Plan
from partitioning.model import Skipped
from partitioning.window_inputs import windows_of_plan
from pipeline.concurrency import map_concurrently
from pipeline.config.job import Job
from pipeline.config.sections import PriceSettings
from pipeline.config.settings import Settings
from pipeline.errors import JobError, StateError, StorageError
from pipeline.masking import mask
from pipeline.quality.results import CheckResult
from pipeline.report import run_figures
from pipeline.report.humanize import plural
from pipeline.report.render import render_html, render_json, render_markdown
from pipeline.report.run_model import (
    Attempt,
    Checked,
    CodeVersion,
    Estimated,
    MappedGroups,
    Phase,
    Prices,
    Pruned,
    Requests,
    RunInfo,
    RunReport,
)
from pipeline.runs.driver.estimate import Estimate, estimate
from pipeline.runs.driver.heartbeat import DriverRecord
from pipeline.runs.driver.layout_text import kept_text, layout_text
from pipeline.runs.driver.several_outputs import completions_of_outputs, with_sums
from pipeline.runs.driver.then_stage import Pieces, pieces_of
from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.ledger.records import Origin, Progress, RunRecord
from pipeline.storage import Storage
from pipeline.storage.documents import report_folder, require_name

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StoredReport:
    """Locations of a report, and its short form."""

    uri: str
    path: str
    """Path of the local copy; empty if there is none."""
    markdown: str


def store_report(
    storage: Storage,
    ledger: Ledger,
    driver: DriverRecord,
    state: str,
    folder: Path,
    *,
    settings: Settings | None = None,
) -> StoredReport:
    """Make a run's report, store it with the run's state, and keep a local copy.

    Args:
        storage: Where the run's state is.
        ledger: Ledger of the run.
        driver: Record of its driver; gets the phase `report`, until the page is written.
        state: State of the run.
        folder: Folder of local state; the copy is in `reports/<run>/`.
        settings: Settings with prices and the memory of a worker.
    """
    driver.end_phase(began := time.time())
    driver.phases.append(("report", began, 0.0))
    parts = collect(ledger)
    if state == "done":
        parts = replace(parts, estimate=_estimate(storage, parts, settings))
    driver.end_phase(time.time())
    report = report_of(parts, driver, state, settings)
    bodies = {"report.html": render_html(report), "report.json": render_json(report)}
    map_concurrently(
        lambda name: storage.put(ledger.prefix + name, bodies[name].encode()), list(bodies)
    )
    uri = ledger.prefix + "report.html"
    return StoredReport(uri, keep_copy(folder, ledger.run, bodies), render_markdown(report, uri))


def keep_copy(state_dir: Path, name: str, bodies: Mapping[str, str]) -> str:
    """Keep a copy of a report on this machine, unless its folder cannot be written.

    Returns:
        The path of the page; empty if there is no copy.
    """
    try:
        folder = report_folder(state_dir, name)
        for file, body in bodies.items():
            (folder / file).write_text(body, encoding="utf-8")
    except OSError as error:
        log.warning("there is no copy of the report on this machine: %s", error)
        return ""
    return str(folder / "report.html")


@dataclass(frozen=True, slots=True)
class ReportParts:
    """What a run's report is made of, as stored."""

    record: RunRecord
    job: Job
    plan: Plan
    progress: Progress
    is_published: bool
    checks: tuple[CheckResult, ...] = ()
    """What the checks of the result have found."""
    estimate: Estimate | None = None
    """What was to be expected before the run; None if that is unknown."""
    pieces: Pieces | None = None
    """Pieces of the reduced result; None if there are none."""
    further: tuple[pl.DataFrame, ...] = ()
    """Completions for the outputs after the first, if there are several."""


def collect(ledger: Ledger) -> ReportParts:
    """Read what a run's report is made of."""
    is_published = ledger.published() is not None
    record, job, plan = ledger.record(), ledger.job(), ledger.plan()
    progress = ledger.read()
    pieces = pieces_of(ledger, progress) if job.then is not None else None
    further = [] if not job.outputs else completions_of_outputs(ledger, progress.completions)[1:]
    return ReportParts(
        record,
        job,
        plan,
        progress,
        is_published,
        ledger.check_results(),
        pieces=pieces,
        further=tuple(rows for _, rows in further),
    )


def _estimate(storage: Storage, parts: ReportParts, settings: Settings | None) -> Estimate | None:
    """Estimate a run from the runs before it; None if their state cannot be read."""
    threads = (settings.dask.threads_per_worker if settings else None) or 1
    with suppress(StateError, JobError, StorageError):
        return estimate(storage, parts.job, parts.plan, threads, before=parts.record.created)
    return None


def _estimates(parts: ReportParts, attempts: Sequence[Attempt]) -> Iterator[Estimated]:
    """Compare what was to be expected before a run with what it took."""
    expected, done = parts.estimate, parts.progress.completions
    if expected is None:
        return
    # Only the time of a run without interruption can be compared.
    seconds = sum(phase.seconds for phase in attempts[0].phases) if len(attempts) == 1 else None
    memory = int(done.select(pl.col("memory").max()).item() or 0)
    yield Estimated("Duration", "seconds", expected.seconds, seconds)
    yield Estimated("Read", "bytes", expected.bytes_to_read, int(done["bytes_in"].sum()))
    yield Estimated("Memory of a worker", "bytes", expected.memory_bytes, memory or None)


def _skipped(job: Job, skipped: Sequence[Skipped]) -> Iterator[str]:
    """Describe the objects that planning could not read, if there are any."""
    if skipped and job.input.on_bad_object != "fail":
        yield (
            f"{plural(len(skipped), 'object is', 'objects are')} not readable Parquet and left out "
            f"(input.on_bad_object), such as {skipped[0].uri}: {skipped[0].reason}"
        )


def report_of(
    parts: ReportParts,
    driver: DriverRecord | None,
    state: str,
    settings: Settings | None = None,
    command: str = "",
) -> RunReport:
    """Compose a run's report.

    Args:
        parts: What is stored of the run.
        driver: Record of its driver; None for a run of a backfill, which has none of its own.
        state: State of the run.
        settings: Settings with prices and the memory of a worker.
        command: Command that finishes the run; default `chunkmap retry`.
    """
    record, job, progress = parts.record, parts.job, parts.progress
    command = command or f"chunkmap retry {record.run} --output {shlex.quote(record.output)}"
    origin = record.origin or Origin()
    attempts = attempts_of(driver)
    return RunReport(
        run=RunInfo(
            id=record.run,
            job=record.job,
            input=" ".join(job.input.uri),
            output=", ".join(record.outputs or (record.output,)),
            mode=record.mode,
            transform=record.transform,
            fingerprint=record.fingerprint,
            state=state,  # type: ignore[arg-type]
            chunks_planned=record.chunks,
            rows_planned=record.rows,
            created=record.created,
            started=attempts[0].started if attempts else _first_start(progress),
            finished=attempts[-1].finished if attempts and state != "running" else None,
            rounds=driver.rounds if driver else 0,
            environment=environment(),
            tables={table.uri: table.label for table in record.tables or ()},
            prefect_url=driver.flow_run if driver else None,
            resume_command=None if state == "done" else command,
            rows_done=_planned_rows(parts.plan, progress),
            params={name: value_text(value) for name, value in mask(job.params).items()},
            filter=filter_text(job),
            columns=tuple(job.input.columns or ()),
            schema=_output_schema(progress if parts.pieces is None else parts.pieces.progress),
            layout=layout_text(job.output),
            encodings=_usual(_made(parts), "encodings"),
            kept=kept_text(job.output, progress.completions),
            commit=origin.commit,
            memory_limit=settings.dask.memory_per_worker if settings else None,
        ),
        completions=pl.concat(
            [with_sums(progress.completions, parts.further), progress.duplicates]
        ),
        failures=_failures(progress),
        groups=_groups(parts),
        phases=tuple(phase for attempt in attempts for phase in attempt.phases),
        not_counted=(
            *progress.problems,
            *progress.left_out(),
            *_skipped(job, parts.plan.skipped),
        ),
        attempts=attempts,
        versions=_versions(parts, attempts),
        pruned=pruned_of(origin),
        inputs=_inputs(parts.plan),
        outputs=_outputs(parts),
        prices=prices_of(settings),
        estimates=tuple(_estimates(parts, attempts)),
        checks=tuple(
            Checked(result.name, result.outcome, result.message, result.examples)
            for result in parts.checks
        ),
    )


def attempts_of(driver: DriverRecord | None) -> tuple[Attempt, ...]:
    """Convert the attempts that a driver's record keeps; a running one lasts until it was seen."""
    if driver is None:
        return ()
    attempts = []
    for at, stored in enumerate(driver.attempts):
        died = stored.state == "running" and at < len(driver.earlier)
        phases = tuple(Phase(*phase) for phase in stored.phases)
        # The last heartbeat may come later than the end of a driver's work.
        ends = [phase.started + phase.seconds for phase in phases]
        if stored.state == "running" or not ends:
            ends.append(stored.seen)
        attempts.append(
            Attempt(
                started=stored.started,
                finished=max(ends),
                state="killed" if died else stored.state,
                driver=f"process {stored.pid} on {stored.host}",
                code=stored.code,
                commit=stored.commit,
                phases=phases,
                requests=Requests(
                    stored.reads,
                    stored.writes,
                    stored.retries,
                    stored.throttled,
                    stored.request_limit,
                ),
                errors=tuple(stored.errors),
            )
        )
    return tuple(attempts)


def _first_start(progress: Progress) -> float | None:
    """Return the start of the first completed chunk, in Unix seconds."""
    first: Any = progress.completions["started"].min()
    return None if first is None else float(first)


def rows_filtered(plan: Plan, progress: Progress) -> int:
    """Count the planned rows of completed chunks that the filter removed, or are unreadable."""
    return max(0, _planned_rows(plan, progress) - int(progress.completions["rows_in"].sum()))


def _planned_rows(plan: Plan, progress: Progress) -> int:
    """Return the planned rows of the chunks that are done."""
    rows = plan.chunk_table["rows"].to_numpy()
    return int(rows[progress.completions["index"].to_numpy()].sum())


def filter_text(job: Job) -> str:
    """Write the filter of a job's input as one line."""
    groups = [
        " and ".join(
            f"{column} {operator} {value_text(value)}" for column, operator, value in group
        )
        for group in job.input.filter or ()
    ]
    return groups[0] if len(groups) == 1 else " or ".join(f"({group})" for group in groups)


def value_text(value: Any) -> str:
    """Write a parameter, or a value of a filter, as a text."""
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def _usual(completions: pl.DataFrame, name: str) -> str:
    """Return the text that most completions have in a column; empty if there are none."""
    usual = completions[name].mode().sort()
    return str(usual[0]) if len(usual) else ""


def _output_schema(progress: Progress) -> dict[str, str]:
    """Return names and types of the output's columns, as most chunks have them."""
    text = progress.schemas.get(_usual(progress.completions, "schema"), "{}")
    return {name: str(kind) for name, kind in json.loads(text).items()}


def _versions(parts: ReportParts, attempts: Sequence[Attempt]) -> tuple[CodeVersion, ...]:
    """List the versions of the code that made the completions, oldest first."""
    commits = {attempt.code: attempt.commit for attempt in attempts if attempt.commit}
    if parts.record.origin is not None:
        commits.setdefault(parts.record.fingerprint, parts.record.origin.commit)
    done = parts.progress.completions.sort("started")
    labels: list[str] = []
    if parts.record.backfill is not None and parts.job.window is not None:
        # Chunks of other runs may be in several windows, or, with a null, in none.
        labels = windows_of_plan(parts.plan, parts.job.window.windowing())
    versions = []
    for (code,), made in done.group_by("code", maintain_order=True):
        windows = {labels[index] for index in made["index"].to_list()} if labels else set()
        name = str(code)
        versions.append(
            CodeVersion(name, commits.get(name, ""), made.height, tuple(sorted(windows)))
        )
    return tuple(versions)


def pruned_of(origin: Origin) -> Pruned | None:
    """Convert the stored figures of a planning."""
    planning = origin.planning
    if planning is None:
        return None
    return Pruned(**planning.model_dump(include={field.name for field in fields(Pruned)}))


def _inputs(plan: Plan) -> pl.DataFrame:
    """List the objects that a plan reads, with their stored sizes."""
    objects = pl.DataFrame(pl.from_arrow(plan.table("objects").select(["uri", "size"])))
    return objects.select("uri", bytes="size", rows=pl.lit(None, pl.Int64))


def _failures(progress: Progress) -> pl.DataFrame:
    """Return failed attempts, with whether their chunk is still failed."""
    final = set(progress.failed()["attempt"].to_list())
    return progress.failures.with_columns(final=pl.col("attempt").is_in(final))


def _groups(parts: ReportParts) -> MappedGroups | None:
    """Describe what was mapped over the groups of the reduced result."""
    then, pieces = parts.job.then, parts.pieces
    if then is None:
        return None
    params = {name: value_text(value) for name, value in mask(then.params).items()}
    if pieces is None:
        return MappedGroups(then.function, then.by, params)
    done = pieces.progress.completions
    return MappedGroups(
        then.function,
        then.by,
        params,
        **asdict(pieces.figures),
        bytes_out=int(done["bytes_out"].sum()),
        seconds=float(done["seconds"].sum()),
        longest=float(done.select(pl.col("seconds").max()).item() or 0.0),
        requests=run_figures.requests_of(done),
        memory=int(done.select(pl.col("memory").max()).item() or 0),
        failures=_failures(pieces.progress),
    )


def _outputs(parts: ReportParts) -> pl.DataFrame:
    """List the files that a run has made."""
    made = [_made(parts), *parts.further]
    return pl.concat([m.select("uri", bytes="bytes_out", rows="rows_out") for m in made])


def _made(parts: ReportParts) -> pl.DataFrame:
    """Return the completions of files: of chunks, merged ones, of the reduce or its groups."""
    progress, job = parts.progress, parts.job
    if job.then is not None:
        return (
            progress.reduced.head(0) if parts.pieces is None else parts.pieces.progress.completions
        )
    if job.output.merges:
        return progress.merged.unique("chunk", keep="first", maintain_order=True)
    return progress.reduced if job.reduce is not None else progress.completions


def prices_of(settings: Settings | None) -> Prices | None:
    """Return the prices of the settings; None if none is set."""
    prices = settings.prices if settings else PriceSettings()
    if not (prices.per_1000_reads or prices.per_1000_writes or prices.per_worker_hour):
        return None
    return Prices(**prices.model_dump())


def environment() -> dict[str, str]:
    """Describe the machine and the package versions that the figures depend on."""
    packages = ("prefect", "prefect-dask", "distributed", "polars", "pyarrow")
    return {
        "Python": platform.python_version(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
        **{name: _version(name) for name in packages},
    }


@cache
def _version(package: str) -> str:
    return metadata.version(package)


def fetch_report(storage: Storage, uri: str, folder: Path, run: str) -> str | None:
    """Download a run's report; return its page's path, or None if there is no report."""
    require_name(run)
    for name in ("report.json", "report.html"):
        blob = storage.get_or_none(uri.rpartition("/")[0] + "/" + name)
        if blob is None:
            return None
        local = report_folder(folder, run)
        (local / name).write_bytes(blob.data)
    return str(local / "report.html")
