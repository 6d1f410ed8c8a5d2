"""What the workloads map, as Polars functions. Polars is all that this module imports.

chunkmap runs them as transforms; peers that take Polars functions import them from here; the
others express the same in their own terms and are compared with the same expected result.
"""

from __future__ import annotations

import datetime
import time

import polars as pl


def identity(lf: pl.LazyFrame) -> pl.LazyFrame:
    """All rows as they are: what is left is the cost of everything around a transform."""
    return lf


def row_map(lf: pl.LazyFrame) -> pl.LazyFrame:
    """Each line item's revenue and charge: arithmetic on four columns of sixteen."""
    net = pl.col("l_extendedprice") * (1 - pl.col("l_discount"))
    return lf.select(
        "l_orderkey",
        "l_linenumber",
        "l_suppkey",
        "l_shipdate",
        revenue=net,
        charge=net * (1 + pl.col("l_tax")),
        currency=pl.lit("EUR"),
    )


def measures(lf: pl.LazyFrame) -> pl.LazyFrame:
    """Each line item's revenue and charge, and the month in which it is shipped."""
    return lf.select(_measures())


def with_measures(lf: pl.LazyFrame) -> pl.LazyFrame:
    """All sixteen columns, and those of `measures`."""
    return lf.with_columns(_measures())


def _measures() -> list[pl.Expr]:
    net = pl.col("l_extendedprice") * (1 - pl.col("l_discount"))
    return [
        net.alias("revenue"),
        (net * (1 + pl.col("l_tax"))).alias("charge"),
        pl.col("l_shipdate").dt.strftime("%Y-%m").alias("month"),
    ]


def no_columns(lf: pl.LazyFrame) -> pl.LazyFrame:
    """Nothing new, where only a name changes."""
    return lf.select([])


def renamed(lf: pl.LazyFrame) -> pl.LazyFrame:
    """All columns, one of them under another name."""
    return lf.rename({"l_comment": "comment"})


def by_month(lf: pl.LazyFrame) -> pl.LazyFrame:
    """Each line item's revenue and charge, and the month in which it is shipped."""
    return row_map(lf).with_columns(month=pl.col("l_shipdate").dt.strftime("%Y-%m"))


def few_rows(lf: pl.LazyFrame) -> pl.LazyFrame:
    """One line item in two thousand."""
    return lf.filter(
        (pl.col("l_quantity") == 1)
        & (pl.col("l_discount") >= 0.09)
        & (pl.col("l_shipmode") == "RAIL")
    ).select("l_orderkey", "l_linenumber", "l_shipdate", "l_extendedprice", "l_comment")


def strings(lf: pl.LazyFrame) -> pl.LazyFrame:
    """Five functions of strings over the comments, the largest column."""
    comment = pl.col("l_comment")
    return lf.select(
        "l_orderkey",
        "l_linenumber",
        loud=comment.str.to_uppercase(),
        letters=comment.str.len_chars().cast(pl.Int64),
        special=comment.str.contains("special", literal=True),
        masked=comment.str.replace_all("express", "*******", literal=True),
        mode=pl.concat_str(pl.col("l_shipmode"), pl.col("l_shipinstruct"), separator="/"),
    )


def narrow(lf: pl.LazyFrame) -> pl.LazyFrame:
    """Two columns of a hundred."""
    return lf.select("id", total=pl.col("f00") + pl.col("f88"))


def join_supplier(lf: pl.LazyFrame, *, suppliers: str) -> pl.LazyFrame:
    """Each line item with its supplier's name and nation.

    Args:
        lf: TPC-H lineitem.
        suppliers: URI of TPC-H supplier.
    """
    from pipeline.storage import read_table

    return supplied(lf, read_table(suppliers).lazy())


def supplied(lf: pl.LazyFrame, suppliers: pl.LazyFrame) -> pl.LazyFrame:
    """`join_supplier` with the small table at hand."""
    lines = lf.select("l_orderkey", "l_linenumber", "l_suppkey", "l_quantity")
    small = suppliers.select("s_suppkey", "s_name", "s_nationkey")
    return lines.join(
        small, left_on="l_suppkey", right_on="s_suppkey", how="left", maintain_order="left"
    )


def daily_kinds(lf: pl.LazyFrame) -> pl.LazyFrame:
    """Events of one day, tidied: a map over Hive partitions."""
    return lf.select("day", "user", kind=pl.col("kind").str.to_uppercase(), cents="value")


def collatz(number: int) -> int:
    """Steps to reach 1, as plain Python counts them: work for a core, none of it Polars'."""
    steps = 0
    while number > 1:
        number = number // 2 if number % 2 == 0 else 3 * number + 1
        steps += 1
    return steps


def python_function(lf: pl.LazyFrame) -> pl.LazyFrame:
    """A plain Python function over each of some rows."""
    key = pl.col("user") % 100_000 + 1
    return lf.select("user", steps=key.map_elements(collatz, return_dtype=pl.Int64))


