"""Vacuum: abort abandoned uploads, move orphan files away, delete versions that are not kept.

Nothing is deleted that the current manifest, the one after it, or a kept version names. Orphans are
moved beside the output first, and deleted by a later vacuum.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.runs.ledger.find import find_runs
from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.ledger.records import RunRecord
from pipeline.storage import StagedObject, Storage
from pipeline.table.claims import finish_open_claim
from pipeline.table.keys import run_of_key
from pipeline.table.log import TableLog
from pipeline.table.manifest import Manifest
from pipeline.table.retention import expire_orphans, expire_replaced, move_orphans


@dataclass(frozen=True, slots=True)
class VacuumResult:
    """What was cleaned up, or would be."""

    output: str
    uploads: int
    """Staged outputs that were aborted."""
    replaced: int
    """Files deleted: of versions that are no longer kept, and orphans moved away long ago."""
    strays: tuple[str, ...]
    """Files of known runs that no manifest names: moved to `orphaned/` beside the output."""
    spared: tuple[str, ...]
    """Unfinished runs whose staged work was left alone."""
    dry_run: bool


def vacuum(
    storage: Storage,
    output: str,
    *,
    older_than: float = 7 * 86400.0,
    dry_run: bool = False,
    discard: Iterable[str] = (),
) -> VacuumResult:
    """Abort abandoned uploads and remove what no manifest names.

    Args:
        storage: Where.
        output: URI of the output prefix.
        older_than: Seconds; younger uploads are left alone.
        dry_run: Only say what would be done.
        discard: Ids of unfinished runs whose staged work is given up too.
    """
    table_log = TableLog(storage, output)
    manifest = finish_open_claim(table_log)
    found = find_runs(storage, table_log.output)
    records, given_up = found.records, set(discard)
    unfinished = [
        one for one in records if Ledger(storage, one.output, one.run).published() is None
    ]
    # Of a damaged one it cannot be told whether it is finished: its staged work is left alone.
    runs = [one.run for one in unfinished] + list(found.damaged)
    spared = [run for run in runs if run not in given_up]
    uploads = _abandoned(table_log, spared, given_up, older_than)
    orphans = _orphans(table_log, manifest, records, spared)
    replaced = expire_replaced(table_log, manifest, dry_run=dry_run)
    replaced += expire_orphans(table_log, older_than, dry_run=dry_run)
    if not dry_run:
        storage.abort(uploads)
        move_orphans(table_log, [uri.removeprefix(table_log.output) for uri in orphans])
    return VacuumResult(
        output=table_log.output,
        uploads=len(uploads),
        replaced=replaced,
        strays=tuple(orphans),
        spared=tuple(spared),
        dry_run=dry_run,
    )


def discard_run(storage: Storage, ledger: Ledger) -> int:
    """Abort everything that a run has staged; returns the number of uploads."""
    progress = ledger.read()
    table_log = TableLog(storage, ledger.output)
    uploads = _abandoned(table_log, [], {ledger.run}, 0.0)
    uploads = [one for one in uploads if run_of_key(one.uri) == ledger.run]
    storage.abort(uploads)
    ledger.void(progress.completions["attempt"].to_list())
    return len(uploads)


def _abandoned(
    table_log: TableLog, spared: list[str], given_up: set[str], older_than: float
) -> list[StagedObject]:
    staged = table_log.storage.staged_under(table_log.output, table_log.state + "staged/")
    latest = time.time() - older_than
    return [
        one
        for one in staged
        if (run := run_of_key(one.uri)) not in spared and (run in given_up or one.created < latest)
    ]


def _orphans(
    table_log: TableLog, manifest: Manifest, records: list[RunRecord], spared: list[str]
) -> list[str]:
    """Visible files of our own naming that neither the current manifest nor a claim names."""
    named = set(table_log.keys(manifest.commits))
    ours = {record.run for record in records} - set(spared)
    found = [
        info.uri
        for info in table_log.storage.objects(table_log.output)
        if info.uri.removeprefix(table_log.output) not in named and run_of_key(info.uri) in ours
    ]
    head, _ = table_log.head()
    if head.publishing is not None or head.current != manifest.number:
        return []  # They are being published just now; the next one sees.
    return found
