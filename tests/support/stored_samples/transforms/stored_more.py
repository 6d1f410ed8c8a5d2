"""More transforms of the stored samples. As in stored_transforms.py, no text here may change."""

from __future__ import annotations

import os

import polars as pl


def scaled(frame: pl.LazyFrame, *, factor: float = 1.0) -> pl.LazyFrame:
    """Multiply the values."""
    return frame.with_columns(pl.col("value") * factor)


def sums(frame: pl.LazyFrame) -> pl.LazyFrame:
    """Add up the values, and fail on large ones unless SAMPLE_IS_FIXED is set."""

    def check(values: pl.Series) -> pl.Series:
        if values.max() >= 60 and not os.environ.get("SAMPLE_IS_FIXED"):
            raise ValueError("too large")
        return values

    checked = pl.col("value").map_batches(check, return_dtype=pl.Float64)
    return frame.select(checked.sum(), rows=pl.len())


def add(partials: list[pl.LazyFrame]) -> pl.LazyFrame:
    """Add up the sums of several chunks."""
    return pl.concat(partials).sum()
