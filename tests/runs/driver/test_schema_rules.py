"""Columns of several types in one dataset: widened, taken as the first, declared, or refused."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partitioning import ColumnError, SchemaMismatchError, Term
from partitioning.dtypes import can_become, pack_schema, parse_type, unpack_schema, wider_type
from pipeline.errors import UnreadableObjectError
from tests.runs.worker.test_types import by_polars, one, read
from tests.support.examples import fewer

NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)
Pair = tuple[pa.DataType, list[Any]]
WIDENED: dict[str, tuple[Pair, Pair, Any]] = {
    "integers": ((pa.int32(), [1]), (pa.int64(), [2**40]), pl.Int64()),
    "signed and unsigned": ((pa.int8(), [-1]), (pa.uint8(), [255]), pl.Int16()),
    "64 bits of both kinds": ((pa.int64(), [-1]), (pa.uint64(), [2**64 - 1]), pl.Int128()),
    "floats": ((pa.float32(), [0.5]), (pa.float64(), [0.1]), pl.Float64()),
    "zones of one meaning": (
        (pa.timestamp("us", "UTC"), [NOON]), (pa.timestamp("us", "+00:00"), [NOON]),
        pl.Datetime("us", "UTC"),
    ),
    "units of time": (
        (pa.timestamp("ms", "UTC"), [NOON]), (pa.timestamp("us", "UTC"), [NOON]),
        pl.Datetime("us", "UTC"),
    ),
    "decimals": (
        (pa.decimal128(9, 2), [Decimal("1.25")]), (pa.decimal128(12, 4), [Decimal("0.0001")]),
        pl.Decimal(12, 4),
    ),
    "lists of nulls": (
        (pa.list_(pa.null()), [[None]]), (pa.list_(pa.string()), [["x"]]), pl.List(pl.String()),
    ),
    "a struct that gained a field": (
        (pa.struct([("a", pa.int32())]), [{"a": 1}]),
        (pa.struct([("a", pa.int64()), ("b", pa.string())]), [{"a": 2, "b": "x"}]),
        pl.Struct({"a": pl.Int64(), "b": pl.String()}),
    ),
    "categories and text": (
        (pa.dictionary(pa.int32(), pa.string()), ["x"]), (pa.string(), ["y"]), pl.String(),
    ),
    "maps": (
        (pa.map_(pa.string(), pa.int32()), [[("k", 1)]]),
        (pa.map_(pa.string(), pa.int64()), [[("k", 2)]]),
        pl.Map(pl.String(), pl.Int64()),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WIDENED)
@pytest.mark.parametrize("swap", [False, True])
def test_a_union_widens(name: str, swap: bool) -> None:
    first, second, dtype = WIDENED[name]
    order = [second, first] if swap else [first, second]
    found, _ = read(*(one(kind, values) for kind, values in order), schema="union")
    if not isinstance(dtype, pl.Struct):  # Whose fields are in the order of the first.
        assert found.schema == {"a": dtype}
    for got, (kind, values) in zip(found["a"].to_list(), order, strict=True):
        if isinstance(dtype, pl.Struct):
            assert {k: v for k, v in got.items() if v is not None} == values[0]
        elif isinstance(dtype, pl.Map):
            assert got == dict(values[0])
        elif kind == pa.float32():
            assert got == 0.5
        else:
            assert got == values[0]


@pytest.mark.parametrize(
    ("one_type", "other"),
    [
        (pa.int64(), pa.float64()),  # which holds no integer above 2^53
        (pa.int64(), pa.string()),
        (pa.binary(), pa.string()),
        (pa.date32(), pa.timestamp("us")),
        (pa.timestamp("us"), pa.timestamp("us", "UTC")),
        (pa.timestamp("us", "Europe/Paris"), pa.timestamp("us", "UTC")),
        (pa.decimal128(38, 0), pa.decimal128(38, 2)),
        (pa.list_(pa.int8()), pa.int8()),
    ],
)
@pytest.mark.parametrize("rule", ["identical", "union", "first"])
def test_what_would_lose_values_is_refused(
    one_type: pa.DataType, other: pa.DataType, rule: str
) -> None:
    with pytest.raises(SchemaMismatchError, match=r"a: .* in 1 \(s3://b/t/0\.parquet\)"):
        read(one(one_type, [None]), one(other, [None]), schema=rule)


def test_first_casts_what_fits_and_names_what_does_not() -> None:
    first, fits, does_not = (one(k, [v]) for k, v in
                             ((pa.int32(), 1), (pa.int64(), 2), (pa.int64(), 2**40)))  # fmt: skip
    found, _ = read(first, fits, schema="first")
    assert found.schema == {"a": pl.Int32()}
    assert found["a"].to_list() == [1, 2]
    with pytest.raises(UnreadableObjectError, match=r"s3://b/t/1\.parquet cannot be read: .*i32"):
        read(first, does_not, schema="first")


def test_a_filter_on_a_widened_column_sees_the_value_itself() -> None:
    objects = one(pa.int32(), [1, 5]), one(pa.int64(), [2, 2**40])
    _, result = read(*objects, schema="union", filter=((Term("a", ">", 2**35),),))
    assert [f.uri for c in result.plan.chunks() for f in c.fragments] == ["s3://b/t/1.parquet"]


# -- declared ------------------------------------------------------------------------------------


def test_a_declared_type_settles_it() -> None:
    objects = one(pa.int64(), [7]), one(pa.string(), ["8"])
    found, _ = read(*objects, types=(("a", "int64"),))
    assert found.schema == {"a": pl.Int64()}
    assert found["a"].to_list() == [7, 8]
    found, _ = read(*objects, types=(("a", "string"),))
    assert found["a"].to_list() == ["7", "8"]
    _, result = read(*objects, types=(("a", "int64"),), filter=((Term("a", ">", 7),),))
    assert result.plan.rows == 2, "statistics of text say nothing about integers"


def test_a_value_that_is_not_of_the_declared_type_is_an_error() -> None:
    with pytest.raises(UnreadableObjectError, match=r"s3://b/t/0\.parquet .*x"):
        read(one(pa.string(), ["x"]), types=(("a", "int64"),))


def test_declarations_that_would_lose_values_or_name_nothing_are_refused() -> None:
    with pytest.raises(SchemaMismatchError, match="declared as Float32"):
        read(one(pa.float64(), [0.1]), types=(("a", "float32"),))
    with pytest.raises(ColumnError, match="no column 'b'"):
        read(one(pa.float64(), [0.1]), types=(("b", "float32"),))


@pytest.mark.parametrize(
    ("text", "dtype"),
    [
        ("int64", pl.Int64()), ("UInt8", pl.UInt8()), ("datetime[us]", pl.Datetime("us")),
        ("datetime[ms, UTC]", pl.Datetime("ms", "UTC")), ("decimal[38, 2]", pl.Decimal(38, 2)),
        ("list[list[date]]", pl.List(pl.List(pl.Date()))), ("duration[ns]", pl.Duration("ns")),
    ],
)  # fmt: skip
def test_types_by_name(text: str, dtype: pl.DataType) -> None:
    assert parse_type(text) == dtype


@pytest.mark.parametrize(
    "text",
    ["", "int", "datetime", "datetime[s]", "datetime[us, Mars]", "decimal[39, 2]", "decimal[3]",
     "list[]", "duration[us, UTC]", "decimal[2, 3]"],
)  # fmt: skip
def test_names_of_no_type(text: str) -> None:
    with pytest.raises(ValueError, match="is not a type"):
        parse_type(text)


# -- rules ---------------------------------------------------------------------------------------

LEAVES: st.SearchStrategy[Any] = st.sampled_from(
    [pl.Null(), pl.Int8(), pl.UInt16(), pl.Int64(), pl.UInt64(), pl.Float32(), pl.Float64(),
     pl.String(), pl.Enum(["x"]), pl.Binary(), pl.Date(), pl.Datetime("ms"), pl.Datetime("ns"),
     pl.Datetime("us", "UTC"), pl.Decimal(9, 2), pl.Decimal(38, 0), pl.Duration("us"), pl.Time()]
)  # fmt: skip
DTYPES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        inner.map(pl.List),
        st.builds(pl.Array, inner, st.integers(1, 2)),
        st.dictionaries(st.sampled_from("abc"), inner, min_size=1).map(pl.Struct),
    ),
    max_leaves=4,
)


@settings(max_examples=fewer(300), deadline=None)
@given(DTYPES, DTYPES)
def test_the_wider_type_is_one_that_both_become(one_type: Any, other: Any) -> None:
    wider = wider_type(one_type, other)
    assert (wider is None) == (wider_type(other, one_type) is None)
    assert wider_type(one_type, one_type) == one_type
    if wider is not None:
        assert can_become(one_type, wider)
        assert can_become(other, wider)
        assert wider_type(wider, one_type) == wider


@settings(max_examples=fewer(100), deadline=None)
@given(st.dictionaries(st.text(min_size=1, max_size=5), DTYPES, min_size=1, max_size=4))
def test_a_stored_schema_is_the_schema(types: dict[str, Any]) -> None:
    schema = pl.Schema(types)
    packed = pack_schema(schema, ["a note"])
    assert unpack_schema(packed) == (schema, ("a note",))
    assert pack_schema(schema, ["a note"]) == packed


def test_enums_of_other_categories_are_text_in_a_union() -> None:
    one_enum, other = (
        by_polars(pl.DataFrame({"a": pl.Series(values, dtype=pl.Enum(values))}))
        for values in (["x"], ["y", "z"])
    )
    found, _ = read(one_enum, other, schema="union")
    assert found["a"].to_list() == ["x", "y", "z"]
