"""Finish or release the claim that a publisher has on an output.

Publishing only rolls forward. A process that finds a claim finishes it first, and finishing twice
changes nothing. So a driver may die between any two requests, and any other driver resumes. A claim
that can never be finished is released by storing a release as the manifest after its base.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from contextlib import suppress

import polars as pl

from pipeline.concurrency import map_concurrently
from pipeline.errors import (
    AccessDeniedError,
    AlreadyExistsError,
    ChunkmapError,
    PreconditionFailedError,
    is_transient,
)
from pipeline.storage import StagedObject
from pipeline.table.decision import Decision, await_decision, read_decision
from pipeline.table.errors import (
    DamagedStateError,
    FilesMissingError,
    ManifestConflictError,
    UploadsVanishedError,
    damage_hint,
)
from pipeline.table.evidence import publish_rejected, write_evidence
from pipeline.table.head import manifest_uri
from pipeline.table.log import TableLog
from pipeline.table.manifest import FILES, Claim, Commit, CommitEntry, Head, Manifest
from pipeline.table.retention import (
    existing_objects,
    kept_versions,
    move_orphans,
    restore,
    restored_by,
    visible_keys,
)
from pipeline.table.settle import settle

log = logging.getLogger(__name__)

COMPLETE_AT_ONCE = 1000
"""Number of uploads that are completed in one call."""
CHECK_AT_ONCE = 10_000
"""Number of uploads that are looked for in one call: a token takes a kilobyte of memory."""


def staged_files(commits: Sequence[Commit]) -> pl.DataFrame:
    """Return the files of some commits (schema FILES) that were staged; adopted ones were not."""
    own = [commit.files for commit in commits if not commit.entry.adopts]
    return pl.concat(own) if own else pl.DataFrame(schema=FILES)


def staged_of(output: str, files: pl.DataFrame) -> list[StagedObject]:
    """Return the tokens of a run's files, as in its commit record."""
    columns = ["key", "upload", "parts", "bytes", "attempt"]
    return [
        StagedObject(output + key, upload, tuple(parts), size, attempt)
        for key, upload, parts, size, attempt in files.select(columns).iter_rows()
    ]


def vanished_attempts(table_log: TableLog, files: pl.DataFrame) -> list[str]:
    """Return the attempts whose files (schema FILES) are neither staged nor visible any more."""
    gone: list[str] = []
    for some in files.iter_slices(CHECK_AT_ONCE):
        staged = staged_of(table_log.output, some)
        table_log.storage.check_staged(staged, table_log.output)
        gone += [item.attempt for item in table_log.storage.missing(staged)]
    return gone


def finish_open_claim(
    table_log: TableLog, pointer: tuple[Head, str | None] | None = None
) -> Manifest:
    """Finish the open claim, if there is one; return the current manifest.

    Args:
        table_log: Table log of the output.
        pointer: The pointer and its ETag, if the caller has just read them.
    """
    while True:
        head, etag = pointer or table_log.head()
        pointer = None
        if head.publishing is None:
            manifest = table_log.manifest(head.current)
            settle(table_log, manifest)
            return manifest
        finish_claim(table_log, head, etag)


def finish_claim(
    table_log: TableLog,
    head: Head,
    etag: str | None,
    *,
    is_own: bool = False,
    with_others: bool = True,
) -> Manifest | None:
    """Roll a claim forward to its end. Any driver may do so; doing it twice changes nothing.

    A claim that is part of a decision on several outputs is rolled forward with those of the other
    outputs, or withdrawn, as the decision says.

    Args:
        table_log: Table log of the output.
        head: The pointer, with the claim.
        etag: ETag of the pointer.
        is_own: This process has just made the claim, so its manifest is not looked for.
        with_others: Finish the claims of the same decision on other outputs too.

    Returns:
        The manifest after the claim's base, if this call has moved the pointer to it.

    Raises:
        UploadsVanishedError, FilesMissingError: Some files can no longer be made visible.
        ManifestConflictError: The next manifest is stored, and does not match the claim.
        DamagedStateError: Its decision is damaged, and the next manifest is not stored.
    """
    claim = head.publishing
    assert claim is not None, "only a claim is finished"
    # If the manifest is stored, all its files have been made visible: then it was decided so.
    manifest = None if is_own else table_log.stored_manifest(claim.base + 1)
    is_found, decision = manifest is not None, None
    if manifest is None:
        if claim.decision is not None:
            decision = _decision_of(table_log, claim.decision)
            if not decision.publishes(table_log.output, claim):
                withdraw_claim(table_log, head, etag)
                return None
        try:
            manifest = _roll_forward(table_log, claim)
        except (UploadsVanishedError, FilesMissingError, ManifestConflictError):
            if table_log.head()[1] != etag:
                return None  # Another process finished it meanwhile; its files were replaced.
            manifest, is_found = table_log.stored_manifest(claim.base + 1), True
            if manifest is None:
                raise
    if _is_release(manifest, claim):
        _clear_released(table_log, claim)
    elif is_found and _released(manifest, claim) is not None:
        _rebase_claim(table_log, head, etag, manifest)
        return None
    elif is_found and not explains(table_log, claim, manifest):
        raise ManifestConflictError(manifest_uri(table_log.state, manifest.number))
    moved = None
    with suppress(PreconditionFailedError):
        table_log.move_head(Head.at(manifest), etag)
        moved = manifest
    if claim.decision is not None and with_others:
        _finish_others(table_log, claim.decision, decision)
    return moved


