"""The data of a backfill's report, whether it has ended or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from pipeline.report.run_model import (
    NO_REQUESTS,
    Attempt,
    CodeVersion,
    Prices,
    Pruned,
    Requests,
)


@dataclass(frozen=True, slots=True)
class BackfillFailure:
    """Chunks that failed in the same way, with one example."""

    error: str
    """Name of the error's class."""
    chunks: int
    windows: int
    window: str
    """Window of the example, to which the next fields belong too."""
    index: int
    """Index of the chunk in its run."""
    worker: str
    message: str
    trace: str
    where: str
    """Objects, rows and partition of the chunk."""
    line: str
    """File, line and function of the user's code; empty if unknown."""


@dataclass(frozen=True, slots=True, eq=False)
class Calendar:
    """Windows as cells of a grid."""

    unit: str
    """Period that a cell stands for, e.g. a day."""
    rows: Sequence[str]
    columns: Sequence[str]
    cells: pl.DataFrame
    """Columns name, row and column (ranks), windows, one per state, chunks, chunks_done,
    chunks_failed, and state (the one to show)."""


@dataclass(frozen=True, slots=True, eq=False)
class BackfillReport:
    """The input of the page of a backfill. Times are Unix seconds."""

    id: str
    job: str
    state: str
    asked: str
    """Requested windows, as a text."""
    facts: tuple[tuple[str, str], ...]
    """Names and values that describe the backfill."""
    counts: Mapping[str, int]
    """Windows in each state; chunks, chunks_done, chunks_failed, rows and bytes."""
    todo: int
    """Number of windows to process."""
    windows: pl.DataFrame
    """One row per window: label, state, skipped, run, chunks, rows (planned), done, failed,
    rows_in, rows_out, bytes_in, bytes_out, busy, started, ended, code (fingerprint, empty if
    unknown) and error (one line, empty if there is none)."""
    calendar: Calendar
    failures: tuple[BackfillFailure, ...]
    at: float
    """Moment of these figures."""
    created: float
    prefect_url: str = ""
    command: str = ""
    """Next command to type; empty if there is nothing to do."""
    attempts: tuple[Attempt, ...] = ()
    """Attempts of drivers, oldest first; empty if unknown."""
    versions: tuple[CodeVersion, ...] = ()
    """Versions of the code, with the windows that they made."""
    pruned: Pruned | None = None
    requests: Requests = NO_REQUESTS
    """Requests to S3 of workers and drivers; zero if unknown."""
    threads: int = 1
    """Threads per worker, by which busy time becomes worker time."""
    prices: Prices | None = None
    run_pages: str = ""
    """Beginning of the address of a run's page, e.g. `runs/`; empty if runs have no pages."""
