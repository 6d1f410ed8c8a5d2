"""Publish a run window by window: one commit per window, several commits per manifest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import polars as pl

from partitioning import Plan, Windowing
from pipeline.config.job import Job
from pipeline.errors import UsageError
from pipeline.runs.driver.commit import (
    CommitWindow,
    abort_duplicates,
    draft_commit,
    files_of,
    vanished_duplicates,
)
from pipeline.runs.driver.publish import check_schemas, columns_of_run, drop_retyped
from pipeline.runs.driver.quarantine import left_out_of
from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.ledger.records import Progress, RunRecord
from pipeline.storage import Storage
from pipeline.table.claims import finish_open_claim
from pipeline.table.errors import CommitsConflictError, UploadsVanishedError, foreign_claim
from pipeline.table.log import TableLog
from pipeline.table.manifest import Commit, CommitEntry, rule_of
from pipeline.table.publish import (
    Published,
    amend,
    commits_of,
    publish_all,
    refuse_released,
    released_names,
)
from pipeline.table.replay import window_label


def publish_windows(
    storage: Storage,
    ledger: Ledger,
    windows: Mapping[str, Sequence[str]],
    inputs: Mapping[str, str] | None = None,
    vanished: UploadsVanishedError | None = None,
    *,
    without_failed: bool = False,
    together: bool = False,
    table_log: TableLog | None = None,
) -> int | None:
    """Publish the complete windows of a run together, in one manifest.

    Readers of the manifest see all of these windows or none. May be called repeatedly and by
    several processes: published windows are skipped, and an unfinished claim is finished first.

    Args:
        storage: Where the output is.
        ledger: Ledger of the run, whose job has a `window`.
        windows: Ids of the planned chunks of each window, by its label (see
            `partitioning.windows_of_plan`). A window without chunks is published empty; in mode
            overwrite-partitions that empties it.
        inputs: Digest of each window's objects (see `partitioning.inputs_of_plan`).
        vanished: Error of the last call, once its chunks have been mapped again.
        without_failed: Publish also windows that lack chunks; the manifest counts them, and a later
            call adds those completed since.
        together: Publish no window if one is in conflict.
        table_log: Log of the output; pass the same one again to reuse what it has read.

    Returns:
        The manifest's number, or None if there was nothing to publish.

    Raises:
        UploadsVanishedError: staged outputs no longer exist; map their chunks and pass this error.
        CommitsConflictError: other runs have published the named windows since this run began;
            unless `together`, the other windows are published.
        ForeignClaimError: another run must first map chunks of its claimed commit again.
        SchemaChangedError: the chunks' schemas differ from each other or from files that stay in
            the output.
        UsageError: the job has no windows, or a mode that cannot be published by windows.
    """
    table_log = table_log or TableLog(storage, ledger.output)
    record, job = ledger.record(), ledger.job()
    rule = _rule(record, job)
    if vanished is not None:
        ledger.void(vanished.attempts)
    progress = drop_retyped(ledger, ledger.read())
    check_schemas(progress, open_columns=True)
    published = None
    try:
        if vanished is not None:
            amend(table_log, vanished, record.run, files_of(table_log.output, progress.completions))
        finish_open_claim(table_log)
        released = released_names(table_log, record.run, record.base)
        refuse_released(table_log, progress.completions, released)
        drafting = _Drafting(table_log, record, job, rule, progress, ledger.plan(), released)
        drafts = drafting.drafts(windows, inputs or {}, without_failed=without_failed)
        _refuse_open_columns(progress, drafts)
        if drafts:
            publish = publish_all if together else _publish
            published = publish(table_log, drafts, ledger.accepted(), widens=ledger.widens)
    except UploadsVanishedError as error:
        if not error.waits_for(record.run):
            raise foreign_claim(table_log.output, error) from error
        # Also void duplicates that are gone: they would be chosen next, one after the other.
        error.attempts += vanished_duplicates(table_log, progress.duplicates)
        ledger.void(error.attempts)
        raise
    _finish(table_log, ledger, record, progress, published)
    return None if published is None else published.manifest.number


def _refuse_open_columns(progress: Progress, drafts: Sequence[Commit]) -> None:
    """Raise SchemaChangedError if a column is all null in some of these windows, not in others."""
    chunks = {chunk for draft in drafts for chunk in draft.files["chunk"].to_list()}
    done = progress.completions.filter(pl.col("chunk").is_in(list(chunks)))
    check_schemas(replace(progress, completions=done))


def _rule(record: RunRecord, job: Job) -> Windowing:
    if job.window is None:
        raise UsageError(
            f"the job of run {record.run} has no windows",
            hint="add their column and grain to the job: window: {column: ds, grain: day}",
        )
    if record.mode == "overwrite":
        raise UsageError(
            f"run {record.run} cannot be published by windows: in mode overwrite, windows would "
            "replace each other",
            hint="set output.mode to overwrite-partitions",
        )
    return job.window.windowing()


def in_window(rule: Windowing, *labels: str) -> Callable[[str], bool]:
    """Return a function that tells whether an object is in one of these windows."""
    return lambda uri: window_label(rule_of(rule), uri.rpartition("/")[0]) in labels


@dataclass(frozen=True, slots=True)
class _Drafting:
    """Drafts commits of completed windows that are not published yet."""

    table_log: TableLog
    record: RunRecord
    job: Job
    rule: Windowing
    progress: Progress
    plan: Plan
    released: Sequence[str]
    """Names of commits of the run that a repair has released."""

    def drafts(
        self,
        windows: Mapping[str, Sequence[str]],
        inputs: Mapping[str, str],
        *,
        without_failed: bool,
    ) -> list[Commit]:
        earlier: dict[str | None, list[CommitEntry]] = {}
        for entry in commits_of(self.table_log, self.record.run, self.record.base):
            earlier.setdefault(entry.window, []).append(entry)
        drafts = []
        # The run may also have been published as a whole, without its failed chunks.
        whole = [commit.files for commit in self.table_log.load_all(earlier.pop(None, []))]
        published = {chunk for files in whole for chunk in files["chunk"].to_list()}
        done = self._by_window(windows)
        for label, chunks in windows.items():
            completions = done.get(label, self.progress.completions.head(0))
            missing = set(chunks) - set(completions["chunk"].to_list())
            entries = earlier.get(label, [])
            # Skip windows that are published in full, as most are, without reading their commits.
            if (missing and not without_failed) or (entries and not entries[-1].missing):
                continue
            commits = [self.table_log.load(entry) for entry in entries]
            already = published.union(*(commit.files["chunk"].to_list() for commit in commits))
            completions = completions.filter(~pl.col("chunk").is_in(list(already)))
            if completions.is_empty() and (entries or not already.isdisjoint(chunks)):
                continue
            window = CommitWindow(label, self.rule, inputs.get(label, ""))
            drafts.append(
                draft_commit(
                    self.record,
                    completions,
                    sorted(missing),
                    commits,
                    self.job.output.keep_versions,
                    window=window,
                    released=self.released,
                    columns=columns_of_run(self.progress, completions),
                    hive_types=self.job.input.hive_types,
                    left_out=left_out_of(
                        self.job,
                        self.record,
                        self.plan,
                        completions,
                        in_window(self.rule, label) if not commits else lambda uri: False,
                    ),
                )
            )
        return drafts

    def _by_window(self, windows: Mapping[str, Sequence[str]]) -> dict[str, pl.DataFrame]:
        owner = pl.DataFrame(
            {
                "chunk": [chunk for chunks in windows.values() for chunk in chunks],
                "window": [label for label, chunks in windows.items() for _ in chunks],
            },
            schema={"chunk": pl.String, "window": pl.String},
        )
        joined = self.progress.completions.join(
            owner, on="chunk", how="inner", maintain_order="left"
        )
        parts = joined.partition_by("window", as_dict=True, include_key=False)
        return {str(label): part for (label,), part in parts.items()}


def _publish(
    table_log: TableLog, drafts: list[Commit], accepted: int, *, widens: Callable[[], bool]
) -> Published:
    """Publish all drafts without a conflict, then raise for the rest."""
    lost: list[CommitEntry] = []
    conflict: CommitsConflictError | None = None
    while True:
        names = {entry.name for entry in lost}
        left = [draft for draft in drafts if draft.entry.name not in names]
        try:
            if left:
                published = publish_all(table_log, left, accepted, widens=widens)
            break
        except CommitsConflictError as error:
            conflict = conflict or error
            lost += [draft.entry for draft in left if draft.entry.name in error.commits]
    if conflict is not None:
        raise CommitsConflictError(conflict.message, lost) from conflict
    return published


def _finish(
    table_log: TableLog,
    ledger: Ledger,
    record: RunRecord,
    progress: Progress,
    published: Published | None,
) -> None:
    """Abort duplicates, and record the run as published once all its planned chunks are."""
    attempts = pl.concat([progress.completions, progress.duplicates])
    if published is not None:
        files = pl.concat([commit.files for commit in published.commits])
        theirs = attempts.join(files.select("chunk"), on="chunk", how="semi")
        abort_duplicates(table_log, theirs.join(files.select("attempt"), on="attempt", how="anti"))
    entries = commits_of(table_log, record.run, record.base)
    if sum(entry.files for entry in entries) < record.chunks or ledger.published() is not None:
        return
    # A driver that published some of the windows may have died before it aborted duplicates.
    chosen = pl.concat([commit.files.select("attempt") for commit in table_log.load_all(entries)])
    abort_duplicates(table_log, attempts.join(chosen, on="attempt", how="anti"))
    number = published.manifest.number if published else table_log.head()[0].current
    ledger.note_published(number)
