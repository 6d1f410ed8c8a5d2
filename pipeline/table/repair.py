"""Repair an output whose pointer, claim or files contradict its manifests.

`diagnose` only looks; `repair` does what a diagnosis says, and may be given again after a crash.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from pipeline.errors import (
    AccessDeniedError,
    AlreadyExistsError,
    ChunkmapError,
    PreconditionFailedError,
    is_transient,
)
from pipeline.table.claims import (
    clear_commits,
    explains,
    finish,
    own_staged,
    release,
    release_entry,
    settle,
)
from pipeline.table.errors import DamagedStateError, ManifestConflictError
from pipeline.table.head import stored_manifests
from pipeline.table.log import TableLog
from pipeline.table.manifest import Claim, Head, Manifest, run_of
from pipeline.table.retention import (
    bring_back,
    claimed_files,
    find_copies,
    find_files,
    move_orphans,
    orphans_among,
    replaced_keys,
    visible_keys,
)

Situation = Literal[
    "head missing",
    "head behind",
    "head damaged",
    "publish unfinished",
    "rollback unfinished",
    "files missing",
    "claim lost",
    "orphan files",
]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with an output, and what can be done about it."""

    situation: Situation
    message: str
    """What is wrong, in a sentence."""
    action: str
    """What `repair` does about it; empty where it can do nothing."""
    advice: str = ""
    """What else can be done."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What is wrong with an output."""

    output: str
    manifest: int
    """Number of the newest manifest."""
    problems: tuple[Problem, ...]

    @property
    def can_repair(self) -> bool:
        """Whether `repair` has something to do."""
        return any(problem.action for problem in self.problems)


def diagnose(table_log: TableLog) -> Diagnosis:
    """Look for what keeps commands from working on an output. Writes nothing.

    Raises:
        StateError: a manifest or a commit record is damaged, and has to be restored first.
    """
    numbers = stored_manifests(table_log.storage, table_log.state)
    newest = numbers[-1] if numbers else 0
    return Diagnosis(table_log.output, newest, tuple(_problems(table_log, newest)))


def repair(table_log: TableLog) -> tuple[Diagnosis, ...]:
    """Do what `diagnose` says, and look again, until there is nothing more to do.

    Returns:
        What was found each time; the last is what is left.

    Raises:
        StateError: a manifest or a commit record is damaged, and has to be restored first.
        TransientStorageError, AccessDeniedError: as the storage said; repair may be called again.
    """
    found = [diagnose(table_log)]
    while found[-1].can_repair and found[-1] not in found[:-1]:
        for problem in found[-1].problems:
            if problem.action:
                _ACTIONS[problem.situation](table_log)
        found.append(diagnose(table_log))
    return tuple(found)


# -- what is wrong -----------------------------------------------------------------------------


def _problems(table_log: TableLog, newest: int) -> Iterator[Problem]:
    try:
        head, etag = table_log.head_file.read_unchecked()
    except DamagedStateError as error:
        yield _pointer_problem(table_log, "head damaged", str(error), newest)
        return
    uri, claim = table_log.head_file.uri, head.publishing
    if etag is None:
        if newest:
            said = f"{uri} does not exist, though manifest {newest} is stored"
            yield _pointer_problem(table_log, "head missing", said, newest)
    elif newest > head.current + (claim is not None):
        said = f"{uri} points to manifest {head.current}, though manifest {newest} is stored"
        yield _pointer_problem(table_log, "head behind", said, newest)
    elif claim is not None and newest > head.current and not _is_explained(table_log, claim):
        said = f"{uri} claims manifest {newest}, which is stored and names other commits"
        yield _pointer_problem(table_log, "head behind", said, newest)
    elif claim is not None:
        yield _claim_problem(table_log, claim)
    else:
        yield from _file_problems(table_log, table_log.manifest(head.current))


def _is_explained(table_log: TableLog, claim: Claim) -> bool:
    manifest = table_log.stored_manifest(claim.base + 1)
    return manifest is None or explains(table_log, claim, manifest)


def _pointer_problem(table_log: TableLog, situation: Situation, said: str, newest: int) -> Problem:
    manifest = table_log.manifest(newest)
    found = find_files(table_log, manifest)
    if found.missing and not found.places:
        return Problem(
            situation,
            f"{said}; none of its {found.count:,} files exists",
            "",
            f"restore the files, or, to start over, delete the state as well: {table_log.state}",
        )
    lost = f", of which {len(found.missing):,} do not exist" if found.missing else ""
    return Problem(
        situation,
        said,
        f"point to manifest {newest + 1}, with the {found.count:,} files of manifest {newest}"
        f"{lost}; commits that were being published are given up, and their chunks are mapped "
        "again",
    )


