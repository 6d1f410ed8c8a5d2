"""Publish commits: freeze the records, claim, make visible, write the manifest, move the pointer.

Publishing only rolls forward. A process that finds a claim finishes it first, and finishing twice
changes nothing. So a driver may die between any two requests, and any other driver resumes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import polars as pl

from pipeline.errors import (
    AlreadyExistsError,
    OutputNotEmptyError,
    PreconditionFailedError,
    UsageError,
)
from pipeline.report.humanize import plural
from pipeline.storage import require_conditional_writes
from pipeline.table.adopted import adopted_versions, is_version
from pipeline.table.claims import (
    claimed_commits,
    finish_claim,
    finish_open_claim,
    give_up_lost,
    staged_files,
    vanished_attempts,
    vanished_from,
)
from pipeline.table.errors import (
    CommitsConflictError,
    FilesMissingError,
    UploadsVanishedError,
    changed_files,
    foreign_claim,
)
from pipeline.table.keys import run_of_key
from pipeline.table.log import TableLog
from pipeline.table.manifest import (
    ADOPT,
    Claim,
    Commit,
    CommitEntry,
    Head,
    Manifest,
    folders,
    run_of,
)
from pipeline.table.replay import Footprint, live_folders, may_overlap, window_label
from pipeline.table.retention import (
    claimed_files,
    existing_objects,
    kept_versions,
    locate,
    move_orphans,
    orphans_among,
    unnamed_keys,
)
from pipeline.table.schemas import Addition, refuse_other_columns
from pipeline.table.settle import settle
from pipeline.uris import link_target


@dataclass(frozen=True, slots=True)
class Published:
    """Result of a publish."""

    manifest: Manifest
    already: bool
    """Whether everything had been published before."""
    commits: tuple[Commit, ...] = ()
    """The published commits, which may have other attempts than the drafts."""


def prepare_output(table_log: TableLog, mode: str, run: str) -> Manifest:
    """Check an output before a run: finish open claims of others, refuse what cannot work.

    Args:
        table_log: Table log of the output.
        mode: Output mode of the job.
        run: Id of the run that will publish.

    Returns:
        The current manifest.

    Raises:
        OutputNotEmptyError: The output has files that no manifest names or, in mode `error`, files
            of another run.
        UsageError: The service cannot keep two drivers apart, or a new output is a link.
    """
    pointer = table_log.head()
    _, etag = pointer
    if etag is None:
        refuse_link(table_log.output)
    else:  # A claim may have to be finished below.
        require_conditional_writes(table_log.storage, table_log.output)
    manifest = _prepare(table_log, mode, run, pointer)
    if etag is None:  # Last, so that a refused output is left untouched.
        require_conditional_writes(table_log.storage, table_log.output)
    return manifest


def refuse_link(output: str) -> None:
    """Refuse an output by another name than its folder's, beside which its state would lie."""
    target = link_target(output)
    if target is not None:
        raise UsageError(
            f"output {output} is a symbolic link to {target}, which would count as another output",
            hint=f"name the folder itself: {target}",
        )


def _prepare(
    table_log: TableLog, mode: str, run: str, pointer: tuple[Head, str | None] | None = None
) -> Manifest:
    manifest, own = _settle_others(table_log, run, pointer)
    others = [entry for entry in manifest.commits if entry.adds_files and entry.run != run]
    # A run that has published is done, even if other runs have published since.
    if mode == "error" and others and not commits_of(table_log, run, 0):
        files = sum(entry.files for entry in others)
        error = OutputNotEmptyError(
            f"{table_log.output} already has {plural(files, 'file')} of {others[-1].source}, and "
            "the mode is `error`",
            hint="choose another output, or set output.mode to append or overwrite",
        )
        error.run = others[-1].run
        raise error
    unknown = _unknown_files(table_log, manifest, own)
    if not unknown:
        return manifest
    head, _ = table_log.head()
    if head.current != manifest.number or (head.publishing and not own):
        return _prepare(table_log, mode, run)  # Another process is publishing them.
    orphans = orphans_among(table_log, unknown)
    move_orphans(table_log, orphans)
    _refuse_unknown(table_log, manifest, run, sorted(set(unknown).difference(orphans)))
    return manifest


