"""Map, aggregate, map: sales of chunks, sales of days, a forecast per product."""

import numpy as np
import polars as pl


def sales_of_days(sales: pl.LazyFrame) -> pl.LazyFrame:
    """Make one row per product and day of this chunk."""
    return sales.group_by("product", "day").agg(pl.col("count").sum())


def add(partials: list[pl.LazyFrame]) -> pl.LazyFrame:
    """Merge the sales of several chunks to one row per product and day."""
    return pl.concat(partials).group_by("product", "day").agg(pl.col("count").sum())


def forecast(days: pl.LazyFrame, *, ahead: int = 7) -> pl.LazyFrame:
    """Fit a line to the days of one product, and follow it.

    Args:
        days: All days of a product.
        ahead: Number of days that the forecast reaches ahead.

    Returns:
        One row: `product`, `days`, `per_day` (the slope), `expected` in `ahead` days.
    """
    known = days.sort("day").collect()
    slope, start = np.polyfit(np.arange(known.height), known["count"].to_numpy(), 1)
    expected = max(0.0, start + slope * (known.height - 1 + ahead))
    return known.lazy().select(
        pl.col("product").first(),
        days=pl.len(),
        per_day=pl.lit(round(float(slope), 2)),
        expected=pl.lit(round(float(expected), 1)),
    )
