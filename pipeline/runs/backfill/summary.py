"""What a backfill came to, and the ways in which it does not come to its end."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import RunFailedError


@dataclass(frozen=True, slots=True)
class Canary:
    """What the windows that went first have shown."""

    windows: int
    """Done."""
    failed_windows: int
    chunks: int
    """Done."""
    failed_chunks: int
    speed: float
    """Decoded bytes that a thread maps in a second, each chunk's overhead counted in."""


@dataclass(frozen=True, slots=True)
class BackfillSummary:
    """What a backfill came to, in figures."""

    backfill: str
    job: str
    output: str
    state: str
    """done, failed, held, cancelled or interrupted."""
    asked: str
    windows: int
    """Asked for."""
    todo: int
    """Of these, those that were to be done."""
    runs: int
    batches: int
    """Handed out by this driver."""
    seconds: float
    """Of this driver."""
    counts: dict[str, int]
    """Windows by state, and chunks, rows and bytes (see `WindowProgress.counts`)."""
    notes: tuple[str, ...] = ()
    canary: Canary | None = None


class BackfillIncompleteError(RunFailedError):
    """Some windows failed; all others are published, and all finished work is kept.

    Attributes:
        summary: The figures.
    """

    def __init__(self, summary: BackfillSummary) -> None:
        counts = summary.counts
        left = counts["waiting"] + counts["mapping"] + counts["staged"]
        rest = f", and {left:,} are left" if left else ""
        super().__init__(
            f"backfill {summary.backfill} ended with {counts['failed']:,} of {summary.todo:,} "
            f"windows failed{rest}; {counts['done']:,} are published",
            hint=f"see why: chunkmap backfill status {summary.backfill}; mend it, then: "
            f"chunkmap backfill retry {summary.backfill}",
        )
        self.summary = summary


class BackfillHeldError(RunFailedError):
    """A backfill stops after its canary, until it is told to go on.

    Attributes:
        summary: The figures.
        failed: Whether the canary failed.
    """

    def __init__(self, summary: BackfillSummary, *, failed: bool) -> None:
        canary = summary.canary
        assert canary is not None, "it is the canary that holds a backfill"
        tried = canary.chunks + canary.failed_chunks
        said = f"{canary.failed_chunks:,} of {tried:,} chunks failed"
        why = "its canary failed" if failed else "its canary is done, and it waits to be told"
        super().__init__(
            f"backfill {summary.backfill} is held: {why} ({said})",
            hint=f"go on with: chunkmap backfill resume {summary.backfill}; "
            f"or give it up: chunkmap backfill cancel {summary.backfill}",
        )
        self.summary = summary
        self.failed = failed
