"""Map and reduce: minimum, mean and maximum of each station (the one-trillion-row challenge).

A job with a `reduce` does not write one file per chunk. Each chunk's result is a *partial*;
`combine` merges partials, first within a batch and then across batches, in any order and any
groups. So it must be associative and keep the columns: minimum and maximum can be merged, but a
mean cannot (the mean of means is wrong), so its sum and count are merged. `finalize` computes the
result at the end:

    transform: pipeline.examples.stations:partial
    reduce:
      combine: pipeline.examples.stations:combine
      finalize: pipeline.examples.stations:finalize
"""

import polars as pl


def partial(lf: pl.LazyFrame) -> pl.LazyFrame:
    """Make one row per station of this chunk: least, greatest, sum and count of `measure`."""
    measure = pl.col("measure")
    return lf.group_by("station").agg(
        least=measure.min(), greatest=measure.max(), total=measure.sum(), count=pl.len()
    )


def combine(partials: list[pl.LazyFrame]) -> pl.LazyFrame:
    """Merge partials to one row per station."""
    return (
        pl.concat(partials)
        .group_by("station")
        .agg(
            pl.col("least").min(),
            pl.col("greatest").max(),
            pl.col("total").sum(),
            pl.col("count").sum(),
        )
    )


def finalize(lf: pl.LazyFrame) -> pl.LazyFrame:
    """Least, mean and greatest measure, stations in order."""
    mean = pl.col("total") / pl.col("count")
    return lf.select("station", "least", mean=mean, greatest="greatest").sort("station")