def _claim_problem(table_log: TableLog, claim: Claim) -> Problem:
    if claim.rollback is not None:
        missing = find_files(table_log, table_log.manifest(claim.rollback)).missing
        said = f"{len(missing):,} of its files are gone" if missing else "all its files are there"
        return Problem(
            "rollback unfinished",
            f"a rollback to manifest {claim.rollback} was begun and is not finished: {said}",
            _FINISH,
            _ALIVE,
        )
    commits = table_log.readable(claim.commits)
    files = sum(commit.files.height for commit in commits)
    staged = [item for commit in commits for item in own_staged(table_log, commit)]
    gone = files - len(staged) + len(table_log.storage.missing(staged))
    runs = sorted({run_of(name) for name in claim.commits})
    said = f"run {', '.join(runs)} has begun to publish {files:,} files and has not finished; "
    said += f"{gone:,} of them have vanished" if gone else "none of them has vanished"
    if len(commits) < len(claim.commits):
        lost = len(claim.commits) - len(commits)
        said += f"; {lost:,} of its {len(claim.commits):,} commit records cannot be read"
    again = "; ".join(f"chunkmap retry {run}" for run in runs)
    advice = f"to keep its finished work, map only what has vanished: {again}" if gone else _ALIVE
    return Problem("publish unfinished", said, _FINISH, advice)


_FINISH = "finish it, or give it up where that is not possible: its chunks are mapped again"
_ALIVE = "a driver may be at work on it just now (chunkmap status): then wait for it"


def _file_problems(table_log: TableLog, manifest: Manifest) -> Iterator[Problem]:
    keys, there = table_log.keys(manifest.commits), set(visible_keys(table_log))
    missing = [key for key in keys if key not in there]
    if missing:
        copies = find_copies(table_log, missing)
        said = f"{len(missing):,} of the {len(keys):,} files of manifest {manifest.number} "
        yield Problem(
            "files missing",
            f"{said}are not in the output, for example {missing[0]}",
            f"copy {len(copies):,} of them back from where they are kept" if copies else "",
            "restore them (a bucket with versions still has them), or go back: "
            f"chunkmap rollback {table_log.output}"
            if len(copies) < len(missing)
            else "",
        )
    # What the manifest has just replaced is moved by the next command, as a version that is kept.
    unnamed = there.difference(keys)
    unnamed -= set(replaced_keys(table_log, manifest)) if unnamed else set()
    if not unnamed:
        return
    claimed = claimed_files(table_log, manifest.number)
    forgotten = sorted({run for key, run in claimed.items() if key in unnamed})
    if forgotten:
        yield Problem(
            "claim lost",
            f"files of run {', '.join(forgotten)} are in the output, though it has not published "
            f"them and is not about to: {table_log.head_file.uri} was restored from an old copy",
            "give up what it was publishing: its chunks are mapped again",
            f"to publish them instead: chunkmap retry {forgotten[0]}",
        )
    orphans = orphans_among(table_log, sorted(unnamed))
    if orphans:
        yield Problem(
            "orphan files",
            f"{len(orphans):,} files were replaced or given up, and are in the output all the "
            f"same, for example {orphans[0]}",
            f"move them to {table_log.state}orphaned/, where vacuum deletes them later",
        )


# -- what is done ------------------------------------------------------------------------------


def _fix_pointer(table_log: TableLog) -> None:
    """Point to a new manifest with the newest one's content, and give up what was claimed.

    The claim is lost with the pointer, so every commit that was frozen and is in no manifest is
    given up. A publisher that sleeps finds its manifest's number taken.
    """
    try:
        etag = table_log.head_file.read_unchecked()[1]
    except DamagedStateError as error:
        etag = error.etag
    newest = stored_manifests(table_log.storage, table_log.state)[-1]
    _give_up_unpublished(table_log, newest, etag)


def _give_up_unpublished(table_log: TableLog, newest: int, etag: str | None) -> None:
    names, before = table_log.unpublished(newest), table_log.manifest(newest)
    entry = release_entry(before, newest + 1, names)
    # A publisher or another repair was faster and has decided it: diagnose again.
    with suppress(ManifestConflictError, PreconditionFailedError, AlreadyExistsError):
        table_log.write_manifest(newest, (*before.commits, entry))
        table_log.move_head(Head(current=newest + 1), etag)
        clear_commits(table_log, names)


def _give_up_forgotten(table_log: TableLog) -> None:
    head, etag = table_log.head()
    if head.publishing is None:
        _give_up_unpublished(table_log, head.current, etag)


def _settle_claim(table_log: TableLog) -> None:
    head, etag = table_log.head()
    if head.publishing is None:
        return
    try:
        finish(table_log, head, etag)
    except ChunkmapError as error:
        if is_transient(error) or isinstance(error, AccessDeniedError):
            raise
        release(table_log, head, etag)


def _copy_back(table_log: TableLog) -> None:
    there = set(visible_keys(table_log))
    missing = [key for key in table_log.keys(table_log.manifest().commits) if key not in there]
    bring_back(table_log, find_copies(table_log, missing))


def _move_orphans(table_log: TableLog) -> None:
    named = table_log.keys(settle(table_log).commits)
    move_orphans(
        table_log, orphans_among(table_log, set(visible_keys(table_log)).difference(named))
    )


_ACTIONS = {
    "head missing": _fix_pointer,
    "head behind": _fix_pointer,
    "head damaged": _fix_pointer,
    "publish unfinished": _settle_claim,
    "rollback unfinished": _settle_claim,
    "files missing": _copy_back,
    "claim lost": _give_up_forgotten,
    "orphan files": _move_orphans,
}
