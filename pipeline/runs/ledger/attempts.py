"""List all attempts at the chunks of a run, from its ledger."""

from __future__ import annotations

from typing import Any

import polars as pl

from pipeline.runs.ledger.records import Progress

_ATTEMPTS: dict[str, Any] = {
    "window": pl.String,  # null for a run without windows
    "unit": pl.String,  # what was mapped: chunk, or piece of the reduced result
    "index": pl.Int64,  # of the chunk in its run
    "chunk": pl.String,
    "run": pl.String,
    "batch": pl.String,
    "attempt": pl.String,
    "worker": pl.String,
    "at": pl.Float64,  # Unix seconds of its start, or of its failure
    "seconds": pl.Float64,  # null for a failure
    "outcome": pl.String,  # done, duplicate (never published) or failed
    "rows_in": pl.Int64,
    "rows_out": pl.Int64,
    "bytes_in": pl.Int64,
    "bytes_out": pl.Int64,
    "error": pl.String,
    "message": pl.String,
    "trace": pl.String,
    "where": pl.String,
    "line": pl.String,
    "transient": pl.Boolean,
}
ATTEMPTS = pl.Schema(_ATTEMPTS)
"""Columns of `attempts_of_run`, one row per attempt."""


def attempts_of_run(
    run: str, progress: Progress, windows: list[str] | None = None, unit: str = "chunk"
) -> pl.DataFrame:
    """List all attempts at a run's chunks, oldest first (schema ATTEMPTS).

    Args:
        run: Id of the run.
        progress: What its ledger holds.
        windows: Label of each chunk's window, if it has windows.
        unit: Noun for what was mapped.
    """
    parts = [
        progress.completions.with_columns(outcome=pl.lit("done")),
        progress.duplicates.with_columns(outcome=pl.lit("duplicate")),
    ]
    done = pl.concat(parts).with_columns(at=pl.col("started"))
    failed = progress.failures.with_columns(outcome=pl.lit("failed"))
    entries = pl.concat([done, failed], how="diagonal")
    entries = entries.with_columns(run=pl.lit(run), unit=pl.lit(unit))
    if windows is not None:
        labels = [windows[index] for index in entries["index"].to_list()]
        entries = entries.with_columns(window=pl.Series(labels, dtype=pl.String))
    rows = entries.match_to_schema(ATTEMPTS, extra_columns="ignore", missing_columns="insert")
    return rows.sort("at")
