"""List all attempts at the chunks of some windows, from the ledgers of their runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from pipeline.runs.backfill.recount import LedgerCache
from pipeline.runs.backfill.store import BackfillStore
from pipeline.runs.ledger.records import Progress

_ATTEMPTS: dict[str, Any] = {
    "window": pl.String,
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
"""Columns of `attempts`, one row per attempt."""


def attempts(store: BackfillStore, windows: pl.DataFrame, labels: Sequence[str]) -> pl.DataFrame:
    """List all attempts at some windows' chunks, oldest first (schema ATTEMPTS).

    Args:
        store: Store of the backfill.
        windows: Its windows (schema WINDOWS).
        labels: Labels of the windows.
    """
    chosen = windows.filter(pl.col("label").is_in(list(labels)) & pl.col("run").is_not_null())
    runs = chosen["run"].unique(maintain_order=True).to_list()
    frames = [ATTEMPTS.to_frame()]
    ledgers = LedgerCache(store)
    for run, progress in ledgers.read(runs).items():
        if progress is not None:
            frames.append(_attempts_of_run(run, progress, ledgers.windows_of(run)))
    return pl.concat(frames).filter(pl.col("window").is_in(list(labels))).sort("at")


def _attempts_of_run(run: str, progress: Progress, windows: list[str]) -> pl.DataFrame:
    parts = [
        progress.completions.with_columns(outcome=pl.lit("done")),
        progress.duplicates.with_columns(outcome=pl.lit("duplicate")),
    ]
    done = pl.concat(parts).with_columns(at=pl.col("started"))
    failed = progress.failures.with_columns(outcome=pl.lit("failed"))
    entries = pl.concat([done, failed], how="diagonal").with_columns(run=pl.lit(run))
    labels = [windows[index] for index in entries["index"].to_list()]
    with_window = entries.with_columns(window=pl.Series(labels, dtype=pl.String))
    return with_window.match_to_schema(ATTEMPTS, extra_columns="ignore", missing_columns="insert")
