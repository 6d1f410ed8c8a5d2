"""Refuse incremental plans that would duplicate or lose rows of the output.

A job that appends reads only what is new in its input. An object that was replaced, or removed and
put back, looks new too, but the output has the rows of its earlier version. And a job that
overwrites and reads only changed objects (`input.changed_only`) would drop the rows of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import polars as pl

from partitioning import Plan
from partitioning.model import PARTITION_PREFIX, Status
from pipeline.concurrency import map_concurrently
from pipeline.config.job import Job
from pipeline.errors import ConflictError, InputError, ObjectMissingError, StateError
from pipeline.report.humanize import plural
from pipeline.runs.driver.job_changes import may_have_same_rows, stored_job
from pipeline.runs.ledger.keys import folders_of
from pipeline.runs.ledger.ledger import Ledger
from pipeline.table.log import TableLog
from pipeline.table.manifest import CommitEntry, Manifest
from pipeline.table.replay import window_label

MAX_NAMED = 5
"""Maximum number of objects that an error names."""


def refuse_appending_again(
    table_log: TableLog, manifest: Manifest, job: Job, plan: Plan, run: str
) -> None:
    """Refuse a plan with objects whose rows the output already has.

    Args:
        table_log: Log of the output.
        manifest: Current manifest of the output.
        job: The job, which appends.
        plan: Plan of what is to be appended.
        run: Id of the run.

    Raises:
        InputError: names these objects and what to do.
    """
    others = (entry for entry in manifest.commits if entry.run != run)
    appended = _appended(table_log, manifest, others, job, plan)
    if appended:
        raise InputError(
            _appended_text(table_log.output, appended),
            hint="set output.mode to overwrite, or to overwrite-partitions if input and output "
            "have the same partitions; or restore the earlier versions of the objects, and finish "
            f"what is unfinished: chunkmap retry {max(appended.values())}",
        )


def refuse_appended_since(table_log: TableLog, manifest: Manifest, ledger: Ledger) -> None:
    """Refuse to go on with a run if other runs of its job have appended its objects since.

    A run that does not append is not looked at.

    Args:
        table_log: Log of the output.
        manifest: Current manifest of the output.
        ledger: Ledger of the run, for this output.

    Raises:
        ConflictError: names these objects.
    """
    others = [e for e in _others_since(table_log, manifest, ledger) if e.window is None]
    if not others:
        return
    appended = _appended(table_log, manifest, others, ledger.job(), ledger.plan())
    if appended:
        raise ConflictError(
            _appended_text(table_log.output, appended),
            hint="append what is new in the input: chunkmap run JOB.yaml",
        )


def compared_since(
    table_log: TableLog, manifest: Manifest, ledger: Ledger
) -> Callable[[Manifest], None]:
    """Compare a run with a manifest, and return what compares it with later ones.

    Others may publish until it is claimed. Arguments and errors as of `refuse_appended_since`.
    """
    refuse_appended_since(table_log, manifest, ledger)

    def compare(current: Manifest) -> None:
        if current.number != manifest.number:
            refuse_appended_since(table_log, current, ledger)

    return compare


def refuse_windows_since(table_log: TableLog, manifest: Manifest, ledger: Ledger) -> None:
    """Refuse to go on with a run if backfills have appended its windows since.

    A publish would find out, too, after everything is mapped. Arguments as above.

    Raises:
        ConflictError: names one of these windows.
    """
    live = {entry.name for entry in manifest.commits}
    others = _others_since(table_log, manifest, ledger)
    windows = [entry for entry in others if entry.window is not None and entry.name in live]
    if not windows:
        return
    folders = {folder.rstrip("/") for folder in folders_of(ledger.plan()).unique().to_list()}
    labels = {
        rule: {window_label(rule, folder) if rule else None for folder in folders}
        for rule in {entry.rule for entry in windows}
    }
    common = [e for e in windows if not labels[e.rule].isdisjoint((None, e.window))]
    if common:
        raise ConflictError(
            f"{table_log.output} has {plural(len(common), 'window')} that backfills have published "
            f"since run {ledger.run} was planned, such as {common[0].window}; it would append "
            "their rows again",
            hint="append what is missing: chunkmap backfill create JOB.yaml",
        )


def _others_since(table_log: TableLog, manifest: Manifest, ledger: Ledger) -> list[CommitEntry]:
    """Return the commits of others since a run that appends was planned, or planned again."""
    record = ledger.record()
    if record.mode != "append" or manifest.number == record.base:
        return []
    base = max(record.base, ledger.accepted())
    entries = table_log.history(manifest.number, base)
    return [entry for entry in entries if entry.adds_files and entry.run != record.run]


def _appended(
    table_log: TableLog, manifest: Manifest, others: Iterable[CommitEntry], job: Job, plan: Plan
) -> dict[str, str]:
    """Return the planned objects whose rows a manifest has, each with the run that added them.

    Args:
        table_log: Log of the output.
        manifest: The manifest.
        others: Commits of other runs, which may have been replaced since.
        job: The job of the plan.
        plan: The plan.
    """
    live = {entry.name for entry in manifest.commits}
    runs = {e.run for e in others if e.adds_files and e.run and e.name in live}
    ledgers = [Ledger(table_log.storage, table_log.output, run) for run in sorted(runs)]
    planned = _read_objects(plan)
    appended: dict[str, str] = {}
    again = map_concurrently(lambda ledger: _planned_again(ledger, job, planned), ledgers)
    for ledger, uris in zip(ledgers, again, strict=True):
        if uris:
            present = _appended_objects(table_log, manifest, ledger, uris)
            appended |= dict.fromkeys(present, ledger.run)
    return appended


def _planned_again(ledger: Ledger, job: Job, planned: set[str]) -> set[str]:
    """Select the objects of a plan whose rows an earlier run may have made.

    Args:
        ledger: Ledger of the earlier run. Where it is damaged, all that it may have read counts.
        job: The job of the plan.
        planned: The objects of the plan.
    """
    if not may_have_same_rows(ledger, job):
        return set()
    try:
        return planned & _read_objects(ledger.plan())
    except (StateError, ObjectMissingError):
        return planned


def refuse_losing_rows(job: Job, plan: Plan) -> None:
    """Refuse to overwrite rows of objects that the plan leaves out as unchanged.

    Raises:
        InputError: the job would overwrite such rows.
    """
    table = plan.table("objects")
    status = table["status"].to_pylist()
    if job.output.mode not in ("overwrite", "overwrite-partitions") or not len(plan):
        return
    parts = [_NO_PARTITION] * len(status)
    names = [name for name in table.column_names if name.startswith(PARTITION_PREFIX)]
    if job.output.mode == "overwrite-partitions" and names and not job.output.partition_by:
        parts = list(zip(*(table[name].to_pylist() for name in names), strict=True))
    replaced = {part for part, state in zip(parts, status, strict=True) if state == Status.PLANNED}
    lost = [
        uri
        for uri, part, state in zip(table["uri"].to_pylist(), parts, status, strict=True)
        if state == Status.UNCHANGED and part in replaced
    ]
    if lost:
        raise InputError(
            f"with input.changed_only, mode {job.output.mode} would drop the rows of {len(lost):,} "
            f"unchanged objects of the input, such as {lost[0]}",
            hint="remove input.changed_only, so that the unchanged objects are mapped too"
            + ("" if job.window is None else "; or: chunkmap backfill create --reprocess changed"),
        )


_NO_PARTITION: tuple[object, ...] = ()


def _read_objects(plan: Plan) -> set[str]:
    """Return the URIs of the objects that a plan's chunks read."""
    table = plan.table("objects").select(["uri", "status"]).to_pydict()
    pairs = zip(table["uri"], table["status"], strict=True)
    return {uri for uri, status in pairs if status == Status.PLANNED}


