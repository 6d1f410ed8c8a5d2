"""Filter with type casts: line items that arrived long after they were promised.

Rows that a transform drops are counted (rows in, rows out), so a filter loses nothing silently.
Two recommendations:

* **Cast what you compare.** Exports differ: one holds dates, the next timestamps, and the
  difference of two timestamps is not a number of calendar days. With casts at the top, one
  transform works for both, and a value that does not fit fails the chunk with a reason instead of
  becoming null. (Strings are not cast: use `str.to_date()`.)
* **Filter early.** Polars pushes the predicate into the read as far as it can. A condition on
  stored columns only (`l_shipdate >= 1994-01-01`) belongs in the job's `filter`, which also skips
  whole files and row groups before anything is read.
"""

import polars as pl


def late_orders(lf: pl.LazyFrame, *, days: int = 30) -> pl.LazyFrame:
    """Keep the line items received at least `days` days after their commit date.

    Args:
        lf: TPC-H lineitem; its dates may be dates or timestamps.
        days: The minimum number of days late; 0 also keeps items received on the commit date.

    Returns:
        The late rows, in order: `l_orderkey`, `l_linenumber`, `l_shipmode`, `l_quantity` (32-bit
        integer), `l_commitdate`, `l_receiptdate` (dates), `days_late` (32-bit integer). A row
        that lacks one of the two dates is not late.
    """
    late = pl.col("l_receiptdate") - pl.col("l_commitdate")
    return (
        lf.select(
            "l_orderkey",
            "l_linenumber",
            "l_shipmode",
            pl.col("l_quantity").cast(pl.Int32),
            pl.col("l_commitdate", "l_receiptdate").cast(pl.Date),
        )
        .with_columns(days_late=late.dt.total_days().cast(pl.Int32))
        .filter(pl.col("days_late") >= days)
    )
