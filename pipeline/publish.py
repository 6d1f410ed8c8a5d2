"""Publishing: freeze the choice, claim, make visible, write the manifest, move the pointer.

It only rolls forward. Whoever meets a claim finishes it first, and finishing twice changes
nothing; so a driver may die between any two requests and any other one goes on.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass

import polars as pl

from pipeline.catalog import Catalog, together
from pipeline.errors import (
    AlreadyExistsError,
    OutputNotEmptyError,
    PreconditionFailedError,
    UsageError,
)
from pipeline.folding import Footprint, may_meet
from pipeline.manifest import Claim, Commit, CommitEntry, Head, Manifest, files_of, run_of
from pipeline.records import PARTIAL
from pipeline.refusals import (
    CommitsConflictError,
    ForeignClaimError,
    UploadsVanishedError,
    foreign_claim,
)
from pipeline.storage import Staged
from pipeline.versions import locate, restore, tidy

__all__ = [
    "CommitsConflictError",
    "ForeignClaimError",
    "Published",
    "UploadsVanishedError",
    "abort_spares",
    "amend",
    "commits_of",
    "foreign_claim",
    "gone_spares",
    "prepare_output",
    "publish",
    "publish_all",
    "rollback",
    "settle",
]

COMPLETE_AT_ONCE = 1000
"""Uploads completed between two looks at what came of them."""


@dataclass(frozen=True, slots=True)
class Published:
    """What publishing came to."""

    manifest: Manifest
    already: bool
    """It had been published before."""
    commits: tuple[Commit, ...] = ()
    """The records as they were frozen: they may name other attempts than the drafts did."""


def staged_of(output: str, files: pl.DataFrame) -> list[Staged]:
    """The tokens of a commit record's files."""
    columns = ["key", "upload", "parts", "bytes", "attempt"]
    return [
        Staged(output + key, upload, tuple(parts), size, attempt)
        for key, upload, parts, size, attempt in files.select(columns).iter_rows()
    ]


def prepare_output(catalog: Catalog, mode: str, run: str) -> Manifest:
    """Look at the output before a run: finish what others began, refuse what cannot work.

    Args:
        catalog: Of the output.
        mode: Of the job.
        run: The run that wants to publish there.

    Returns:
        The current manifest.

    Raises:
        OutputNotEmptyError: it holds what no manifest names, or, in mode `error`, anything that
            another run published.
    """
    manifest, own = _settled_but_own(catalog, run)
    others = [entry for entry in manifest.commits if entry.run != run]
    # A run that has published is done, whoever came after it and whether it was noted or not.
    if mode == "error" and others and not commits_of(catalog, run, 0):
        raise OutputNotEmptyError(
            f"{catalog.output} already holds {sum(e.files for e in others)} files of run "
            f"{others[0].run}, and the mode is `error`",
            hint="choose another output, or set output.mode to append or overwrite",
        )
    strangers = _strangers(catalog, manifest, own)
    head, _ = catalog.head()
    if strangers and (head.current != manifest.number or (head.publishing and not own)):
        return prepare_output(catalog, mode, run)  # They are being published just now.
    if strangers:
        raise OutputNotEmptyError(
            f"{catalog.output} holds what chunkmap did not publish: {len(strangers):,} in number, "
            f"such as {strangers[0]}",
            hint="choose another output, or move them away",
        )
    return manifest


def _settled_but_own(catalog: Catalog, run: str) -> tuple[Manifest, list[Commit]]:
    """Finish what others began; what this run itself lost is mapped anew and finished later."""
    try:
        return settle(catalog), []
    except UploadsVanishedError as error:
        own = [c for c in _claimed(catalog, error.commits) if c.entry.run == run]
        if not own:
            raise foreign_claim(catalog.output, error) from error
        head, _ = catalog.head()
        names = head.publishing.commits if head.publishing is not None else error.commits
        return catalog.manifest(head.current), _claimed(catalog, names)


def _strangers(catalog: Catalog, manifest: Manifest, own: list[Commit]) -> list[str]:
    named = set(catalog.keys(manifest.commits))
    named |= {key for commit in own for key in commit.files["key"].to_list()}
    found = {
        info.uri.removeprefix(catalog.output) for info in catalog.storage.objects(catalog.output)
    }
    return sorted(found - named)


def settle(catalog: Catalog) -> Manifest:
    """Finish a claim that someone left behind, if there is one."""
    while True:
        head, etag = catalog.head()
        if head.publishing is None:
            manifest = catalog.manifest(head.current)
            tidy(catalog, manifest)
            return manifest
        _finish(catalog, head, etag)


def publish(catalog: Catalog, draft: Commit, accepted: int = 0) -> Published:
    """Make a run's completions visible, exactly once. As `publish_all`, of one commit."""
    return publish_all(catalog, [draft], accepted)


