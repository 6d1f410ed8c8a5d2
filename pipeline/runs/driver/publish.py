"""Publish a run, whole or by windows: choose among its completions and commit them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

import polars as pl

from partitioning.window_inputs import windows_of_plan
from pipeline.config.job import Job
from pipeline.errors import StateError, UsageError
from pipeline.quality.results import CheckResult, refused
from pipeline.runs.driver.appending import compared_since
from pipeline.runs.driver.check_stage import CheckStage, refusal, refuse
from pipeline.runs.driver.commit import abort_duplicates, files_of, vanished_duplicates
from pipeline.runs.driver.drafts import Drafting, WindowChunks, windowing_of
from pipeline.runs.driver.merge_stage import as_merged, merge_parts, merged_of
from pipeline.runs.driver.overlap import refuse_in_place
from pipeline.runs.driver.reduce_stage import drop_partials, reduced_of
from pipeline.runs.driver.schemas import check_schemas, drop_retyped, result_columns
from pipeline.runs.driver.then_stage import then_results
from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.ledger.merge_plan import MergePart
from pipeline.runs.ledger.records import Progress, RunRecord
from pipeline.storage import Storage
from pipeline.table.claims import finish_open_claim
from pipeline.table.errors import CommitsConflictError, UploadsVanishedError, foreign_claim
from pipeline.table.log import TableLog
from pipeline.table.manifest import CheckFigures, Commit, CommitEntry, Manifest, run_of
from pipeline.table.publish import (
    Published,
    amend,
    publish_all,
    refuse_released,
    released_names,
)

_RUN_AGAIN = "run the job again: the reduce is done again"
PUBLISH_ATTEMPTS = 3
"""Maximum number of times that chunks whose uploads vanished are mapped and published again."""


T = TypeVar("T")


def until_published(ledger: Ledger, attempt: Callable[[UploadsVanishedError | None], T]) -> T:
    """Map and publish a run; where staged outputs vanish, do it again with their chunks.

    Args:
        ledger: Ledger of the run.
        attempt: Maps what is left and publishes, given the error of the last attempt.

    Raises:
        UploadsVanishedError: staged outputs vanished in each of PUBLISH_ATTEMPTS attempts.
    """
    vanished: UploadsVanishedError | None = None
    for _ in range(PUBLISH_ATTEMPTS):
        try:
            return attempt(vanished)
        except UploadsVanishedError as error:
            ledger.void(error.attempts)
            if vanished is not None and vanished.commits and not error.commits:
                # The claimed commit still waits for its own attempts.
                vanished.attempts += error.attempts
            else:
                vanished = error
    assert vanished is not None, "each attempt returns or finds that uploads vanished"
    raise vanished


def publish_run(
    storage: Storage,
    ledger: Ledger,
    vanished: UploadsVanishedError | None = None,
    *,
    windows: Mapping[str, WindowChunks] | None = None,
    without_failed: bool = False,
    together: bool = False,
    table_log: TableLog | None = None,
) -> int:
    """Publish what a run has completed and not yet published.

    May be called repeatedly and by several processes: what is published is skipped, and an
    unfinished claim is finished first.

    Args:
        storage: Where the output is.
        ledger: Ledger of the run.
        vanished: Error of the last attempt, once its chunks have been mapped again.
        windows: Chunks of the windows to publish, by label: one commit per window, together in one
            manifest, so that readers see all of them or none. A window without chunks is published
            empty; in mode overwrite-partitions that empties it. Default: the whole run, as one
            commit.
        without_failed: Publish although chunks are missing; the manifest counts them, and a later
            call adds those completed since.
        together: Publish no window if one is in conflict.
        table_log: Log of the output; pass the same one again to reuse what it has read.

    Returns:
        The number of the current manifest.

    Raises:
        UploadsVanishedError: staged outputs no longer exist; map their chunks and pass this error.
        CommitsConflictError: other runs have published what this run would replace; unless
            `together`, the windows without a conflict are published.
        ForeignClaimError: another run must first map chunks of its claimed commit again.
        ChecksFailedError: checks refuse the result, or that of some windows; unless `together`,
            the other windows are published.
        SchemaChangedError: the chunks' schemas differ from each other or from files that stay in
            the output.
        UsageError: windows are given, and the job has none or a mode that replaces the output.
        ConflictError: other runs of the job have appended the same objects meanwhile.
    """
    table_log = table_log or TableLog(storage, ledger.output)
    record, job = ledger.record(), ledger.job()
    if without_failed:
        refuse_in_place(job, "a publish without failed chunks")
    rule = None if windows is None else windowing_of(record, job)
    if vanished is not None:
        ledger.void(vanished.attempts)
    progress = drop_retyped(ledger, ledger.read())
    parts, progress, windows = _with_merged(
        ledger, job, progress, windows, without_failed=without_failed
    )
    check_schemas(progress, open_columns=rule is not None)
    progress, done = _results(ledger, job, progress, parts)
    # What checks need to know was measured on the results of chunks.
    measured = progress.completions if job.output.merges else done
    drafting = Drafting(table_log, record, job, ledger.plan(), progress, done, rule, windows or {})
    publish: Callable[..., Published] = publish_all if together else _publish_without_conflicts
    columns = result_columns(progress, measured)
    checking = CheckStage(
        *(storage, ledger, table_log, ledger.checks(), record),
        files=done if job.output.merges else None,
        columns=columns,
    )
    results: dict[str | None, list[CheckResult]] = {}
    published: list[Commit] = []
    try:
        if vanished is not None:
            amend(table_log, vanished, record.run, files_of(table_log.output, done))
        manifest = finish_open_claim(table_log)
        while True:
            entries = table_log.history(manifest.number, record.base)
            released = released_names(entries, record.run)
            refuse_released(table_log, done, released)
            drafts = drafting.drafts(entries, released, without_failed=without_failed)
            checked = (measured, progress.completions if job.reduce else measured)
            drafts = _checked(checking, drafts, checked, windows, results)
            if together or rule is None:
                refuse(ledger.run, results)
            if not drafts:
                break
            if rule is None:  # Windows are compared when they are claimed.
                publish = partial(publish_all, compare=compared_since(table_log, manifest, ledger))
            result = publish(table_log, drafts, ledger.accepted(), widens=ledger.widens)
            manifest = result.manifest
            published += result.commits
    except CommitsConflictError as error:
        error.refusal = refusal(ledger.run, results)
        raise
    except UploadsVanishedError as error:
        if not error.waits_for(record.run):
            raise foreign_claim(table_log.output, error) from error
        _void_vanished(ledger, table_log, progress, error)
        raise
    finish_run(
        *(ledger, table_log, progress, manifest),
        own=[entry for entry in entries if entry.run == record.run],
        published=published,
    )
    refuse(ledger.run, results)
    return manifest.number


def check_run(storage: Storage, ledger: Ledger) -> list[CheckResult]:
    """Check the whole result of a run, all of whose chunks are done. Raises as `CheckStage`.

    A result that is published or claimed already is decided, and is not checked again.
    """
    table_log = TableLog(storage, ledger.output)
    if _is_decided(table_log, ledger.record()):
        return []
    job = ledger.job()
    parts, progress, _ = _with_merged(ledger, job, drop_retyped(ledger, ledger.read()), None)
    progress, files = _results(ledger, job, progress, parts)
    done = progress.completions if job.output.merges else files
    columns = result_columns(progress, done)
    stage = CheckStage(storage, ledger, table_log, ledger.checks(), ledger.record(), files, columns)
    return stage.results(done, progress.completions if job.reduce else done)


def _void_vanished(
    ledger: Ledger, table_log: TableLog, progress: Progress, error: UploadsVanishedError
) -> None:
    """Void the attempts that an error names, and duplicates that are gone, too.

    These would be chosen next, one after the other.
    """
    others = pl.concat([progress.duplicates, progress.merged])
    error.attempts += vanished_duplicates(table_log, others)
    ledger.void(error.attempts)


def _is_decided(table_log: TableLog, record: RunRecord) -> bool:
    """Whether a commit of the whole run is published or claimed: whoever meets it finishes it."""
    head, _ = table_log.head()
    claimed = head.publishing.commits if head.publishing is not None else ()
    entries = table_log.history(head.current, record.base)
    published = (e for e in entries if e.run == record.run and e.window is None and not e.missing)
    return any(run_of(name) == record.run for name in claimed) or any(published)


def _checked(
    checking: CheckStage,
    drafts: Sequence[Commit],
    completions: tuple[pl.DataFrame, pl.DataFrame],
    windows: Mapping[str, WindowChunks] | None,
    results: dict[str | None, list[CheckResult]],
) -> list[Commit]:
    """Check the result of each draft; return those that no check refuses, with what was found.

    Args:
        checking: Checks of the run.
        drafts: Drafts of commits.
        completions: Completions with the figures of the run's rows, and those of its chunks.
        windows: Planned chunks of each window, if the run is published by windows.
        results: Gets what the checks have found, by the label of the window.
    """
    if checking.checks.is_empty:
        return list(drafts)
    passed = []
    for draft in drafts:
        label = draft.entry.window
        if label not in results:
            files, of_chunks = completions
            stage = checking
            if windows and label is not None:
                window = windows[label]
                files, of_chunks = (_of(window.chunks, rows) for rows in completions)
                if checking.files is not None:
                    stage = replace(checking, files=_of(window.files or (), checking.files))
            results[label] = stage.results(files, of_chunks, label)
        if not refused(results[label]):
            passed.append(_with_results(draft, results[label]))
    return passed


def _with_merged(
    ledger: Ledger,
    job: Job,
    progress: Progress,
    windows: Mapping[str, WindowChunks] | None,
    *,
    without_failed: bool = False,
) -> tuple[Sequence[MergePart], Progress, Mapping[str, WindowChunks] | None]:
    """Return the parts of merge plans, and progress and windows with their files.

    Without merges there are no parts, and the others are returned as they are. Raises as
    `_merged_parts`.
    """
    if not job.output.merges:
        return (), progress, windows
    parts = _merged_parts(ledger, progress, windows, without_failed=without_failed)
    return parts, as_merged(progress, parts), _with_files(windows, parts)


def _with_files(
    windows: Mapping[str, WindowChunks] | None, parts: Sequence[MergePart]
) -> Mapping[str, WindowChunks] | None:
    """Add the ids of their merged files to windows."""
    files = {part.label: part.ids() for part in parts}
    return windows and {
        label: replace(window, files=files.get(label, [])) for label, window in windows.items()
    }


def _of(ids: Sequence[str], rows: pl.DataFrame) -> pl.DataFrame:
    """Select the completions of some chunks or files."""
    return rows.filter(pl.col("chunk").is_in(list(ids)))


def _with_results(draft: Commit, results: Sequence[CheckResult]) -> Commit:
    if not results:
        return draft
    found = [CheckFigures(r.name, r.outcome, r.message, r.figures) for r in results]
    warnings = sum(result.outcome == "warned" for result in results)
    entry = draft.entry.model_copy(update={"checks": len(found), "warnings": warnings})
    return replace(draft, entry=entry, checks=tuple(found))


def _results(
    ledger: Ledger, job: Job, progress: Progress, parts: Sequence[MergePart]
) -> tuple[Progress, pl.DataFrame]:
    """Return the completions whose files are published, and the progress with their schemas.

    They are those of chunks, of merged files, of the reduce, or of its groups.
    """
    if job.output.merges:
        return progress, merged_of(ledger, progress, parts)
    if job.then is not None:
        return then_results(ledger, progress)
    if job.reduce is None:
        return progress, progress.completions
    done = reduced_of(ledger, progress)
    if done.is_empty() and progress.completions.height:
        raise StateError(ledger.prefix, "the result of its reduce is not stored", _RUN_AGAIN)
    return progress, done


def _merged_parts(
    ledger: Ledger,
    progress: Progress,
    windows: Mapping[str, WindowChunks] | None,
    *,
    without_failed: bool = False,
) -> list[MergePart]:
    """Return the parts of merge plans that are to be published, all of whose files are merged.

    Raises:
        UsageError: files of the run, or of these windows, are not merged yet.
    """
    labels: set[str | None] = {None} if windows is None else set(windows)
    parts = [part for part in merge_parts(ledger, progress) if part.label in labels]
    # A window without chunks is published empty, and one that lacks chunks is not published.
    needed = labels - {part.label for part in parts}
    if windows is not None:
        completed = set(progress.completions["chunk"].to_list())
        needed = {w for w, c in windows.items() if w in needed and c.chunks}
        needed = {w for w in needed if completed.issuperset(windows[str(w)].chunks)}
    merged = merged_of(ledger, progress, parts)
    if not needed and merged.height == sum(len(part.indices) for part in parts):
        return parts
    reason = (
        "its files are merged from the results of all chunks, so that it cannot be published "
        "without some of them"
        if without_failed
        else "its files are not merged yet"
    )
    raise UsageError(
        f"run {ledger.run}: {reason} (output.partition_by, output.file_bytes)",
        hint=f"map what is left, and merge: chunkmap retry {ledger.run}",
    )


def _publish_without_conflicts(
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


def finish_run(
    ledger: Ledger,
    table_log: TableLog,
    progress: Progress,
    manifest: Manifest,
    *,
    own: Sequence[CommitEntry],
    published: Sequence[Commit],
) -> None:
    """Abort duplicates; once all planned chunks are published, note that, and drop partials.

    Args:
        ledger: Ledger of the run.
        table_log: Log of the output.
        progress: What the ledger has.
        manifest: The current manifest.
        own: The run's commits in it and before.
        published: Commits that were published just now.
    """
    attempts = pl.concat([progress.completions, progress.duplicates, progress.merged])
    if published:
        files = pl.concat([commit.files for commit in published])
        theirs = attempts.join(files.select("chunk"), on="chunk", how="semi")
        abort_duplicates(table_log, theirs.join(files.select("attempt"), on="attempt", how="anti"))
    if is_complete(ledger, own) and ledger.published() is None:
        _note_published(ledger, table_log, attempts, manifest, own)
    job = ledger.job()
    has_partials = job.reduce is not None or job.output.merges or not job.checks.is_empty
    if has_partials and ledger.published() is not None:
        drop_partials(table_log.storage, ledger)


def is_complete(ledger: Ledger, own: Sequence[CommitEntry]) -> bool:
    """Whether a run's commits have all planned chunks."""
    if any(entry.window is None and not entry.missing for entry in own):
        return True
    return bool(own) and published_chunks(ledger, own) >= len(ledger.plan())


def _note_published(
    ledger: Ledger,
    table_log: TableLog,
    attempts: pl.DataFrame,
    manifest: Manifest,
    own: Sequence[CommitEntry],
) -> None:
    """Record the run as published, without duplicates."""
    # A driver that published some of it may have died before it aborted duplicates.
    chosen = pl.concat([commit.files.select("attempt") for commit in table_log.load_all(own)])
    abort_duplicates(table_log, attempts.join(chosen, on="attempt", how="anti"))
    ledger.note_published(manifest.number)


def published_chunks(ledger: Ledger, commits: Sequence[CommitEntry]) -> int:
    """Count the planned chunks of a run that its commits of windows have."""
    job = ledger.job()
    if not job.output.merges or job.window is None:
        return sum(entry.files for entry in commits)
    labels = {entry.window for entry in commits if not entry.missing}
    return sum(label in labels for label in windows_of_plan(ledger.plan(), job.window.windowing()))
