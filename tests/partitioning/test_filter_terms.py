"""Expressions become terms that keep the same rows, as far as terms can say it."""

import io
from datetime import date, datetime
from decimal import Decimal

import polars as pl
import pyarrow as pa
import pytest

from partitioning import FilterError, PlanRequest, Term, filter_expr, plan_dataset
from partitioning.filter_terms import split_filter
from tests.support.stores import DictReader

FRAME = pl.DataFrame(
    {
        "n": [1, 2, 3, None, 5],
        "s": ["a", "b", None, "d", "e"],
        "d": [date(2024, 1, day) for day in (1, 2, 3, 4, 5)],
        "t": [datetime(2024, 1, day, 12) for day in (1, 2, 3, 4, 5)],
        "b": [True, False, None, True, False],
        "m": [Decimal("1.50"), Decimal("2.50"), None, Decimal("0.10"), Decimal("9.00")],
    }
)
n, s, d, t, b = (pl.col(name) for name in "nsdtb")

WHOLE = [
    n > 2,
    pl.lit(3) >= n,
    ~(n > 2),
    (n == 1) | (s == "b"),
    (n < 4) & (d >= date(2024, 1, 2)),
    ((n == 1) | (n == 5)) & ((s == "a") | b),
    ~((n == 1) | (s == "b")),
    n.is_in([1, 5]),
    ~s.is_in(["a", "b"]),
    n.is_null(),
    s.is_not_null() & ~b,
    b,
    n.is_between(2, 5),
    n.is_between(2, 5, closed="left"),
    ~n.is_between(2, 3),
    t < datetime(2024, 1, 3),
    pl.col("m") > Decimal("1.00"),
    n != 2,
]


@pytest.mark.parametrize("expression", WHOLE, ids=str)
def test_terms_keep_the_rows_that_the_expression_keeps(expression: pl.Expr) -> None:
    terms, rest = split_filter(expression)
    assert rest is None
    schema = pa.schema(FRAME.to_arrow().schema)
    kept = FRAME.filter(filter_expr(terms, schema))
    assert kept.equals(FRAME.filter(expression))


PARTS = [
    (n > 2) & s.str.contains("e"),
    s.str.contains("e") & (n > 2) & (n < 6),
    (n > 1) & ((n * 2 == 4) | (s == "e")),
]


@pytest.mark.parametrize("expression", PARTS, ids=str)
def test_the_rest_stays_an_expression(expression: pl.Expr) -> None:
    terms, rest = split_filter(expression)
    assert terms and rest is not None
    schema = pa.schema(FRAME.to_arrow().schema)
    kept = FRAME.filter(filter_expr(terms, schema)).filter(rest)
    assert kept.equals(FRAME.filter(expression))


@pytest.mark.parametrize(
    "expression",
    [
        n == pl.col("b"),
        n.map_elements(lambda value: bool(hash(value)), return_dtype=pl.Boolean),
        n.eq_missing(1),
        n > pl.lit(float("nan")),
        n == pl.lit(None),
        pl.lit(True),
    ],
    ids=str,
)
def test_what_terms_cannot_say_is_left_over_whole(expression: pl.Expr) -> None:
    terms, rest = split_filter(expression)
    assert terms == ()
    assert rest is not None


def test_many_alternatives_are_not_multiplied_out() -> None:
    expression = pl.lit(1) == n
    for number in range(10):
        expression &= (n == number) | (s == str(number))
    terms, rest = split_filter(expression)
    assert 1 <= len(terms) <= 64
    assert rest is not None


def test_a_filter_of_one_term() -> None:
    assert split_filter(d >= date(2024, 1, 1)) == (((Term("d", ">=", date(2024, 1, 1)),),), None)


SEVERITY = pl.Enum(["low", "medium", "high"])
sev = pl.col("sev")


@pytest.mark.parametrize(
    "expression",
    [
        sev >= "medium",
        pl.lit("medium") <= sev,
        ~(sev < "medium"),
        sev.is_between(pl.lit("medium"), pl.lit("high")),
        sev > pl.lit("low", dtype=SEVERITY),
        (sev > "low") & (n > 0),
        (sev == "high") | (sev == "medium"),
    ],
    ids=str,
)
def test_an_enum_is_compared_in_the_order_of_its_categories(expression: pl.Expr) -> None:
    """Of texts, `medium` is after `high` and `low`."""
    frame = pl.DataFrame(
        {"n": [1, 2, 3], "sev": pl.Series(["low", "medium", "high"], dtype=SEVERITY)}
    )
    terms, rest = split_filter(expression)
    kept = frame.filter(filter_expr(terms, pa.schema(frame.to_arrow().schema)))
    assert (kept if rest is None else kept.filter(rest))["n"].to_list() == [2, 3]


def test_texts_of_dates_are_ordered_by_terms() -> None:
    for text in ("2024-01", "2024-01-02", "2024-01-02T05:00:00+01:00", "2024-01-02 05:00"):
        assert split_filter(pl.col("ds") >= text) == (((Term("ds", ">=", text),),), None)


def test_an_enum_of_texts_in_another_order_is_not_compared_by_terms() -> None:
    """Terms order texts, so they would keep fewer or other rows than Polars does."""
    for days in (["2024-02-01", "2024-01-01"], ["2024-01-01", "2024-02-01"]):
        file = io.BytesIO()
        pl.DataFrame({"e": pl.Series(days, dtype=pl.Enum(days))}).write_parquet(file)
        reader = DictReader({"s3://b/t/a.parquet": file.getvalue()})
        terms, rest = split_filter(pl.col("e") >= "2024-02-01")
        assert (terms, rest) == (((Term("e", ">=", "2024-02-01"),),), None)
        if days == sorted(days):
            assert plan_dataset(PlanRequest("s3://b/t/", filter=terms), reader).plan.rows == 2
        else:
            with pytest.raises(FilterError, match=r"e >= '2024-02-01': .* filter it in the f"):
                plan_dataset(PlanRequest("s3://b/t/", filter=terms), reader)
        equal = ((Term("e", "==", "2024-02-01"),),)
        assert plan_dataset(PlanRequest("s3://b/t/", filter=equal), reader).plan.rows == 2


def test_nanoseconds_are_not_cut_off() -> None:
    start = pl.lit(1_704_110_400_000_000_000).cast(pl.Datetime("ns"))
    assert split_filter(t >= start)[0] == ((Term("t", ">=", datetime(2024, 1, 1, 12)),),)
    finer = pl.lit(1_704_110_400_000_000_001).cast(pl.Datetime("ns"))
    several = pl.Series([1, 2_000], dtype=pl.Datetime("ns"))
    for expression in (t >= finer, t == finer, t.is_between(start, finer), t.is_in(several)):
        terms, rest = split_filter(expression)
        assert terms == ()
        assert rest is not None
