"""Finish, or give up, the claim that a publisher has on an output.

Publishing only rolls forward. A process that meets a claim finishes it first, and finishing twice
changes nothing; so a driver may die between any two requests and any other one goes on. A claim
that can never be finished is released: the manifest that it was to become says so instead.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress

import polars as pl

from pipeline.concurrency import map_concurrently
from pipeline.errors import PreconditionFailedError
from pipeline.storage import StagedObject
from pipeline.table.errors import (
    DamagedStateError,
    FilesMissingError,
    ManifestConflictError,
    UploadsVanishedError,
)
from pipeline.table.evidence import write_evidence
from pipeline.table.head import manifest_uri
from pipeline.table.log import TableLog
from pipeline.table.manifest import Claim, Commit, CommitEntry, Head, Manifest
from pipeline.table.retention import (
    kept_versions,
    move_orphans,
    move_replaced,
    restore,
    visible_keys,
)

COMPLETE_AT_ONCE = 1000
"""Uploads completed between two looks at what came of them."""


def staged_of(output: str, files: pl.DataFrame) -> list[StagedObject]:
    """The tokens of a commit record's files."""
    columns = ["key", "upload", "parts", "bytes", "attempt"]
    return [
        StagedObject(output + key, upload, tuple(parts), size, attempt)
        for key, upload, parts, size, attempt in files.select(columns).iter_rows()
    ]


def settle(table_log: TableLog) -> Manifest:
    """Finish a claim that a driver left behind, if there is one; returns the current manifest."""
    while True:
        head, etag = table_log.head()
        if head.publishing is None:
            manifest = table_log.manifest(head.current)
            move_replaced(table_log, manifest)
            return manifest
        finish(table_log, head, etag)


def finish(table_log: TableLog, head: Head, etag: str | None, *, is_own: bool = False) -> None:
    """Roll a claim forward to its end. Any driver may; twice changes nothing.

    Args:
        table_log: Of the output.
        head: The pointer, with the claim.
        etag: Of the pointer.
        is_own: This process has just claimed: its manifest is hardly there yet.

    Raises:
        UploadsVanishedError, FilesMissingError: some files can not be made visible any more.
        ManifestConflictError: the next manifest is stored, and the claim does not explain it.
    """
    claim = head.publishing
    assert claim is not None, "only a claim is finished"
    # With the manifest stored, all that it names had been made visible.
    manifest = None if is_own else table_log.stored_manifest(claim.base + 1)
    is_found = manifest is not None
    if manifest is None:
        try:
            manifest = _roll_forward(table_log, claim)
        except (UploadsVanishedError, FilesMissingError, ManifestConflictError):
            if table_log.head()[1] != etag:
                return  # While we slept it was finished, and what it published was replaced.
            manifest, is_found = table_log.stored_manifest(claim.base + 1), True
            if manifest is None:
                raise
    if _is_release(manifest, claim):
        _clear_released(table_log, claim)
    elif is_found and not explains(table_log, claim, manifest):
        raise ManifestConflictError(manifest_uri(table_log.state, manifest.number))
    with suppress(PreconditionFailedError):
        table_log.move_head(Head(current=manifest.number), etag)


def _roll_forward(table_log: TableLog, claim: Claim) -> Manifest:
    """Make everything that a claim names visible, and write its manifest."""
    if claim.rollback is None:
        commits = claimed_commits(table_log, claim.commits)
        _make_visible(table_log, commits)
        write_evidence(table_log, claim.base + 1, commits)
        return table_log.write_manifest(claim.base, _listed(table_log, claim.base, commits))
    target, current = table_log.manifest(claim.rollback), table_log.manifest(claim.base)
    record = restore(table_log, target, current)
    restored = () if record is None else (table_log.write_commit(record).entry,)
    return table_log.write_manifest(claim.base, (*target.commits, *restored), target.number)


def _make_visible(table_log: TableLog, commits: Sequence[Commit]) -> None:
    staged = [item for commit in commits for item in staged_of(table_log.output, commit.files)]
    table_log.storage.check_staged(staged, table_log.output)
    gone: set[str] = set()
    for start in range(0, len(staged), COMPLETE_AT_ONCE):
        lost = table_log.storage.complete(staged[start : start + COMPLETE_AT_ONCE])
        gone |= {item.attempt for item in lost}
    if gone:
        raise vanished_from(commits, gone)


