"""Publishing: freeze the choice, claim, make visible, write the manifest, move the pointer.

It only rolls forward. Whoever meets a claim finishes it first, and finishing twice changes
nothing; so a driver may die between any two requests and any other one goes on.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import polars as pl

from pipeline.catalog import Catalog
from pipeline.errors import (
    AlreadyExistsError,
    ConflictError,
    OutputNotEmptyError,
    PreconditionFailedError,
    StorageError,
    UsageError,
)
from pipeline.manifest import Claim, Commit, CommitEntry, Head, Manifest, files_of, folders
from pipeline.records import PARTIAL
from pipeline.storage import Staged
from pipeline.versions import locate, restore, tidy

COMPLETE_AT_ONCE = 1000
"""Uploads completed between two looks at what came of them."""


class UploadsVanishedError(StorageError):
    """Staged outputs are gone (a lifecycle rule, an emptied server); their chunks are left again.

    Attributes:
        attempts: Of the chunks' completions.
        commit: Name of the frozen commit that names them, once it is claimed.
    """

    def __init__(self, attempts: list[str], commit: str | None = None) -> None:
        super().__init__(
            f"{len(attempts)} staged outputs have vanished before they were published"
            + (f" (commit {commit} is claimed and waits for them)" if commit else ""),
            hint="run the job again: their chunks are mapped anew",
        )
        self.attempts = attempts
        self.commit = commit


@dataclass(frozen=True, slots=True)
class Published:
    """What publishing came to."""

    manifest: Manifest
    already: bool
    """It had been published before."""


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
    if strangers and (head.current != manifest.number or (head.publishing and own is None)):
        return prepare_output(catalog, mode, run)  # They are being published just now.
    if strangers:
        raise OutputNotEmptyError(
            f"{catalog.output} holds what chunkmap did not publish: {len(strangers):,} in number, "
            f"such as {strangers[0]}",
            hint="choose another output, or move them away",
        )
    return manifest


def _settled_but_own(catalog: Catalog, run: str) -> tuple[Manifest, Commit | None]:
    """Finish what others began; what this run itself lost is mapped anew and finished later."""
    try:
        return settle(catalog), None
    except UploadsVanishedError as error:
        commit = catalog.commit(error.commit or "")
        if commit is None or commit.entry.run != run:
            raise foreign_claim(catalog.output, error) from error
        return catalog.manifest(catalog.head()[0].current), commit


def foreign_claim(output: str, error: UploadsVanishedError) -> ConflictError:
    """A claim of another run whose uploads are gone can be finished by its own job only."""
    run = (error.commit or "").partition(".")[0]
    return ConflictError(
        f"run {run} has claimed {output}, and {error}",
        hint=f"first finish it: chunkmap retry {run}",
    )


def _strangers(catalog: Catalog, manifest: Manifest, own: Commit | None) -> list[str]:
    named = set(catalog.snapshot(manifest)["key"].to_list())
    if own is not None:
        named |= set(own.files["key"].to_list())
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
    """Make a run's completions visible, exactly once.

    Args:
        catalog: Of the output.
        draft: What to publish, unless a commit of its name is frozen already.
        accepted: Manifest up to which nothing is in conflict, although it came after the base.

    Raises:
        UploadsVanishedError: some staged outputs are gone; map their chunks again.
        ConflictError: another commit since the draft's base touched what this one replaces.
    """
    commit = catalog.commit(draft.entry.name)
    if commit is None:
        gone = catalog.storage.missing(staged_of(catalog.output, draft.files))
        # Another driver of this run may have frozen its choice, and more, while we looked.
        commit = catalog.commit(draft.entry.name) if gone else catalog.write_commit(draft)
        if commit is None:
            raise UploadsVanishedError([item.attempt for item in gone])
    return _claim_and_finish(catalog, commit, accepted)


def _claim_and_finish(catalog: Catalog, commit: Commit, accepted: int) -> Published:
    name, already = commit.entry.name, True
    while True:
        head, etag = catalog.head()
        if head.publishing is not None:
            already &= head.publishing.commit != name
            _finish(catalog, head, etag)
            continue
        current = catalog.manifest(head.current)
        # Also one that a later overwrite replaced, or a rollback took away, has been published.
        if any(entry.name == name for entry in commits_of(catalog, commit.entry.run, commit.base)):
            tidy(catalog, current)
            return Published(current, already)
        _refuse_conflicts(catalog, commit, current, accepted)
        already = False
        claimed = Head(current=head.current, publishing=Claim(commit=name, base=head.current))
        # Losing the race is no error: look again at what the winner did.
        with suppress(PreconditionFailedError, AlreadyExistsError):
            catalog.move_head(claimed, etag)


def commits_of(catalog: Catalog, run: str, base: int) -> list[CommitEntry]:
    """The commits of a run, in order, in whatever manifest: it began on top of this base."""
    numbers = range(base + 1, catalog.head()[0].current + 1)
    entries = [entry for number in numbers for entry in catalog.manifest(number).commits]
    return list({entry.name: entry for entry in entries if entry.run == run}.values())


def _refuse_conflicts(catalog: Catalog, commit: Commit, current: Manifest, accepted: int) -> None:
    """Appends and overwrites of other partitions go on top of anything; the rest must not."""
    mode = commit.entry.mode
    for other in _commits_since(catalog, commit, current, max(commit.base, accepted)):
        if mode in {"error", "overwrite"} or _overlap(commit, other):
            raise ConflictError(
                f"run {other.entry.run} has published to {catalog.output} since run "
                f"{commit.entry.run} began, and the mode is {mode}",
                hint="look at the output (chunkmap history), then run the job again with --replan",
            )


def _overlap(commit: Commit, other: Commit) -> bool:
    """Whether a commit replaces folders that the other has files in."""
    return bool(set(commit.replaces) & set(folders(other.files)))


def _commits_since(catalog: Catalog, commit: Commit, current: Manifest, base: int) -> list[Commit]:
    """Commits of other runs that came after a manifest."""
    before: set[str] = set()
    if base:
        before = {entry.name for entry in catalog.manifest(base).commits}
    return [
        catalog.known(entry)
        for entry in current.commits
        if entry.name not in before and entry.run != commit.entry.run
    ]


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


def _add(catalog: Catalog, claim: Claim) -> Manifest:
    commit = catalog.commit(claim.commit or "")
    assert commit is not None, "a claim names a frozen commit"
    staged = staged_of(catalog.output, commit.files)
    gone: list[Staged] = []
    for start in range(0, len(staged), COMPLETE_AT_ONCE):
        gone += catalog.storage.complete(staged[start : start + COMPLETE_AT_ONCE])
    if gone:
        raise UploadsVanishedError([item.attempt for item in gone], claim.commit)
    before = catalog.manifest(claim.base).commits
    kept = () if commit.entry.mode == "overwrite" else before
    return catalog.write_manifest(claim.base, (*kept, commit.entry))


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
    """Give a claimed commit other attempts for the chunks whose uploads had vanished.

    Args:
        catalog: Of the output.
        vanished: What publishing said.
        run: Whose completions these are.
        files: Of the run's completions (schema FILES), with those chunks mapped anew.

    Raises:
        ConflictError: the commit is another run's.
    """
    while True:
        commit = catalog.commit(vanished.commit or "")
        if commit is None:
            return  # Nothing was frozen yet: the next publish chooses among what is there.
        if commit.entry.run != run:
            raise foreign_claim(catalog.output, vanished)
        lost = commit.files.filter(pl.col("attempt").is_in(vanished.attempts))
        if lost.is_empty():
            return  # Another driver was faster, and what it named counts.
        with suppress(AlreadyExistsError):
            catalog.amend(commit, files.join(lost.select("chunk"), on="chunk", how="semi"))


def abort_spares(catalog: Catalog, spares: pl.DataFrame) -> None:
    """Abort the attempts that were not chosen."""
    catalog.storage.abort(_staged_spares(catalog, spares))


def gone_spares(catalog: Catalog, spares: pl.DataFrame) -> list[str]:
    """The attempts among these completions whose uploads have vanished."""
    gone = catalog.storage.missing(_staged_spares(catalog, spares))
    return [item.attempt for item in gone]


def _staged_spares(catalog: Catalog, spares: pl.DataFrame) -> list[Staged]:
    staged = spares.filter(pl.col("upload") != PARTIAL)
    return staged_of(catalog.output, files_of(catalog.output, staged))
