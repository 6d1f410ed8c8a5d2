"""Filters on every type, by every writer, and with statistics that lie: no row is lost."""

from __future__ import annotations

import io
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, Final
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partitioning import PlanRequest, Term, filter_expr, plan_dataset
from pipeline.runs.worker.chunk_source import ChunkSource
from pipeline.storage import StorageReader
from tests.fuzz.thrift_tree import (
    BINARY,
    I32,
    I64,
    STRUCT,
    Node,
    at,
    children,
    footer_of,
    replaced,
    with_footer,
    written_by,
)
from tests.support.examples import fewer
from tests.support.memory_storage import MemoryBackend

URI: Final = "s3://b/t/a.parquet"
NAIVE: Final = datetime(2024, 1, 1)
Values = st.SearchStrategy[Any]


def exact(unscaled: int, scale: int) -> Decimal:
    """Return a decimal without arithmetic, which rounds to 28 digits."""
    return Decimal(f"{unscaled}E-{scale}")


def decimals(precision: int, scale: int) -> Values:
    most = 10**precision - 1
    usual = st.integers(-300, 300) | st.sampled_from([most, most - 1, -most, most // 3 * 2])
    return usual.map(lambda n: exact(n, scale))


def hours(zone: Any = None) -> Values:
    def moment(count: int) -> datetime:
        found = NAIVE + timedelta(hours=count)
        return found if zone is None else found.replace(tzinfo=UTC).astimezone(zone)

    return st.integers(-30, 30).map(moment)


KOLKATA: Final = ZoneInfo("Asia/Kolkata")
DAYS: Final = st.integers(-3, 3).map(lambda n: date(2024, 1, 1) + timedelta(n))
TEXT: Final = st.sampled_from(["", "a", "b", "ab", "é", "z" * 16, "z" * 70, "z" * 70 + "a"])
LABELS: Final = ["a", "z", "é"]
HALVES: Final = st.sampled_from([-1.5, -0.0, 0.0, 0.5, 0.0999755859375, 65504.0, float("nan")])


def _scaled(value: Decimal) -> int:
    digits = value.as_tuple()
    found = int("".join(map(str, digits.digits)))
    return -found if digits.sign else found


def by_pyarrow(kind: pa.DataType, **options: Any) -> Callable[[list[Any]], bytes]:
    def write(values: list[Any]) -> bytes:
        if pa.types.is_float16(kind):
            values = [None if v is None else np.float16(v) for v in values]
        sink = io.BytesIO()
        table = pa.table({"id": range(len(values)), "x": pa.array(values, kind)})
        pq.write_table(table, sink, row_group_size=3, **options)
        return sink.getvalue()

    return write


def by_polars(kind: Any) -> Callable[[list[Any]], bytes]:
    def write(values: list[Any]) -> bytes:
        sink = io.BytesIO()
        frame = pl.DataFrame({"id": range(len(values)), "x": pl.Series(values, dtype=kind)})
        frame.write_parquet(sink, row_group_size=3, statistics="full")
        return sink.getvalue()

    return write


def decimals_as_bytes(values: list[Any]) -> bytes:
    """Write decimal(38, 2) as BYTE_ARRAY, as Impala and others do, with right statistics."""
    numbers = [None if value is None else _scaled(value) for value in values]
    data = by_pyarrow(pa.binary(), store_schema=False)(
        [None if n is None else _big_endian(n) for n in numbers]
    )
    footer = footer_of(data)
    # ConvertedType DECIMAL, its scale and precision.
    decimal = ((6, Node(I32, 5)), (7, Node(I32, 2)), (8, Node(I32, 38)))
    footer = replaced(footer, (2, 2), Node(STRUCT, (*children(at(footer, (2, 2))), *decimal)))
    for group, _ in children(at(footer, (4,))):
        known = [n for n in numbers[group * 3 : group * 3 + 3] if n is not None]
        if known:
            footer = with_bounds(footer, group, _big_endian(min(known)), _big_endian(max(known)))
    return with_footer(data, footer)


def _big_endian(number: int) -> bytes:
    return number.to_bytes(number.bit_length() // 8 + 1, "big", signed=True)


def statistics_of(group: int) -> tuple[int, ...]:
    """The path to the statistics of column `x`."""
    return (4, group, 1, 1, 3, 12)


def with_bounds(footer: Node, group: int, low: bytes, high: bytes) -> Node:
    path = statistics_of(group)
    found = {n: process for n, process in children(at(footer, path)) if n not in (1, 2, 5, 6)}
    found |= {5: Node(BINARY, high), 6: Node(BINARY, low)}
    return replaced(footer, path, Node(STRUCT, tuple(sorted(found.items()))))


WRITERS: Final[dict[str, tuple[Callable[[list[Any]], bytes], Values]]] = {
    "decimal(38, 2)": (by_pyarrow(pa.decimal128(38, 2)), decimals(38, 2)),
    "decimal(38, 38)": (by_pyarrow(pa.decimal128(38, 38)), decimals(38, 38)),
    "decimal(30, 0)": (by_pyarrow(pa.decimal128(30, 0)), decimals(30, 0)),
    "decimal as INT32": (
        by_pyarrow(pa.decimal128(9, 2), store_decimal_as_integer=True), decimals(9, 2),
    ),
    "decimal as INT64": (
        by_pyarrow(pa.decimal128(18, 4), store_decimal_as_integer=True), decimals(18, 4),
    ),
    "decimal as BYTE_ARRAY": (decimals_as_bytes, decimals(38, 2)),
    "decimal by Polars": (by_polars(pl.Decimal(38, 2)), decimals(38, 2)),
    "small decimal by Polars": (by_polars(pl.Decimal(7, 3)), decimals(7, 3)),
    "Int128": (
        by_polars(pl.Int128),
        st.integers(-3, 3) | st.sampled_from([2**127 - 1, -(2**127), 2**64, -(2**64), 10**38]),
    ),
    "UInt128": (
        by_polars(pl.UInt128), st.integers(0, 3) | st.sampled_from([2**128 - 1, 2**127, 10**38])
    ),
    "INT96": (
        by_pyarrow(
            pa.timestamp("us"), use_deprecated_int96_timestamps=True, store_schema=False
        ),
        hours(),
    ),
    "zone": (by_pyarrow(pa.timestamp("ms", "Asia/Kolkata")), hours(KOLKATA)),
    "offset": (by_pyarrow(pa.timestamp("us", "+05:30")), hours(KOLKATA)),
    "zone by Polars": (by_polars(pl.Datetime("ns", "Asia/Kolkata")), hours(KOLKATA)),
    "time by Polars": (by_polars(pl.Datetime("ms")), hours()),
    "date": (by_pyarrow(pa.date32()), DAYS),
    "date64": (by_pyarrow(pa.date64()), DAYS),
    "date by Polars": (by_polars(pl.Date), DAYS),
    "float16": (by_pyarrow(pa.float16()), HALVES),
    "float16 by Polars": (by_polars(pl.Float16), HALVES),
    "float32 by Polars": (by_polars(pl.Float32), HALVES),
    "enum": (by_polars(pl.Enum(LABELS)), st.sampled_from(LABELS)),
    "category by Polars": (by_polars(pl.Categorical), TEXT),
    "text": (by_pyarrow(pa.string()), TEXT),
    "text by Polars": (by_polars(pl.String), TEXT),
    "bytes by Polars": (by_polars(pl.Binary), TEXT.map(str.encode)),
    "flag by Polars": (by_polars(pl.Boolean), st.booleans()),
    "u64 by Polars": (by_polars(pl.UInt64), st.sampled_from([0, 1, 2**63, 2**64 - 1])),
}  # fmt: skip
ODD: Final[dict[str, list[Any]]] = {
    "decimal(38, 2)": [exact(10**36 - 1, 0), exact(5, 3), 10**40, -(10**40), 0.5],
    "decimal(38, 38)": [1, -1, exact(5, 39), float("inf")],
    "decimal as BYTE_ARRAY": [exact(6666666666666666666666666666666666665, 1), exact(1, 3)],
    "Int128": [2**127, -(2**200), 0.5, exact(1, 1)],
    "UInt128": [-1, 2**128, 0.5],
    "zone": [NAIVE.replace(microsecond=1, tzinfo=UTC)],
    "float16": [70_000, 0.1, 1],
    "date": [NAIVE, NAIVE + timedelta(hours=1)],
    "date64": [NAIVE, NAIVE + timedelta(hours=1)],
    "enum": ["b", ""],
}
"""Values that no column holds: between, beyond or next to those that it can."""


# -- Statistics that lie -----------------------------------------------------------------------


def as_written(data: bytes) -> bytes:
    return data


def with_one_bound(created_by: str) -> Callable[[bytes], bytes]:
    """Return what replaces the least value by the greatest: rows below it are told away."""

    def change(data: bytes) -> bytes:
        footer = footer_of(data)
        for group, _ in children(at(footer, (4,))):
            try:
                high = at(footer, (*statistics_of(group), 5)).value
            except KeyError:
                continue  # All is null.
            footer = with_bounds(footer, group, high, high)
        return written_by(with_footer(data, footer), created_by)

    return change


def without_nulls(data: bytes) -> bytes:
    footer = footer_of(data)
    for group, _ in children(at(footer, (4,))):
        footer = replaced(footer, (*statistics_of(group), 3), Node(I64, 0))
    return written_by(with_footer(data, footer), "parquet-cpp-arrow version 4.0.0")


TEMPORAL: Final = ("INT96", "zone", "offset", "date")
BYTES: Final = ("decimal(38, 2)", "decimal(30, 0)", "decimal as BYTE_ARRAY", "text")
LIES: Final[dict[str, tuple[Callable[[bytes], bytes], tuple[str, ...]]]] = {
    "none": (as_written, tuple(WRITERS)),
    "parquet-mr 1.8": (with_one_bound("parquet-mr version 1.8.1 (build x)"), BYTES),
    "nobody": (with_one_bound(""), BYTES),
    "parquet-cpp-arrow 4": (without_nulls, ("text", "decimal as INT32", "zone", "float16")),
    "Parquet.Net": (with_one_bound("Parquet.Net version 4.2.0 (build x)"), TEMPORAL),
}
"""What is done to a file, and the types to which it happens."""


# -- The property ------------------------------------------------------------------------------


def number(value: Any, name: str) -> Any:
    """Turn a value of a filter or a row into what compares exactly, independently."""
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, datetime):
        epoch = datetime(1970, 1, 1, tzinfo=value.tzinfo and UTC)
        return (value - epoch) // timedelta(microseconds=1)
    if isinstance(value, date):
        return (value - date(1970, 1, 1)).days * 86_400_000_000
    if name.startswith("float"):
        with np.errstate(over="ignore"):
            return float(np.float16(value) if "16" in name else np.float32(value))
    return value


def holds(op: str, row: Any, value: Any, name: str) -> bool:
    if op in ("is null", "is not null"):
        return (row is None) == (op == "is null")
    if row is None:
        return False
    mine = number(row, name)
    if op in ("in", "not in"):
        return any(mine == number(item, name) for item in value) == (op == "in")
    other = number(value, name)
    return bool(
        {
            "==": mine == other, "!=": mine != other, "<": mine < other,
            "<=": mine <= other, ">": mine > other, ">=": mine >= other,
        }[op]
    )  # fmt: skip


@st.composite
def terms(draw: st.DrawFn, name: str) -> Term:
    usual = WRITERS[name][1].filter(lambda v: v == v)
    value = usual | st.sampled_from(ODD[name]) if name in ODD else usual
    op = draw(st.sampled_from(["==", "!=", "<", "<=", ">", ">=", "in", "not in", "null"]))
    if op == "null":
        return Term("x", draw(st.sampled_from(["is null", "is not null"])))
    return Term("x", op, draw(st.lists(value, max_size=3) if op.endswith("in") else value))


def rows_left(data: bytes, term: Term) -> set[int]:
    """Return the rows that planning and reading with a filter leave."""
    backend = MemoryBackend()
    backend.put(URI, data)
    storage = backend.storage()
    filters = ((term,),)
    plan = plan_dataset(PlanRequest("s3://b/t/", filter=filters), StorageReader(storage)).plan
    found: set[int] = set()
    for chunk in plan.chunks():
        source = ChunkSource(storage, chunk, plan.dtypes, filter_expr(filters, plan.schema))
        found |= set(source.scan().select("id").collect()["id"].to_list())
        source.close()
    return found


@pytest.mark.parametrize("lie", LIES)
@settings(max_examples=fewer(80), deadline=None)
@given(data=st.data())
def test_no_row_is_lost_and_none_too_many(lie: str, data: st.DataObject) -> None:
    change, names = LIES[lie]
    name = data.draw(st.sampled_from(names))
    write, usual = WRITERS[name]
    values = data.draw(st.lists(st.none() | usual, min_size=1, max_size=9))
    term = data.draw(terms(name))
    expected = {i for i, v in enumerate(values) if holds(term.op, v, term.value, name)}
    assert rows_left(change(write(values)), term) == expected


@pytest.mark.parametrize("name", WRITERS)
def test_each_type_is_filtered(name: str) -> None:
    write, _ = WRITERS[name]
    first = {
        "decimal": exact(1, 2), "decimal(30": 1,
        "I": 1, "U": 1, "zone": NAIVE.replace(tzinfo=KOLKATA),
        "offset": NAIVE.replace(tzinfo=KOLKATA), "INT96": NAIVE, "time": NAIVE,
        "date": date(2024, 1, 1), "float": 0.5, "enum": "a", "category": "a", "text": "a",
        "bytes": b"a", "flag": True, "u64": 1, "small": exact(1, 2),
    }  # fmt: skip
    value = next(first[key] for key in sorted(first, key=len, reverse=True) if name.startswith(key))
    assert rows_left(write([value, None]), Term("x", "==", value)) == {0}
    assert rows_left(write([None, value]), Term("x", "is null")) == {0}


def test_lies_lose_rows_where_the_writer_is_believed() -> None:
    """The lies are ones: told by a writer that is believed, they do lose a row."""
    write, _ = WRITERS["text"]
    lying = with_one_bound("parquet-mr version 1.12.3 (build x)")
    assert rows_left(lying(write(["a", "b"])), Term("x", "==", "a")) == set()


def test_38_digits_are_compared_exactly() -> None:
    write, _ = WRITERS["decimal(38, 2)"]
    value = exact(1234567890123456789012345678901233, 2)
    data = write([value, exact(1234567890123456789012345678901234, 2), None])
    assert rows_left(data, Term("x", "==", value)) == {0}
    assert rows_left(data, Term("x", ">", value)) == {1}
    assert rows_left(data, Term("x", ">=", exact(12345678901234567890123456789012, 0))) == {0, 1}
