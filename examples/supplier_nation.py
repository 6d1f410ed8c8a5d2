"""A join against a small table: who supplied each line item, and from which nation.

The large side is the chunk; the small side is the same for every chunk. `read_table` reads it once
in each worker process and keeps it, so a thousand chunks cost one download a worker. A run reads
each table in the version that it was planned with, and a replaced table makes another run. Two
habits to copy:

* **Pass tables by URI, as parameters**, and read them at the top of the transform: planning sees
  them there. One that is read only under a condition is named in the job, as `tables: [URI]`.
* **Say what the join may do.** `how="left"` keeps every line item, and `validate="m:1"` fails the
  chunk when the small table names a key twice, instead of multiplying rows.
"""

import polars as pl

from pipeline.storage import read_table


def supplier_nation(
    lf: pl.LazyFrame, *, suppliers: str, nations: str | None = None
) -> pl.LazyFrame:
    """Adds each line item's supplier and the supplier's nation.

    Args:
        lf: TPC-H lineitem.
        suppliers: URI of TPC-H supplier, an object or a prefix (10,000 rows a scale factor).
        nations: URI of TPC-H nation (25 rows); without it the nation stays a number.

    Returns:
        One row for each row, in order: `l_orderkey`, `l_linenumber`, `l_suppkey`, `l_quantity`,
        `s_name`, `s_nationkey`, and `n_name` when `nations` is given. What no supplier matches is
        null.

    Raises:
        polars.exceptions.ComputeError: a small table holds a key twice (when the chunk is run).
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