def publish_all(catalog: Catalog, drafts: Sequence[Commit], accepted: int = 0) -> Published:
    """Make several commits visible together, exactly once, in one manifest.

    Args:
        catalog: Of the output.
        drafts: What to publish, in this order. Where a commit of a draft's name is frozen already,
            that one counts; what is published already stays as it is.
        accepted: Manifest up to which nothing is in conflict, although it came after the base.

    Raises:
        UploadsVanishedError: some staged outputs are gone; map their chunks again.
        CommitsConflictError: other runs' commits since the drafts' base touched what some of them
            replace. Nothing was published; without those that it names the others can be.
    """
    return _claim_and_finish(catalog, _frozen(catalog, drafts), accepted)


def _frozen(catalog: Catalog, drafts: Sequence[Commit]) -> list[Commit]:
    """Freeze what is not frozen yet, unless some of what it names has vanished."""
    staged = staged_of(catalog.output, pl.concat([draft.files for draft in drafts]))
    catalog.storage.check_staged(staged, catalog.output)
    gone = {item.attempt for item in catalog.storage.missing(staged)} if staged else set()
    if gone:
        # What this run has frozen already counts, whoever did it, whatever became of the rest.
        hit = [d for d in drafts if not gone.isdisjoint(d.files["attempt"].to_list())]
        if None in together(lambda draft: catalog.commit(draft.entry.name), hit):
            raise UploadsVanishedError(sorted(gone))
    return together(catalog.write_commit, drafts)


def _claim_and_finish(catalog: Catalog, commits: list[Commit], accepted: int) -> Published:
    names, already = {commit.entry.name for commit in commits}, True
    while True:
        head, etag = catalog.head()
        if head.publishing is not None:
            already &= names.isdisjoint(head.publishing.commits)
            _finish(catalog, head, etag)
            continue
        current = catalog.manifest(head.current)
        # Also one that a later overwrite replaced, or a rollback took away, has been published.
        base = min(commit.base for commit in commits)
        published = {entry.name for entry in catalog.entries(base)}
        left = [commit for commit in commits if commit.entry.name not in published]
        if not left:
            tidy(catalog, current)
            return Published(current, already, tuple(commits))
        _refuse_conflicts(catalog, left, current, accepted)
        already = False
        if catalog.tidied != current.number:
            # Its publisher may have died before it moved away what it had replaced: once there is
            # another manifest on top, nobody would.
            tidy(catalog, current)
        claim = Claim(commits=tuple(commit.entry.name for commit in left), base=head.current)
        # Losing the race is no error: look again at what the winner did.
        with suppress(PreconditionFailedError, AlreadyExistsError):
            catalog.move_head(Head(current=head.current, publishing=claim), etag)


def commits_of(catalog: Catalog, run: str, base: int) -> list[CommitEntry]:
    """The commits of a run, in order, in whatever manifest: it began on top of this base."""
    return [entry for entry in catalog.entries(base) if entry.run == run]


def _refuse_conflicts(
    catalog: Catalog, commits: list[Commit], current: Manifest, accepted: int
) -> None:
    """Appends and overwrites of other partitions go on top of anything; the rest must not."""
    lost = []
    for commit in commits:
        other = _in_conflict(catalog, commit, current, max(commit.base, accepted))
        if other is not None:
            lost.append((commit.entry, other))
    if lost:
        entry, other = lost[0]
        which = f"window {entry.window} of run {entry.run}" if entry.window else f"run {entry.run}"
        more = f" (and for {len(lost) - 1} more of them)" if len(lost) > 1 else ""
        raise CommitsConflictError(
            f"run {other.run} has published to {catalog.output} since {which} "
            f"began{more}, and the mode is {entry.mode}",
            [entry for entry, _ in lost],
        )


def _in_conflict(
    catalog: Catalog, commit: Commit, current: Manifest, base: int
) -> CommitEntry | None:
    """A commit of another run that came after a manifest, and that this one must not replace."""
    mode = commit.entry.mode
    before = catalog.names(base)
    for other in current.commits:
        if other.name in before:
            continue
        if other.run == commit.entry.run:
            if _repeats(catalog, commit, other):
                return other
        elif mode in {"error", "overwrite"}:
            return other
        elif mode == "append" and commit.entry.window is not None:
            # The same window's rows would be there twice.
            if other.window == commit.entry.window:
                return other
        elif mode == "overwrite-partitions" and may_meet(commit.entry, other):
            [there] = catalog.footprints([other])
            if any(map(Footprint.of(commit).drops(), there.folders)):
                return other
    return None


def _repeats(catalog: Catalog, commit: Commit, other: CommitEntry) -> bool:
    """Whether one process published a run whole while another did so by windows."""
    if (other.window is None) == (commit.entry.window is None):
        return False
    [there] = catalog.footprints([other])
    theirs = {key for keys in there.folders.values() for key in keys}
    return not theirs.isdisjoint(commit.files["key"].to_list())