def _refuse_unknown(table_log: TableLog, manifest: Manifest, run: str, keys: list[str]) -> None:
    """Raise OutputNotEmptyError for files that no manifest names, except a run's own."""
    if not keys:
        return
    with suppress(UploadsVanishedError):  # The run maps their chunks again.
        give_up_lost(table_log, run, manifest.number)
    claimed = claimed_files(table_log, manifest.number)
    unknown = [key for key in keys if claimed.get(key) != run]
    if not unknown:
        return
    hint = "choose another output, or move them away"
    if not manifest.table:
        hint += f"; or take them over as they are: chunkmap adopt {table_log.output}"
    if any(key in claimed for key in unknown):
        hint = f"a claim was lost; show the fix: chunkmap repair {table_log.output}"
    elif any(map(run_of_key, unknown)):
        hint = f"move away files that no run needs: chunkmap vacuum {table_log.output}"
    raise OutputNotEmptyError(
        f"{table_log.output} contains {plural(len(unknown), 'object')} that chunkmap did not "
        "publish "
        f"(for example {unknown[0]})",
        hint=hint,
    )


def _settle_others(
    table_log: TableLog, run: str, pointer: tuple[Head, str | None] | None
) -> tuple[Manifest, list[Commit]]:
    """Finish an open claim, unless it is this run's own and lacks uploads, to be mapped again.

    Returns:
        The current manifest, and the commits of an open claim of this run.
    """
    try:
        return finish_open_claim(table_log, pointer), []
    except UploadsVanishedError as error:
        if not any(run_of(name) == run for name in error.commits):
            raise foreign_claim(table_log.output, error) from error
        head, _ = table_log.head()
        own = [] if head.publishing is None else claimed_commits(table_log, head.publishing)
        return table_log.manifest(head.current), own


def _unknown_files(table_log: TableLog, manifest: Manifest, own: list[Commit]) -> list[str]:
    own_keys = {key for commit in own for key in commit.files["key"].to_list()}
    return sorted(unnamed_keys(table_log, manifest) - own_keys)


def never() -> bool:
    """Return False: the output must not be widened."""
    return False


def accept_any(manifest: Manifest) -> None:
    """Accept any manifest: commits may be claimed on top of it."""


def publish(
    table_log: TableLog, draft: Commit, accepted: int = 0, *, widens: Callable[[], bool] = never
) -> Published:
    """Publish one commit, exactly once (see `publish_all`)."""
    return publish_all(table_log, [draft], accepted, widens=widens)


def publish_all(
    table_log: TableLog,
    drafts: Sequence[Commit],
    accepted: int = 0,
    *,
    widens: Callable[[], bool] = never,
    compare: Callable[[Manifest], None] = accept_any,
) -> Published:
    """Publish several commits together, exactly once, in one manifest.

    Args:
        table_log: Table log of the output.
        drafts: Commits to publish, in this order. If there is one, a frozen commit with its name
            takes its place; published commits stay as they are.
        accepted: Number of the manifest up to which commits after the base are no conflicts.
        widens: Returns whether the output may get new columns, or wider types; called if needed.
        compare: Called with the manifest on top of which the commits are to be claimed; raises if
            they must not be.

    Raises:
        SchemaChangedError: Files that stay in the output have other columns.
        UploadsVanishedError: Some staged outputs no longer exist; map their chunks again.
        CommitsConflictError: Commits of other runs since the drafts' base touched files that some
            drafts replace. Nothing was published; the other drafts can be published without them.
    """
    pointer = table_log.head()
    commits = freeze(table_log, drafts, widens, pointer[0].current)
    return _claim_and_finish(table_log, commits, accepted, widens, pointer, compare=compare)


def _refuse_columns(
    table_log: TableLog, commits: Sequence[Commit], manifest: Manifest, widens: Callable[[], bool]
) -> None:
    additions = [Addition(Footprint.of(commit), commit.columns) for commit in commits]
    refuse_other_columns(table_log, manifest, additions, widens)
    if manifest.table or any(commit.entry.table for commit in commits):
        # Only tables need their library.
        from pipeline.table.delta.commit import refuse_other_tables

        refuse_other_tables(table_log, manifest, commits, widens)


