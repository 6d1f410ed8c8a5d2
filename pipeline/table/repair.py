"""Repair an output whose pointer, claim or files contradict its manifests.

`diagnose` only reads; `repair` fixes what a diagnosis finds, and may be repeated after a crash.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.errors import backup_of
from pipeline.report.humanize import plural
from pipeline.table.claims import (
    claimed_readable,
    explains,
    finish_open_claim,
    finish_or_release,
    give_up,
    own_staged,
)
from pipeline.table.decision import read_decision
from pipeline.table.errors import DamagedStateError
from pipeline.table.head import stored_manifests
from pipeline.table.log import TableLog
from pipeline.table.manifest import Claim, Manifest, is_adoption, run_of
from pipeline.table.retention import (
    claimed_files,
    copy_back,
    find_copies,
    find_files,
    move_orphans,
    orphans_among,
    replaced_keys,
    unnamed_keys,
    visible_keys,
)
from pipeline.table.settle import settle

Situation = Literal[
    "head missing",
    "head behind",
    "head damaged",
    "publish unfinished",
    "rollback unfinished",
    "files missing",
    "decision damaged",
    "claim lost",
    "orphan files",
    "table differs",
]


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem of an output, and how to fix it."""

    situation: Situation
    message: str
    """Description of the problem, in a sentence."""
    action: str
    """Action of `repair`; empty if it can do nothing."""
    advice: str = ""
    """Alternative for the user."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The problems of an output."""

    output: str
    manifest: int
    """Number of the newest manifest."""
    problems: tuple[Problem, ...]

    @property
    def can_repair(self) -> bool:
        """Whether `repair` has something to do."""
        return any(problem.action for problem in self.problems)


def diagnose(table_log: TableLog) -> Diagnosis:
    """Find the problems of an output. Writes nothing.

    Raises:
        StateError: A manifest or a commit record is damaged, and must be restored first.
    """
    numbers = stored_manifests(table_log.storage, table_log.state)
    newest = numbers[-1] if numbers else 0
    return Diagnosis(table_log.output, newest, tuple(_problems(table_log, newest)))


def repair(table_log: TableLog) -> tuple[Diagnosis, ...]:
    """Fix what `diagnose` finds, and diagnose again, until nothing can be fixed.

    Returns:
        All diagnoses; the last one has the problems that are left.

    Raises:
        StateError: A manifest or a commit record is damaged, and must be restored first.
        TransientStorageError, AccessDeniedError: Storage failed; repair may be called again.
    """
    diagnoses = [diagnose(table_log)]
    while diagnoses[-1].can_repair and diagnoses[-1] not in diagnoses[:-1]:
        for problem in diagnoses[-1].problems:
            if problem.action:
                _ACTIONS[problem.situation](table_log)
        diagnoses.append(diagnose(table_log))
    return tuple(diagnoses)


# -- problems ----------------------------------------------------------------------------------


def _problems(table_log: TableLog, newest: int) -> Iterator[Problem]:
    try:
        head, etag = table_log.head_file.read_unchecked()
    except DamagedStateError as error:
        yield _pointer_problem(table_log, "head damaged", str(error), newest)
        return
    uri, claim = table_log.head_file.uri, head.publishing
    if etag is None:
        if newest:
            message = f"{uri} does not exist, but manifest {newest} is stored"
            yield _pointer_problem(table_log, "head missing", message, newest)
    elif newest > head.current + (claim is not None):
        message = f"{uri} points to manifest {head.current}, but manifest {newest} is stored"
        yield _pointer_problem(table_log, "head behind", message, newest)
    elif claim is not None and newest > head.current and not _is_explained(table_log, claim):
        message = f"{uri} claims manifest {newest}, which is stored and names other commits"
        yield _pointer_problem(table_log, "head behind", message, newest)
    elif claim is not None:
        yield _claim_problem(table_log, claim)
    else:
        manifest = table_log.manifest(head.current)
        yield from _file_problems(table_log, manifest)
        if manifest.table:
            yield from _table_problems(table_log, manifest)


def _is_explained(table_log: TableLog, claim: Claim) -> bool:
    manifest = table_log.stored_manifest(claim.base + 1)
    return manifest is None or explains(table_log, claim, manifest)


