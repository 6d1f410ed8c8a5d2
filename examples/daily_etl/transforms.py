"""Revenue of orders."""

import polars as pl


def revenue(orders: pl.LazyFrame) -> pl.LazyFrame:
    """Take discounts off, and count the items of each order."""
    percent = pl.col("coupon").struct.field("percent").fill_null(0)
    revenue = pl.col("total").cast(pl.Decimal(20, 4)) * (100 - percent) / 100
    return orders.select(
        "id",
        "day",
        "country",
        items=pl.col("items").list.eval(pl.element().struct.field("count")).list.sum(),
        revenue=revenue.round(2).cast(pl.Decimal(18, 2)),
    )