def _rebase_claim(table_log: TableLog, head: Head, etag: str | None, manifest: Manifest) -> None:
    """Put a claim on a release of other commits, which was stored while it was made.

    A release changes no file, so the claim is as good after it as before.
    """
    claim = head.publishing
    assert claim is not None, "only a claim is rebased"
    if claim.rollback is not None:  # It restores files under keys with its number.
        move_orphans(table_log, restored_by(visible_keys(table_log), manifest.number))
    rebased = claim.model_copy(update={"base": manifest.number})
    moved = {"current": manifest.number, "publishing": rebased}
    with suppress(PreconditionFailedError):
        table_log.move_head(head.model_copy(update=moved), etag)


def _decision_of(table_log: TableLog, uri: str) -> Decision:
    """Return the decision on a claim, as `await_decision`."""
    try:
        return await_decision(table_log.storage, uri)
    except DamagedStateError as error:
        error.hint = damage_hint(uri, table_log.output)
        raise


def withdraw_claim(table_log: TableLog, head: Head, etag: str | None) -> None:
    """Take back a claim whose decision is not to publish; nothing of it was visible."""
    with suppress(PreconditionFailedError):
        table_log.move_head(Head.at(table_log.manifest(head.current)), etag)


def _finish_others(table_log: TableLog, uri: str, decision: Decision | None) -> None:
    """Roll the claims of a decision on other outputs forward, as far as that is possible here.

    Args:
        table_log: Table log of the output whose claim is finished.
        uri: URI of the decision.
        decision: The decision, if it was read before.
    """
    try:
        decision = decision or read_decision(table_log.storage, uri)
    except ChunkmapError as error:
        # As below.
        log.warning(
            "the outputs that were decided with %s are not known: %s", table_log.output, error
        )
        return
    for decided in decision.outputs if decision is not None else ():
        if decided.output == table_log.output:
            continue
        try:
            other = TableLog(table_log.storage, decided.output)
            head, etag = other.head()
            if head.publishing is not None and head.publishing.decision == uri:
                finish_claim(other, head, etag, with_others=False)
        except ChunkmapError as error:
            # Whoever next works on that output meets its claim, and the error.
            log.warning("%s is not published yet, and was decided to be: %s", decided.output, error)


def _roll_forward(table_log: TableLog, claim: Claim) -> Manifest:
    """Make all files of a claim visible, and write its manifest."""
    if claim.rollback is None:
        commits = claimed_commits(table_log, claim)
        _make_visible(table_log, commits)
        write_evidence(table_log, claim.base + 1, commits)
        gone = publish_rejected(table_log, claim.base + 1, commits)
        if gone:
            vanished = vanished_from(commits, gone)
            if vanished.commits:
                raise vanished
            # The commit has no files of these chunks, in whose place others could be put.
            raise FilesMissingError(table_log.output, claim.base + 1, gone, len(gone))
        return table_log.write_manifest(claim.base, _listed(table_log, claim.base, commits))
    target, current = table_log.manifest(claim.rollback), table_log.manifest(claim.base)
    record = restore(table_log, target, current)
    restored = () if record is None else (table_log.write_commit(record).entry,)
    return table_log.write_manifest(claim.base, (*target.commits, *restored), target.number)


def _make_visible(table_log: TableLog, commits: Sequence[Commit]) -> None:
    files = staged_files(commits)
    # All of them first: none becomes visible beside a forged one.
    for some in files.iter_slices(CHECK_AT_ONCE):
        table_log.storage.check_staged(staged_of(table_log.output, some), table_log.output)
    gone: set[str] = set()
    for some in files.iter_slices(COMPLETE_AT_ONCE):
        lost = table_log.storage.complete(staged_of(table_log.output, some))
        gone |= {item.attempt for item in lost}
    if gone:
        raise vanished_from(commits, gone)


