"""Join with a small table: the supplier and nation of each line item.

The large side is the chunk; the small side is the same for every chunk. `read_table` reads it once
per worker process and keeps it, so a thousand chunks cost one download per worker. A run reads each
table in the version with which it was planned, and a replaced table makes another run. Two
recommendations:

* **Pass tables by URI, as parameters**, and read them at the top of the transform, where planning
  sees them. A table that is read only under a condition must be named in the job (`tables: [URI]`).
* **State what the join may do.** `how="left"` keeps every line item, and `validate="m:1"` fails the
  chunk if the small table has a key twice, instead of multiplying rows.
"""

import polars as pl

from pipeline.storage import read_table


def supplier_nation(
    lf: pl.LazyFrame, *, suppliers: str, nations: str | None = None
) -> pl.LazyFrame:
    """Add each line item's supplier and the supplier's nation.

    Args:
        lf: TPC-H lineitem.
        suppliers: The URI of TPC-H supplier, an object or a prefix (10,000 rows per scale factor).
        nations: The URI of TPC-H nation (25 rows); without it the nation stays a number.

    Returns:
        One row per input row, in order: `l_orderkey`, `l_linenumber`, `l_suppkey`, `l_quantity`,
        `s_name`, `s_nationkey`, and `n_name` if `nations` is set. Columns of an unknown supplier
        are null.

    Raises:
        polars.exceptions.ComputeError: A small table has a key twice (raised when a chunk is run).
    """
    small = read_table(suppliers).select("s_suppkey", "s_name", "s_nationkey")
    if nations is not None:
        names = read_table(nations).select("n_nationkey", "n_name")
        small = small.join(
            names, left_on="s_nationkey", right_on="n_nationkey", how="left", validate="m:1"
        )
    lines = lf.select("l_orderkey", "l_linenumber", "l_suppkey", "l_quantity")
    return lines.join(
        small.lazy(),
        left_on="l_suppkey",
        right_on="s_suppkey",
        how="left",
        validate="m:1",
        maintain_order="left",
    )
