"""The row-wise example against decimal arithmetic in plain Python."""

from datetime import date
from decimal import Decimal

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.examples.revenue import MONEY, revenue


def lines(rows: list[tuple[Decimal, Decimal, Decimal]]) -> pl.DataFrame:
    """Line items with these prices, discounts and taxes, and a column that nobody reads."""
    price, discount, tax = zip(*rows, strict=True) if rows else ((), (), ())
    return pl.DataFrame(
        {
            "l_orderkey": pl.Series(range(len(rows)), dtype=pl.Int64),
            "l_linenumber": pl.Series([1] * len(rows), dtype=pl.Int32),
            "l_suppkey": pl.Series([7] * len(rows), dtype=pl.Int64),
            "l_extendedprice": pl.Series(price, dtype=MONEY),
            "l_discount": pl.Series(discount, dtype=MONEY),
            "l_tax": pl.Series(tax, dtype=MONEY),
            "l_shipdate": pl.Series([date(1995, 6, 17)] * len(rows), dtype=pl.Date),
            "l_comment": pl.Series(["unused"] * len(rows), dtype=pl.String),
        }
    )


prices = st.decimals(Decimal("0.01"), Decimal("999999.99"), places=2)
rates = st.decimals(Decimal("0.00"), Decimal("0.99"), places=2)


@given(st.lists(st.tuples(prices, rates, rates), max_size=20))
def test_amounts_are_exact(rows: list[tuple[Decimal, Decimal, Decimal]]) -> None:
    result = revenue(lines(rows).lazy()).collect()
    assert result["revenue"].to_list() == [price * (1 - discount) for price, discount, _ in rows]
    assert result["charge"].to_list() == [
        price * (1 - discount) * (1 + tax) for price, discount, tax in rows
    ]


def test_schema_is_the_same_with_and_without_rows() -> None:
    row = (Decimal("10.00"), Decimal("0.10"), Decimal("0.05"))
    full, empty = (revenue(lines(rows).lazy(), currency="USD").collect() for rows in ([row], []))
    assert full.schema == empty.schema
    assert full.schema["revenue"] == pl.Decimal(18, 4)
    assert full.schema["charge"] == pl.Decimal(20, 6)
    assert full["currency"].to_list() == ["USD"]


def test_floats_are_rounded_to_cents_first() -> None:
    row = (Decimal("10.00"), Decimal("0.10"), Decimal("0.05"))
    floats = lines([row]).cast({"l_extendedprice": pl.Float64, "l_discount": pl.Float64})
    assert revenue(floats.lazy()).collect().equals(revenue(lines([row]).lazy()).collect())


def test_it_reads_only_what_it_needs() -> None:
    plan = revenue(lines([]).lazy()).explain()
    assert "l_comment" not in plan.partition("PROJECT")[2]
    assert "PROJECT" in plan


@pytest.mark.parametrize("currency", ["", "eur", "EURO", "€€€"])
def test_a_currency_that_is_none_is_refused(currency: str) -> None:
    with pytest.raises(ValueError, match="ISO 4217"):
        revenue(lines([]).lazy(), currency=currency)
