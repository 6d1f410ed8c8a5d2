"""Make the report of a run from its ledger; store it with the run's state and on this machine."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import polars as pl

from partitioning.model import Skipped
from pipeline.concurrency import map_concurrently
from pipeline.config.job import Job
from pipeline.report.render import render_html, render_json, render_markdown
from pipeline.report.run_model import Phase, RunInfo, RunReport
from pipeline.runs.driver.heartbeat import DriverRecord
from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.ledger.records import Progress, RunRecord
from pipeline.storage import Storage
from pipeline.storage.documents import report_folder, require_name


@dataclass(frozen=True, slots=True)
class StoredReport:
    """Locations of a report, and its short form."""

    uri: str
    path: str
    """Path of the local copy."""
    markdown: str


def store_report(
    storage: Storage, ledger: Ledger, driver: DriverRecord, state: str, folder: Path
) -> StoredReport:
    """Make a run's report, store it with the run's state, and keep a local copy."""
    job, progress = ledger.job(), ledger.read()
    report = report_of(ledger.record(), job, progress, driver, state)
    if job.input.on_bad_object != "fail":
        not_counted = (*report.not_counted, *_skipped(ledger.plan().skipped))
        report = replace(report, not_counted=not_counted)
    bodies = {"report.html": render_html(report), "report.json": render_json(report)}
    map_concurrently(
        lambda name: storage.put(ledger.prefix + name, bodies[name].encode()), list(bodies)
    )
    local = report_folder(folder, ledger.run)
    for name, body in bodies.items():
        (local / name).write_text(body)
    uri = ledger.prefix + "report.html"
    return StoredReport(uri, str(local / "report.html"), render_markdown(report, uri))


def _skipped(skipped: Sequence[Skipped]) -> Iterator[str]:
    """Describe the objects that planning could not read, if there are any."""
    if skipped:
        yield (
            f"{len(skipped):,} objects are not readable Parquet and are left out "
            f"(input.on_bad_object), such as {skipped[0].uri}: {skipped[0].reason}"
        )


def report_of(
    record: RunRecord, job: Job, progress: Progress, driver: DriverRecord, state: str
) -> RunReport:
    """Collect the data of a run's report."""
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
        completions=pl.concat([progress.completions, progress.duplicates]),
        failures=progress.failures.with_columns(final=pl.col("attempt").is_in(final)),
        phases=tuple(Phase(*phase) for phase in driver.phases),
        not_counted=(*progress.problems, *progress.left_out()),
    )


def environment() -> dict[str, str]:
    """Describe the machine and the package versions that the figures depend on."""
    packages = ("prefect", "prefect-dask", "distributed", "polars", "pyarrow")
    return {
        "Python": platform.python_version(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
        **{name: version(name) for name in packages},
    }


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
