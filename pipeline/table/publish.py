"""Publishing: freeze the choice, claim, make visible, write the manifest, move the pointer.

It only rolls forward. Whoever meets a claim finishes it first, and finishing twice changes
nothing; so a driver may die between any two requests and any other one goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import polars as pl

from pipeline.concurrency import map_concurrently
from pipeline.errors import (
    AlreadyExistsError,
    OutputNotEmptyError,
    PreconditionFailedError,
    UsageError,
)
from pipeline.storage import require_conditional_writes
from pipeline.table.claims import (
    claimed_commits,
    finish,
    settle,
    staged_of,
    vanished_from,
)
from pipeline.table.errors import (
    CommitsConflictError,
    UploadsVanishedError,
    foreign_claim,
)
from pipeline.table.keys import run_of_key
from pipeline.table.log import TableLog
from pipeline.table.manifest import Claim, Commit, CommitEntry, Head, Manifest, run_of
from pipeline.table.replay import Footprint, may_meet
from pipeline.table.retention import (
    claimed_files,
    kept_versions,
    locate,
    move_orphans,
    move_replaced,
    orphans_among,
    visible_keys,
)
from pipeline.table.schemas import Addition, refuse_other_columns


@dataclass(frozen=True, slots=True)
class Published:
    """What publishing came to."""

    manifest: Manifest
    already: bool
    """It had been published before."""
    commits: tuple[Commit, ...] = ()
    """The records as they were frozen: they may name other attempts than the drafts did."""


def prepare_output(table_log: TableLog, mode: str, run: str) -> Manifest:
    """Look at the output before a run: finish what others began, refuse what cannot work.

    Args:
        table_log: Of the output.
        mode: Of the job.
        run: The run that wants to publish there.

    Returns:
        The current manifest.

    Raises:
        OutputNotEmptyError: it holds what no manifest names, or, in mode `error`, anything that
            another run published.
        UsageError: two drivers could not be kept apart there.
    """
    _, etag = table_log.head()
    if etag is not None:  # Somebody's claim may have to be finished below.
        require_conditional_writes(table_log.storage, table_log.output)
    manifest = _prepare(table_log, mode, run)
    if etag is None:  # What is refused above is left as it was found, without a note.
        require_conditional_writes(table_log.storage, table_log.output)
    return manifest


def _prepare(table_log: TableLog, mode: str, run: str) -> Manifest:
    manifest, own = _settled_but_own(table_log, run)
    others = [entry for entry in manifest.commits if entry.adds_files and entry.run != run]
    # A run that has published is done, whoever came after it and whether it was noted or not.
    if mode == "error" and others and not commits_of(table_log, run, 0):
        raise OutputNotEmptyError(
            f"{table_log.output} already holds {sum(e.files for e in others)} files of run "
            f"{others[0].run}, and the mode is `error`",
            hint="choose another output, or set output.mode to append or overwrite",
        )
    unknown = _unknown_files(table_log, manifest, own)
    if not unknown:
        return manifest
    head, _ = table_log.head()
    if head.current != manifest.number or (head.publishing and not own):
        return _prepare(table_log, mode, run)  # They are being published just now.
    orphans = orphans_among(table_log, unknown)
    move_orphans(table_log, orphans)
    _refuse_unknown(table_log, manifest, run, sorted(set(unknown).difference(orphans)))
    return manifest


def _refuse_unknown(table_log: TableLog, manifest: Manifest, run: str, keys: list[str]) -> None:
    """Raise OutputNotEmptyError for files that no manifest names, but for a run's own."""
    claimed = claimed_files(table_log, manifest.number) if keys else {}
    left = [key for key in keys if claimed.get(key) != run]
    if not left:
        return
    hint = "choose another output, or move them away"
    if any(key in claimed for key in left):
        hint = f"a claim was lost; see what can be done: chunkmap repair {table_log.output}"
    elif any(map(run_of_key, left)):
        hint = f"move away what no run needs any more: chunkmap vacuum {table_log.output}"
    raise OutputNotEmptyError(
        f"{table_log.output} contains {len(left):,} objects that chunkmap did not publish "
        f"(for example {left[0]})",
        hint=hint,
    )


