"""TPC-H queries 1 and 6 as map and reduce, with exact aggregates of decimals.

Each consists of a transform (the partial result of one chunk), a `combine` and, for query 1, a
`finalize`. Queries and answers follow the TPC-H specification, revision 3.0.1, sections 2.4.1 and
2.4.6.
"""

from datetime import date, timedelta

import polars as pl

_SUMS = ("sum_qty", "sum_base_price", "sum_disc_price", "sum_charge", "sum_disc")
_GROUP = ("l_returnflag", "l_linestatus")


def pricing(lf: pl.LazyFrame, *, days: int = 90) -> pl.LazyFrame:
    """Query 1, one chunk: sums and counts of items shipped at least `days` before 1998-12-01.

    Decimals are summed as decimals of 38 digits, so the order of additions does not matter. A
    product has the scale of its factor with more decimals, so factors are widened first.
    """
    price = pl.col("l_extendedprice").cast(pl.Decimal(38, 2))
    paid = price.cast(pl.Decimal(38, 4)) * (1 - pl.col("l_discount"))
    charged = paid.cast(pl.Decimal(38, 6)) * (1 + pl.col("l_tax"))
    return (
        lf.filter(pl.col("l_shipdate") <= date(1998, 12, 1) - timedelta(days=days))
        .group_by(*_GROUP)
        .agg(
            sum_qty=pl.col("l_quantity").cast(pl.Decimal(38, 2)).sum(),
            sum_base_price=price.sum(),
            sum_disc_price=paid.sum(),
            sum_charge=charged.sum(),
            sum_disc=pl.col("l_discount").cast(pl.Decimal(38, 2)).sum(),
            count_order=pl.len().cast(pl.Int64),
        )
    )


def add_pricing(partials: list[pl.LazyFrame]) -> pl.LazyFrame:
    """Query 1: merge the partials of several chunks."""
    added = [pl.col(name).sum() for name in (*_SUMS, "count_order")]
    return pl.concat(partials).group_by(*_GROUP).agg(added)


def report_pricing(lf: pl.LazyFrame) -> pl.LazyFrame:
    """Query 1: compute the averages, and sort as in the specification."""
    count = pl.col("count_order")
    averages = {
        name: pl.col(total).cast(pl.Float64) / count
        for name, total in (
            ("avg_qty", "sum_qty"),
            ("avg_price", "sum_base_price"),
            ("avg_disc", "sum_disc"),
        )
    }
    columns = [*_GROUP, *_SUMS[:4], *averages, "count_order"]
    return lf.with_columns(**averages).select(columns).sort(*_GROUP)


def forecast(lf: pl.LazyFrame, *, year: int = 1994) -> pl.LazyFrame:
    """Query 6, one chunk: the revenue lost by discounts of 5 to 7 % on small orders in a year."""
    discount = pl.col("l_discount")
    cents = pl.Decimal(15, 2)
    chosen = lf.filter(
        pl.col("l_shipdate") >= date(year, 1, 1),
        pl.col("l_shipdate") < date(year + 1, 1, 1),
        discount >= pl.lit("0.05").cast(cents),
        discount <= pl.lit("0.07").cast(cents),
        pl.col("l_quantity") < 24,
    )
    lost = pl.col("l_extendedprice").cast(pl.Decimal(38, 4)) * discount
    return chosen.select(revenue=lost.sum())


def add_forecast(partials: list[pl.LazyFrame]) -> pl.LazyFrame:
    """Query 6: add up the revenue of several chunks."""
    return pl.concat(partials).select(pl.col("revenue").sum())
