"""Parquet in, Polars on it, DuckDB on what comes out; then the same in a DuckDB file.

Orders arrive in S3 as Parquet. A job maps a Polars function over those that are new, checks the
result, also by SQL, and publishes it. DuckDB queries the published rows, and `chunkmap load` brings
them into a database file, each commit once. Run it again: another month arrives.

    chunkmap up
    python -m examples.parquet_polars_duckdb
"""

import io
from datetime import date
from pathlib import Path

import duckdb
import polars as pl

from examples.commands import chunkmap
from pipeline import scan_output
from pipeline.storage import own_storage

HERE = Path(__file__).parent
INPUT, OUTPUT = "s3://demo/examples/orders/", "s3://demo/examples/order-values/"
MONTHS = "SELECT month, count(*) AS orders, sum(value) AS value FROM {} GROUP BY ALL ORDER BY month"
CUSTOMERS = """
    SELECT customer, sum(value) AS value FROM published GROUP BY ALL ORDER BY value DESC LIMIT 3
"""


def put_month(number: int, rows: int = 50_000) -> None:
    """Store the orders of a month, numbered from 0."""
    ids = pl.int_range(number * rows, (number + 1) * rows, eager=True)
    id_ = pl.col("id")
    orders = pl.DataFrame({"id": ids}).select(
        "id",
        customer=id_ * 7919 % 1000,
        day=pl.lit(date(2024, 1, 1)).dt.offset_by(f"{number}mo") + pl.duration(days=id_ % 28),
        status=pl.when(id_ % 9 == 0).then(pl.lit("cancelled")).otherwise(pl.lit("paid")),
        count=id_ % 5 + 1,
        price=(id_ % 9_000 + 100).cast(pl.Decimal(10, 2)) / 100,
    )
    data = io.BytesIO()
    orders.write_parquet(data)
    own_storage().put(f"{INPUT}{number:04d}.parquet", data.getvalue())


def main() -> None:
    """Bring a month from Parquet to DuckDB."""
    put_month(len(own_storage().objects(INPUT)))
    chunkmap("run", HERE / "job.yaml")

    rows = scan_output(OUTPUT).collect()
    with duckdb.connect() as connection:  # In memory: it reads the frame where it is.
        connection.register("published", rows)
        connection.sql(MONTHS.format("published")).show()
        connection.sql(CUSTOMERS).show()

    chunkmap("load", OUTPUT, "--into", "shop.duckdb", "--table", "orders")
    with duckdb.connect("shop.duckdb", read_only=True) as connection:
        connection.sql(MONTHS.format("orders")).show()


if __name__ == "__main__":
    main()
