"""Publishing a run by windows: each is a commit of its own, any number of them one manifest."""

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
from pipeline.runs.driver.publish import check_schemas, columns_of_run, settled
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
    """Publish those of a run's windows that are complete, together, in one manifest.

    Of all windows of a run at once it is all or nothing for readers of the manifest. It may be
    called again and again, by several processes: what is published is not published again, and a
    claim that somebody left behind is finished first.

    Args:
        storage: Where.
        ledger: Of the run, whose job has a `window`.
        windows: Ids of the planned chunks of each window, by its label (see
            `partitioning.windows_of_plan`). A window without any chunk is published empty; in mode
            overwrite-partitions that empties it.
        inputs: Digest of each window's objects (see `partitioning.inputs_of_plan`).
        vanished: What the last call said, once its chunks have been mapped again.
        without_failed: Publish also windows that lack chunks; the manifest says how many, and a
            later call adds those that have come since.
        together: Publish none of them if one is in conflict.
        table_log: Of the output; one that is used again has less to read.

    Returns:
        The manifest's number, or None if there was nothing to publish.

    Raises:
        UploadsVanishedError: some chunks are left again; map them, then call this with it.
        CommitsConflictError: other runs have published the windows that it names since this run
            began; unless `together`, the others are published.
        ForeignClaimError: another run must map its own vanished chunks before anybody can publish.
        SchemaChangedError: the chunks' schemas differ, or files that stay in the output have other
            columns.
        UsageError: the job has no windows, or its mode is one that windows cannot have.
    """
    table_log = table_log or TableLog(storage, ledger.output)
    record, job = ledger.record(), ledger.job()
    rule = _rule(record, job)
    if vanished is not None:
        ledger.void(vanished.attempts)
    progress = settled(ledger, ledger.read())
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
        # With the duplicates that would be chosen next, and be found gone one after the other.
        error.attempts += vanished_duplicates(table_log, progress.duplicates)
        ledger.void(error.attempts)
        raise
    _end(table_log, ledger, record, progress, published)
    return None if published is None else published.manifest.number


def _refuse_open_columns(progress: Progress, drafts: Sequence[Commit]) -> None:
    """Raise SchemaChangedError where some windows would lack a type that others of them have."""
    chunks = {chunk for draft in drafts for chunk in draft.files["chunk"].to_list()}
    done = progress.completions.filter(pl.col("chunk").is_in(list(chunks)))
    check_schemas(replace(progress, completions=done))


def _rule(record: RunRecord, job: Job) -> Windowing:
    if job.window is None:
        raise UsageError(
            f"the job of run {record.run} has no windows",
            hint="name their column and grain in the job: window: {column: ds, grain: day}",
        )
    if record.mode == "overwrite":
        raise UsageError(
            f"run {record.run} cannot be published by windows: in mode overwrite each would "
            "replace the others",
            hint="set output.mode to overwrite-partitions",
        )
    return job.window.windowing()


def in_window(rule: Windowing, *labels: str) -> Callable[[str], bool]:
    """Return what tells whether an object is in one of these windows."""
    return lambda uri: window_label(rule_of(rule), uri.rpartition("/")[0]) in labels


@dataclass(frozen=True, slots=True)
class _Drafting:
    """Makes commits of what is done and not published yet."""

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
        found = []
        # The run may have been published as a whole too, as far as it was done.
        whole = [commit.files for commit in self.table_log.load_all(earlier.pop(None, []))]
        published = {chunk for files in whole for chunk in files["chunk"].to_list()}
        done = self._by_window(windows)
        for label, chunks in windows.items():
            own = done.get(label, self.progress.completions.head(0))
            missing = set(chunks) - set(own["chunk"].to_list())
            before = earlier.get(label, [])
            # Read only where something may be left: most windows are published whole, and once.
            if (missing and not without_failed) or (before and not before[-1].missing):
                continue
            commits = [self.table_log.load(entry) for entry in before]
            already = published.union(*(commit.files["chunk"].to_list() for commit in commits))
            own = own.filter(~pl.col("chunk").is_in(list(already)))
            if own.is_empty() and (before or not already.isdisjoint(chunks)):
                continue
            window = CommitWindow(label, self.rule, inputs.get(label, ""))
            found.append(
                draft_commit(
                    self.record,
                    own,
                    sorted(missing),
                    commits,
                    self.job.output.keep_versions,
                    window=window,
                    released=self.released,
                    columns=columns_of_run(self.progress, own),
                    hive_types=self.job.input.hive_types,
                    left_out=left_out_of(
                        self.job,
                        self.record,
                        self.plan,
                        own,
                        in_window(self.rule, label) if not commits else lambda uri: False,
                    ),
                )
            )
        return found

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
    """Publish what is in no conflict; then tell what is."""
    lost: list[CommitEntry] = []
    told: CommitsConflictError | None = None
    while True:
        names = {entry.name for entry in lost}
        left = [draft for draft in drafts if draft.entry.name not in names]
        try:
            if left:
                published = publish_all(table_log, left, accepted, widens=widens)
            break
        except CommitsConflictError as error:
            told = told or error
            lost += [draft.entry for draft in left if draft.entry.name in error.commits]
    if told is not None:
        raise CommitsConflictError(told.message, lost) from told
    return published


def _end(
    table_log: TableLog,
    ledger: Ledger,
    record: RunRecord,
    progress: Progress,
    published: Published | None,
) -> None:
    """Abort what was not chosen; once every planned chunk is published, note that."""
    known = pl.concat([progress.completions, progress.duplicates])
    if published is not None:
        files = pl.concat([commit.files for commit in published.commits])
        theirs = known.join(files.select("chunk"), on="chunk", how="semi")
        abort_duplicates(table_log, theirs.join(files.select("attempt"), on="attempt", how="anti"))
    entries = commits_of(table_log, record.run, record.base)
    if sum(entry.files for entry in entries) < record.chunks or ledger.published() is not None:
        return
    # Somebody who published some of them may have died before it came to their duplicates.
    chosen = pl.concat([commit.files.select("attempt") for commit in table_log.load_all(entries)])
    abort_duplicates(table_log, known.join(chosen, on="attempt", how="anti"))
    number = published.manifest.number if published else table_log.head()[0].current
    ledger.note_published(number)
