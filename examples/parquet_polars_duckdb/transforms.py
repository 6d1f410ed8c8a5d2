"""Orders with their value, in folders by month."""

import polars as pl


def valued(orders: pl.LazyFrame) -> pl.LazyFrame:
    """Add value and month to each order that was not cancelled."""
    return orders.filter(pl.col("status") != "cancelled").select(
        "id",
        "customer",
        month=pl.col("day").dt.strftime("%Y-%m"),
        value=(pl.col("count") * pl.col("price")).cast(pl.Decimal(18, 2)),
    )
