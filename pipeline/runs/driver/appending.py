"""Refuse incremental plans that would duplicate or lose rows of the output.

A job that appends reads only what is new in its input. An object that was replaced, or removed and
put back, looks new too, but the output has the rows of its earlier version. And a job that
overwrites and reads only changed objects (`input.changed_only`) would drop the rows of the others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import polars as pl

from partitioning import Plan
from partitioning.model import PARTITION_PREFIX, Status
from pipeline.concurrency import map_concurrently
from pipeline.config.job import Job
from pipeline.errors import InputError
from pipeline.report.humanize import plural
from pipeline.runs.driver.job_changes import has_same_job
from pipeline.runs.ledger.keys import folders_of
from pipeline.runs.ledger.ledger import Ledger
from pipeline.table.log import TableLog
from pipeline.table.manifest import CommitEntry, Manifest
from pipeline.table.replay import window_label

MAX_NAMED = 5
"""Maximum number of objects that an error names."""


def refuse_appending_again(
    table_log: TableLog, manifest: Manifest, earlier: Iterable[Ledger], plan: Plan
) -> None:
    """Refuse a plan with objects whose rows the output already has.

    Args:
        table_log: Log of the output.
        manifest: Current manifest of the output.
        earlier: Ledgers of published runs of the same job.
        plan: Plan of what is to be appended.

    Raises:
        InputError: names these objects and what to do.
    """
    runs = {entry.run for entry in manifest.commits if entry.adds_files}
    ledgers = [ledger for ledger in earlier if ledger.run in runs]
    planned = _read_objects(plan)
    appended: dict[str, str] = {}
    plans = map_concurrently(lambda ledger: ledger.plan(), ledgers)
    for ledger, earlier_plan in zip(ledgers, plans, strict=True):
        again = planned & _read_objects(earlier_plan)
        if again:
            uris = _appended_objects(table_log, manifest, ledger, again)
            appended |= dict.fromkeys(uris, ledger.run)
    if appended:
        raise _appended_error(table_log.output, appended)


def refuse_appended_since(table_log: TableLog, manifest: Manifest, ledger: Ledger) -> None:
    """Refuse to go on with a run whose rows others have appended since it was planned.

    It is not looked at unless it appends. Windows of a backfill are compared when they are claimed.

    Args:
        table_log: Log of the output.
        manifest: Current manifest of the output.
        ledger: Ledger of the run, for this output.

    Raises:
        InputError: other runs of the same job have appended the same objects, or backfills the same
            windows.
    """
    record = ledger.record()
    if record.mode != "append" or record.backfill is not None:
        return
    entries = table_log.history(manifest.number, record.base)
    others = [entry for entry in entries if entry.adds_files and entry.run != record.run]
    if not others:
        return
    live = {entry.name for entry in manifest.commits}
    windows = [entry for entry in others if entry.window is not None and entry.name in live]
    if windows:
        _refuse_windows(table_log.output, ledger, windows)
    runs = sorted({entry.run for entry in others if entry.window is None and entry.run})
    ledgers = (Ledger(table_log.storage, table_log.output, run) for run in runs)
    job = ledger.job()
    earlier = [other for other in ledgers if has_same_job(other, job)]
    refuse_appending_again(table_log, manifest, earlier, ledger.plan())


def _refuse_windows(output: str, ledger: Ledger, windows: Sequence[CommitEntry]) -> None:
    folders = {folder.rstrip("/") for folder in folders_of(ledger.plan()).unique().to_list()}
    labels = {
        rule: {window_label(rule, folder) if rule else None for folder in folders}
        for rule in {entry.rule for entry in windows}
    }
    common = [e for e in windows if not labels[e.rule].isdisjoint((None, e.window))]
    if common:
        raise InputError(
            f"{output} has {plural(len(common), 'window')} that backfills have published since run "
            f"{ledger.run} was planned, such as {common[0].window}; it would append their rows "
            "again",
            hint="append what is missing: chunkmap backfill create JOB.yaml",
        )


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
    """Select the objects that are in chunks of a run whose files a manifest has."""
    if ledger.job().reduce is not None or ledger.job().output.merges:
        return set(uris)  # One file may have the rows of all objects.
    files = table_log.snapshot(manifest)
    ids = set(files["chunk"].to_list())
    indices = [index for index, chunk in enumerate(ledger.plan().chunk_ids) if chunk in ids]
    chunks = ledger.plan().chunks(indices)
    pairs = {(p.uri, chunk.id) for chunk in chunks for p in chunk.fragments if p.uri in uris}
    return {uri for uri, _ in pairs - _left_out(ledger, files, uris)} if pairs else set()


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


def _appended_error(output: str, appended: dict[str, str]) -> InputError:
    names = sorted(appended)
    shown = ", ".join(names[:MAX_NAMED]) + (" …" if len(names) > MAX_NAMED else "")
    runs = sorted(set(appended.values()))
    by = f"run {runs[0]}" if len(runs) == 1 else f"{len(runs)} runs"
    return InputError(
        f"{output} has rows of {plural(len(names), 'object')} of the input already, which {by} "
        "appended before they were replaced, put back or planned again; appending again would "
        f"duplicate rows: {shown}",
        hint="set output.mode to overwrite, or to overwrite-partitions if input and output have "
        "the same partitions; or restore the earlier versions of the objects, and finish what is "
        f"unfinished: chunkmap retry {runs[-1]}",
    )
