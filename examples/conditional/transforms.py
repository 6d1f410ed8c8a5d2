"""Sums of orders, by any columns."""

import polars as pl


def sums(orders: pl.LazyFrame, *, by: list[str]) -> pl.LazyFrame:
    """Make one row for each value of these columns in this chunk."""
    return orders.group_by(by).agg(orders=pl.len(), cents=pl.col("cents").sum())


def add(partials: list[pl.LazyFrame]) -> pl.LazyFrame:
    """Merge the sums of several chunks."""
    both = pl.concat(partials)
    return both.group_by(pl.exclude("orders", "cents")).agg(pl.col("orders", "cents").sum())
