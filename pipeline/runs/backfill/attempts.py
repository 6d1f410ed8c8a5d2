"""Every try of the chunks of some windows, from the ledgers of their runs."""

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
    "at": pl.Float64,  # Unix seconds: when it began, or failed
    "seconds": pl.Float64,  # null for a failure
    "outcome": pl.String,  # done, duplicate (a second completion, never published) or failed
    "rows_in": pl.Int64,
    "rows_out": pl.Int64,
    "bytes_in": pl.Int64,
    "bytes_out": pl.Int64,
    "error": pl.String,
    "message": pl.String,
    "trace": pl.String,
    "transient": pl.Boolean,
}
ATTEMPTS = pl.Schema(_ATTEMPTS)
"""The columns of `attempts`, a row a try."""


def attempts(store: BackfillStore, windows: pl.DataFrame, labels: Sequence[str]) -> pl.DataFrame:
    """Every try of some windows' chunks, oldest first.

    Args:
        store: Of the backfill.
        windows: Its windows (schema WINDOWS).
        labels: Those to look at.
    """
    chosen = windows.filter(pl.col("label").is_in(list(labels)) & pl.col("run").is_not_null())
    runs = chosen["run"].unique(maintain_order=True).to_list()
    found = [ATTEMPTS.to_frame()]
    ledgers = LedgerCache(store)
    for run, progress in ledgers.read(runs).items():
        if progress is not None:
            found.append(_of_run(run, progress, ledgers.windows_of(run)))
    return pl.concat(found).filter(pl.col("window").is_in(list(labels))).sort("at")


def _of_run(run: str, progress: Progress, of_chunk: list[str]) -> pl.DataFrame:
    parts = [
        progress.completions.with_columns(outcome=pl.lit("done")),
        progress.duplicates.with_columns(outcome=pl.lit("duplicate")),
    ]
    done = pl.concat(parts).with_columns(at=pl.col("started"))
    failed = progress.failures.with_columns(outcome=pl.lit("failed"))
    known = pl.concat([done, failed], how="diagonal").with_columns(run=pl.lit(run))
    labels = [of_chunk[index] for index in known["index"].to_list()]
    with_window = known.with_columns(window=pl.Series(labels, dtype=pl.String))
    return with_window.match_to_schema(ATTEMPTS, extra_columns="ignore", missing_columns="insert")
