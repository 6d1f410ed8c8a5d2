"""Figures of chunks, joined, are those of plain Polars over all rows."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.job_checks import Checks
from pipeline.quality.figures import Figures, Wanted
from tests.support.examples import fewer

WANTED = Wanted(totals=("n", "price", "^x$"), latest=("at", "day"), nulls=("at", "n"), kept=("n",))
SCHEMA = pl.Schema(
    {
        "n": pl.Int64(),
        "price": pl.Decimal(20, 2),
        "^x$": pl.Float64(),
        "at": pl.Datetime("ns", "Europe/Berlin"),
        "day": pl.Date(),
    }
)
ROW = st.fixed_dictionaries(
    {
        "n": st.none() | st.integers(-(2**63), 2**63 - 1),
        "price": st.none() | st.decimals(-(10**9), 10**9, places=2),
        "^x$": st.none() | st.floats(-1e9, 1e9),
        "at": st.none()
        | st.datetimes(datetime(1700, 1, 1), datetime(2200, 1, 1)).map(
            lambda at: at.replace(tzinfo=UTC)
        ),
        "day": st.none() | st.dates(),
    }
)


def frame_of(rows: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(
        [pl.Series(name, [row[name] for row in rows], kind) for name, kind in SCHEMA.items()]
    )


def stored(figures: Figures) -> Figures:
    return Figures.from_json(figures.rows, json.loads(json.dumps(figures.to_json())))


@settings(deadline=None, max_examples=fewer(60))
@given(st.lists(st.lists(ROW, max_size=5), max_size=4))
def test_joined_figures_are_those_of_all_rows(chunks: list[list[dict[str, Any]]]) -> None:
    joined = Figures.join(stored(WANTED.measure(frame_of(chunk))) for chunk in chunks)
    rows = [row for chunk in chunks for row in chunk]
    assert joined.rows == len(rows)
    for name in ("n", "price"):
        assert joined.totals.get(name, 0) == sum(
            (Fraction(row[name]) for row in rows if row[name] is not None), Fraction(0)
        )
    floats = sum(row["^x$"] for row in rows if row["^x$"] is not None)
    assert float(joined.totals.get("^x$", 0)) == pytest.approx(floats, abs=1e-3)
    for name in ("at", "n"):
        assert joined.nulls.get(name, 0) == sum(row[name] is None for row in rows)
    days = [row["day"] for row in rows if row["day"] is not None]
    whole = pl.Series(days, dtype=pl.Date).max()
    found = joined.latest.get("day")
    assert found == (None if whole is None else pl.Series([whole]).dt.epoch("us")[0])


def test_what_is_not_finite_stays_so() -> None:
    wanted = Wanted(totals=("x",))
    parts = [pl.DataFrame({"x": [1.0, float("inf")]}), pl.DataFrame({"x": [2.0]})]
    total = Figures.join(stored(wanted.measure(part)) for part in parts).totals["x"]
    assert float(total) == float("inf")


@pytest.mark.parametrize(
    "text",
    [
        {"totals": {"n": "1e999999999"}},
        {"totals": {"n": 5}},
        {"totals": {"n": "x"}},
        {"latest": {"n": 1.5}},
        {"nulls": {"n": 11}},
        {"nulls": {"n": True}},
        {"nulls": []},
        [],
    ],
)
def test_hostile_figures_are_refused(text: Any) -> None:
    with pytest.raises((ValueError, TypeError, AttributeError, ArithmeticError)):
        Figures.from_json(10, text)


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        (Wanted(totals=("day",)), "column 'day' is of type Date, which has no total"),
        (Wanted(latest=("n",)), "column 'n' is of type Int64, neither a date nor a time"),
        (Wanted(nulls=("a", "b")), "the result has no column 'a', 'b'"),
        (Wanted(kept=None), None),
    ],
)
def test_a_result_that_cannot_be_measured(wanted: Wanted, problem: str | None) -> None:
    found = wanted.problem(SCHEMA)
    assert found is None if problem is None else problem in str(found)


def test_what_checks_need_is_the_identity_and_limits_are_not() -> None:
    def needs(**changes: Any) -> dict[str, Any]:
        check = {"check": "total", "column": "n", "expected": 5} | changes
        run = [check, {"check": "sql", "query": "SELECT 1"}, {"check": "row_count", "min": 1}]
        return Wanted.of(Checks.model_validate({"run": run})).identity()

    assert needs() == {"totals": ["n"], "kept": ["*"]}
    assert needs(expected=6, severity="warn", tolerance="5%") == needs()
    assert needs(column="m") != needs()


def test_dates_and_decimals_are_exact() -> None:
    wanted = Wanted(totals=("p",), latest=("d",))
    frame = pl.DataFrame({"p": [Decimal("0.10")] * 3, "d": [date(2024, 2, 29)] * 3})
    figures = stored(wanted.measure(frame))
    assert figures.totals == {"p": Fraction(3, 10)}
    assert figures.latest == {"d": 1_709_164_800_000_000}