def wait(lf: pl.LazyFrame, *, seconds: float) -> pl.LazyFrame:
    """Waits once for each chunk, as a call of a slow service does.

    Args:
        lf: Anything with `id` and `value`.
        seconds: How long.
    """

    def slow(frame: pl.DataFrame) -> pl.DataFrame:
        if frame.height:
            time.sleep(seconds)
        return frame

    return lf.select("id", "value").map_batches(slow, schema={"id": pl.Int64, "value": pl.Float64})


def nothing(lf: pl.LazyFrame) -> pl.LazyFrame:
    """No row of any chunk: what is left is the cost of a chunk itself."""
    return lf.filter(pl.col("id") < 0)


def same(lf: pl.LazyFrame) -> pl.LazyFrame:
    """Everything as it is."""
    return lf


def extremes(lf: pl.LazyFrame) -> pl.LazyFrame:
    """The least, total and greatest measure, and how many, by station."""
    measure = pl.col("measure")
    return lf.group_by("station").agg(
        least=measure.min(),
        total=measure.sum(),
        greatest=measure.max(),
        rows=pl.len().cast(pl.Int64),
    )


def all_extremes(partials: list[pl.LazyFrame]) -> pl.LazyFrame:
    """`extremes` of several chunks as of one."""
    least, greatest = pl.col("least").min(), pl.col("greatest").max()
    total, rows = pl.col("total").sum(), pl.col("rows").sum()
    return pl.concat(partials).group_by("station").agg(least, total, greatest, rows)


def mean_extremes(lf: pl.LazyFrame) -> pl.LazyFrame:
    """The one-trillion-row query: least, mean and greatest measure by station, in order."""
    mean = pl.col("total") / pl.col("rows")
    return lf.select("station", "least", "greatest", "rows", mean=mean).sort("station")


PRICES = ("sum_qty", "sum_base_price", "sum_disc_price", "sum_charge", "sum_disc")
LINE = ("l_returnflag", "l_linestatus")


def pricing(lf: pl.LazyFrame) -> pl.LazyFrame:
    """TPC-H query 1, one chunk, in floats as everybody here computes it."""
    price = pl.col("l_extendedprice")
    paid = price * (1 - pl.col("l_discount"))
    return (
        lf.filter(pl.col("l_shipdate") <= datetime.date(1998, 9, 2))
        .group_by(LINE)
        .agg(
            sum_qty=pl.col("l_quantity").sum(),
            sum_base_price=price.sum(),
            sum_disc_price=paid.sum(),
            sum_charge=(paid * (1 + pl.col("l_tax"))).sum(),
            sum_disc=pl.col("l_discount").sum(),
            count_order=pl.len().cast(pl.Int64),
        )
    )


def all_pricing(partials: list[pl.LazyFrame]) -> pl.LazyFrame:
    """`pricing` of several chunks as of one."""
    return pl.concat(partials).group_by(LINE).agg(pl.col(*PRICES, "count_order").sum())


def report_pricing(lf: pl.LazyFrame) -> pl.LazyFrame:
    """TPC-H query 1: sums, averages and counts, in order."""
    count = pl.col("count_order")
    return lf.select(
        *LINE,
        *PRICES[:4],
        avg_qty=pl.col("sum_qty") / count,
        avg_price=pl.col("sum_base_price") / count,
        avg_disc=pl.col("sum_disc") / count,
        count_order=count,
    ).sort(LINE)


def forecast(lf: pl.LazyFrame) -> pl.LazyFrame:
    """TPC-H query 6, one chunk."""
    chosen = lf.filter(
        pl.col("l_shipdate") >= datetime.date(1994, 1, 1),
        pl.col("l_shipdate") < datetime.date(1995, 1, 1),
        pl.col("l_discount").is_between(0.05, 0.07),
        pl.col("l_quantity") < 24,
    )
    return chosen.select(revenue=(pl.col("l_extendedprice") * pl.col("l_discount")).sum())


def all_forecast(partials: list[pl.LazyFrame]) -> pl.LazyFrame:
    """`forecast` of several chunks as of one."""
    return pl.concat(partials).select(pl.col("revenue").sum())


def half(lf: pl.LazyFrame, *, marker: str) -> pl.LazyFrame:
    """Everything as it is; but chunks that begin with an odd number of fours fail with a marker.

    Args:
        lf: Row groups of four rows with an `id`.
        marker: URI; while there is such an object, half of the chunks fail.
    """

    def check(frame: pl.DataFrame) -> pl.DataFrame:
        from pipeline.storage import own_storage

        if frame.height and frame["id"][0] // 4 % 2 and own_storage().get_or_none(marker):
            raise ValueError("this half of the chunks is not to be done yet")
        return frame

    return lf.map_batches(check, schema={"id": pl.Int64, "value": pl.Float64})
