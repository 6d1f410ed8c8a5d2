"""Map, aggregate, map: days on which a station's measures are far from those of the days before.

The rows of a station are in many chunks, so that no chunk can compare its days. First, each chunk
is reduced to sums per station and day, which can be merged; then `then` maps a function over the
stations, each with all of its days:

    transform: pipeline.examples.unusual_days:sums
    reduce:
      combine: pipeline.examples.unusual_days:add
      finalize: pipeline.examples.unusual_days:means
    then: {function: pipeline.examples.unusual_days:unusual, by: [station], params: {days: 7}}

`then` is for what needs a whole group at a time and takes a while: a model per customer, a forecast
per product. What a `group_by` can do on the reduced result belongs in `finalize`.
"""

import polars as pl


def sums(lf: pl.LazyFrame) -> pl.LazyFrame:
    """Make one row per station and day of this chunk: sum and count of `measure`."""
    return lf.group_by("station", "day").agg(total=pl.col("measure").sum(), count=pl.len())


def add(partials: list[pl.LazyFrame]) -> pl.LazyFrame:
    """Merge sums and counts to one row per station and day."""
    return pl.concat(partials).group_by("station", "day").agg(pl.col("total", "count").sum())


def means(lf: pl.LazyFrame) -> pl.LazyFrame:
    """Mean measure of each station and day, in order."""
    mean = pl.col("total") / pl.col("count")
    return lf.select("station", "day", mean=mean).sort("station", "day")


def unusual(lf: pl.LazyFrame, *, days: int = 7, factor: float = 3.0) -> pl.LazyFrame:
    """Keep the days of one station that are far from the days before.

    Args:
        lf: Means of one station, in order of days.
        days: Number of days before, with which a day is compared; days with fewer are left out.
        factor: Minimum distance from their mean, in standard deviations.

    Returns:
        `station`, `day`, `mean`, and `expected`, the mean of the days before.
    """
    before = pl.col("mean").shift(1)
    return (
        lf.with_columns(expected=before.rolling_mean(days), spread=before.rolling_std(days))
        .filter((pl.col("mean") - pl.col("expected")).abs() > factor * pl.col("spread"))
        .drop("spread")
    )
