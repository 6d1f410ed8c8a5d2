"""Progress and result of a run in figures, and the error of a run with failed chunks."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from pipeline.errors import RunFailedError
from pipeline.report.humanize import plural


@dataclass(frozen=True, slots=True)
class MapProgress:
    """Progress of the map stage, as far as the driver knows."""

    chunks: int
    """Chunks in the plan."""
    done: int
    failed: int
    rows_in: int
    rows_out: int
    bytes_in: int
    bytes_out: int
    round: int
    batches: int
    """Batches submitted by this driver."""
    seconds: float
    """Seconds since this driver began to map."""
    resumed: int
    """Chunks done before this driver began."""


_NEWLINE = "\n"


@dataclass(frozen=True, slots=True)
class RunSummary:
    """Result of a run in figures."""

    run: str
    job: str
    state: str
    """State of the run: done or failed."""
    output: str
    manifest: int | None
    chunks: int
    mapped: int
    """Chunks mapped by this driver; the others were done before."""
    failed: int
    batches: int
    rounds: int
    rows_in: int
    rows_out: int
    bytes_in: int
    bytes_out: int
    seconds: float
    """Seconds that this driver took."""
    report: str
    """URI of the report's HTML page; empty if there is none yet."""
    local_report: str
    notes: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    """One line per kind of failure."""
    left_out: int = 0
    """Number of objects that could not be read and are left out."""
    quarantine: tuple[str, ...] = ()
    """URIs of the records of quarantined objects, once the run is published."""


class RunIncompleteError(RunFailedError):
    """Some chunks failed: nothing was published, and all finished work is kept.

    Attributes:
        summary: The run's figures.
    """

    def __init__(self, summary: RunSummary) -> None:
        super().__init__(
            f"run {summary.run} ended with {summary.failed:,} of {summary.chunks:,} chunks failed; "
            "nothing was published, all finished work is kept",
            hint="fix the cause and rerun the job; only failed chunks are retried "
            "(pass --accept-code if you changed the transform)",
        )
        self.summary = summary


def failure_lines(failed: pl.DataFrame) -> tuple[str, ...]:
    """Describe each kind of error among the last failures (schema FAILURES) in one line."""
    groups = failed.group_by("error", maintain_order=True).agg(
        pl.len(), pl.col("message").first(), pl.col("index").first()
    )
    return tuple(
        f"{plural(row['len'], 'chunk')} failed: {row['error']}: "
        f"{row['message'].partition(_NEWLINE)[0]} (e.g. chunk {row['index']})"
        for row in groups.sort("len", descending=True).iter_rows(named=True)
    )
