"""A taxi trip, with what a report needs of it."""

import polars as pl


def priced(trips: pl.LazyFrame, *, per_km: int = 210) -> pl.LazyFrame:
    """Add speed and price to each trip, and leave out those that cannot be true.

    Args:
        trips: `id`, `start` (a time), `seconds` and `meters` of each trip.
        per_km: Price of a kilometre, in cents.
    """
    speed = pl.col("meters") / pl.col("seconds") * 3.6
    is_night = ~pl.col("start").dt.hour().is_between(6, 21)
    cents = pl.col("meters") * per_km // 1000 + pl.when(is_night).then(600).otherwise(400)
    return trips.with_columns(speed=speed, cents=cents).filter(pl.col("speed").is_between(1, 150))
