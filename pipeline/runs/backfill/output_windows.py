"""Find the windows that an output has, and those that failed before, from storage alone."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress

import polars as pl

from partitioning.errors import WindowError
from partitioning.window_inputs import label_of_folder
from partitioning.windows import Windowing
from pipeline.concurrency import map_concurrently
from pipeline.config.job import Job
from pipeline.errors import StateError, UsageError
from pipeline.runs.backfill.records import BackfillRecord
from pipeline.runs.backfill.selection import OutputWindow
from pipeline.runs.backfill.store import BackfillStore
from pipeline.runs.driver.job_changes import may_have_same_rows
from pipeline.runs.ledger.ledger import Ledger
from pipeline.storage import Storage, changed_tables
from pipeline.storage.table_versions import TableVersion
from pipeline.table.log import TableLog
from pipeline.table.manifest import CommitEntry, rule_of, run_of
from pipeline.table.replay import window_label


def materialised_windows(table_log: TableLog, rule: Windowing) -> dict[str, OutputWindow]:
    """Return the newest commit of each window that the output has, by label.

    Commits of windows name their window; those that another rule has cut count only for what they
    have replaced. Windows of other runs are found by the Hive folders of their files; their
    code and input are unknown.
    """
    manifest = table_log.manifest()
    rank = {entry.name: rank for rank, entry in enumerate(manifest.commits)}
    own: dict[str, CommitEntry] = {}
    others: dict[str, CommitEntry] = {}
    for entry in manifest.commits:
        if entry.window is not None and entry.rule in ("", rule_of(rule)):
            own[entry.window] = entry
        else:
            others[entry.name] = entry
    windows = {label: OutputWindow(e.run, e.code, e.inputs) for label, e in own.items()}
    if not others:
        return windows
    missing = {entry.run: entry.missing for entry in others.values() if entry.window is None}
    files = table_log.snapshot(manifest).select("key", "commit")
    newest = {label: rank[entry.name] for label, entry in own.items()}
    for label in _emptied(own, others, set(files["commit"].unique())):
        del windows[label]
    for label, commit in _windows_by_folder(files, rule, others):
        entry = others[commit]
        # The files of a rollback are those of the windows' own commits, under other keys.
        is_copy = entry.mode == "restore" and label in windows
        counts = entry.window is None or label in own
        if rank[commit] > newest.get(label, -1) and counts and not is_copy:
            run = run_of(commit)
            windows[label] = OutputWindow(run, "", "", missing.get(run, 0))
            newest[label] = rank[commit]
    return windows


def _emptied(
    own: Mapping[str, CommitEntry], others: Mapping[str, CommitEntry], live: Collection[str]
) -> list[str]:
    """Return the windows whose own commit has no live files left, as other commits replaced them.

    Args:
        own: Newest commit of each window, by label.
        others: Commits that name no such window, by name.
        live: Names of the commits with live files.
    """
    if any(entry.mode == "restore" for entry in others.values()):
        return []  # The windows' files are those of the rollback.
    return [label for label, entry in own.items() if entry.files and entry.name not in live]


def refuse_other_rule(table_log: TableLog, rule: Windowing) -> None:
    """Refuse an output that has windows of another rule: appending could duplicate their rows.

    Raises:
        UsageError: It has.
    """
    for entry in table_log.manifest().commits:
        if entry.window is not None and entry.rule not in ("", rule_of(rule)):
            raise UsageError(
                f"{table_log.output} has windows of another rule ({entry.rule}; the job's is "
                f"{rule_of(rule)}), whose rows would be appended again",
                hint="set the job's `window` as it was, or output.mode to overwrite-partitions",
            )


def refuse_unknown_windows(table_log: TableLog, rule: Windowing, job: Job) -> None:
    """Refuse an output that has rows of the same job without their windows: which ones is unknown.

    Runs of other jobs that make the same rows count, and runs whose job is damaged.

    Args:
        table_log: Log of the output.
        rule: How the job's input is cut into windows.
        job: The job, which appends.

    Raises:
        UsageError: A run of this job has published files in folders that name no window.
    """
    manifest = table_log.manifest()
    whole = {e.name: e.run for e in manifest.commits if e.adds_files and e.window is None}
    if not whole:
        return
    files = table_log.snapshot(manifest).filter(pl.col("commit").is_in(list(whole)))
    folders = files.select(
        "commit", folder=pl.col("key").str.extract(r"(?s)^(.*)/[^/]*$", 1).fill_null("")
    ).unique()
    runs = {
        whole[commit]
        for commit, folder in folders.iter_rows()
        if window_label(rule_of(rule), folder) is None
    }
    ledgers = (Ledger(table_log.storage, table_log.output, run) for run in sorted(runs) if run)
    same = [ledger.run for ledger in ledgers if may_have_same_rows(ledger, job)]
    if same:
        raise UsageError(
            f"run {same[0]} has appended rows to {table_log.output} in folders that "
            f"do not name their windows ({rule.column}), so windows could be appended again",
            hint="append what is new in the input: chunkmap run JOB.yaml",
        )


def outdated_runs(table_log: TableLog, runs: Iterable[str]) -> frozenset[str]:
    """Select the runs that read tables which were replaced since.

    Runs whose record is damaged or missing, or names no tables, are not selected.
    """

    def tables(run: str) -> tuple[TableVersion, ...]:
        with suppress(StateError, UsageError):
            return Ledger(table_log.storage, table_log.output, run).record().tables or ()
        return ()

    names = sorted(set(runs))
    read = dict(zip(names, map_concurrently(tables, names), strict=True))
    changed = changed_tables(frozenset(table for versions in read.values() for table in versions))
    return frozenset(run for run, versions in read.items() if not changed.isdisjoint(versions))


def _windows_by_folder(
    files: pl.DataFrame, rule: Windowing, commits: Collection[str]
) -> Iterator[tuple[str, str]]:
    """Yield the window of each file of some commits, and the commit; the newest last."""
    for key, commit in files.filter(pl.col("commit").is_in(list(commits))).iter_rows():
        with suppress(WindowError):
            label = label_of_folder(rule, key.rpartition("/")[0])
            if label is not None:
                yield label, commit


def failed_before(storage: Storage, backfills: Iterable[BackfillRecord]) -> frozenset[str]:
    """Return the labels of the windows whose last attempt in an earlier backfill failed."""
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


def published_by(
    table_log: TableLog, record: BackfillRecord, windows: pl.DataFrame
) -> dict[str, CommitEntry]:
    """Return the commits of the windows that a backfill has published, even if replaced since.

    Reads only; a claimed commit that is not finished does not count.

    Args:
        table_log: Log of the output.
        record: Record of the backfill.
        windows: Windows to check (schema WINDOWS).

    Returns:
        The last commit of each window, by its label.
    """
    mapped = windows.filter(pl.col("run").is_not_null())
    wanted, runs = set(mapped["label"].to_list()), set(mapped["run"].to_list())
    ours = [entry for entry in table_log.entries(record.base) if entry.run in runs]
    return {entry.window: entry for entry in ours if entry.window and entry.window in wanted}
