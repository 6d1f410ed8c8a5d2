"""Expire the state of old runs and backfills: plans, completions and reports that nothing needs.

The record of a run stays, with its job and the manifest that published it, so that the same job
submitted again is the same run. The table log (manifests, commits) is not touched.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from partitioning import ObjectInfo
from pipeline.concurrency import map_concurrently
from pipeline.runs.backfill.records import BackfillRecord
from pipeline.runs.backfill.store import BackfillStore, backfills_of
from pipeline.runs.driver.heartbeat import read_driver
from pipeline.runs.driver.session import is_driven_elsewhere
from pipeline.runs.ledger.find import find_runs
from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.ledger.records import RunRecord
from pipeline.storage import Storage
from pipeline.table.claims import finish_open_claim
from pipeline.table.log import TableLog
from pipeline.table.retention import kept_versions

KEPT_OF_RUN = (
    *("run.json", "job.yaml", "published.json", "accepted.json", "widen.json"),
    "expired.json",
)
"""Objects of an expired run that stay: what it was, and that it is published."""
EXPIRED_OF_BACKFILL = ("plan.arrow", "report.html", "report.json")
"""Objects of an ended backfill that expire; its windows and their progress stay."""
_LEFT = ("waiting", "mapping", "staged", "failed")


@dataclass(frozen=True, slots=True)
class StateVacuumResult:
    """What was expired, or would be."""

    output: str
    runs: tuple[str, ...]
    """Ids of the runs whose state was deleted."""
    backfills: tuple[str, ...]
    objects: int
    bytes: int
    needed: tuple[str, ...]
    """Ids of old runs that the current version or a kept one needs."""
    unfinished: tuple[str, ...]
    """Ids of old runs and backfills that are not finished."""
    dry_run: bool


def vacuum_state(
    storage: Storage,
    output: str,
    *,
    older_than: float,
    dry_run: bool = False,
    local: Path | None = None,
    now: float | None = None,
) -> StateVacuumResult:
    """Delete the state of runs and backfills that ended long ago, if no version needs it.

    Args:
        storage: Where the output is.
        output: URI of the output prefix.
        older_than: Minimum age in seconds, since the end of its last driver.
        dry_run: Only count what would be deleted.
        local: Folder of local state, whose copies of reports are deleted too.
        now: Unix seconds that ages are counted to; default now.
    """
    table_log = TableLog(storage, output)
    finish_open_claim(table_log)
    latest = (time.time() if now is None else now) - older_than
    old = [run for run in find_runs(storage, table_log.output).records if run.created < latest]
    ended = map_concurrently(partial(_ended, storage), old)
    old = [run for run, at in zip(old, ended, strict=True) if at is not None and at < latest]
    needed = needed_runs(table_log)
    published = map_concurrently(lambda run: _ledger(storage, run).published() is not None, old)
    unfinished = [run.run for run, is_over in zip(old, published, strict=True) if not is_over]
    free = [run for run in old if run.run not in needed and run.run not in unfinished]
    runs = {run.run: _expirable(storage, run) for run in free}
    backfills, open_backfills = _backfills(storage, table_log.output, latest)
    found = {name: objects for name, objects in (runs | backfills).items() if objects}
    if not dry_run:
        for run in free:
            if run.run in found:
                _ledger(storage, run).mark_expired()
        uris = [info.uri for objects in found.values() for info in objects]
        map_concurrently(storage.delete, uris)
        _delete_local(local, found)
    return StateVacuumResult(
        output=table_log.output,
        runs=tuple(name for name in found if name in runs),
        backfills=tuple(name for name in found if name in backfills),
        objects=sum(map(len, found.values())),
        bytes=sum(info.size for objects in found.values() for info in objects),
        needed=tuple(run.run for run in old if run.run in needed and run.run not in unfinished),
        unfinished=(*unfinished, *open_backfills),
        dry_run=dry_run,
    )


def needed_runs(table_log: TableLog) -> frozenset[str]:
    """Return the runs whose commits are in the current version or in one that is kept."""
    current = table_log.manifest()
    oldest = max(1, current.number - kept_versions(current))
    numbers = range(oldest, current.number + 1) if current.number else range(0)
    manifests = map_concurrently(table_log.manifest, numbers)
    return frozenset(entry.run for manifest in manifests for entry in manifest.commits)


def _ledger(storage: Storage, run: RunRecord) -> Ledger:
    return Ledger(storage, run.output, run.run)


def _ended(storage: Storage, run: RunRecord) -> float | None:
    """Return when a run was last driven, in Unix seconds; None while it is."""
    driver = read_driver(storage, Ledger(storage, run.first_output, run.run).prefix)
    if is_driven_elsewhere(driver, ""):
        return None
    return max(run.created, driver.seen if driver is not None else 0.0)


def _expirable(storage: Storage, run: RunRecord) -> list[ObjectInfo]:
    prefix = _ledger(storage, run).prefix
    listed = storage.objects(prefix)
    return [info for info in listed if info.uri.removeprefix(prefix) not in KEPT_OF_RUN]


def _backfills(
    storage: Storage, output: str, latest: float
) -> tuple[dict[str, list[ObjectInfo]], list[str]]:
    """List what expires of each old backfill, and the old ones that are not finished."""
    expired: dict[str, list[ObjectInfo]] = {}
    unfinished = []
    for record in backfills_of(storage, output):
        if record.created >= latest:
            continue
        store = BackfillStore(storage, record.output, record.backfill)
        ended = _backfill_ended(store, record)
        if ended is None:
            unfinished.append(record.backfill)
        elif ended < latest:
            uris = {store.prefix + name for name in EXPIRED_OF_BACKFILL}
            listed = storage.objects(store.prefix)
            expired[record.backfill] = [info for info in listed if info.uri in uris]
    return expired, unfinished


def _backfill_ended(store: BackfillStore, record: BackfillRecord) -> float | None:
    """Return when a backfill ended, in Unix seconds; None if it is not done and not cancelled."""
    driver = store.driver()
    if is_driven_elsewhere(driver, ""):
        return None
    is_done = driver is not None and not any(driver.progress.get(name, 1) for name in _LEFT)
    if not is_done and not store.control().cancelled:
        return None
    return max(record.created, driver.seen if driver is not None else 0.0)


def _delete_local(folder: Path | None, names: Collection[str]) -> None:
    """Delete the local copies of reports."""
    reports: Sequence[Path] = [] if folder is None else [folder / "reports" / n for n in names]
    for report in reports:
        shutil.rmtree(report, ignore_errors=True)
