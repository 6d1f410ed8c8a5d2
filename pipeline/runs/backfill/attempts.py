"""List all attempts at the chunks of some windows, from the ledgers of their runs."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from pipeline.runs.backfill.recount import LedgerCache
from pipeline.runs.backfill.store import BackfillStore
from pipeline.runs.ledger.attempts import ATTEMPTS, attempts_of_run


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
            frames.append(attempts_of_run(run, progress, ledgers.windows_of(run)))
    return pl.concat(frames).filter(pl.col("window").is_in(list(labels))).sort("at")