def _listed(table_log: TableLog, base: int, commits: Sequence[Commit]) -> tuple[CommitEntry, ...]:
    """Return the commits of the manifest that adds some commits to a base."""
    listed = list(table_log.manifest(base).commits)
    for commit in commits:
        if commit.entry.mode == "overwrite":
            listed.clear()
        listed.append(commit.entry)
    return tuple(listed)


def explains(table_log: TableLog, claim: Claim, manifest: Manifest) -> bool:
    """Whether the manifest after a claim's base is the result of the claim, or its release."""
    if _is_release(manifest, claim):
        return True
    if claim.rollback is not None:
        return manifest.rollback_of == claim.rollback
    listed = _listed(table_log, claim.base, claimed_commits(table_log, claim))
    named = [(entry.name, entry.record) for entry in manifest.commits]
    return [(entry.name, entry.record) for entry in listed] == named


def claimed_commits(
    table_log: TableLog, claim: Claim, names: Collection[str] | None = None
) -> list[Commit]:
    """Return the frozen commits that a claim names.

    Args:
        table_log: Table log of the output.
        claim: The claim.
        names: Names of the commits to return; default all.

    Raises:
        DamagedStateError: One of them is not stored, although commits are stored before the claim.
    """
    chosen = set(claim.commits if names is None else names)
    wanted = [name for name in claim.commits if name in chosen]
    if claim.record:
        shared = table_log.commits(claim.record) if wanted else {}
        found = [None if shared is None else shared.get(name) for name in wanted]
    else:
        found = map_concurrently(table_log.commit, wanted)
    for name, commit in zip(wanted, found, strict=True):
        if commit is None:
            raise DamagedStateError(
                table_log.head_file.uri, f"it claims commit {name}, which is not stored"
            )
    return [commit for commit in found if commit is not None]


def vanished_from(commits: Sequence[Commit], attempts: Collection[str]) -> UploadsVanishedError:
    """Return the error that names the chunks of claimed commits with lost uploads."""
    gone, chunks = set(attempts), dict[str, list[str]]()
    for commit in commits:
        pairs = commit.files.select("chunk", "attempt").iter_rows()
        lost = [chunk for chunk, attempt in pairs if attempt in gone]
        if lost:
            chunks[commit.entry.name] = lost
    return UploadsVanishedError(sorted(attempts), chunks)


# -- release a claim ---------------------------------------------------------------------------


def release(table_log: TableLog, head: Head, etag: str | None) -> Manifest:
    """Give up a claim that cannot be finished, safely against a suspended publisher.

    First a manifest with the number of the claim's is stored, with the content of the manifest
    before, which decides the matter. Then every process that finds the claim, also the suspended
    publisher, aborts its staged outputs, moves its visible files away, and moves the pointer.

    Args:
        table_log: Table log of the output.
        head: The pointer, with the claim.
        etag: ETag of the pointer.

    Returns:
        The manifest after the claim's base: the release, or the publisher's if it was faster.
    """
    claim = head.publishing
    assert claim is not None, "only a claim is released"
    before = table_log.manifest(claim.base)
    entry = release_entry(before, claim.base + 1, claim.commits, claim.record)
    with suppress(ManifestConflictError):
        table_log.write_manifest(claim.base, (*before.commits, entry))
    finish_claim(table_log, head, etag)
    return table_log.manifest(claim.base + 1)


def finish_or_release(table_log: TableLog, head: Head, etag: str | None) -> None:
    """Finish a claim, or withdraw it if it can never be finished.

    Args:
        table_log: Table log of the output.
        head: The pointer, with the claim.
        etag: ETag of the pointer.

    Raises:
        TransientStorageError, AccessDeniedError: Storage failed; it may be called again.
    """
    try:
        finish_claim(table_log, head, etag)
    except ChunkmapError as error:
        if is_transient(error) or isinstance(error, AccessDeniedError):
            raise
        release(table_log, head, etag)


def release_entry(
    before: Manifest, number: int, names: Sequence[str], record: str = ""
) -> CommitEntry:
    """Return the entry that excludes some frozen commits from being published.

    Args:
        before: The manifest before.
        number: Number of the manifest that lists the entry.
        names: Names of the commits.
        record: Name of a record that some of them share.
    """
    return CommitEntry(
        name=f"release-{number}",
        run="",
        mode="release",
        files=0,
        rows=0,
        bytes=0,
        # It changes no file, so it must not use up one of the versions that are kept.
        keep_versions=kept_versions(before) + 1,
        releases=tuple(names),
        record=record,
    )