def freeze(
    table_log: TableLog,
    drafts: Sequence[Commit],
    widens: Callable[[], bool],
    number: int,
) -> list[Commit]:
    """Store the records of commits that are not published, if all their staged outputs exist.

    The record of a single commit is created once: if it is stored, it takes the draft's place.

    Args:
        table_log: Table log of the output.
        drafts: The commits.
        widens: As of `publish_all`.
        number: Number of the current manifest.

    Raises:
        SchemaChangedError: Files that stay in the output have other columns.
        UploadsVanishedError: Some staged outputs no longer exist; map their chunks again.
    """
    if any(draft.entry.window is not None for draft in drafts):
        give_up_lost(table_log, drafts[0].entry.run, number)
    # Before anything is frozen: with another schema rule the run can still publish later.
    entries = table_log.history(number, min(draft.base for draft in drafts))
    published = {entry.name for entry in entries}
    unpublished = [draft for draft in drafts if draft.entry.name not in published]
    _refuse_columns(table_log, unpublished, table_log.manifest(number), widens)
    gone = set(vanished_attempts(table_log, staged_files(drafts)))
    if gone:
        # Commits that another driver has frozen count.
        affected = [d.entry.name for d in drafts if not gone.isdisjoint(d.files["attempt"])]
        undecided = _undecided(table_log, affected, min(draft.base for draft in drafts))
        is_frozen = len(drafts) == 1 and table_log.commit(drafts[0].entry.name) is not None
        if undecided and not is_frozen:
            raise UploadsVanishedError(sorted(gone))
    # Others may have published some of several, or all, meanwhile.
    new = drafts if len(drafts) == 1 else unpublished
    frozen = {c.entry.name: c for c in table_log.write_commits(new)}
    return [frozen.get(draft.entry.name, draft) for draft in drafts]


def _undecided(table_log: TableLog, names: Sequence[str], base: int) -> list[str]:
    """Return the names of the commits that are neither claimed nor published."""
    head, _ = table_log.head()
    decided = {entry.name for entry in table_log.history(head.current, base)}
    decided.update(head.publishing.commits if head.publishing is not None else ())
    return [name for name in names if name not in decided]


def _claim_and_finish(
    table_log: TableLog,
    commits: list[Commit],
    accepted: int,
    widens: Callable[[], bool],
    pointer: tuple[Head, str | None],
    *,
    compare: Callable[[Manifest], None],
) -> Published:
    names, already, writer = {commit.entry.name for commit in commits}, True, ""
    while True:
        head, etag = pointer
        if head.publishing is not None:
            already &= names.isdisjoint(head.publishing.commits)
            is_own = head.writer == writer
            finished = finish_claim(table_log, head, etag, is_own=is_own)
            if is_own and finished is not None:
                # The pointer is what this process has written, unless others have moved it since.
                head = Head.at(finished)
        if head.publishing is None:
            current = table_log.manifest(head.current)
            unpublished = claimable(table_log, commits, current, accepted, widens, compare=compare)
            if not unpublished:
                base = min(commit.base for commit in commits)
                entries = [e for e in table_log.history(current.number, base) if e.name in names]
                return Published(current, already, tuple(table_log.load_all(entries)))
            already = False
            frozen = tuple(commit.entry.name for commit in unpublished)
            record = unpublished[0].entry.record
            claim = Claim(commits=frozen, base=head.current, record=record)
            makes_table = any(commit.entry.table for commit in unpublished)
            # If another process wins the race, repeat with its state.
            with suppress(PreconditionFailedError, AlreadyExistsError):
                adopts = any(commit.entry.adopts for commit in unpublished)
                claimed = Head.at(current, claim, makes_table=makes_table, adopts=adopts)
                writer = table_log.move_head(claimed, etag)
        pointer = table_log.head()


