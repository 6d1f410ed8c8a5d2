"""What a driver does around the mapping: liveness, publishing, reporting. Knows no engine."""

from __future__ import annotations

import logging
import os
import platform
import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson
import polars as pl
from pydantic import BaseModel, ConfigDict, FiniteFloat

from partitioning.model import Skipped
from pipeline.concurrency import map_concurrently
from pipeline.config.job import Job
from pipeline.errors import RunFailedError, SchemaChangedError, StateError
from pipeline.processes import start_time
from pipeline.report.render import render_html, render_json, render_markdown
from pipeline.report.run_model import Phase, RunInfo, RunReport
from pipeline.runs.driver.commit import LeftOut, abort_spares, draft_commit, files_of, gone_spares
from pipeline.runs.driver.map_stage import MapProgress, OutputFacts
from pipeline.runs.driver.quarantine import left_out_of
from pipeline.runs.driver.reduce_stage import drop_partials, reduced_of
from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.ledger.records import PARTIAL, Progress, RunRecord
from pipeline.runs.worker.null_types import agreed_types, odd_attempts
from pipeline.storage import Storage
from pipeline.storage.documents import Moment, parse_stored, report_folder, seal_json
from pipeline.storage.outages import advisory
from pipeline.table.claims import settle
from pipeline.table.column_types import has_nulls, merged
from pipeline.table.columns import Columns, Difference, differences, stored_columns
from pipeline.table.errors import UploadsVanishedError
from pipeline.table.log import Catalog
from pipeline.table.publish import amend, commits_of, publish, refuse_released, released_names
from pipeline.table.schemas import types_of_output

log = logging.getLogger(__name__)

_NEWLINE = "\n"
HEARTBEAT_SECONDS = 15.0
"""How often a driver says that it is alive; silent for four of them, it counts as gone."""
_RUN_AGAIN = "run the job again: the reduce is done again"
PUBLISH_TRIES = 3
"""How often chunks whose uploads vanished are mapped again before giving up."""


class DriverRecord(BaseModel):
    """Who drives a run, and how far it is. Advisory: nothing depends on it."""

    model_config = ConfigDict(extra="ignore")

    driver: str
    host: str
    pid: int
    process_started: FiniteFloat
    """Start time of the process, as `pipeline.processes` tells it: pids are used again."""
    started: Moment
    seen: Moment
    """Unix seconds of the last sign of life."""
    state: str = "running"
    """running, done, failed or interrupted."""
    rounds: int = 0
    batches: int = 0
    phases: list[tuple[str, Moment, FiniteFloat]] = []
    """(name, started, seconds) of each finished phase."""
    flow_run: str | None = None
    """Its page in Prefect's UI."""
    progress: dict[str, Any] = {}


