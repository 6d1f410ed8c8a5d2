"""The filtering example against a loop over dates."""

from datetime import date, datetime, timedelta

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.examples.late_orders import late_orders

COMMITTED = date(1996, 2, 28)  # a leap year: 29 February lies within every delay below


def lines(delays: list[int | None]) -> pl.DataFrame:
    """One line item a delay, in days between the promise and the arrival; None: never arrived."""
    received = [None if delay is None else COMMITTED + timedelta(delay) for delay in delays]
    return pl.DataFrame(
        {
            "l_orderkey": range(len(delays)),
            "l_linenumber": [1] * len(delays),
            "l_shipmode": ["RAIL"] * len(delays),
            "l_quantity": pl.Series([17] * len(delays), dtype=pl.Decimal(15, 2)),
            "l_commitdate": pl.Series([COMMITTED] * len(delays), dtype=pl.Date),
            "l_receiptdate": pl.Series(received, dtype=pl.Date),
        },
        schema_overrides={"l_shipmode": pl.String},
    )


@given(st.lists(st.none() | st.integers(-60, 120), max_size=30), st.integers(-10, 60))
def test_it_keeps_what_a_loop_would_keep(delays: list[int | None], days: int) -> None:
    result = late_orders(lines(delays).lazy(), days=days).collect()
    expected = [(key, d) for key, d in enumerate(delays) if d is not None and d >= days]
    assert list(zip(result["l_orderkey"], result["days_late"], strict=True)) == expected


def test_the_default_is_thirty_days_and_includes_the_thirtieth() -> None:
    result = late_orders(lines([29, 30, 31]).lazy()).collect()
    assert result["days_late"].to_list() == [30, 31]
    assert result.schema["l_quantity"] == pl.Int32
    assert result.schema["days_late"] == pl.Int32


def test_timestamps_count_calendar_days() -> None:
    """23:00 to 01:00 two days on is 1 day and 2 hours, and two calendar days."""
    frame = lines([0]).with_columns(
        l_commitdate=pl.lit(datetime(1996, 3, 1, 23)), l_receiptdate=pl.lit(datetime(1996, 3, 3, 1))
    )
    assert late_orders(frame.lazy(), days=2).collect()["days_late"].to_list() == [2]


def test_what_does_not_fit_the_type_fails_loudly() -> None:
    huge = lines([40]).with_columns(l_quantity=pl.lit(3e9))
    with pytest.raises(pl.exceptions.InvalidOperationError, match="l_quantity"):
        late_orders(huge.lazy()).collect()
