"""Runs over daily partitions that are published by windows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from partitioning import Plan, PlanRequest, inputs_of_plan, plan_dataset, windows_of_plan
from pipeline.runs.driver.drafts import WindowChunks
from pipeline.runs.driver.publish import publish_run
from pipeline.runs.ledger.ledger import Ledger
from pipeline.storage import Storage, StorageReader
from pipeline.table.errors import UploadsVanishedError
from pipeline.table.log import TableLog
from tests.support.memory_storage import MemoryBackend
from tests.support.runs_by_hand import INPUT, OUTPUT, Run, job_of, parquet

RULE = {"column": "ds", "grain": "day"}


def days(*numbers: int, month: int = 1) -> list[str]:
    """Labels of days of January."""
    return [f"2024-{month:02d}-{number:02d}" for number in numbers]


def daily(labels: Iterable[str], chunks: int = 2, rows: int = 2, column: str = "ds") -> Plan:
    """A plan of so many chunks for each day (or other value)."""
    backend = MemoryBackend()
    for rank, label in enumerate(labels):
        for number in range(chunks):
            data = parquet((rank * chunks + number) * rows, rows)
            backend.put(f"{INPUT}{column}={label}/{number}.parquet", data)
    reader = StorageReader(Storage({"s3": backend}))
    return plan_dataset(PlanRequest(INPUT, per_file=True), reader).plan


def windowed_run(
    storage: Storage,
    plan: Plan,
    mode: str = "overwrite-partitions",
    code: str = "code",
    *,
    rule: Mapping[str, str] = RULE,
    output: str = OUTPUT,
) -> Run:
    """A run of a job with windows, on top of what is current."""
    job = job_of(mode, output, window=dict(rule))
    base = TableLog(storage, output).head()[0].current
    return Run(storage, Ledger.create(storage, job, plan, code, base), plan)


def windows_of(run: Run) -> dict[str, list[str]]:
    """The ids of the chunks of each window of a run."""
    rule = run.ledger.job().window
    assert rule is not None
    found: dict[str, list[str]] = {}
    labels = windows_of_plan(run.plan, rule.windowing())
    for chunk, label in zip(run.plan.chunk_ids, labels, strict=True):
        found.setdefault(label, []).append(chunk)
    return found


def chunks_of_windows(windows: Mapping[str, list[str]]) -> dict[str, WindowChunks]:
    """Windows as `publish_run` takes them, without digests of their inputs."""
    return {label: WindowChunks(chunks) for label, chunks in windows.items()}


def publish_days(
    run: Run,
    *labels: str,
    vanished: UploadsVanishedError | None = None,
    without_failed: bool = False,
) -> int | None:
    """Publish some windows of a run (all, by default) that are complete.

    Returns the number of the new manifest; None if there was nothing to publish.
    """
    windows = windows_of(run)
    rule = run.ledger.job().window
    assert rule is not None
    inputs = {w: i.digest for w, i in inputs_of_plan(run.plan, rule.windowing()).items()}
    chosen = {
        label: WindowChunks(windows.get(label, []), inputs.get(label, ""))
        for label in labels or windows
    }
    before = TableLog(run.storage, run.ledger.output).head()[0].current
    number = publish_run(
        run.storage, run.ledger, vanished, windows=chosen, without_failed=without_failed
    )
    return number if number != before else None


def complete(run: Run, *labels: str) -> None:
    """Map some windows of a run (all, by default)."""
    windows = windows_of(run)
    ids = {chunk for label in labels or windows for chunk in windows[label]}
    indices = [index for index, chunk in enumerate(run.plan.chunk_ids) if chunk in ids]
    if indices:
        run.complete(*indices)


def published_days(
    backend: MemoryBackend,
    labels: Iterable[str],
    mode: str = "overwrite-partitions",
    code: str = "code",
) -> Run:
    """A run of some days, mapped and published."""
    run = windowed_run(backend.storage(), daily(labels), mode, code)
    complete(run)
    publish_days(run)
    return run


def vanish(backend: MemoryBackend, *attempts: str) -> None:
    """Delete the uploads of some attempts, as a lifecycle rule does."""
    for upload, (_, _, attempt) in list(backend.uploads.items()):
        if attempt in attempts:
            del backend.uploads[upload]


def folders_of(files: Iterable[str]) -> dict[str, int]:
    """Number of files in each folder."""
    counts: dict[str, int] = {}
    for key in sorted(files):
        folder = key.rpartition("/")[0]
        counts[folder] = counts.get(folder, 0) + 1
    return counts


def entries(backend: MemoryBackend) -> list[tuple[str | None, str, int]]:
    """(window, run, files) of each commit of the current manifest."""
    manifest = TableLog(backend.storage(), OUTPUT).manifest()
    return [(entry.window, entry.run, entry.files) for entry in manifest.commits]