def _listed(table_log: TableLog, base: int, commits: Sequence[Commit]) -> tuple[CommitEntry, ...]:
    """The commits of the manifest that adds some commits to a base."""
    held = table_log.manifest(base).commits
    for commit in commits:
        held = (commit.entry,) if commit.entry.mode == "overwrite" else (*held, commit.entry)
    return held


def explains(table_log: TableLog, claim: Claim, manifest: Manifest) -> bool:
    """Whether a claim is what led to the manifest after its base, published or released."""
    if _is_release(manifest, claim):
        return True
    if claim.rollback is not None:
        return manifest.rollback_of == claim.rollback
    commits = claimed_commits(table_log, claim.commits)
    listed = _listed(table_log, claim.base, commits)
    return [entry.name for entry in listed] == [entry.name for entry in manifest.commits]


def claimed_commits(table_log: TableLog, names: Sequence[str]) -> list[Commit]:
    """The frozen commits that a claim names.

    Raises:
        DamagedStateError: one of them is not stored, though it was before it was claimed.
    """
    commits = []
    for name, commit in zip(names, map_concurrently(table_log.commit, names), strict=True):
        if commit is None:
            raise DamagedStateError(
                table_log.head_file.uri, f"commit {name}, claimed, is not stored"
            )
        commits.append(commit)
    return commits


def vanished_from(commits: Sequence[Commit], attempts: Collection[str]) -> UploadsVanishedError:
    """The error that says which chunks of claimed commits have lost their uploads."""
    lost = {c.entry.name: c.files.filter(pl.col("attempt").is_in(attempts)) for c in commits}
    chunks = {name: files["chunk"].to_list() for name, files in lost.items() if files.height}
    return UploadsVanishedError(sorted(attempts), chunks)


# -- giving up a claim -------------------------------------------------------------------------


def release(table_log: TableLog, head: Head, etag: str | None) -> Manifest:
    """Give up a claim that cannot be finished, safely against a publisher that sleeps.

    The manifest that it was to become is written first, with the content of the one before: that
    decides it. Every process that meets the claim then, the sleeper too, aborts what it had staged,
    moves away what it had made visible, and moves the pointer.

    Args:
        table_log: Of the output.
        head: The pointer, with the claim.
        etag: Of the pointer.

    Returns:
        The manifest after the claim's base: the release or, if the publisher was faster, its own.
    """
    claim = head.publishing
    assert claim is not None, "only a claim is released"
    before = table_log.manifest(claim.base)
    entry = release_entry(before, claim.base + 1, claim.commits)
    with suppress(ManifestConflictError):
        table_log.write_manifest(claim.base, (*before.commits, entry))
    finish(table_log, head, etag)
    return table_log.manifest(claim.base + 1)


def release_entry(before: Manifest, number: int, names: Sequence[str]) -> CommitEntry:
    """The entry of a manifest that says that some frozen commits are never to be published."""
    return CommitEntry(
        name=f"release-{number}",
        run="",
        mode="release",
        files=0,
        rows=0,
        bytes=0,
        # It changes no file, so it is no version of its own: what could be gone back to still can.
        keep_versions=kept_versions(before) + 1,
        releases=tuple(names),
    )


def _is_release(manifest: Manifest, claim: Claim) -> bool:
    """Whether a manifest gives up the claim that it was to be the result of."""
    last = manifest.commits[-1] if manifest.commits else None
    return last is not None and last.mode == "release" and last.name == f"release-{claim.base + 1}"


def _clear_released(table_log: TableLog, claim: Claim) -> None:
    if claim.rollback is None:
        clear_commits(table_log, claim.commits)
        return
    # What a rollback restores has keys that end so, and no other file has.
    suffix = f".r{claim.base + 1}.parquet"
    restored = [key for key in visible_keys(table_log) if key.endswith(suffix)]
    move_orphans(table_log, restored)


def clear_commits(table_log: TableLog, names: Sequence[str]) -> None:
    """Abort what released commits have staged, and move away what was made visible of them."""
    commits = table_log.readable(names)
    for commit in commits:
        table_log.storage.abort(own_staged(table_log, commit))
    own = {key for commit in commits for key in commit.files["key"].to_list()}
    move_orphans(table_log, [key for key in visible_keys(table_log) if key in own])


def own_staged(table_log: TableLog, commit: Commit) -> list[StagedObject]:
    """The tokens of a commit's files, but for those that staging could not have given."""
    rule = table_log.storage.token_rule(table_log.output)
    staged = staged_of(table_log.output, commit.files)
    return [item for item in staged if rule.allows(item.uri, item.upload, item.attempt)]
