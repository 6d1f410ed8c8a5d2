"""Map and reduce: the one-trillion-row challenge, the least, mean and greatest measure a station.

A job with a `reduce` does not write a file for each chunk. Each chunk's result is a *partial*;
`combine` merges partials, first within a batch and then across batches, in no promised order and in
no promised groups. So it must be associative and keep the columns: least and greatest are merged as
they are, a mean is not (the mean of means is wrong), its sum and count are. What is left to be done
in the end is `finalize`:

    transform: examples.stations:partial
    reduce: {combine: examples.stations:combine, finalize: examples.stations:finalize}
"""

import polars as pl


def partial(lf: pl.LazyFrame) -> pl.LazyFrame:
    """One row a station of this chunk: least, greatest, sum and count of `measure`."""
    measure = pl.col("measure")
    return lf.group_by("station").agg(
        least=measure.min(), greatest=measure.max(), total=measure.sum(), count=pl.len()
    )


def combine(partials: list[pl.LazyFrame]) -> pl.LazyFrame:
    """One row a station of all these partials."""
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
