"""Result of a backfill in figures, and the errors of one that failed or paused."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import RunFailedError
from pipeline.report.humanize import plural


@dataclass(frozen=True, slots=True)
class Canary:
    """Result of the canary: the windows that go first."""

    windows: int
    """Windows done."""
    failed_windows: int
    chunks: int
    """Chunks done."""
    failed_chunks: int
    speed: float
    """Decoded bytes that a thread maps per second, with each chunk's overhead."""


@dataclass(frozen=True, slots=True)
class BackfillSummary:
    """Result of a backfill in figures."""

    backfill: str
    job: str
    output: str
    state: str
    """State of the backfill: done, failed, held, cancelled or interrupted."""
    asked: str
    windows: int
    """Requested windows."""
    todo: int
    """Requested windows that were to be done."""
    runs: int
    batches: int
    """Batches submitted by this driver."""
    seconds: float
    """Seconds that this driver took."""
    counts: dict[str, int]
    """Windows by state; chunks, rows and bytes (see `WindowProgress.counts`)."""
    notes: tuple[str, ...] = ()
    canary: Canary | None = None


class BackfillIncompleteError(RunFailedError):
    """Some windows failed; completed windows are published, and all finished work is kept.

    Attributes:
        summary: The backfill's figures.
    """

    def __init__(self, summary: BackfillSummary) -> None:
        counts = summary.counts
        left = counts["waiting"] + counts["mapping"] + counts["staged"]
        rest = f", and {left:,} are left" if left else ""
        super().__init__(
            f"backfill {summary.backfill} ended with {counts['failed']:,} of {summary.todo:,} "
            f"windows failed{rest}; {counts['done']:,} are published",
            hint=f"see why: chunkmap backfill status {summary.backfill}; fix the cause, then: "
            f"chunkmap backfill retry {summary.backfill}",
        )
        self.summary = summary


class BackfillHeldError(RunFailedError):
    """A backfill is paused after its canary until the user resumes it.

    Attributes:
        summary: The backfill's figures.
        failed: Whether the canary failed.
    """

    end_state = "held"

    def __init__(self, summary: BackfillSummary, *, failed: bool) -> None:
        canary = summary.canary
        assert canary is not None, "only a canary pauses a backfill like this"
        attempted = canary.chunks + canary.failed_chunks
        why = "its canary failed" if failed else "its canary is done"
        super().__init__(
            f"backfill {summary.backfill} is paused: {why} "
            f"({canary.failed_chunks:,} of {plural(attempted, 'chunk')} failed)",
            hint=f"to continue: chunkmap backfill resume {summary.backfill}; "
            f"to cancel it: chunkmap backfill cancel {summary.backfill}",
        )
        self.summary = summary
        self.failed = failed
