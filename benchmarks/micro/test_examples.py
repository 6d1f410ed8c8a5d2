"""How fast the example transforms are alone: the ceiling of what mapping them can reach."""

from collections.abc import Callable
from datetime import date, timedelta

import polars as pl
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from pipeline.examples.late_orders import late_orders
from pipeline.examples.revenue import MONEY, revenue

Transform = Callable[[pl.LazyFrame], pl.LazyFrame]
ROWS = 1_000_000


@pytest.fixture(scope="module")
def lines() -> pl.DataFrame:
    """A million line items in memory, as wide as the transforms need; the same every time."""
    row = pl.int_range(ROWS)
    day = pl.lit(date(1992, 1, 1)) + pl.duration(days=row % 2500)
    return pl.select(
        l_orderkey=row,
        l_linenumber=(row % 7).cast(pl.Int32),
        l_suppkey=row % 10_000,
        l_quantity=(row % 50 + 1).cast(MONEY),
        l_extendedprice=(row % 100_000).cast(MONEY),
        l_discount=(row % 11).cast(pl.Decimal(38, 2)) / 100,
        l_tax=(row % 9).cast(pl.Decimal(38, 2)) / 100,
        l_shipdate=day,
        l_commitdate=day + timedelta(30),
        l_receiptdate=day + pl.duration(days=row % 120),
        l_shipmode=pl.lit("RAIL"),
    )


@pytest.mark.parametrize("transform", [revenue, late_orders], ids=lambda f: f.__name__)
def test_transform(benchmark: BenchmarkFixture, lines: pl.DataFrame, transform: Transform) -> None:
    result = benchmark(lambda: transform(lines.lazy()).collect())
    benchmark.extra_info["rows"] = ROWS
    assert 0 < result.height <= ROWS