def claimable(
    table_log: TableLog,
    commits: Sequence[Commit],
    current: Manifest,
    accepted: int,
    widens: Callable[[], bool],
    *,
    compare: Callable[[Manifest], None],
) -> list[Commit]:
    """Return the frozen commits that are to be published on top of the current manifest.

    Raises as `publish_all`.
    """
    # The history also has commits that an overwrite or a rollback has replaced since.
    base = min(commit.base for commit in commits)
    entries = table_log.history(current.number, base)
    _refuse_released(commits, entries)
    published = {entry.name for entry in entries}
    unpublished = [commit for commit in commits if commit.entry.name not in published]
    if unpublished:
        compare(current)
        _refuse_replaced(table_log, unpublished, entries, current)
        _refuse_conflicts(table_log, unpublished, current, accepted)
        _refuse_changed(table_log, unpublished, current)
        _refuse_columns(table_log, unpublished, current, widens)
    if not unpublished or table_log.moved != current.number:
        # Its publisher may have died before it moved the replaced files; with another manifest on
        # top, nothing would move them.
        settle(table_log, current)
    return unpublished


def _refuse_released(commits: Sequence[Commit], entries: Sequence[CommitEntry]) -> None:
    """Raise UploadsVanishedError for commits that a repair has released: map them again."""
    released = {name for entry in entries for name in entry.releases}
    lost = [commit.files["attempt"] for commit in commits if commit.entry.name in released]
    if lost:
        raise UploadsVanishedError(sorted(pl.concat(lost).to_list()))


def commits_of(table_log: TableLog, run: str, base: int) -> list[CommitEntry]:
    """Return the commits of a run since its base manifest, in order."""
    return [entry for entry in table_log.entries(base) if entry.run == run]


def released_names(entries: Sequence[CommitEntry], run: str) -> list[str]:
    """Return the names of a run's commits that a repair has released, as some commits say."""
    names = [name for entry in entries for name in entry.releases]
    return [name for name in names if run_of(name) == run]


def refuse_released(table_log: TableLog, done: pl.DataFrame, names: Sequence[str]) -> None:
    """Raise UploadsVanishedError if completions belong to commits that a repair has released.

    Args:
        table_log: Table log of the output.
        done: Completions of the run (schema COMPLETIONS).
        names: Names of the released commits (see `released_names`).
    """
    if not names:
        return
    number = table_log.head()[0].current
    run = run_of(names[0])
    own = [entry for entry in table_log.history(number) if entry.run == run and entry.adds_files]
    attempts = _attempts_of(table_log.frozen(names, number))
    # A publisher that was asleep may freeze a released name with an attempt that is published.
    attempts -= _attempts_of(table_log.load_all(own))
    lost = done.filter(pl.col("attempt").is_in(list(attempts)))
    if lost.height:
        raise UploadsVanishedError(sorted(lost["attempt"].to_list()))


def _attempts_of(commits: Sequence[Commit]) -> set[str]:
    return {attempt for commit in commits for attempt in commit.files["attempt"].to_list()}


def _refuse_conflicts(
    table_log: TableLog, commits: list[Commit], current: Manifest, accepted: int
) -> None:
    """Raise for commits that conflict; appends and overwrites of other partitions never do."""
    conflicts = []
    rivals = _Rivals(table_log, current)
    for commit in commits:
        base = max(commit.base, accepted)
        other = rivals.find_conflict(commit, base)
        if other is not None:
            conflicts.append((commit.entry, f"{other.source} has published to"))
        elif commit.entry.in_place and _is_rolled_back(table_log, current, base):
            conflicts.append((commit.entry, "there was a rollback of"))
    if conflicts:
        entry, event = conflicts[0]
        which = f"window {entry.window} of run {entry.run}" if entry.window else entry.source
        more = f" (and {len(conflicts) - 1} more)" if len(conflicts) > 1 else ""
        raise CommitsConflictError(
            f"{event} {table_log.output} since {which}{more} began, and the mode is {entry.mode}",
            [entry for entry, _ in conflicts],
        )


