"""What a run came to, and the way in which it does not come to its end."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from pipeline.errors import RunFailedError


@dataclass(frozen=True, slots=True)
class MapProgress:
    """How far the mapping is, as far as the driver knows."""

    chunks: int
    """PreparedRun."""
    done: int
    failed: int
    rows_in: int
    rows_out: int
    bytes_in: int
    bytes_out: int
    round: int
    batches: int
    """Batches handed out by this driver."""
    seconds: float
    """Since this driver began to map."""
    resumed: int
    """Chunks that were done before."""


_NEWLINE = "\n"


@dataclass(frozen=True, slots=True)
class RunSummary:
    """What a run came to, in figures."""

    run: str
    job: str
    state: str
    """done or failed."""
    output: str
    manifest: int | None
    chunks: int
    mapped: int
    """Chunks that this driver mapped; the rest was done before."""
    failed: int
    batches: int
    rounds: int
    rows_in: int
    rows_out: int
    bytes_in: int
    bytes_out: int
    seconds: float
    """Of this driver."""
    report: str
    """URI of the HTML page; empty while there is none."""
    local_report: str
    notes: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    """One line for each sort of failure."""
    left_out: int = 0
    """Objects that could not be read, and are left out."""
    quarantine: tuple[str, ...] = ()
    """Where the records of those in quarantine are, once the run is published."""


class RunIncompleteError(RunFailedError):
    """Some chunks failed: nothing was published, and all that is done is kept.

    Attributes:
        summary: The run's figures.
    """

    def __init__(self, summary: RunSummary) -> None:
        super().__init__(
            f"run {summary.run} ended with {summary.failed:,} of {summary.chunks:,} chunks failed; "
            "nothing was published, all finished work is kept",
            hint="mend the cause and run the job again: only the failed chunks are mapped "
            "(--accept-code goes on with a transform that you have changed)",
        )
        self.summary = summary


def failure_lines(failed: pl.DataFrame) -> tuple[str, ...]:
    """One line for each sort of error among the last failures (schema FAILURES)."""
    groups = failed.group_by("error", maintain_order=True).agg(
        pl.len(), pl.col("message").first(), pl.col("index").first()
    )
    return tuple(
        f"{row['len']} chunks: {row['error']}: {row['message'].partition(_NEWLINE)[0]} "
        f"(chunk {row['index']}, say)"
        for row in groups.sort("len", descending=True).iter_rows(named=True)
    )
