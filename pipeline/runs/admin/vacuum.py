"""Vacuum an output: abort abandoned uploads, move orphan files away, delete expired versions.

Files of the current manifest, of the next one and of kept versions are never deleted. Orphan files
are first moved to `orphaned/`, and deleted by a later vacuum.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from pipeline.errors import UsageError
from pipeline.runs.driver.publish import is_complete
from pipeline.runs.driver.reduce_stage import drop_partials
from pipeline.runs.ledger.find import find_runs
from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.ledger.records import RunRecord
from pipeline.storage import StagedObject, Storage
from pipeline.table.claims import finish_claim, finish_open_claim, finish_or_release
from pipeline.table.keys import run_of_key
from pipeline.table.log import TableLog
from pipeline.table.manifest import Manifest, run_of
from pipeline.table.publish import commits_of
from pipeline.table.retention import expire_orphans, expire_replaced, move_orphans, unnamed_keys


@dataclass(frozen=True, slots=True)
class VacuumResult:
    """What a vacuum removed, or would remove."""

    output: str
    uploads: int
    """Number of staged outputs aborted."""
    replaced: int
    """Number of files deleted: of expired versions, and old files of `orphaned/`."""
    strays: tuple[str, ...]
    """URIs of orphan files (of known runs, in no manifest), moved to `orphaned/`."""
    spared: tuple[str, ...]
    """Ids of unfinished runs whose staged outputs were kept."""
    dry_run: bool
    table: str = ""
    """Format of the table that the output is, whose older versions keep their files."""


def vacuum(
    storage: Storage,
    output: str,
    *,
    older_than: float = 7 * 86400.0,
    dry_run: bool = False,
    discard: Iterable[str] = (),
    others: Mapping[str, bool] | None = None,
) -> VacuumResult:
    """Abort abandoned uploads, and move or delete files that no manifest names.

    Args:
        storage: Where the output is.
        output: URI of the output prefix.
        older_than: Minimum age of what is removed, in seconds.
        dry_run: Only count what would be removed.
        discard: Ids of unfinished runs whose staged outputs are aborted too.
        others: Whether each of the output's writers that are no runs, such as ingests, is finished,
            by id.
    """
    table_log = TableLog(storage, output)
    manifest = finish_open_claim(table_log)
    # Before the runs: those that begin from here on have staged none of these.
    staged, latest = _staged(table_log), time.time() - older_than
    runs = find_runs(storage, table_log.output)
    records, discarded, others = runs.records, set(discard), others or {}
    # A damaged run may be unfinished: keep its staged outputs.
    unfinished = [
        record.run
        for record in records
        if Ledger(storage, record.output, record.run).published() is None
    ] + list(runs.damaged)
    finished = [record.run for record in records] + [run for run, ended in others.items() if ended]
    unfinished += [run for run, ended in others.items() if not ended]
    spared = [run for run in unfinished if run not in discarded]
    uploads = [
        item
        for item in staged
        if (run := run_of_key(item.uri)) not in spared
        and (run in discarded or item.created < latest)
    ]
    orphans = _orphans(table_log, manifest, {*finished, *discarded}.difference(spared))
    replaced = expire_replaced(table_log, manifest, dry_run=dry_run)
    replaced += expire_orphans(table_log, older_than, dry_run=dry_run)
    if not dry_run:
        storage.abort(uploads)
        _drop_partials(storage, [record for record in records if record.run not in spared])
        move_orphans(table_log, [uri.removeprefix(table_log.output) for uri in orphans])
    return VacuumResult(
        output=table_log.output,
        uploads=len(uploads),
        replaced=replaced,
        strays=tuple(orphans),
        spared=tuple(spared),
        dry_run=dry_run,
        table=manifest.table,
    )


def discard_run(storage: Storage, ledger: Ledger) -> int:
    """Abort everything that a run has staged, for all its outputs; return the number of uploads.

    What a driver that died had begun to publish is published first (see `settle_run`).

    Raises:
        UsageError, UploadsVanishedError, StateError: as `settle_run`; nothing was aborted.
    """
    settle_run(storage, ledger)
    return sum(_discard(storage, each) for each in ledger.of_outputs())


def settle_run(storage: Storage, ledger: Ledger) -> None:
    """Finish what a driver had begun to publish of a run; refuse a run that is published.

    Claims of other runs are left alone. A claim that cannot be finished is given up, unless the run
    has several outputs: it may be published to some of them already.

    Raises:
        UsageError: the run is published.
        UploadsVanishedError, StateError: the claim on one of several outputs cannot be finished.
    """
    outputs = ledger.of_outputs()
    logs = [TableLog(storage, each.output) for each in outputs]
    for table_log in logs:
        head, etag = table_log.head()
        names = head.publishing.commits if head.publishing is not None else ()
        if any(run_of(name) == ledger.run for name in names):
            finish = finish_claim if len(outputs) > 1 else finish_or_release
            finish(table_log, head, etag)
    done = [
        each.output
        for each, table_log in zip(outputs, logs, strict=True)
        if is_complete(each, commits_of(table_log, each.run, each.record().base))
    ]
    if done:
        raise UsageError(
            f"run {ledger.run} is published to {', '.join(done)}: its driver had begun to publish "
            "it",
            hint=f"to take it back, roll back: {'; '.join(f'chunkmap rollback {u}' for u in done)}",
        )


def _discard(storage: Storage, ledger: Ledger) -> int:
    progress = ledger.read()
    table_log = TableLog(storage, ledger.output)
    uploads = [item for item in _staged(table_log) if run_of_key(item.uri) == ledger.run]
    storage.abort(uploads)
    drop_partials(storage, ledger)
    ledger.void(progress.completions["attempt"].to_list())
    return len(uploads)


def _drop_partials(storage: Storage, records: Iterable[RunRecord]) -> None:
    """Delete partial results of runs that need none: published ones, and discarded ones."""
    for record in records:
        drop_partials(storage, Ledger(storage, record.output, record.run))


def _staged(table_log: TableLog) -> list[StagedObject]:
    return table_log.storage.staged_under(table_log.output, table_log.state + "staged/")


def _orphans(table_log: TableLog, manifest: Manifest, runs: Collection[str]) -> list[str]:
    """List published files of known runs that neither the current manifest nor a claim names."""
    orphans = [
        table_log.output + key
        for key in sorted(unnamed_keys(table_log, manifest))
        if run_of_key(key) in runs
    ]
    head, _ = table_log.head()
    if head.publishing is not None or head.current != manifest.number:
        return []  # A publish is in progress and may name them; leave them to the next vacuum.
    return orphans
