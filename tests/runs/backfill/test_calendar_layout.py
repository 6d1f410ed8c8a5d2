"""Windows as the cells of a calendar, held against a slow count of the same windows."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partitioning.windows import Windowing
from pipeline.runs.backfill.calendar_layout import STATES, lay_out
from tests.support.examples import fewer


def windows(labels: list[str], states: list[str] | None = None, done: int = 0) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "label": labels,
            "state": states or ["waiting"] * len(labels),
            "chunks": [2] * len(labels),
            "done": [done] * len(labels),
            "failed": [0] * len(labels),
        },
        schema_overrides={"label": pl.String, "state": pl.String},
    )


def labels(grain: str, start: str, end: str, zone: str = "UTC") -> list[str]:
    rule = Windowing("ds", grain, zone)  # type: ignore[arg-type]
    return [window.label for window in rule.between(start, end)]


def test_days_by_month() -> None:
    found = lay_out(windows(labels("day", "2024-02-28", "2024-03-03")), "day", 60)
    assert (found.unit, found.rows) == ("day", ("2024-02", "2024-03"))
    places = list(found.cells.select("name", "row", "column").iter_rows())
    assert places[1] == ("2024-02-29", 0, 28)
    assert places[2] == ("2024-03-01", 1, 0)


@pytest.mark.parametrize(
    ("grain", "start", "end", "rows", "unit"),
    [
        ("hour", "2024-01-01", "2024-02-01", 60, "hour"),
        ("hour", "2024-01-01", "2025-01-01", 60, "day"),
        ("day", "2022-01-01", "2025-01-01", 60, "day"),
        ("day", "1990-01-01", "2025-01-01", 60, "month"),
        ("day", "1990-01-01", "2025-01-01", 4, "year"),
        ("month", "2000-01-01", "2025-01-01", 60, "month"),
    ],
)
def test_as_fine_as_the_rows_allow(grain: str, start: str, end: str, rows: int, unit: str) -> None:
    every = labels(grain, start, end)
    found = lay_out(windows(every), grain, rows)
    assert found.unit == unit
    assert len(found.rows) <= rows
    assert found.cells["windows"].sum() == len(every)


def test_a_day_with_an_hour_twice() -> None:
    every = labels("hour", "2024-10-27", "2024-10-28", "Europe/Berlin")
    assert len(every) == 25
    found = lay_out(windows(every), "hour", 60)
    assert found.cells["column"].to_list() == list(range(25))
    assert len(found.columns) == 25
    short = labels("hour", "2024-03-31", "2024-04-01", "Europe/Berlin")
    cells = lay_out(windows(short), "hour", 60).cells
    assert (cells.height, cells["column"].to_list()[2]) == (23, 3)


@settings(deadline=None, max_examples=fewer(40))
@given(st.integers(1, 3_000), st.integers(1, 20))
def test_values_fill_lines(count: int, rows: int) -> None:
    every = [f"v{number:05}" for number in range(count)]
    found = lay_out(windows(every), "value", rows)
    assert len(found.rows) <= rows
    assert found.cells["windows"].sum() == count
    places = list(found.cells.select("row", "column").iter_rows())
    assert len(set(places)) == len(places) and places == sorted(places)


@settings(deadline=None, max_examples=fewer(40))
@given(st.lists(st.sampled_from(STATES), min_size=1, max_size=80), st.sampled_from([1, 3, 60]))
def test_a_cell_says_what_matters_most(states: list[str], rows: int) -> None:
    start = datetime(2024, 1, 1, tzinfo=UTC)
    every = labels("day", start.date().isoformat(), "2024-12-01")[: len(states)]
    found = lay_out(windows(every, states), "day", rows)
    by_cell: dict[str, list[str]] = {}
    length = {"day": 10, "month": 7, "year": 4}[found.unit]
    for label, state in zip(every, states, strict=True):
        by_cell.setdefault(label[:length], []).append(state)
    for cell in found.cells.iter_rows(named=True):
        inside = Counter(by_cell[cell["name"]])
        assert {state: cell[state] for state in STATES} == {s: inside[s] for s in STATES}
        assert cell["state"] == slow(inside)


def slow(inside: Counter[str]) -> str:
    for state in ("failed", "mapping", "staged"):
        if inside[state]:
            return state
    if inside["waiting"]:
        return "partly" if inside["done"] else "waiting"
    return next(state for state in ("done", "skipped", "empty") if inside[state])