def _finish(catalog: Catalog, head: Head, etag: str | None) -> None:
    """Roll a claim forward to its end. Any driver may; twice changes nothing."""
    claim = head.publishing
    assert claim is not None, "only a claim is finished"
    if claim.rollback is not None:
        target = catalog.manifest(claim.rollback)
        restore(catalog, target)
        manifest = catalog.write_manifest(claim.base, target.commits, target.number)
    else:
        try:
            manifest = _add(catalog, claim)
        except UploadsVanishedError:
            if catalog.head()[1] != etag:
                return  # While we slept it was finished, and what it published was replaced.
            raise
    with suppress(PreconditionFailedError):
        catalog.move_head(Head(current=manifest.number), etag)


def _claimed(catalog: Catalog, names: Sequence[str]) -> list[Commit]:
    commits = together(catalog.commit, names)
    found = [commit for commit in commits if commit is not None]
    assert len(found) == len(names), "a claim names frozen commits"
    return found


def _add(catalog: Catalog, claim: Claim) -> Manifest:
    commits = _claimed(catalog, claim.commits)
    staged = [item for commit in commits for item in staged_of(catalog.output, commit.files)]
    catalog.storage.check_staged(staged, catalog.output)
    gone: set[str] = set()
    for start in range(0, len(staged), COMPLETE_AT_ONCE):
        lost = catalog.storage.complete(staged[start : start + COMPLETE_AT_ONCE])
        gone |= {item.attempt for item in lost}
    if gone:
        raise _vanished(commits, gone)
    held = catalog.manifest(claim.base).commits
    for commit in commits:
        held = (commit.entry,) if commit.entry.mode == "overwrite" else (*held, commit.entry)
    return catalog.write_manifest(claim.base, held)


def rollback(catalog: Catalog, number: int | None = None) -> Manifest:
    """Make an older manifest's files current again, as a new manifest.

    Args:
        catalog: Of the output.
        number: Of the manifest; default the one before the current.

    Raises:
        UsageError: there is no such manifest, or its files are no longer kept.
    """
    while True:
        current = settle(catalog)
        head, etag = catalog.head()
        target = current.number - 1 if number is None else number
        if not 0 <= target < current.number:
            raise UsageError(
                f"{catalog.output} has no manifest {target} before its current one, "
                f"{current.number}",
                hint=f"chunkmap history {catalog.output} lists them",
            )
        if head.current != current.number or head.publishing is not None:
            continue
        locate(catalog, catalog.manifest(target))
        with suppress(PreconditionFailedError, AlreadyExistsError):
            claim = Claim(base=current.number, rollback=target)
            catalog.move_head(Head(current=current.number, publishing=claim), etag)
            return settle(catalog)


def amend(catalog: Catalog, vanished: UploadsVanishedError, run: str, files: pl.DataFrame) -> None:
    """Give claimed commits other attempts for the chunks whose uploads had vanished.

    Args:
        catalog: Of the output.
        vanished: What publishing said. If nothing was frozen yet there is nothing to amend: the
            next publish chooses among what is there.
        run: Whose completions these are; claimed commits of other runs are left to them.
        files: Of the run's completions (schema FILES), with those chunks mapped anew.

    Raises:
        ForeignClaimError: the commits are all other runs'.
        UploadsVanishedError: some of those chunks have not been mapped anew.
    """
    if not vanished.waits_for(run):
        raise foreign_claim(catalog.output, vanished)
    for name in vanished.commits:
        if run_of(name) == run:
            _amend(catalog, name, vanished.attempts, files)


def _vanished(commits: Sequence[Commit], attempts: Collection[str]) -> UploadsVanishedError:
    lost = {c.entry.name: c.files.filter(pl.col("attempt").is_in(attempts)) for c in commits}
    chunks = {name: files["chunk"].to_list() for name, files in lost.items() if files.height}
    return UploadsVanishedError(sorted(attempts), chunks)


def _amend(catalog: Catalog, name: str, attempts: list[str], files: pl.DataFrame) -> None:
    there = files.filter(~pl.col("attempt").is_in(attempts))
    while True:
        [commit] = _claimed(catalog, [name])
        lost = commit.files.filter(pl.col("attempt").is_in(attempts))
        if lost.is_empty():
            return  # Another driver was faster, and what it named counts.
        anew = there.join(lost.select("chunk"), on="chunk", how="semi")
        if anew.height < lost.height:
            raise _vanished([commit], attempts)  # Nobody has mapped them yet.
        with suppress(AlreadyExistsError):
            catalog.amend(commit, anew)


def abort_spares(catalog: Catalog, spares: pl.DataFrame) -> None:
    """Abort the attempts that were not chosen."""
    catalog.storage.abort(_staged_spares(catalog, spares))


def gone_spares(catalog: Catalog, spares: pl.DataFrame) -> list[str]:
    """The attempts among these completions whose uploads have vanished."""
    gone = catalog.storage.missing(_staged_spares(catalog, spares))
    return [item.attempt for item in gone]


def _staged_spares(catalog: Catalog, spares: pl.DataFrame) -> list[Staged]:
    completions = spares.filter(pl.col("upload") != PARTIAL)
    staged = staged_of(catalog.output, files_of(catalog.output, completions))
    catalog.storage.check_staged(staged, catalog.output)
    return staged
