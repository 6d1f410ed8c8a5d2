"""What the output holds of each window, and what failed before: from storage alone."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

import polars as pl

from partitioning.errors import WindowError
from partitioning.window_inputs import label_of_folder
from partitioning.windows import Windowing
from pipeline.concurrency import map_concurrently
from pipeline.errors import StateError, UsageError
from pipeline.runs.backfill.records import BackfillRecord
from pipeline.runs.backfill.selection import OutputWindow
from pipeline.runs.backfill.store import BackfillStore
from pipeline.runs.ledger.ledger import Ledger
from pipeline.storage import Storage, changed_tables
from pipeline.storage.table_versions import TableVersion
from pipeline.table.log import TableLog
from pipeline.table.manifest import run_of


def held_windows(table_log: TableLog, rule: Windowing) -> dict[str, OutputWindow]:
    """The newest commit of each window that the output holds, by label.

    Commits of windows say so themselves. What ordinary runs have published is told by the Hive
    folders of its files: of which code and input it is made is not known.
    """
    manifest = table_log.manifest()
    held: dict[str, OutputWindow] = {}
    if any(entry.window is None for entry in manifest.commits):
        held |= _by_folders(table_log, rule)
    for entry in manifest.commits:
        if entry.window is not None:
            held[entry.window] = OutputWindow(entry.run, entry.code, entry.inputs)
    return held


def outdated_runs(table_log: TableLog, runs: Iterable[str]) -> frozenset[str]:
    """Those of some runs that have read tables which were replaced since.

    A run whose record is damaged or gone says nothing, nor does one of before tables were noted.
    """

    def tables(run: str) -> tuple[TableVersion, ...]:
        with suppress(StateError, UsageError):
            return Ledger(table_log.storage, table_log.output, run).record().tables or ()
        return ()

    names = sorted(set(runs))
    read = dict(zip(names, map_concurrently(tables, names), strict=True))
    now = changed_tables(frozenset(one for versions in read.values() for one in versions))
    return frozenset(run for run, versions in read.items() if not now.isdisjoint(versions))


def _by_folders(table_log: TableLog, rule: Windowing) -> dict[str, OutputWindow]:
    held: dict[str, OutputWindow] = {}
    files = table_log.snapshot(table_log.manifest()).select("key", "commit")
    for key, commit in files.iter_rows():
        with suppress(WindowError):
            label = label_of_folder(rule, key.rpartition("/")[0])
            if label is not None:
                held[label] = OutputWindow(run_of(commit), "", "")
    return held


def failed_before(storage: Storage, backfills: Iterable[BackfillRecord]) -> frozenset[str]:
    """Labels of the windows that failed when an earlier backfill last tried them."""
    failed: set[str] = set()
    for record in backfills:
        progress = BackfillStore(storage, record.output, record.backfill).progress()
        if progress is None:
            continue
        for label, state in progress.select("label", "state").iter_rows():
            if state == "failed":
                failed.add(label)
            elif state == "done":
                failed.discard(label)
    return frozenset(failed)


def published_by(table_log: TableLog, record: BackfillRecord, windows: pl.DataFrame) -> set[str]:
    """Which of some windows runs of a backfill have published, whatever came over them since.

    Reads only; a commit that somebody has claimed and not finished does not count.

    Args:
        table_log: Of the output.
        record: The backfill.
        windows: Those to look for (schema WINDOWS).
    """
    mapped = windows.filter(pl.col("run").is_not_null())
    wanted, runs = set(mapped["label"].to_list()), set(mapped["run"].to_list())
    ours = [entry for entry in table_log.entries(record.base) if entry.run in runs]
    return {entry.window for entry in ours if entry.window is not None} & wanted
