"""Progress and result of a run in figures, and the error of a run with failed chunks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import polars as pl

from pipeline.errors import RunFailedError
from pipeline.report.humanize import plural
from pipeline.report.run_figures import MESSAGE_KIND


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
    errors: tuple[str, ...] = ()
    """Kinds of failures so far (see `failure_lines`)."""
    unit: str = "chunk"
    """Noun for what is mapped."""


@dataclass(frozen=True, slots=True)
class ThenFigures:
    """How far the pieces of a reduced result are mapped (`then`)."""

    pieces: int
    """Pieces of the reduced result, each with whole groups; 0 before it is reduced."""
    done: int
    failed: int
    rows_in: int
    rows_out: int


MAX_KINDS = 10
"""Maximum number of kinds of failures that are described."""


@dataclass(frozen=True, slots=True)
class OutputFigures:
    """What a run has written to one of several outputs."""

    name: str
    """Name of the output in the job."""
    output: str
    """URI of the output prefix."""
    manifest: int | None
    """Number of the manifest that was current when the run was published there; None before."""
    rows: int
    bytes: int


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
    """Seconds from the start of the command until its report was begun; the sum of `phases`."""
    report: str
    """URI of the report's HTML page; empty if there is none yet."""
    local_report: str
    notes: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    """Kinds of failures, each with an example (see `failure_lines`)."""
    left_out: int = 0
    """Number of objects that could not be read and are left out."""
    rows_filtered: int = 0
    """Planned rows of completed chunks that the job's filter removed, or that are unreadable."""
    phases: tuple[tuple[str, float], ...] = ()
    """Name and seconds of each phase of this driver; empty if it has mapped nothing."""
    quarantine: tuple[str, ...] = ()
    """URIs of the records of quarantined objects, once the run is published."""
    rejected: tuple[str, ...] = ()
    """URIs of the files with quarantined rows, once the run is published."""
    then: ThenFigures | None = None
    """Pieces of the reduced result; None if the job has no `then`, or it did not begin."""
    outputs: tuple[OutputFigures, ...] = ()
    """Figures of each output, if there are several; `output` and `manifest` are of the first, and
    `rows_out` and `bytes_out` of all."""

    @property
    def failure_text(self) -> str:
        """What has failed, in numbers."""
        if not self.failed and self.then is not None:
            return f"{self.then.failed:,} of {plural(self.then.pieces, 'piece')} of groups failed"
        return f"{self.failed:,} of {plural(self.chunks, 'chunk')} failed"


class RunIncompleteError(RunFailedError):
    """Some chunks failed: nothing was published, and all finished work is kept.

    Attributes:
        summary: The run's figures.
        run: The run, if the Python API raises this.
    """

    run: Any = None

    def __init__(self, summary: RunSummary) -> None:
        unit = "chunk" if summary.failed or summary.then is None else "piece"
        command = f"chunkmap retry {summary.run} --debug-{unit} N"
        super().__init__(
            f"run {summary.run} ended with {summary.failure_text}; "
            "nothing was published, all finished work is kept",
            hint="fix the cause and rerun the job; only what failed is retried "
            "(pass --accept-code if you changed the code). To debug one in this terminal: "
            f"{command}",
        )
        self.summary = summary


def failure_kinds(failed: pl.DataFrame, *more: pl.Expr) -> pl.DataFrame:
    """Group failures by error and message; the most frequent kind comes first.

    Args:
        failed: Failures (schema FAILURES, and any further columns).
        more: Further columns of the result.

    Returns:
        Columns error, chunks, and of the first failure of each kind all others of `failed`.
    """
    return (
        failed.with_columns(kind=MESSAGE_KIND)
        .group_by("error", "kind", maintain_order=True)
        .agg(pl.len().alias("chunks"), *more, pl.exclude("kind", "error").first())
        .sort("chunks", descending=True, maintain_order=True)
    )


def failure_lines(failed: pl.DataFrame, unit: str = "chunk") -> tuple[str, ...]:
    """Describe each kind of error among the last failures (schema FAILURES).

    The first line has the error, further lines where it happened: the chunk with its objects, rows
    and partition (or the piece with its groups), and the line of the user's code.
    """
    kinds = failure_kinds(failed)
    lines = [
        "\n".join(_kind_lines(row, unit)) for row in kinds.head(MAX_KINDS).iter_rows(named=True)
    ]
    rest = kinds.height - MAX_KINDS
    return (*lines, *([f"and {plural(rest, 'other error')}"] if rest > 0 else []))


def _kind_lines(kind: dict[str, Any], unit: str) -> Iterator[str]:
    first = kind["message"].partition("\n")[0]
    yield f"{plural(kind['chunks'], unit)} failed: {kind['error']}: {first}"
    yield from failure_place(kind, unit)


def failure_place(failure: dict[str, Any], unit: str = "chunk") -> Iterator[str]:
    """Say where a failure happened: the chunk and its rows, and the line of the user's code."""
    where = f": {failure['where']}" if failure["where"] else ""
    yield f"e.g. {unit} {failure['index']}{where}"
    if failure["line"]:
        yield f"at {failure['line']}"