def _pointer_problem(
    table_log: TableLog, situation: Situation, message: str, newest: int
) -> Problem:
    manifest = table_log.manifest(newest)
    files = find_files(table_log, manifest)
    if files.missing and not files.places:
        return Problem(
            situation,
            f"{message}; none of its {plural(files.count, 'file')} exists",
            "",
            f"restore the files, or delete the state too to start over: {table_log.state}",
        )
    lost = f", of which {len(files.missing):,} do not exist" if files.missing else ""
    return Problem(
        situation,
        message,
        f"point to manifest {newest + 1}, with the {plural(files.count, 'file')} of manifest "
        f"{newest}"
        f"{lost}; give up unfinished commits, whose chunks are mapped again",
    )


def _claim_problem(table_log: TableLog, claim: Claim) -> Problem:
    if claim.rollback is not None:
        missing = find_files(table_log, table_log.manifest(claim.rollback)).missing
        state = f"{len(missing):,} of its files are missing" if missing else "all its files exist"
        return Problem(
            "rollback unfinished",
            f"a rollback to manifest {claim.rollback} was begun and is not finished: {state}",
            _FINISH,
            _ALIVE,
        )
    commits = claimed_readable(table_log, claim)
    files = sum(commit.files.height for commit in commits)
    if any(map(is_adoption, claim.commits)):
        return Problem(
            "publish unfinished",
            f"chunkmap adopt has begun to adopt {plural(files, 'file')}, and has not finished",
            "finish it, or withdraw it if that is not possible: the files stay where they are",
            "if it still works on it, wait for it",
        )
    staged = [item for commit in commits for item in own_staged(table_log, commit)]
    gone = files - len(staged) + len(table_log.storage.missing(staged))
    runs = sorted({run_of(name) for name in claim.commits})
    try:
        decided = _decided_outputs(table_log, claim)
    except DamagedStateError as error:
        return _decision_problem(runs, error)
    others = "".join(f" and to {output}" for output in decided if output != table_log.output)
    message = (
        f"run {', '.join(runs)} has begun to publish {plural(files, 'file')} here{others}, and has "
        "not finished; "
        if others
        else f"run {', '.join(runs)} has begun to publish {plural(files, 'file')} and has not "
        "finished; "
    )
    message += f"{gone:,} of them have vanished" if gone else "none of them has vanished"
    if len(commits) < len(claim.commits):
        lost = len(claim.commits) - len(commits)
        message += f"; {lost:,} of its {len(claim.commits):,} commit records cannot be read"
    retry = "; ".join(f"chunkmap retry {run}" for run in runs)
    advice = f"to keep its completed chunks, map only the lost ones: {retry}" if gone else _ALIVE
    return Problem("publish unfinished", message, _FINISH, advice)


def _decided_outputs(table_log: TableLog, claim: Claim) -> list[str]:
    """Return the outputs to which a claim is published together; empty if that is not decided.

    Raises:
        DamagedStateError: The decision is damaged, and the claim cannot be finished without it.
    """
    try:
        uri = claim.decision
        decision = None if uri is None else read_decision(table_log.storage, uri)
    except DamagedStateError:
        if table_log.stored_manifest(claim.base + 1) is None:
            raise
        decision = None  # It is published here.
    return [decided.output for decided in decision.outputs] if decision else []


def _decision_problem(runs: Sequence[str], error: DamagedStateError) -> Problem:
    retry = "; ".join(f"chunkmap retry {run}" for run in runs)
    return Problem(
        "decision damaged",
        f"run {', '.join(runs)} has begun to publish here and to other outputs, and whether that "
        f"was decided is not known: {error}",
        "withdraw it here: its chunks are mapped again. Other outputs may have it already, and are "
        f"left as they are; then publish it to those that lack it: {retry}",
        f"to publish it without mapping anything again, restore {error.uri} from "
        f"{backup_of(error.uri)}",
    )


_FINISH = "finish it, or withdraw it if that is not possible: its chunks are mapped again"
_ALIVE = "if a driver is working on it (chunkmap status), wait for it"