def give_up(table_log: TableLog, newest: int, etag: str | None, names: Sequence[str]) -> None:
    """Give up frozen commits that nobody claims any more; their chunks are mapped again.

    If a publisher or another process that gives them up is faster, its result counts.

    Args:
        table_log: Table log of the output.
        newest: Number of the newest manifest.
        etag: ETag of the pointer.
        names: Names of the commits.
    """
    before, commits = table_log.manifest(newest), table_log.frozen(names, newest)
    record = next((commit.entry.record for commit in commits if commit.entry.record), "")
    entry = release_entry(before, newest + 1, names, record)
    with suppress(ManifestConflictError, PreconditionFailedError, AlreadyExistsError):
        released = table_log.write_manifest(newest, (*before.commits, entry))
        table_log.move_head(Head.at(released), etag)
        clear_commits(table_log, commits)


def give_up_lost(table_log: TableLog, run: str, number: int) -> None:
    """Give up commits of a run whose claim was lost, as HEAD.json was restored from an old copy.

    Their files may be visible, while the run publishes other attempts at the same chunks. An own
    record would be published again; of shared ones, nothing says which one was claimed.

    Args:
        table_log: Table log of the output.
        run: Id of the run.
        number: Number of the current manifest, or of one before it.

    Raises:
        UploadsVanishedError: There were such commits; map their chunks again.
        And what `finish_claim` raises.
    """
    if not table_log.unlisted_records(number):
        return
    manifest = finish_open_claim(table_log)
    head, etag = table_log.head()
    unlisted = table_log.readable(table_log.unlisted_records(manifest.number))
    commits = [commit for commit in unlisted if commit.entry.run == run]
    keys = {key for commit in commits for key in commit.files["key"].to_list()}
    stray = existing_objects(table_log, keys.difference(table_log.keys(manifest.commits)))
    # Another process may claim them at this moment: then it makes them visible.
    is_claimed = head.publishing is not None or head.current != manifest.number
    if not stray or is_claimed or table_log.head()[1] != etag:
        return
    known = table_log.known_names(manifest.number)
    frozen = [commit for commit in commits if commit.entry.name not in known]
    lost = [c for c in frozen if not stray.keys().isdisjoint(c.files["key"].to_list())]
    if not lost:  # They were published with other attempts, or released.
        move_orphans(table_log, stray)
        return
    give_up(table_log, manifest.number, etag, sorted({commit.entry.name for commit in lost}))
    attempts = {attempt for commit in lost for attempt in commit.files["attempt"].to_list()}
    raise UploadsVanishedError(sorted(attempts))


def _is_release(manifest: Manifest, claim: Claim) -> bool:
    """Whether a manifest releases this claim; that of a rollback has no commits."""
    released = _released(manifest, claim)
    if released is None:
        return False
    if claim.decision is not None:
        return True  # A decision names the number of its manifest: it cannot have another one.
    return set(claim.commits) <= released if claim.commits else not released


def _released(manifest: Manifest, claim: Claim) -> set[str] | None:
    """Return what the manifest after a claim's base releases; None if it is no release."""
    last = manifest.commits[-1] if manifest.commits else None
    if last is None or last.mode != "release" or last.name != f"release-{claim.base + 1}":
        return None
    return set(last.releases)


def _clear_released(table_log: TableLog, claim: Claim) -> None:
    if claim.rollback is None:
        clear_commits(table_log, claimed_readable(table_log, claim))
        return
    # Only files that this rollback restores have keys with this number.
    move_orphans(table_log, restored_by(visible_keys(table_log), claim.base + 1))


def claimed_readable(table_log: TableLog, claim: Claim) -> list[Commit]:
    """Return the commits of a claim whose records are stored and not damaged."""
    names = set(claim.commits)
    found = table_log.readable([claim.record] if claim.record else claim.commits)
    return [commit for commit in found if commit.entry.name in names]


def clear_commits(table_log: TableLog, commits: Sequence[Commit]) -> None:
    """Abort the staged outputs of released commits, and move their visible files away.

    Files of an adoption stay where they are.
    """
    commits = [commit for commit in commits if not commit.entry.adopts]
    for commit in commits:
        table_log.storage.abort(own_staged(table_log, commit))
    released = {key for commit in commits for key in commit.files["key"].to_list()}
    move_orphans(table_log, [key for key in visible_keys(table_log) if key in released])


def own_staged(table_log: TableLog, commit: Commit) -> list[StagedObject]:
    """Return the tokens of a commit's files, without those that staging cannot have made."""
    rule = table_log.storage.token_rule(table_log.output)
    staged = staged_of(table_log.output, staged_files([commit]))
    return [item for item in staged if rule.allows(item.uri, item.upload, item.attempt)]