def _refuse_replaced(
    table_log: TableLog,
    commits: Sequence[Commit],
    entries: Sequence[CommitEntry],
    current: Manifest,
) -> None:
    """Raise for commits that add to earlier ones of their run which the output has no more.

    A run that was published without some chunks adds them later. Once its version was replaced or
    rolled back, they would be parts of a result in the version of others.
    """
    runs = {commit.entry.run for commit in commits}
    earlier: dict[tuple[str, str | None], list[CommitEntry]] = defaultdict(list)
    for entry in entries:
        if entry.run in runs and entry.adds_files:
            earlier[entry.run, entry.window].append(entry)
    replaced = []
    for commit in commits if earlier else ():
        run, window = commit.entry.run, commit.entry.window
        if window is None:
            related = [e for (of, _), found in earlier.items() if of == run for e in found]
        else:
            related = [e for key in (None, window) for e in earlier.get((run, key), ())]
        if related and _lacks(table_log, current, related, commit):
            replaced.append(commit.entry)
    if replaced:
        raise CommitsConflictError(
            f"run {replaced[0].run} has published a part of its result to {table_log.output}, "
            "which was replaced or rolled back since: the rest would be added to another version",
            replaced,
        )


def _lacks(
    table_log: TableLog, current: Manifest, earlier: Sequence[CommitEntry], commit: Commit
) -> bool:
    """Whether a manifest lacks files of earlier commits that a commit adds to."""
    footprints = table_log.footprints(current.commits)
    alive = {f.entry.name: a for f, a in zip(footprints, live_folders(footprints), strict=True)}
    own, window = Footprint.of(commit).folders.keys(), commit.entry.window
    for footprint in table_log.footprints(earlier):
        common = footprint.folders.keys() & own
        if window is not None and footprint.entry.window is None and not common:
            continue  # It has other windows only.
        # Others may replace partitions of a run that replaces partitions itself.
        is_whole = window is None and commit.entry.mode == "append"
        folders = footprint.folders.keys() if is_whole else common
        left = alive.get(footprint.entry.name)
        if left is None or not folders <= left:
            return True
    return False


def _is_rolled_back(table_log: TableLog, current: Manifest, base: int) -> bool:
    """Whether commits of a base manifest are gone, whose files were the input of a run in place."""
    names = {entry.name for entry in current.commits}
    return any(e.adds_files and e.name not in names for e in table_log.manifest(base).commits)


def _refuse_changed(table_log: TableLog, commits: Sequence[Commit], current: Manifest) -> None:
    """Refuse to replace adopted files that others have changed since: their rows would be lost.

    Raises:
        ConflictError: Some of these files have another version than the adopted one.
    """
    rules = [Footprint.of(commit).drop_rule() for commit in commits if not commit.entry.adopts]
    if not current.adopted or not rules:
        return
    live = set(table_log.keys(current.commits))
    marks = {
        key: mark
        for key, mark in adopted_versions(table_log, current.commits).items()
        if key in live and any(drops(key.rpartition("/")[0]) for drops in rules)
    }
    existing = existing_objects(table_log, marks)
    changed = sorted(key for key, info in existing.items() if not is_version(info, marks[key]))
    if changed:
        raise changed_files(table_log.output, table_log.state, changed)


