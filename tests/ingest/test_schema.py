"""Types of JSON values: found, merged, decided; and frames of them."""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partitioning.dtypes import parse_type
from pipeline.errors import SchemaChangedError
from pipeline.ingest.frames import frame_of
from pipeline.ingest.schema import (
    ContradictionError,
    Types,
    add_known_types,
    add_types,
    decide,
    fits,
    merge,
    type_of,
    without_nulls,
)
from tests.support.examples import fewer

INT, FLOAT, TEXT, NULL = pl.Int64(), pl.Float64(), pl.String(), pl.Null()


def found(*records: dict[str, Any]) -> Types:
    types: Types = {}
    add_types(types, records, ())
    return types


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, None, 2], INT),
        ([1, 2.5], FLOAT),
        ([2.5, 1], FLOAT),
        ([None], NULL),
        (["a", None], TEXT),
        ([True, False], pl.Boolean()),
        ([[], [1], [2.5]], pl.List(FLOAT)),
        ([{"a": 1}, {"b": "x"}, None], pl.Struct({"a": INT, "b": TEXT})),
        ([[{"a": None}], [{"a": 1}]], pl.List(pl.Struct({"a": INT}))),
    ],
)
def test_the_type_holds_all_values(values: list[Any], kind: pl.DataType) -> None:
    assert found(*({"x": value} for value in values)) == {"x": kind}


@pytest.mark.parametrize(
    ("first", "second", "path"),
    [
        (1, "a", "x"),
        (True, 1, "x"),
        ([1], 1, "x"),
        ({"a": {"b": 1}}, {"a": {"b": "c"}}, "x.a.b"),
        ([{"a": 1}], [{"a": "b"}], "x[].a"),
    ],
)
def test_what_no_type_holds_is_named(first: Any, second: Any, path: str) -> None:
    with pytest.raises(ContradictionError) as caught:
        found({"x": first}, {"x": second})
    assert caught.value.path == path


