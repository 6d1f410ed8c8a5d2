"""Transforms of the cluster's tests, which containers get from this folder."""

from __future__ import annotations

import time

import polars as pl


def wait(lf: pl.LazyFrame, *, seconds: float) -> pl.LazyFrame:
    """Wait once for each chunk, as a call of a slow service does."""

    def slow(frame: pl.DataFrame) -> pl.DataFrame:
        if frame.height:
            time.sleep(seconds)
        return frame

    return lf.select("id", "value").map_batches(slow, schema={"id": pl.Int64, "value": pl.Float64})


def same(lf: pl.LazyFrame) -> pl.LazyFrame:
    """Return everything as it is."""
    return lf