def _settled_but_own(table_log: TableLog, run: str) -> tuple[Manifest, list[Commit]]:
    """Finish what others began; what this run itself lost is mapped anew and finished later."""
    try:
        return settle(table_log), []
    except UploadsVanishedError as error:
        own = [c for c in claimed_commits(table_log, error.commits) if c.entry.run == run]
        if not own:
            raise foreign_claim(table_log.output, error) from error
        head, _ = table_log.head()
        names = head.publishing.commits if head.publishing is not None else error.commits
        return table_log.manifest(head.current), claimed_commits(table_log, names)


def _unknown_files(table_log: TableLog, manifest: Manifest, own: list[Commit]) -> list[str]:
    named = set(table_log.keys(manifest.commits))
    named.update(key for commit in own for key in commit.files["key"].to_list())
    return sorted(set(visible_keys(table_log)) - named)


def never() -> bool:
    """Tell that an output may not be widened."""
    return False


def publish(
    table_log: TableLog, draft: Commit, accepted: int = 0, *, widens: Callable[[], bool] = never
) -> Published:
    """Make a run's completions visible, exactly once. As `publish_all`, of one commit."""
    return publish_all(table_log, [draft], accepted, widens=widens)


def publish_all(
    table_log: TableLog,
    drafts: Sequence[Commit],
    accepted: int = 0,
    *,
    widens: Callable[[], bool] = never,
) -> Published:
    """Make several commits visible together, exactly once, in one manifest.

    Args:
        table_log: Of the output.
        drafts: What to publish, in this order. Where a commit of a draft's name is frozen already,
            that one counts; what is published already stays as it is.
        accepted: Manifest up to which nothing is in conflict, although it came after the base.
        widens: Whether the output may get further columns, or wider types; asked where it matters.

    Raises:
        SchemaChangedError: the files that stay in the output have other columns.
        UploadsVanishedError: some staged outputs are gone; map their chunks again.
        CommitsConflictError: other runs' commits since the drafts' base touched what some of them
            replace. Nothing was published; without those that it names the others can be.
    """
    # Before anything is frozen: the run may be given another rule, and publish after all.
    number = table_log.head()[0].current
    entries = table_log.history(number, min(draft.base for draft in drafts))
    published = {entry.name for entry in entries}
    left = [draft for draft in drafts if draft.entry.name not in published]
    _refuse_columns(table_log, left, table_log.manifest(number), widens)
    return _claim_and_finish(table_log, _frozen(table_log, drafts), accepted, widens)


def _refuse_columns(
    table_log: TableLog, commits: Sequence[Commit], manifest: Manifest, widens: Callable[[], bool]
) -> None:
    additions = [Addition(Footprint.of(commit), commit.columns) for commit in commits]
    refuse_other_columns(table_log, manifest, additions, widens)


def _frozen(table_log: TableLog, drafts: Sequence[Commit]) -> list[Commit]:
    """Freeze what is not frozen yet, unless some of what it names has vanished."""
    staged = staged_of(table_log.output, pl.concat([draft.files for draft in drafts]))
    table_log.storage.check_staged(staged, table_log.output)
    gone = {item.attempt for item in table_log.storage.missing(staged)} if staged else set()
    if gone:
        # What this run has frozen already counts, whoever did it, whatever became of the rest.
        hit = [d for d in drafts if not gone.isdisjoint(d.files["attempt"].to_list())]
        if None in map_concurrently(lambda draft: table_log.commit(draft.entry.name), hit):
            raise UploadsVanishedError(sorted(gone))
    return map_concurrently(table_log.write_commit, drafts)