JSON = st.recursive(
    st.none() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(deadline=None, max_examples=fewer(80))
@given(st.lists(JSON, min_size=1, max_size=5))
def test_each_value_fits_the_type_that_was_found_for_all(values: list[Any]) -> None:
    """Whatever the order in which values come, and a frame of them has them all."""
    records = [{"x": value} for value in values]
    try:
        types = found(*records)
    except ContradictionError:
        with pytest.raises(ContradictionError):
            found(*reversed(records))
        return
    backwards = found(*reversed(records))["x"]
    assert merge(types["x"], backwards, "x") == types["x"]
    kind = without_nulls(types["x"])
    if kind is None:
        return
    frame = frame_of(records, {"x": kind}, frozenset(), "here")
    for value, row in zip(values, frame["x"].to_list(), strict=True):
        if isinstance(value, int | float):
            assert row == pytest.approx(value)
        else:
            assert (row is None) <= (without_nulls(type_of(value, "x")) is None or value is None)


RECORDS = st.lists(st.dictionaries(st.sampled_from("xyz"), JSON, max_size=3), max_size=3)


@settings(deadline=None, max_examples=fewer(80))
@given(st.lists(RECORDS, max_size=4))
def test_types_of_pages_add_up_to_those_of_all_records(pages: list[list[dict[str, Any]]]) -> None:
    """With the fields, also nested ones, in the same order; and a contradiction is one."""

    def by_page() -> Types:
        types: Types = {}
        for page in pages:
            add_known_types(types, found(*page))
        return types

    try:
        whole = found(*(record for page in pages for record in page))
    except ContradictionError:
        with pytest.raises(ContradictionError):
            by_page()
        return
    assert list(by_page().items()) == list(whole.items())
    assert str(by_page()) == str(whole)


def test_at_first_contact_fields_without_a_value_become_no_column() -> None:
    types = found({"id": 1, "later": None, "deep": {"a": None, "b": 1}, "list": []})
    decision = decide(types, None, {"day": pl.Date()}, "pinned")
    assert decision.types == {"id": INT, "deep": pl.Struct({"b": INT}), "day": pl.Date()}
    assert decision.drift.empty == ("later", "list")


PINNED: Types = {"id": INT, "price": FLOAT, "at": pl.Datetime("us", "UTC")}


@pytest.mark.parametrize("rule", ["pinned", "widen", "fail"])
def test_records_that_fit_are_no_drift(rule: Any) -> None:
    types = found({"id": 1, "price": 2, "at": "2024-03-01T00:00:00Z"}, {"id": 2})
    decision = decide(types, PINNED, {}, rule)
    assert decision.types == PINNED
    assert decision.drift.model_dump() == {"new": {}, "missing": (), "changed": {}, "empty": ()}


def test_no_records_are_no_drift() -> None:
    assert decide({}, PINNED, {}, "fail").drift.missing == ()


def test_widening_takes_the_type_that_holds_both() -> None:
    decision = decide(found({"id": 1.5, "price": 1, "at": None, "new": "a"}), PINNED, {}, "widen")
    assert decision.types == {**PINNED, "id": FLOAT, "new": TEXT}
    assert decision.drift.changed == {"id": ("Int64", "Float64")}
    with pytest.raises(SchemaChangedError, match="'id' is Int64 and String"):
        decide(found({"id": "a"}), PINNED, {}, "widen")


@pytest.mark.parametrize(
    ("value", "kind", "read"),
    [
        ("2024-02-29", "date", date(2024, 2, 29)),
        ("12:30:00", "time", time(12, 30)),
        ("2024-02-29T12:30:00Z", "datetime[us, UTC]", datetime(2024, 2, 29, 12, 30, tzinfo=UTC)),
        ("2024-02-29T12:30:00", "datetime[us, UTC]", datetime(2024, 2, 29, 12, 30, tzinfo=UTC)),
        ("2024-02-29T12:30:00.25", "datetime[ms]", datetime(2024, 2, 29, 12, 30, 0, 250_000)),
        ("-12.50", "decimal[6, 2]", Decimal("-12.50")),
        (7, "decimal[6, 2]", Decimal("7.00")),
        (7.0, "int8", 7),
        (7, "float32", 7.0),
        ({"a": [1]}, "string", '{"a":[1]}'),
        (["2024-01-01"], "list[date]", [date(2024, 1, 1)]),
    ],
)
def test_declared_types_are_read(value: Any, kind: str, read: Any) -> None:
    texts = frozenset({"x"} if kind == "string" else ())
    frame = frame_of([{"x": value}, {}], {"x": parse_type(kind)}, texts, "here")
    assert frame["x"].to_list() == [read, None]
    assert frame["x"].dtype == parse_type(kind)


@pytest.mark.parametrize(
    ("value", "kind", "said"),
    [
        ("29.02.2024", "date", r"a text \(29.02.2024\); a date is written 2024-03-01"),
        (20240229, "date", r"a whole number \(20240229\)"),
        ("2024-02-29T12:00:00Z", "datetime[us]", "has an offset"),
        ("2024-02-29T12:00:00.1234567Z", "datetime[us, UTC]", "finer than microseconds"),
        ("12.345", "decimal[6, 2]", "12.345"),
        ("12345.6", "decimal[6, 2]", "12345.6"),
        ("NaN", "decimal[6, 2]", "NaN"),
        (True, "decimal[6, 2]", "a boolean"),
        (1.5, "int64", "1.5"),
        ("1", "int64", r"a text \(1\)"),
        (True, "int64", "a boolean"),
        (300, "int8", "300"),
        (2**70, "int64", "Int64"),
        (1, "boolean", "a whole number"),
        ("\ud800", "string", "String"),
        ("a\x1b[31m", "date", r"a\\x1b\[31m"),
    ],
)
def test_a_value_that_does_not_fit_is_named(value: Any, kind: str, said: str) -> None:
    with pytest.raises(SchemaChangedError, match=said) as caught:
        frame_of([{}, {"x": value}], {"x": parse_type(kind)}, frozenset(), "page 1")
    assert "field 'x'" in str(caught.value)
    assert "page 1" in str(caught.value)


@pytest.mark.parametrize(
    ("json", "kind", "does"),
    [
        (INT, FLOAT, True),
        (FLOAT, INT, False),
        (TEXT, pl.Date(), True),
        (INT, pl.Date(), False),
        (pl.Struct({"a": INT}), pl.Struct({"a": FLOAT, "b": TEXT}), True),
        (pl.Struct({"a": INT, "c": INT}), pl.Struct({"a": INT}), False),
    ],
)
def test_what_fits(json: pl.DataType, kind: pl.DataType, does: bool) -> None:
    assert fits(json, kind) is does
