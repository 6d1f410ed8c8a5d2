"""Repeated keys, held against plain Polars."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.quality import keys
from pipeline.quality.keys import repeated_keys, repeats_of
from tests.support.examples import fewer

KEY = st.tuples(st.none() | st.integers(0, 6), st.none() | st.sampled_from("ab"))


def reads(frames: list[pl.DataFrame]) -> list[Any]:
    return [partial(lambda frame: frame, frame) for frame in frames]


@settings(deadline=None, max_examples=fewer(80))
@given(st.lists(st.lists(KEY, max_size=6), max_size=5))
def test_they_are_counted_as_polars_counts_them(chunks: list[list[Any]]) -> None:
    schema = {"n": pl.Int64, "s": pl.String}
    frames = [pl.DataFrame(chunk, schema=schema, orient="row") for chunk in chunks]
    whole = pl.concat([pl.DataFrame(schema=schema), *frames])
    expected = whole.group_by("n", "s").len().filter(pl.col("len") > 1)
    found = repeated_keys(reads(frames), whole.height, ["n", "s"])
    assert found.count == expected.height
    assert bool(found.examples) == bool(expected.height)


ORDERED = st.lists(st.tuples(st.integers(-3, 9), st.sampled_from(["", "a", "b", "é"])), max_size=9)


@settings(deadline=None, max_examples=fewer(150))
@given(st.lists(ORDERED.map(sorted), max_size=4))
def test_they_are_counted_in_frames_that_are_in_order(chunks: list[list[Any]]) -> None:
    schema = {"n": pl.Int64, "s": pl.String}
    frames = [pl.DataFrame(chunk, schema=schema, orient="row") for chunk in chunks]
    whole = pl.concat([pl.DataFrame(schema=schema), *frames])
    expected = whole.group_by("n", "s").len().filter(pl.col("len") > 1)
    assert repeated_keys(reads(frames), whole.height, ["n", "s"]).count == expected.height


def test_frames_that_are_in_order_and_apart_are_not_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pl.DataFrame, "hash_rows", None)
    frames = [
        pl.DataFrame({"n": [5, 5, 6], "s": ["a", "b", "a"]}),
        pl.DataFrame({"n": [], "s": []}, schema={"n": pl.Int64, "s": pl.String}),
        pl.DataFrame({"n": [1, 5], "s": ["x", "A"]}),
    ]
    assert repeated_keys(reads(frames), 5, ["n", "s"]).count == 0


def test_they_are_found_in_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "ROWS_AT_ONCE", 100)
    monkeypatch.setattr(keys, "CONFIRMED_AT_ONCE", 7)
    frames = [pl.DataFrame({"n": range(500)}), pl.DataFrame({"n": range(400, 900)})]
    assert repeated_keys(reads(frames), 1000, ["n"]).count == 100


def test_two_keys_with_one_hash_are_two_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    collide = lambda frame, *args: (frame.to_series(0) // 2).cast(pl.UInt64)  # noqa: E731
    monkeypatch.setattr(pl.DataFrame, "hash_rows", collide)
    assert repeated_keys(reads([pl.DataFrame({"n": [*range(1, 10), 0]})]), 10, ["n"]).count == 0
    frames = [pl.DataFrame({"n": [0, 1, 2]}), pl.DataFrame({"n": [1, 3]})]
    found = repeated_keys(reads(frames), 5, ["n"])
    assert found.examples == ("n=1 (2 rows)",)


def test_categories_are_compared_by_their_text() -> None:
    frames = [
        pl.DataFrame({"c": pl.Series(["a", "b"], dtype=pl.Categorical)}),
        pl.DataFrame({"c": pl.Series(["b", "c"], dtype=pl.Enum(["b", "c"]))}),
    ]
    found = repeated_keys(reads(frames), 4, ["c"])
    assert (found.count, found.examples) == (1, ("c=b (2 rows)",))


# Halves and marks that are equal, of hashes that are not.
HALF = st.sampled_from([0, 1, 1 << 20, (1 << 32) - 1])


@given(st.lists(st.tuples(HALF, HALF).map(lambda halves: halves[0] << 32 | halves[1])))
def test_hashes_that_are_equal_in_part_do_not_count(hashes: list[int]) -> None:
    found = repeats_of(np.array(hashes, np.uint64))
    assert found.tolist() == sorted(value for value, times in Counter(hashes).items() if times > 1)