@dataclass(slots=True)
class Driver:
    """Keeps `driver.json` of one run up to date."""

    storage: Storage
    uri: str
    record: DriverRecord
    _written: float = field(default=0.0)

    @classmethod
    def of(cls, storage: Storage, prefix: str, flow_run: str | None = None) -> Driver:
        """A driver of this process, of the run (or backfill) whose state is under a prefix."""
        now = time.time()
        record = DriverRecord(
            driver=uuid.uuid4().hex,
            host=socket.gethostname(),
            pid=os.getpid(),
            process_started=start_time(os.getpid()) or 0.0,
            started=now,
            seen=now,
            flow_run=flow_run,
        )
        return cls(storage, prefix + "driver.json", record)

    def saw(self, progress: MapProgress) -> None:
        """Note progress; written only when a sign of life is due."""
        self.record.rounds = progress.round
        self.record.batches = progress.batches
        self.record.progress = {
            "done": progress.done,
            "failed": progress.failed,
            "chunks": progress.chunks,
            "rows_in": progress.rows_in,
            "rows_out": progress.rows_out,
            "bytes_in": progress.bytes_in,
            "bytes_out": progress.bytes_out,
        }
        if time.time() - self._written >= HEARTBEAT_SECONDS:
            with advisory():
                self.write()

    def write(self, state: str | None = None) -> None:
        """Write the record now."""
        self._written = self.record.seen = time.time()
        self.record.state = state or self.record.state
        self.storage.put(self.uri, seal_json(self.record.model_dump_json().encode()))

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a phase."""
        started = time.time()
        try:
            yield
        finally:
            self.record.phases.append((name, started, time.time() - started))


def read_driver(storage: Storage, prefix: str) -> DriverRecord | None:
    """Who drove a run (or backfill) last, if anybody did and it can be told.

    Nothing depends on it: of a record that is damaged, or that another release wrote otherwise,
    nobody is known to drive.

    Args:
        storage: Where.
        prefix: URI of the state of the run or backfill.
    """
    uri = prefix + "driver.json"
    blob = storage.get_if_there(uri)
    try:
        return None if blob is None else parse_stored(DriverRecord, blob.data, uri)
    except StateError as error:
        log.warning("%s; nobody is taken to drive", error)
        return None


@dataclass(frozen=True, slots=True)
class RunSummary:
    """What a run came to, in figures."""

    run: str
    job: str
    state: str
    """done or failed."""
    output: str
    manifest: int | None
    chunks: int
    mapped: int
    """Chunks that this driver mapped; the rest was done before."""
    failed: int
    batches: int
    rounds: int
    rows_in: int
    rows_out: int
    bytes_in: int
    bytes_out: int
    seconds: float
    """Of this driver."""
    report: str
    """URI of the HTML page; empty while there is none."""
    local_report: str
    notes: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    """One line for each sort of failure."""
    left_out: int = 0
    """Objects that could not be read, and are left out."""
    quarantine: tuple[str, ...] = ()
    """Where the records of those in quarantine are, once the run is published."""


class RunIncompleteError(RunFailedError):
    """Some chunks failed: nothing was published, and all that is done is kept.

    Attributes:
        summary: The run's figures.
    """

    def __init__(self, summary: RunSummary) -> None:
        super().__init__(
            f"run {summary.run} ended with {summary.failed:,} of {summary.chunks:,} chunks failed; "
            "nothing was published, all finished work is kept",
            hint="mend the cause and run the job again: only the failed chunks are mapped "
            "(--accept-code goes on with a transform that you have changed)",
        )
        self.summary = summary


def publish_run(
    storage: Storage,
    ledger: Ledger,
    vanished: UploadsVanishedError | None = None,
    *,
    without_failed: bool = False,
) -> int:
    """Publish what a run has completed and not published; returns the manifest's number.

    Args:
        storage: Where.
        ledger: Of the run.
        vanished: What the last try said, once its chunks have been mapped again.
        without_failed: Publish although chunks are missing; the manifest lists them, and a later
            call adds just those that have come since.

    Raises:
        UploadsVanishedError: some chunks are left again; map them, then call this with it.
        SchemaChangedError: the chunks' schemas differ, or files that stay in the output have other
            columns.
    """
    catalog, record, job = Catalog(storage, ledger.output), ledger.record(), ledger.job()
    if vanished is not None:
        ledger.void(vanished.attempts)
    progress = settled(ledger, ledger.read())
    check_schemas(progress)
    done = reduced_of(ledger, progress) if job.reduce else progress.completions
    if job.reduce and done.is_empty() and progress.completions.height:
        raise StateError(ledger.prefix, "the result of its reduce is not stored", _RUN_AGAIN)
    try:
        while True:
            if vanished is not None:
                amend(catalog, vanished, record.run, files_of(catalog.output, done))
            manifest = settle(catalog)
            released = released_names(catalog, record.run, record.base)
            refuse_released(catalog, done, released)
            earlier = [catalog.known(e) for e in commits_of(catalog, record.run, record.base)]
            rest = done
            for commit in earlier:
                rest = rest.join(commit.files.select("chunk"), on="chunk", how="anti")
            missing = _missing(ledger, progress)
            assert without_failed or not missing, "only a complete run is published"
            if rest.is_empty() and earlier:
                break
            draft = draft_commit(
                record,
                rest,
                missing,
                earlier,
                job.output.keep_versions,
                released=released,
                columns=columns_of_run(progress, rest),
                hive_types=job.input.hive_types,
                left_out=_left_out(ledger, record, progress, rest, is_first=not earlier),
            )
            publish(catalog, draft, ledger.accepted(), widens=ledger.widens)
    except UploadsVanishedError as error:
        # Together with spares that would be chosen next, and found gone one try after the other.
        error.attempts += gone_spares(catalog, progress.spares)
        ledger.void(error.attempts)
        raise
    chosen = pl.concat([commit.files.select("attempt") for commit in earlier])
    known = pl.concat([progress.completions, progress.spares])
    abort_spares(catalog, known.join(chosen, on="attempt", how="anti"))
    if not missing:
        ledger.note_published(manifest.number)
        if job.reduce:
            drop_partials(storage, ledger)
    return manifest.number


def _left_out(
    ledger: Ledger, record: RunRecord, progress: Progress, done: pl.DataFrame, *, is_first: bool
) -> LeftOut:
    """What a commit of a run goes without; what planning could not read is told by the first."""
    job = ledger.job()
    # One file of a reduce has the rows of all chunks.
    of_chunks = progress.completions if job.reduce else done
    return left_out_of(job, record, ledger.plan(), of_chunks, lambda uri: is_first)


def _missing(ledger: Ledger, progress: Progress) -> list[str]:
    done = set(progress.completions["chunk"].to_list())
    return [chunk for chunk in ledger.plan().chunk_ids if chunk not in done]


def settled(ledger: Ledger, progress: Progress) -> Progress:
    """What a ledger says once chunks that were mapped again for a type count with that alone."""
    odd = odd_attempts(progress, agreed_types(progress))
    known = pl.concat([progress.completions, progress.spares])
    others = known.join(odd, on="attempt", how="anti")
    replaced = odd.join(others, on="chunk", how="semi")
    # A partial counts as a whole: none of it, unless all of it was mapped again.
    kept = odd.join(replaced, on="attempt", how="anti").filter(pl.col("upload") == PARTIAL)
    replaced = replaced.join(kept, on="uri", how="anti")
    if replaced.is_empty():
        return progress
    ledger.set_aside(replaced["attempt"].to_list())
    return ledger.read()


def check_schemas(progress: Progress, open_columns: bool = False) -> None:
    """Raise SchemaChangedError when chunks came out with different columns or types.

    The order of columns is no difference: files are read by name.

    Args:
        progress: Of the run.
        open_columns: Let columns pass that hold nothing but nulls in some chunks.
    """
    counts = progress.completions.group_by("schema").agg(pl.len(), pl.col("index").min())
    if counts.height < 2:
        return
    types = {digest: progress.schemas.get(digest, "{}") for digest in counts["schema"]}
    typed = {digest: not has_nulls(text) for digest, text in types.items()}
    counts = counts.with_columns(typed=pl.col("schema").replace_strict(typed))
    *others, usual = counts.sort("typed", "len", "schema").iter_rows(named=True)
    ours = orjson.loads(types[usual["schema"]])
    # What needs a change comes first; nulls need none.
    for odd in reversed(others):
        found = differences(orjson.loads(types[odd["schema"]]), ours)
        if open_columns:
            found = [one for one in found if not _is_open(one)]
        if found:
            raise _odd_schema(odd, usual, found)


def _is_open(one: Difference) -> bool:
    return one.held is not None and one.new is not None and merged(one.held, one.new) is not None


def _odd_schema(
    odd: dict[str, Any], usual: dict[str, Any], found: Sequence[Difference]
) -> SchemaChangedError:
    said = ", ".join(map(str, found))
    return SchemaChangedError(
        f"the transform returned another schema on {odd['len']} chunks (such as chunk "
        f"{odd['index']}) than on the other {usual['len']}: {said}",
        hint="run the job again: chunks of nothing but nulls then take the others' types"
        if all(map(_is_open, found))
        else "cast these columns in the transform, then run the job with --replan",
    )


def facts_of_output(job: Job, record: RunRecord, catalog: Catalog) -> OutputFacts:
    """What a run needs to know of its output while it is mapped."""

    def types() -> Columns:
        # What is reduced has other columns than its chunks; what is replaced has no say.
        keeps = job.output.mode in ("append", "overwrite-partitions") and job.reduce is None
        return types_of_output(catalog) if keeps else {}

    def published() -> list[str]:
        commits = catalog.all_known(commits_of(catalog, record.run, record.base))
        return [chunk for commit in commits for chunk in commit.files["chunk"].to_list()]

    return OutputFacts(types, published)


def columns_of_run(progress: Progress, done: pl.DataFrame) -> Columns:
    """The columns of the files of some completions, which are alike (see `check_schemas`)."""
    first = done.head(1)
    if first.is_empty():
        return {}
    text = progress.schemas.get(first["schema"][0], "")
    return stored_columns(text, first["uri"][0].rpartition("/")[0])


def failure_lines(failed: pl.DataFrame) -> tuple[str, ...]:
    """One line for each sort of error among the last failures (schema FAILURES)."""
    groups = failed.group_by("error", maintain_order=True).agg(
        pl.len(), pl.col("message").first(), pl.col("index").first()
    )
    return tuple(
        f"{row['len']} chunks: {row['error']}: {row['message'].partition(_NEWLINE)[0]} "
        f"(chunk {row['index']}, say)"
        for row in groups.sort("len", descending=True).iter_rows(named=True)
    )


@dataclass(frozen=True, slots=True)
class StoredReport:
    """Where a report is, and its short form."""

    uri: str
    path: str
    """Of the local copy."""
    markdown: str


def store_report(
    storage: Storage, ledger: Ledger, driver: DriverRecord, state: str, folder: Path
) -> StoredReport:
    """Make a run's report, store it beside the run's state, and keep a copy here."""
    job, progress = ledger.job(), ledger.read()
    report = report_of(ledger.record(), job, progress, driver, state)
    if job.input.on_bad_object != "fail":
        not_counted = (*report.not_counted, *_skipped(ledger.plan().skipped))
        report = replace(report, not_counted=not_counted)
    html, said = render_html(report), render_json(report)
    bodies = {"report.html": html, "report.json": said}
    map_concurrently(
        lambda name: storage.put(ledger.prefix + name, bodies[name].encode()), list(bodies)
    )
    local = report_folder(folder, ledger.run)
    (local / "report.html").write_text(html)
    (local / "report.json").write_text(said)
    uri = ledger.prefix + "report.html"
    return StoredReport(uri, str(local / "report.html"), render_markdown(report, uri))


def _skipped(skipped: Sequence[Skipped]) -> Iterator[str]:
    """A sentence about the objects that planning could not read, if there are any."""
    if skipped:
        yield (
            f"{len(skipped):,} objects are not readable Parquet and are left out "
            f"(input.on_bad_object), such as {skipped[0].uri}: {skipped[0].reason}"
        )


def report_of(
    record: RunRecord, job: Job, progress: Progress, driver: DriverRecord, state: str
) -> RunReport:
    """What the report is made from."""
    final = set(progress.failed()["attempt"].to_list())
    return RunReport(
        run=RunInfo(
            id=record.run,
            job=record.job,
            input=" ".join(job.input.uri),
            output=record.output,
            mode=record.mode,
            transform=record.transform,
            fingerprint=record.fingerprint,
            state=state,  # type: ignore[arg-type]
            chunks_planned=record.chunks,
            rows_planned=record.rows,
            created=record.created,
            started=driver.started,
            finished=time.time(),
            rounds=driver.rounds,
            environment=environment(),
            tables={table.uri: table.label for table in record.tables or ()},
            prefect_url=driver.flow_run,
            resume_command=None if state == "done" else "chunkmap run JOB.yaml",
        ),
        completions=pl.concat([progress.completions, progress.spares]),
        failures=progress.failures.with_columns(final=pl.col("attempt").is_in(final)),
        phases=tuple(Phase(*phase) for phase in driver.phases),
        not_counted=(*progress.problems, *progress.left_out()),
    )


def environment() -> dict[str, str]:
    """What the figures depend on."""
    packages = ("prefect", "prefect-dask", "distributed", "polars", "pyarrow")
    return {
        "Python": platform.python_version(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
        **{name: version(name) for name in packages},
    }