class _Rivals:
    """The commits of the current manifest that others to be published may conflict with."""

    def __init__(self, table_log: TableLog, current: Manifest) -> None:
        self._table_log, self._current = table_log, current
        self._since: dict[tuple[int, str, str, bool], list[CommitEntry]] = {}
        self._windows: dict[tuple[str, str], set[str | None]] = {}

    def find_conflict(self, commit: Commit, base: int) -> CommitEntry | None:
        """Find a commit since the manifest `base` that a commit must not replace, or repeat."""
        mode = commit.entry.mode
        for other in self._since_base(commit.entry, base):
            if mode == ADOPT:
                return other  # It may have adopted the same files.
            if other.run == commit.entry.run:
                if _repeats(self._table_log, commit, other):
                    return other
            elif mode in {"error", "overwrite"}:
                return other
            elif mode == "append":
                if self._has_same_window(commit, other):
                    return other
            elif mode == "overwrite-partitions" and may_overlap(commit.entry, other):
                [footprint] = self._table_log.footprints([other])
                if any(map(Footprint.of(commit).drop_rule(), footprint.folders)):
                    return other
        return None

    def _since_base(self, mine: CommitEntry, base: int) -> list[CommitEntry]:
        """Return the commits with files since a manifest.

        Windows of one run have no chunk in common, so a window is not compared with those of its
        run: of 10,000 windows there would be 10^8 pairs. An adoption is compared with all.
        """
        key = (base, mine.mode, mine.run, mine.window is None)
        if key not in self._since:
            before = self._table_log.names(base)
            self._since[key] = [
                other
                for other in self._current.commits
                if other.adds_files
                and other.name not in before
                and (
                    mine.mode == ADOPT
                    or other.run != mine.run
                    or (other.window is None) != (mine.window is None)
                )
            ]
        return self._since[key]

    def _has_same_window(self, commit: Commit, other: CommitEntry) -> bool:
        """Whether a commit that appends may have rows of the same window as another one.

        Windows of another rule, and runs as a whole, are compared by the folders of their files:
        one that names no window may have rows of any.
        """
        mine = commit.entry
        if mine.window is None and other.window is None:
            return False
        if mine.window == other.window:
            return True
        if None not in (mine.window, other.window) and mine.rule == other.rule:
            return False
        if mine.window is not None:
            found = self._windows_of(
                other.name, mine.rule, lambda: self._table_log.footprints([other])[0].folders
            )
            return None in found or mine.window in found
        found = self._windows_of(mine.name, other.rule, lambda: folders(commit.files))
        return None in found or other.window in found

    def _windows_of(
        self, name: str, rule: str, folders_of: Callable[[], Iterable[str]]
    ) -> set[str | None]:
        """Return the windows of a commit's folders by a rule; None is that of one without."""
        if (name, rule) not in self._windows:
            labels = (window_label(rule, f) if rule else None for f in set(folders_of()))
            self._windows[name, rule] = set(labels)
        return self._windows[name, rule]


def _repeats(table_log: TableLog, commit: Commit, other: CommitEntry) -> bool:
    """Whether a run is published both whole and by windows, with common chunks."""
    if (other.window is None) == (commit.entry.window is None):
        return False
    chunks = set(table_log.load(other).files["chunk"].to_list())
    return not chunks.isdisjoint(commit.files["chunk"].to_list())


def rollback(table_log: TableLog, number: int | None = None) -> Manifest:
    """Make an older manifest's files current again, as a new manifest.

    Args:
        table_log: Table log of the output.
        number: Number of the manifest; default the version before the one that is current, so that
            a second rollback goes further back.

    Raises:
        UsageError: There is no such manifest.
        FilesMissingError: Its files are no longer kept.
        SchemaChangedError: The output is a Delta table, which cannot have these files.
    """
    while True:
        current = finish_open_claim(table_log)
        head, etag = table_log.head()
        target = _version_before(table_log, current) if number is None else number
        if number is None and target < 0:
            raise UsageError(
                f"{table_log.output} is empty, as before its first publish: there is no version "
                "before that",
                hint=f"list the versions: chunkmap history {table_log.output}",
            )
        _refuse_before_adoption(table_log, current, target)
        if not 0 <= target < current.number:
            raise UsageError(
                f"{table_log.output} has no manifest {target} before the current manifest "
                f"{current.number}",
                hint=f"list them: chunkmap history {table_log.output}",
            )
        if head.current != current.number or head.publishing is not None:
            continue
        # A process that was suspended may delete copies of expired versions at any moment, but
        # never those of kept versions.
        kept = kept_versions(current)
        try:
            locate(table_log, table_log.manifest(target), current.number - kept + 1)
        except FilesMissingError as error:
            error.hint = (
                "a table keeps replaced files until its own vacuum deletes them; choose a later "
                f"version: chunkmap history {table_log.output}"
                if current.table
                else f"the output keeps replaced files of {kept} earlier "
                f"{'version' if kept == 1 else 'versions'} (output.keep_versions); choose a later "
                f"one: chunkmap history {table_log.output}"
            )
            raise
        if current.table:
            # Only tables need their library.
            from pipeline.table.delta.commit import refuse_rollback

            refuse_rollback(table_log, table_log.manifest(target))
        with suppress(PreconditionFailedError, AlreadyExistsError):
            claim = Claim(base=current.number, rollback=target)
            table_log.move_head(Head.at(current, claim), etag)
            newest = finish_open_claim(table_log)
            for number_after in range(current.number + 1, newest.number + 1):
                manifest = table_log.manifest(number_after)
                if manifest.rollback_of == target:
                    return manifest
            # Another process has given it up meanwhile.


