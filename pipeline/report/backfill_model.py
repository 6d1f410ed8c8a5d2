"""What a backfill's report is made from: plain data, on any machine, ended or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl


@dataclass(frozen=True, slots=True)
class BackfillFailure:
    """Chunks that failed in the same way, with one example."""

    error: str
    """Name of the error's class."""
    chunks: int
    windows: int
    window: str
    """Of the example, as are the following."""
    index: int
    """Of the chunk in its run."""
    worker: str
    message: str
    trace: str


@dataclass(frozen=True, slots=True, eq=False)
class Calendar:
    """Windows as cells of a grid."""

    unit: str
    """What a cell stands for: a day, say."""
    rows: Sequence[str]
    columns: Sequence[str]
    cells: pl.DataFrame
    """name, row and column (ranks), windows, a column for each state, chunks, chunks_done,
    chunks_failed, and the state that it is shown as."""


@dataclass(frozen=True, slots=True, eq=False)
class BackfillReport:
    """A backfill, whole. Times are Unix seconds."""

    id: str
    job: str
    state: str
    asked: str
    """The windows that were asked for, in words."""
    facts: tuple[tuple[str, str], ...]
    """What it is: names and values."""
    counts: Mapping[str, int]
    """Windows in each state; chunks, chunks_done, chunks_failed, rows and bytes."""
    todo: int
    """Windows that were to be done."""
    windows: pl.DataFrame
    """A row a window: label, state, skipped, run, chunks, done, failed, rows_in, rows_out,
    bytes_in, bytes_out, busy, started, ended."""
    calendar: Calendar
    failures: tuple[BackfillFailure, ...]
    at: float
    """When these figures were true."""
    created: float
    prefect_url: str = ""
    command: str = ""
    """What to type next; empty when there is nothing to do."""
