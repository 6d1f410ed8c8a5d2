"""Publish commits to several outputs: to all of them, or to none (see `table.decision`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count

import polars as pl

from pipeline.errors import AlreadyExistsError, ConflictError, PreconditionFailedError
from pipeline.table.claims import (
    finish_claim,
    finish_open_claim,
    own_staged,
    vanished_attempts,
)
from pipeline.table.decision import (
    DecidedOutput,
    decide,
    decision_uri,
    is_decided,
)
from pipeline.table.errors import UploadsVanishedError, foreign_claim
from pipeline.table.log import TableLog
from pipeline.table.manifest import Claim, Commit, Head, Manifest
from pipeline.table.publish import accept_any, claimable, freeze, never

MAX_WITHDRAWN = 5
"""Number of decisions that other processes may withdraw before a publisher gives up."""


@dataclass(frozen=True, slots=True)
class OutputCommit:
    """A commit that is to be published to one of several outputs."""

    table_log: TableLog
    commit: Commit
    accepted: int = 0
    """Number of the manifest up to which commits after the base are no conflicts."""
    widens: Callable[[], bool] = never
    """Returns whether the output may get new columns, or wider types."""
    compare: Callable[[Manifest], None] = accept_any
    """Called with the manifest on top of which the commit is to be claimed; raises if it must not
    be."""


def publish_outputs(parts: Sequence[OutputCommit], run: str) -> None:
    """Publish one commit to each of several outputs, exactly once: to all of them, or to none.

    Readers may see one output before the other.

    Args:
        parts: The frozen commits, of which the first output keeps the decision.
        run: Id of their run.

    Raises:
        UploadsVanishedError: Some staged outputs no longer exist; map their chunks again. If that
            was found when it was decided already, the error names the claimed commits.
        SchemaChangedError, CommitsConflictError: A commit does not fit its output; nothing was
            published.
        ConflictError: Other processes kept withdrawing the decision.
    """
    storage, first = parts[0].table_log.storage, parts[0].table_log.output
    _refuse_vanished(parts)
    # All publishers claim in one order, so that they do not wait for each other.
    ordered = sorted(parts, key=lambda part: part.table_log.output)
    withdrawn = 0
    for number in count(1):
        uri = decision_uri(first, run, number)
        if not is_decided(storage, uri):
            if _publish(ordered, uri):
                return
            withdrawn += 1
        if withdrawn > MAX_WITHDRAWN:
            raise ConflictError(
                f"the publish of run {run} to {len(parts)} outputs was withdrawn {withdrawn} times "
                "by other processes that met its claims",
                hint=f"finish it later: chunkmap retry {run}",
            )


def freeze_part(part: OutputCommit) -> OutputCommit:
    """Freeze the commit of an output; return it as it was frozen first. Raises as `freeze`."""
    number = part.table_log.head()[0].current
    [stored] = freeze(part.table_log, [part.commit], part.widens, number)
    return replace(part, commit=stored)


def amend_part(frozen: OutputCommit, files: pl.DataFrame) -> OutputCommit:
    """Amend a frozen commit with other attempts, so that no reader can see two of a chunk.

    An attempt is replaced once nobody can make it visible any more. So staged ones are dropped
    first, unless the commit is claimed: then those that still exist count, and are kept.

    Args:
        frozen: The commit of an output, as it is frozen.
        files: Files of the attempts that are to be published (schema FILES).
    """
    log, name = frozen.table_log, frozen.commit.entry.name
    while True:
        stored = log.commit(name)
        assert stored is not None, "it is frozen"
        frozen = replace(frozen, commit=stored)
        others = files.join(stored.files.select("chunk"), on="chunk", how="semi")
        others = others.join(stored.files.select("attempt"), on="attempt", how="anti")
        if others.is_empty():
            return frozen
        former = stored.files.join(others.select("chunk"), on="chunk", how="semi")
        if not _is_claimed(frozen):
            log.storage.abort(own_staged(log, replace(stored, files=former)))
        gone = former.filter(pl.col("attempt").is_in(vanished_attempts(log, former)))
        others = others.join(gone.select("chunk"), on="chunk", how="semi")
        others = others.filter(~pl.col("attempt").is_in(vanished_attempts(log, others)))
        if others.is_empty():
            return frozen
        with suppress(AlreadyExistsError):
            log.amend([replace(stored, files=others)])


def _is_claimed(part: OutputCommit) -> bool:
    claim = part.table_log.head()[0].publishing
    return claim is not None and part.commit.entry.name in claim.commits


def _refuse_vanished(parts: Sequence[OutputCommit]) -> None:
    """Raise UploadsVanishedError if staged outputs of frozen commits no longer exist."""
    gone: set[str] = set()
    for part in parts:
        gone |= set(vanished_attempts(part.table_log, part.commit.files))
    if gone:
        raise UploadsVanishedError(sorted(gone))


def _publish(parts: Sequence[OutputCommit], uri: str) -> bool:
    """Claim all outputs, decide, and roll forward; return whether everything is published.

    Raises as `publish_outputs`, after nothing was published.
    """
    storage = parts[0].table_log.storage
    try:
        claims = [(part, claim) for part in parts if (claim := _claim(part, uri)) is not None]
    except Exception:
        decision = decide(storage, uri)
        _finish(parts, uri)
        if decision.verdict == "publish":
            return True  # Another driver of the run has claimed and decided the same meanwhile.
        raise
    if not claims:
        return True
    outputs = [
        DecidedOutput(output=part.table_log.output, base=claim.base, commits=claim.commits)
        for part, claim in claims
    ]
    decision = decide(storage, uri, outputs)
    _finish(parts, uri)
    return decision.verdict == "publish" and decision.outputs == tuple(outputs)


def _claim(part: OutputCommit, uri: str) -> Claim | None:
    """Claim an output for a decision; None if the commit is published already."""
    log, name = part.table_log, part.commit.entry.name
    while True:
        head, etag = log.head()
        claim = head.publishing
        if claim is not None and claim.decision == uri and claim.commits == (name,):
            return claim  # Of this process, whose reply was lost, or of another driver of the run.
        if claim is not None:
            try:
                finish_claim(log, head, etag)
            except UploadsVanishedError as error:
                if not error.waits_for(part.commit.entry.run):
                    raise foreign_claim(log.output, error) from error
                raise
            continue
        current = log.manifest(head.current)
        if not claimable(
            log, [part.commit], current, part.accepted, part.widens, compare=part.compare
        ):
            return None
        claim = Claim(base=head.current, commits=(name,), decision=uri)
        # If another process wins the race, repeat with its state.
        with suppress(PreconditionFailedError, AlreadyExistsError):
            log.move_head(Head.at(current, claim), etag)
            return claim


def _finish(parts: Sequence[OutputCommit], uri: str) -> None:
    """Finish the claims of a decision, as it says."""
    for part in parts:
        head, _ = part.table_log.head()
        if head.publishing is not None and head.publishing.decision == uri:
            finish_open_claim(part.table_log)
