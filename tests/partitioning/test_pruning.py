"""Pruning never loses a row: against reading everything and filtering it by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partitioning import (
    FilterError,
    Plan,
    PlanRequest,
    SchemaMismatchError,
    Term,
    filter_expr,
    plan_dataset,
)
from partitioning.filters import Bound, Filter
from partitioning.pruning import Stats, may_match
from tests.support.examples import fewer
from tests.support.stores import DictReader, ids, parquet, read

NAIVE = datetime(2024, 1, 1)
TIMES = st.integers(-3, 3).map(lambda h: NAIVE + timedelta(hours=h))
ZONED = TIMES.map(lambda t: t.replace(tzinfo=UTC))
TEXT = st.sampled_from(["", "a", "b", "ab", "é", "z" * 15, "z" * 16, "z" * 17, "z" * 70])
DECIMALS = st.integers(-300, 300).map(lambda n: Decimal(n).scaleb(-2))
TYPES: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "i8": (pa.int8(), st.integers(-128, 127)),
    "i64": (pa.int64(), st.integers(-3, 3) | st.sampled_from([2**63 - 1, -(2**63)])),
    "u8": (pa.uint8(), st.integers(0, 255)),
    "u32": (pa.uint32(), st.sampled_from([0, 1, 2**31, 2**32 - 1])),
    "u64": (pa.uint64(), st.sampled_from([0, 1, 2**63, 2**64 - 1])),
    "f32": (pa.float32(), st.sampled_from([-1.5, -0.0, 0.0, 0.5, math.nan, math.inf])),
    "f64": (pa.float64(), st.sampled_from([-1.5, -0.0, 0.0, 0.5, math.nan, -math.inf])),
    "text": (pa.string(), TEXT),
    "category": (pa.dictionary(pa.int32(), pa.string()), TEXT),
    "bytes": (pa.binary(), st.sampled_from([b"", b"\x00", b"\x7f", b"\xff", b"\xff" * 20])),
    "flag": (pa.bool_(), st.booleans()),
    "day": (pa.date32(), st.integers(-2, 2).map(lambda d: date(2024, 1, 1) + timedelta(d))),
    "ms": (pa.timestamp("ms"), TIMES),
    "us": (pa.timestamp("us"), TIMES),
    "ns": (pa.timestamp("ns"), TIMES),
    "zoned": (pa.timestamp("us", "Europe/Paris"), ZONED),
    "money": (pa.decimal128(9, 2), DECIMALS),
    "wide": (pa.decimal128(38, 2), DECIMALS),
}
# Values that no column holds: between, beyond or next to those that it can.
ODD: dict[str, list[Any]] = {
    "i8": [1.5, -128.5, 500, -500, math.inf, Decimal("0.1")],
    "i64": [2**70, -(2**70), 0.5],
    "u8": [-1, 256, 0.5],
    "u32": [-1, 2**32],
    "u64": [-1, 2**64, 0.5],
    "f32": [1, 2**200, math.inf],
    "f64": [1, Decimal("0.25"), -math.inf],
    "text": ["~"],
    "bytes": ["text", b"\xff" * 30],
    "day": [NAIVE + timedelta(hours=5), "2024-01-01", "2024-01-01T05:00:00"],
    "ms": [NAIVE + timedelta(microseconds=1), date(2024, 1, 1), "2024-01-01T00:00:00.000000001"],
    "us": ["2024-01-01T00:00:00.000000001", "2024-01-01 01:00:00"],
    "ns": ["2024-01-01T00:00:00.000000001", date(2024, 1, 1)],
    "zoned": ["2024-01-01T01:00:00+01:00", "2023-12-31T23:00:00.5Z"],
    "money": [Decimal("0.005"), 10**9, 1, 0.5],
    "wide": [Decimal("0.005"), -(10**40)],
}


@st.composite
def datasets(draw: st.DrawFn) -> tuple[str, dict[str, bytes], list[dict[str, Any]]]:
    name = draw(st.sampled_from(sorted(TYPES)))
    kind, values = TYPES[name]
    objects: dict[str, bytes] = {}
    rows: list[dict[str, Any]] = []
    for number in range(draw(st.integers(1, 3))):
        part = draw(st.sampled_from(["1", "2", "__HIVE_DEFAULT_PARTITION__"]))
        column = draw(st.lists(st.none() | values, min_size=1, max_size=9))
        own = [
            {"id": len(rows) + i, "x": v, "p": None if part.startswith("_") else int(part)}
            for i, v in enumerate(column)
        ]
        table = pa.table(
            {
                "id": pa.array([r["id"] for r in own], pa.int64()),
                "x": pa.array(column, kind.value_type).dictionary_encode()
                if pa.types.is_dictionary(kind)
                else pa.array(column, kind),
            }
        )
        stats: bool | list[str] = draw(st.sampled_from([True, True, False]))
        objects[f"s3://b/t/p={part}/{number}.parquet"] = parquet(
            table, draw(st.integers(1, 4)), write_statistics=stats
        )
        rows += own
    return name, objects, rows


@st.composite
def cases(draw: st.DrawFn) -> tuple[dict[str, bytes], list[dict[str, Any]], Filter]:
    name, objects, rows = draw(datasets())
    usual = TYPES[name][1].filter(lambda v: not (isinstance(v, float) and math.isnan(v)))
    value = usual | st.sampled_from(ODD[name]) if name in ODD else usual

    def term(column: str, values: st.SearchStrategy[Any]) -> st.SearchStrategy[Term]:
        compare = st.sampled_from(["==", "!=", "<", "<=", ">", ">="])
        return st.one_of(
            st.builds(Term, st.just(column), compare, values),
            st.builds(
                Term,
                st.just(column),
                st.sampled_from(["in", "not in"]),
                st.lists(values, max_size=3),
            ),
            st.builds(Term, st.just(column), st.sampled_from(["is null", "is not null"])),
        )

    terms = term("x", value) | term("p", st.integers(0, 3))
    if not any(row["p"] is not None for row in rows):  # all null: a text column
        terms = term("x", value)
    groups = draw(st.lists(st.lists(terms, min_size=1, max_size=2), min_size=1, max_size=2))
    return objects, rows, tuple(tuple(g) for g in groups)


def comparable(value: Any, kind: pa.DataType) -> Any:
    """Turn a value of a filter or a row into exact numbers or bytes, independently."""
    if pa.types.is_timestamp(kind) or pa.types.is_date32(kind):
        extra = 0
        if isinstance(value, str):
            if value.endswith("000000001"):
                value, extra = value[:-3], 1
            value = datetime.fromisoformat(value)
        if not isinstance(value, datetime):
            value = datetime(value.year, value.month, value.day)
        epoch = datetime(1970, 1, 1, tzinfo=value.tzinfo and UTC)
        return (value - epoch) // timedelta(microseconds=1) * 1000 + extra
    if isinstance(value, str):
        return value.encode()
    if pa.types.is_floating(kind):
        with np.errstate(over="ignore"):
            return float(np.float32(value)) if kind.bit_width == 32 else float(value)
    return value


def expected(filters: Filter, row: Mapping[str, Any], kinds: Mapping[str, pa.DataType]) -> bool:
    return any(all(holds(term, row, kinds) for term in group) for group in filters)


def holds(term: Term, row: Mapping[str, Any], kinds: Mapping[str, pa.DataType]) -> bool:
    kind = kinds[term.column]
    if term.op in ("is null", "is not null"):
        return (row[term.column] is None) == (term.op == "is null")
    if row[term.column] is None:
        return False
    x = comparable(row[term.column], kind)
    if term.op in ("in", "not in"):
        return any(x == comparable(v, kind) for v in term.value) == (term.op == "in")
    v = comparable(term.value, kind)
    compare = {
        "==": x == v, "!=": x != v, "<": x < v, "<=": x <= v, ">": x > v, ">=": x >= v,
    }  # fmt: skip
    return bool(compare[term.op])


def rows_left(plan: Plan, objects: dict[str, bytes], filters: Filter) -> set[int]:
    found: set[int] = set()
    for chunk in plan.chunks():
        for fragment, table in zip(chunk.fragments, read(chunk, objects), strict=True):
            frame = pl.DataFrame(pl.from_arrow(table))
            part = fragment.uri.split("p=")[1].split("/")[0]
            known = None if part.startswith("_") else part
            kind = pl.Int64 if plan.schema.field("p").type == pa.int64() else pl.String
            frame = frame.with_columns(pl.lit(known).cast(kind).alias("p"))
            found |= set(frame.filter(filter_expr(filters, plan.schema))["id"].to_list())
    return found


@settings(max_examples=fewer(250), deadline=None)
@given(cases())
def test_what_is_left_is_what_filtering_everything_leaves(
    case: tuple[dict[str, bytes], list[dict[str, Any]], Filter],
) -> None:
    objects, rows, filters = case
    plan = plan_dataset(PlanRequest("s3://b/t/", filter=filters), DictReader(objects)).plan
    kinds = {f.name: f.type for f in plan.schema}
    kinds["x"] = kinds["x"].value_type if pa.types.is_dictionary(kinds["x"]) else kinds["x"]
    wanted = {row["id"] for row in rows if expected(filters, row, kinds)}
    assert rows_left(plan, objects, filters) == wanted


def groups_kept(table: pa.Table, term: Term, **options: object) -> int:
    objects = {"s3://b/t/a.parquet": parquet(table, 1, **options)}
    plan = plan_dataset(PlanRequest("s3://b/t/", filter=((term,),)), DictReader(objects)).plan
    return plan.rows


@pytest.mark.parametrize(
    ("values", "kind", "term", "kept"),
    [
        ([1, 2, 3], pa.int64(), Term("x", ">", 2), 1),
        ([1, 2, 3], pa.int64(), Term("x", "!=", 2), 2),
        ([1, None, 3], pa.int64(), Term("x", "is null"), 1),
        ([1, None, 3], pa.int64(), Term("x", "is not null"), 2),
        ([1, 2**63, 2**64 - 1], pa.uint64(), Term("x", ">=", 2**63), 2),
        ([Decimal("-1.5"), Decimal("2.5")], pa.decimal128(30, 1), Term("x", ">", 0), 1),
        ([NAIVE, NAIVE + timedelta(1)], pa.timestamp("s"), Term("x", ">", NAIVE), 1),
        (["a", "b", "c"], pa.string(), Term("x", "in", ["b", "q"]), 1),
        # 16 bytes may be a cut maximum of a longer text.
        (["a" * 16, "b" * 3], pa.string(), Term("x", "==", "a" * 20), 1),
        ([1.0, math.nan], pa.float64(), Term("x", "!=", 1.0), 2),
    ],
)
def test_row_groups_that_cannot_match_are_not_planned(
    values: list[Any], kind: pa.DataType, term: Term, kept: int
) -> None:
    assert groups_kept(pa.table({"x": pa.array(values, kind)}), term) == kept


@pytest.mark.parametrize("op", ["==", "<", ">", "in", "is null"])
def test_without_statistics_nothing_is_pruned(op: str) -> None:
    value: Any = None if op == "is null" else [9] if op == "in" else 9
    table = pa.table({"x": [1, 2, 3]})
    assert groups_kept(table, Term("x", op, value), write_statistics=False) == 3


def test_statistics_that_contradict_themselves_prune_nothing() -> None:
    assert may_match(Bound("x", "==", (5,)), Stats(9, 1, 0, 10))


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (Term("prise", ">", 1), "did you mean 'price'"),
        (Term("price", ">", "cheap"), "cannot be compared with a column of type int64"),
        (Term("price", ">", True), "cannot be compared"),
        (Term("zoned", ">", NAIVE), "cannot be compared"),
        (Term("naive", ">", NAIVE.replace(tzinfo=UTC)), "cannot be compared"),
        (Term("list", "==", 1), "cannot be filtered"),
        (Term("naive", "<", "yesterday"), "cannot be compared"),
    ],
)
def test_a_term_that_does_not_fit_is_refused_naming_it(term: Term, message: str) -> None:
    table = pa.table(
        {
            "price": [1],
            "zoned": pa.array([NAIVE], pa.timestamp("us", "UTC")),
            "naive": [NAIVE],
            "list": [[1]],
        }
    )
    reader = DictReader({"s3://b/t/a.parquet": parquet(table)})
    with pytest.raises(FilterError, match=message):
        plan_dataset(PlanRequest("s3://b/t/", filter=((term,),)), reader)


@pytest.mark.parametrize(
    ("op", "value", "message"),
    [
        ("=", 1, "unknown operator '='"),
        ("in", "abc", "needs a list"),
        ("==", None, "use 'is null'"),
        ("is null", 3, "takes no value"),
        ("<", math.nan, "nothing equals NaN"),
    ],
)
def test_a_term_that_makes_no_sense_is_refused(op: str, value: Any, message: str) -> None:
    with pytest.raises(FilterError, match=message):
        Term("x", op, value)


WIDENED = {
    "float16": [0.1, 0.7, 65504.0, math.inf, -math.inf, -0.1],
    "float32": [0.1, 0.7, 3e38, math.inf, -math.inf, -0.1],
}


@pytest.mark.parametrize("rule", ["union", "first"])
@pytest.mark.parametrize("op", ["<", "<=", ">", ">=", "==", "!="])
@pytest.mark.parametrize("narrow", WIDENED)
def test_narrow_floats_are_compared_in_the_type_of_the_dataset(
    narrow: str, op: str, rule: str
) -> None:
    """Rounded to the file's type a value may equal those of rows that are above or below it."""
    small = [np.dtype(narrow).type(value) for value in WIDENED[narrow]]
    objects = {
        "s3://b/t/a.parquet": parquet(ids(0, 1, x=pa.array([0.0], pa.float64()))),
        "s3://b/t/b.parquet": parquet(
            ids(1, 1 + len(small), x=pa.array(small, getattr(pa, narrow)())), 1
        ),
    }
    rows = [0.0, *map(float, small)]
    for value in (0.1, 0.7, -0.1, 1e300, -1e300, 0.0, math.inf):
        term = Term("x", op, value)
        request = PlanRequest("s3://b/t/", schema=rule, filter=((term,),))  # type: ignore[arg-type]
        planned = plan_dataset(request, DictReader(objects)).plan
        left = {
            number
            for chunk in planned.chunks()
            for table in read(chunk, objects)
            for number in table["id"].to_pylist()
        }
        kinds = {"x": pa.float64()}
        matching = {i for i, x in enumerate(rows) if holds(term, {"x": x}, kinds)}
        assert matching <= left, value


@pytest.mark.parametrize("rule", ["identical", "union", "first"])
@pytest.mark.parametrize("count", [1, 20])
def test_files_of_another_type_are_named_although_the_filter_does_not_fit_them(
    count: int, rule: str
) -> None:
    objects = {f"s3://b/t/{i:02}.parquet": parquet(ids(i, i + 1, x=[i])) for i in range(count)}
    objects["s3://b/t/drifted.parquet"] = parquet(ids(99, 100, x=["99"]))
    request = PlanRequest("s3://b/t/", schema=rule, filter=((Term("x", ">", 0),),))  # type: ignore[arg-type]
    with pytest.raises(SchemaMismatchError) as caught:
        plan_dataset(request, DictReader(objects))
    assert "s3://b/t/00.parquet" in str(caught.value)
    assert "s3://b/t/drifted.parquet" in str(caught.value)
