"""A filter with type casts: line items that arrived long after they were promised.

Rows that a transform drops are counted (rows in, rows out), so a filter loses nothing silently.
Two habits to copy:

* **Cast what you compare.** Exports differ: one holds dates, the next timestamps, and the
  difference of two timestamps is not a number of calendar days. Casting at the top makes one
  transform fit both, and a value that does not fit fails the chunk with its reason instead of
  turning into null. (Strings are not cast: use `str.to_date()`.)
* **Filter early.** Polars pushes the predicate into the read as far as it can. A condition that
  is plainly about stored columns (`l_shipdate >= 1994-01-01`) belongs in the job's `filter`, which
  also skips whole files and row groups before anything is read.
"""

import polars as pl


def late_orders(lf: pl.LazyFrame, *, days: int = 30) -> pl.LazyFrame:
    """Keeps the line items received `days` days or more after the day they were committed to.

    Args:
        lf: TPC-H lineitem; its dates may be dates or timestamps.
        days: the least number of days late; 0 keeps those on the very day as well.

    Returns:
        The late rows, in order: `l_orderkey`, `l_linenumber`, `l_shipmode`, `l_quantity` (32-bit
        integer), `l_commitdate`, `l_receiptdate` (dates), `days_late` (32-bit integer). A row
        without one of the two dates is not late.
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