def _claim_and_finish(
    table_log: TableLog, commits: list[Commit], accepted: int, widens: Callable[[], bool]
) -> Published:
    names, already, writer = {commit.entry.name for commit in commits}, True, ""
    while True:
        head, etag = table_log.head()
        if head.publishing is not None:
            already &= names.isdisjoint(head.publishing.commits)
            finish(table_log, head, etag, is_own=head.writer == writer)
            continue
        current = table_log.manifest(head.current)
        # Also one that a later overwrite replaced, or a rollback took away, has been published.
        base = min(commit.base for commit in commits)
        entries = table_log.entries(base)
        _refuse_released(commits, entries)
        published = {entry.name for entry in entries}
        left = [commit for commit in commits if commit.entry.name not in published]
        if not left:
            move_replaced(table_log, current)
            return Published(current, already, tuple(commits))
        _refuse_conflicts(table_log, left, current, accepted)
        _refuse_columns(table_log, left, current, widens)
        already = False
        if table_log.moved != current.number:
            # Its publisher may have died before it moved away what it had replaced: once there is
            # another manifest on top, nobody would.
            move_replaced(table_log, current)
        claim = Claim(commits=tuple(commit.entry.name for commit in left), base=head.current)
        # Losing the race is no error: look again at what the winner did.
        with suppress(PreconditionFailedError, AlreadyExistsError):
            writer = table_log.move_head(Head(current=head.current, publishing=claim), etag)


def _refuse_released(commits: Sequence[Commit], entries: Sequence[CommitEntry]) -> None:
    """A commit that a repair has released is never published: its files are mapped again."""
    released = {name for entry in entries for name in entry.releases}
    lost = [commit.files["attempt"] for commit in commits if commit.entry.name in released]
    if lost:
        raise UploadsVanishedError(sorted(pl.concat(lost).to_list()))


def commits_of(table_log: TableLog, run: str, base: int) -> list[CommitEntry]:
    """The commits of a run, in order, in whatever manifest: it began on top of this base."""
    return [entry for entry in table_log.entries(base) if entry.run == run]


def released_names(table_log: TableLog, run: str, base: int) -> list[str]:
    """Commits of a run that a repair has released since the manifest that the run began on."""
    names = [name for entry in table_log.entries(base) for name in entry.releases]
    return [name for name in names if run_of(name) == run]


def refuse_released(table_log: TableLog, done: pl.DataFrame, names: Sequence[str]) -> None:
    """Raise UploadsVanishedError where completions are of commits that a repair has released.

    Args:
        table_log: Of the output.
        done: Of the run (schema COMPLETIONS).
        names: Of these commits (see `released_names`).
    """
    commits = table_log.readable(names)
    attempts = {attempt for commit in commits for attempt in commit.files["attempt"].to_list()}
    lost = done.filter(pl.col("attempt").is_in(list(attempts)))
    if lost.height:
        raise UploadsVanishedError(sorted(lost["attempt"].to_list()))


def _refuse_conflicts(
    table_log: TableLog, commits: list[Commit], current: Manifest, accepted: int
) -> None:
    """Appends and overwrites of other partitions go on top of anything; the rest must not."""
    lost = []
    for commit in commits:
        other = _in_conflict(table_log, commit, current, max(commit.base, accepted))
        if other is not None:
            lost.append((commit.entry, other))
    if lost:
        entry, other = lost[0]
        which = f"window {entry.window} of run {entry.run}" if entry.window else f"run {entry.run}"
        more = f" (and for {len(lost) - 1} more of them)" if len(lost) > 1 else ""
        raise CommitsConflictError(
            f"run {other.run} has published to {table_log.output} since {which} "
            f"began{more}, and the mode is {entry.mode}",
            [entry for entry, _ in lost],
        )