def _file_problems(table_log: TableLog, manifest: Manifest) -> Iterator[Problem]:
    keys, visible = table_log.keys(manifest.commits), set(visible_keys(table_log))
    missing = [key for key in keys if key not in visible]
    if missing:
        copies = find_copies(table_log, missing)
        yield Problem(
            "files missing",
            f"the output lacks {len(missing):,} of the {plural(len(keys), 'file')} of manifest "
            f"{manifest.number}, for example {missing[0]}",
            f"copy {len(copies):,} of them back from their kept copies" if copies else "",
            f"restore them from {backup_of(table_log.output)}, or roll back: "
            f"chunkmap rollback {table_log.output}"
            if len(copies) < len(missing)
            else "",
        )
    # Files that the manifest has just replaced are moved by the next command, and kept.
    unnamed = unnamed_keys(table_log, manifest)
    unnamed -= set(replaced_keys(table_log, manifest)) if unnamed else set()
    if not unnamed:
        return
    claimed = claimed_files(table_log, manifest.number)
    forgotten = sorted({run for key, run in claimed.items() if key in unnamed})
    if forgotten:
        yield Problem(
            "claim lost",
            f"files of run {', '.join(forgotten)} are in the output, but the run has neither "
            f"published nor claimed them: {table_log.head_file.uri} was restored from an old copy",
            "give up its unfinished commits: their chunks are mapped again",
            f"to publish them instead: chunkmap retry {forgotten[0]}",
        )
    orphans = orphans_among(table_log, sorted(unnamed))
    if orphans:
        yield Problem(
            "orphan files",
            f"the output still has {plural(len(orphans), 'file')} that were replaced or given up, "
            f"for example {orphans[0]}",
            f"move them to {table_log.state}orphaned/, where vacuum deletes them later",
        )


def _table_problems(table_log: TableLog, manifest: Manifest) -> Iterator[Problem]:
    # Only tables need their library.
    from pipeline.table.delta.look import table_problems

    problems = table_problems(table_log, manifest)
    if not problems:
        return
    is_behind = "commits what is missing" in problems[0]
    yield Problem(
        "table differs",
        "; ".join(problems),
        "commit what is missing to the Delta log" if is_behind else "",
        ""
        if is_behind
        else "restore the table's version before that (DeltaTable.restore), or its log from "
        f"{backup_of(table_log.output)}",
    )


# -- actions -----------------------------------------------------------------------------------


def _fix_pointer(table_log: TableLog) -> None:
    """Point to a new manifest with the content of the newest, and give up all open claims.

    The claim is lost with the pointer, so every frozen commit that is in no manifest is given up. A
    suspended publisher finds the number of its manifest taken.
    """
    try:
        etag = table_log.head_file.read_unchecked()[1]
    except DamagedStateError as error:
        etag = error.etag
    newest = stored_manifests(table_log.storage, table_log.state)[-1]
    _give_up_unpublished(table_log, newest, etag)


def _give_up_forgotten(table_log: TableLog) -> None:
    head, etag = table_log.head()
    if head.publishing is None:
        _give_up_unpublished(table_log, head.current, etag)


def _give_up_unpublished(table_log: TableLog, newest: int, etag: str | None) -> None:
    """Give up every frozen commit that is in no manifest, on top of the newest manifest.

    Its publisher may have died before it moved the replaced files. With a release on top, they
    would count as orphans, and be deleted although their version is kept. A table's replaced files
    stay where they are.
    """
    manifest = table_log.manifest(newest)
    if not manifest.table:
        settle(table_log, manifest)
    give_up(table_log, newest, etag, table_log.unpublished(newest))


def _settle_claim(table_log: TableLog) -> None:
    head, etag = table_log.head()
    if head.publishing is not None:
        finish_or_release(table_log, head, etag)


def _copy_missing(table_log: TableLog) -> None:
    visible = set(visible_keys(table_log))
    missing = [key for key in table_log.keys(table_log.manifest().commits) if key not in visible]
    copy_back(table_log, find_copies(table_log, missing))


def _move_orphans(table_log: TableLog) -> None:
    unnamed = unnamed_keys(table_log, finish_open_claim(table_log))
    move_orphans(table_log, orphans_among(table_log, unnamed))


_ACTIONS: dict[str, Callable[[TableLog], object]] = {
    "head missing": _fix_pointer,
    "head behind": _fix_pointer,
    "head damaged": _fix_pointer,
    "publish unfinished": _settle_claim,
    "decision damaged": _settle_claim,
    "rollback unfinished": _settle_claim,
    "files missing": _copy_missing,
    "claim lost": _give_up_forgotten,
    "orphan files": _move_orphans,
    "table differs": finish_open_claim,
}