def _appended_objects(
    table_log: TableLog, manifest: Manifest, ledger: Ledger, uris: Collection[str]
) -> set[str]:
    """Select the objects that are in chunks of a run whose files a manifest has.

    Where the run's state is damaged, all of them are.
    """
    stored = stored_job(ledger)
    if stored is None or stored.reduce is not None or stored.output.merges:
        return set(uris)  # One file may have the rows of all objects.
    files = table_log.snapshot(manifest)
    try:
        ids = set(files["chunk"].to_list())
        indices = [index for index, chunk in enumerate(ledger.plan().chunk_ids) if chunk in ids]
        chunks = ledger.plan().chunks(indices)
        pairs = {(p.uri, chunk.id) for chunk in chunks for p in chunk.fragments if p.uri in uris}
        return {uri for uri, _ in pairs - _left_out(ledger, files, uris)} if pairs else set()
    except (StateError, ObjectMissingError):
        return set(uris)


def _left_out(ledger: Ledger, files: pl.DataFrame, uris: Collection[str]) -> set[tuple[str, str]]:
    """Return the unreadable objects that some files lack, each with the file's chunk."""
    if ledger.job().input.on_bad_object == "fail":
        return set()
    progress = ledger.read()
    completions = pl.concat([progress.completions, progress.duplicates])
    published = completions.join(files.select("attempt"), on="attempt", how="semi")
    rows = published.select("chunk", "left_out").iter_rows()
    pairs = {(named.partition("\t")[0], chunk) for chunk, left_out in rows for named in left_out}
    return {(uri, chunk) for uri, chunk in pairs if uri in uris}


def _appended_text(output: str, appended: dict[str, str]) -> str:
    names = sorted(appended)
    shown = ", ".join(names[:MAX_NAMED]) + (" …" if len(names) > MAX_NAMED else "")
    runs = sorted(set(appended.values()))
    by = f"run {runs[0]}" if len(runs) == 1 else f"{len(runs)} runs"
    return (
        f"{output} has rows of {plural(len(names), 'object')} of the input already, which {by} "
        "appended before they were replaced, put back or planned again; appending again would "
        f"duplicate rows: {shown}"
    )