def _in_conflict(
    table_log: TableLog, commit: Commit, current: Manifest, base: int
) -> CommitEntry | None:
    """A commit of another run that came after a manifest, and that this one must not replace."""
    mode = commit.entry.mode
    before = table_log.names(base)
    for other in current.commits:
        if other.name in before or not other.adds_files:
            continue
        if other.run == commit.entry.run:
            if _repeats(table_log, commit, other):
                return other
        elif mode in {"error", "overwrite"}:
            return other
        elif mode == "append" and commit.entry.window is not None:
            # The same window's rows would be there twice.
            if other.window == commit.entry.window:
                return other
        elif mode == "overwrite-partitions" and may_meet(commit.entry, other):
            [there] = table_log.footprints([other])
            if any(map(Footprint.of(commit).drops(), there.folders)):
                return other
    return None


def _repeats(table_log: TableLog, commit: Commit, other: CommitEntry) -> bool:
    """Whether one process published a run whole while another did so by windows."""
    if (other.window is None) == (commit.entry.window is None):
        return False
    theirs = set(table_log.known(other).files["chunk"].to_list())
    return not theirs.isdisjoint(commit.files["chunk"].to_list())


def rollback(table_log: TableLog, number: int | None = None) -> Manifest:
    """Make an older manifest's files current again, as a new manifest.

    Args:
        table_log: Of the output.
        number: Of the manifest; default the one before the current.

    Raises:
        UsageError: there is no such manifest.
        FilesMissingError: its files are no longer kept.
    """
    while True:
        current = settle(table_log)
        head, etag = table_log.head()
        target = _version_before(table_log, current) if number is None else number
        if not 0 <= target < current.number:
            raise UsageError(
                f"{table_log.output} has no manifest {target} before its current one, "
                f"{current.number}",
                hint=f"chunkmap history {table_log.output} lists them",
            )
        if head.current != current.number or head.publishing is not None:
            continue
        # Copies of versions that are not kept may be deleted at any moment, by a process that
        # slept; those that are kept may not.
        oldest = current.number - kept_versions(current) + 1
        locate(table_log, table_log.manifest(target), oldest)
        with suppress(PreconditionFailedError, AlreadyExistsError):
            claim = Claim(base=current.number, rollback=target)
            table_log.move_head(Head(current=current.number, publishing=claim), etag)
            return settle(table_log)


def _version_before(table_log: TableLog, manifest: Manifest) -> int:
    """The manifest before the one that a manifest has its files of: repairs change no file."""
    number = manifest.number
    while any(entry.mode == "release" for entry in table_log.manifest(number).commits[-1:]):
        number -= 1
    return number - 1


def amend(
    table_log: TableLog, vanished: UploadsVanishedError, run: str, files: pl.DataFrame
) -> None:
    """Give claimed commits other attempts for the chunks whose uploads had vanished.

    Args:
        table_log: Of the output.
        vanished: What publishing said. If nothing was frozen yet there is nothing to amend: the
            next publish chooses among what is there.
        run: Whose completions these are; claimed commits of other runs are left to them.
        files: Of the run's completions (schema FILES), with those chunks mapped anew.

    Raises:
        ForeignClaimError: the commits are all other runs'.
        UploadsVanishedError: some of those chunks have not been mapped anew.
    """
    if not vanished.waits_for(run):
        raise foreign_claim(table_log.output, vanished)
    for name in vanished.commits:
        if run_of(name) == run:
            _amend(table_log, name, vanished.attempts, files)


def _amend(table_log: TableLog, name: str, attempts: list[str], files: pl.DataFrame) -> None:
    there = files.filter(~pl.col("attempt").is_in(attempts))
    while True:
        [commit] = claimed_commits(table_log, [name])
        lost = commit.files.filter(pl.col("attempt").is_in(attempts))
        if lost.is_empty():
            return  # Another driver was faster, and what it named counts.
        anew = there.join(lost.select("chunk"), on="chunk", how="semi")
        if anew.height < lost.height:
            raise vanished_from([commit], attempts)  # Nobody has mapped them yet.
        with suppress(AlreadyExistsError):
            table_log.amend(commit, anew)
