"""Transforms of the stored sample. Its text must not change: the sample holds its fingerprint."""

from __future__ import annotations

import os

import polars as pl


def halves(frame: pl.LazyFrame) -> pl.LazyFrame:
    """Halve the values, and fail on large ones unless SAMPLE_IS_FIXED is set."""

    def check(values: pl.Series) -> pl.Series:
        if values.max() >= 60 and not os.environ.get("SAMPLE_IS_FIXED"):
            raise ValueError("too large")
        return values / 2

    return frame.with_columns(pl.col("value").map_batches(check, return_dtype=pl.Float64))
