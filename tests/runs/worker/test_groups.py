"""Groups of a reduced result: whole, in order, whatever their keys are."""

from __future__ import annotations

import math
from datetime import date
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from pipeline.errors import GroupsFailedError, TransformError, TransientStorageError
from pipeline.runs.worker.groups import (
    GroupMap,
    cut_groups,
    group_sizes,
    groups_of,
    in_groups,
    key_text,
)
from tests.support.examples import fewer

KEYS: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    "int": (pl.Int64, st.integers(-2, 2)),
    "text": (pl.String, st.sampled_from(["", "a", "ä", "a b"])),
    "float": (pl.Float64, st.sampled_from([0.0, -0.0, 1.5, math.nan, math.inf])),
    "day": (pl.Date, st.sampled_from([date(2024, 2, 29), date(1, 1, 1)])),
    "flag": (pl.Boolean, st.booleans()),
    "kind": (pl.Enum(["b", "a"]), st.sampled_from(["a", "b"])),
    "category": (pl.Categorical, st.sampled_from(["y", "x"])),
    "*": (pl.Int8, st.integers(0, 1)),
    "^k$": (pl.Null, st.none()),
}


@st.composite
def frames(draw: st.DrawFn) -> tuple[pl.DataFrame, list[str]]:
    by = draw(st.lists(st.sampled_from(sorted(KEYS)), min_size=1, max_size=3, unique=True))
    rows = draw(st.integers(0, 30))
    columns = {
        name: pl.Series(
            draw(st.lists(KEYS[name][1] | st.none(), min_size=rows, max_size=rows)),
            dtype=KEYS[name][0],
        )
        for name in by
    }
    return pl.DataFrame({**columns, "row": pl.Series(range(rows), dtype=pl.Int64)}), by


def canonical(value: Any) -> Any:
    """A value as equal values are: NaN equals NaN, and -0.0 is 0.0."""
    if isinstance(value, float):
        return "NaN" if math.isnan(value) else value + 0.0
    return value


def oracle(frame: pl.DataFrame, by: list[str]) -> dict[tuple[Any, ...], list[int]]:
    found: dict[tuple[Any, ...], list[int]] = {}
    for row in frame.iter_rows(named=True):
        found.setdefault(tuple(canonical(row[name]) for name in by), []).append(row["row"])
    return found


@settings(max_examples=fewer(150), deadline=None)
@given(frames())
def test_groups_are_whole_and_keep_their_order(case: tuple[pl.DataFrame, list[str]]) -> None:
    frame, by = case
    ordered = in_groups(frame, by)
    groups = [rows["row"].to_list() for _, rows in groups_of(ordered, by)]
    expected = oracle(frame, by)
    assert sorted(groups) == sorted(expected.values())
    assert [len(group) for group in groups] == group_sizes(ordered, by)


@settings(max_examples=fewer(200), deadline=None)
@given(
    st.lists(st.integers(1, 50), max_size=300),
    st.floats(0.0, 100.0),
    st.integers(1, 1000),
    st.none() | st.integers(1, 20),
)
def test_pieces_have_whole_groups_and_keep_their_limits(
    sizes: list[int], row_bytes: float, target: int, limit: int | None
) -> None:
    pieces = cut_groups(sizes, row_bytes, target, limit)
    assert sum(pieces) == len(sizes) and all(pieces)
    at = 0
    for count in pieces:
        own = sizes[at : at + count]
        at += count
        assert count == 1 or sum(own) * row_bytes <= target
        assert count <= (limit or math.ceil(len(sizes) / 100))


def test_a_result_without_limit_is_about_a_hundred_pieces() -> None:
    assert len(cut_groups([3] * 12_345, 8.0, 1 << 30, None)) == 100
    assert len(cut_groups([3] * 7, 8.0, 1 << 30, None)) == 7


FRAME = pl.DataFrame({"k": ["a", "a", "b", None, "c"], "n": [1, 2, 3, 4, 5]})


def mapped(function: Any, by: tuple[str, ...] = ("k",)) -> pl.DataFrame:
    return GroupMap("own:function", function, by)(in_groups(FRAME, by).lazy()).collect()


def test_a_function_gets_one_group_at_a_time() -> None:
    seen: list[list[int]] = []

    def total(rows: pl.LazyFrame) -> pl.LazyFrame:
        seen.append(rows.collect()["n"].to_list())
        return rows.select(pl.col("k").first(), pl.col("n").sum())

    expected = pl.DataFrame({"k": [None, "a", "b", "c"], "n": [4, 3, 3, 5]})
    assert_frame_equal(mapped(total), expected)
    assert seen == [[4], [1, 2], [3], [5]]


def test_every_failed_group_is_named_and_the_others_are_mapped() -> None:
    worked = []

    def picky(rows: pl.LazyFrame) -> pl.LazyFrame:
        key = rows.collect()["k"][0]
        if key in ("a", "c"):
            raise ValueError(f"no {key}")
        worked.append(key)
        return rows

    with pytest.raises(
        GroupsFailedError, match=r"own:function raised ValueError: no a \(group k='a'\)"
    ) as raised:
        mapped(picky)
    assert raised.value.groups == "groups k='a'; k='c', 2 of the 4 in its piece"
    assert isinstance(raised.value.__cause__, ValueError)
    assert worked == [None, "b"]


def test_an_error_that_may_pass_is_raised_at_once() -> None:
    def away(rows: pl.LazyFrame) -> pl.LazyFrame:
        raise TransientStorageError("not now")

    with pytest.raises(TransientStorageError):
        mapped(away)


def test_what_is_no_lazy_frame_is_told() -> None:
    with pytest.raises(GroupsFailedError, match="it returned DataFrame, not a LazyFrame"):
        mapped(lambda rows: rows.collect())


def test_columns_that_are_null_in_one_group_take_the_type_of_others() -> None:
    def sometimes(rows: pl.LazyFrame) -> pl.LazyFrame:
        found = rows.collect()
        value = None if found["n"][0] == 3 else 1.5
        return found.with_columns(value=pl.lit(value)).lazy()

    assert mapped(sometimes).schema == {"k": pl.String, "n": pl.Int64, "value": pl.Float64}


def test_groups_with_other_columns_are_told_apart() -> None:
    def odd(rows: pl.LazyFrame) -> pl.LazyFrame:
        found = rows.collect()
        return found.lazy() if found["n"][0] != 5 else found.rename({"n": "m"}).lazy()

    with pytest.raises(GroupsFailedError, match="other columns") as raised:
        mapped(odd)
    assert "k='c'" in raised.value.groups


def test_a_column_that_is_missing_is_told() -> None:
    with pytest.raises(TransformError, match=r"no column 'kk' \(then.by\); did you mean 'k'\?"):
        in_groups(FRAME, ["kk"])


def test_a_column_that_has_no_order_is_told() -> None:
    frame = pl.DataFrame({"k": [object(), object()], "n": [1, 2]})
    with pytest.raises(TransformError, match=r"cannot be grouped by k \(then.by\)"):
        in_groups(frame, ["k"])


def test_a_key_is_named_by_its_values() -> None:
    rows = pl.DataFrame({"day": [date(2024, 2, 29)], "text": ["x" * 100], "n": [7], "none": [None]})
    named = key_text(rows, ["day", "n", "none", "text"])
    assert named.startswith("day=2024-02-29, n=7, none=null, text='xxx")
    assert len(named) < 110