def _refuse_before_adoption(table_log: TableLog, current: Manifest, target: int) -> None:
    """Refuse a version before files were adopted, for which a rollback would move these away."""
    if not current.adopted or not 0 <= target < current.number:
        return
    before = {entry.name for entry in table_log.history(target)}
    adopted = (entry for entry in table_log.history(current.number) if entry.adopts)
    files = sum(entry.files for entry in adopted if entry.name not in before)
    if files:
        raise UsageError(
            f"version {target} of {table_log.output} is from before {plural(files, 'file')} were "
            "adopted, which chunkmap did not write: a rollback would move them away",
            hint=f"choose a later version: chunkmap history {table_log.output}",
        )


def _version_before(table_log: TableLog, manifest: Manifest) -> int:
    """Return the version before the one whose files a manifest has.

    A manifest of a rollback stands for the version that it restored, so that a second rollback goes
    further back; a repair adds no files, so its manifest stands for the one before it.
    """
    return _version_of(table_log, manifest.number) - 1


def _version_of(table_log: TableLog, number: int) -> int:
    """Return the number of the publish whose files a manifest has; 0 for an empty output."""
    while number > 0:
        manifest = table_log.manifest(number)
        if manifest.rollback_of is not None:
            number = manifest.rollback_of
        elif any(entry.mode == "release" for entry in manifest.commits[-1:]):
            number -= 1
        else:
            break
    return number


def amend(
    table_log: TableLog, vanished: UploadsVanishedError, run: str, files: pl.DataFrame
) -> None:
    """Amend claimed commits with new attempts at the chunks whose uploads vanished.

    Args:
        table_log: Table log of the output.
        vanished: The error of the publish. Without a claimed commit there is nothing to amend: the
            next publish selects attempts again.
        run: Id of the run of these completions; claimed commits of other runs are not changed.
        files: Files of the run's completions (schema FILES), after those chunks were mapped again.

    Raises:
        ForeignClaimError: All the commits belong to other runs.
        UploadsVanishedError: Some of those chunks have not been mapped again.
    """
    if not vanished.waits_for(run):
        raise foreign_claim(table_log.output, vanished)
    own = [name for name in vanished.commits if run_of(name) == run]
    while True:
        claim = table_log.head()[0].publishing
        commits = [] if claim is None else claimed_commits(table_log, claim, own)
        amended = _with_others(commits, vanished.attempts, files)
        if not amended:
            return  # Another driver was faster; its amendment counts.
        # A record that they share is amended once.
        groups = [amended] if amended[0].entry.record else [[commit] for commit in amended]
        with suppress(AlreadyExistsError):
            for group in groups:
                table_log.amend(group)


def _with_others(
    commits: Sequence[Commit], attempts: list[str], files: pl.DataFrame
) -> list[Commit]:
    """Return the commits with lost attempts, with other attempts at these chunks as their files.

    Raises:
        UploadsVanishedError: Some of the chunks have not been mapped again yet.
    """
    existing, gone = files.filter(~pl.col("attempt").is_in(attempts)), set(attempts)
    amended = []
    for commit in commits:
        if gone.isdisjoint(commit.files["attempt"].to_list()):
            continue
        lost = commit.files.filter(pl.col("attempt").is_in(attempts))
        others = existing.join(lost.select("chunk"), on="chunk", how="semi")
        if others.height < lost.height:
            raise vanished_from(commits, attempts)
        amended.append(replace(commit, files=others))
    return amended
