"""One schema of many: the rules, and errors that name columns and objects."""

from __future__ import annotations

import pickle
from dataclasses import replace
from datetime import date

import polars as pl
import pyarrow as pa
import pytest

from partitioning import (
    Filter,
    FilterError,
    Plan,
    PlanRequest,
    SchemaMismatchError,
    Term,
    plan_dataset,
)
from partitioning.dtypes import file_types, polars_schema_of
from tests.support.stores import DictReader, parquet

INT = pa.table({"a": [1], "b": [1]})
TEXT = pa.table({"a": [1], "b": ["x"]})
MORE = pa.table({"a": [1], "b": [1], "c": [1.5]})
NULL = pa.table({"a": [1], "b": pa.nulls(1)})


def plan(*tables: pa.Table, **options: object) -> Plan:
    reader = DictReader({f"s3://b/t/{i}.parquet": parquet(t) for i, t in enumerate(tables)})
    return plan_dataset(PlanRequest("s3://b/t/", **options), reader).plan  # type: ignore[arg-type]


def test_order_metadata_nullability_and_offsets_do_not_make_schemas_differ() -> None:
    other = pa.table(
        [pa.array([1]), pa.array([1])],
        schema=pa.schema(
            [pa.field("b", pa.int64(), nullable=False), ("a", pa.int64())], {"k": "v"}
        ),
    )
    assert plan(INT, other).schema == INT.schema
    wide = pa.schema([("s", pa.large_string()), ("l", pa.large_list(pa.field("item", pa.int8())))])
    slim = pa.schema([("s", pa.string_view()), ("l", pa.list_(pa.field("x", pa.int8())))])
    assert polars_schema_of(wide) == polars_schema_of(slim)


def test_what_a_schema_says_of_its_file_makes_no_other_schema() -> None:
    """pandas stores the number of rows there: types are asked for once, not once a file."""
    tables = [INT.replace_schema_metadata({"pandas": f'{{"stop": {n}}}'}) for n in range(20)]
    file_types.cache_clear()
    assert plan(*tables).dtypes == {"a": pl.Int64(), "b": pl.Int64()}
    assert file_types.cache_info().misses == 1


@pytest.mark.parametrize(
    ("tables", "rule", "names"),
    [
        ((INT, MORE), "union", ["a", "b", "c"]),
        ((MORE, INT), "union", ["a", "b", "c"]),
        ((INT, MORE), "first", ["a", "b"]),
        ((MORE, INT), "first", ["a", "b", "c"]),
    ],
)
def test_union_and_first(tables: tuple[pa.Table, ...], rule: str, names: list[str]) -> None:
    assert plan(*tables, schema=rule).schema.names == names


def test_a_null_column_takes_the_others_type_in_a_union() -> None:
    assert plan(NULL, TEXT, schema="union").schema.field("b").type == pa.string()


def test_further_columns_of_different_types_do_not_matter_to_first() -> None:
    odd = pa.table({"a": [1], "b": [1], "c": ["x"]})
    assert plan(INT, MORE, odd, schema="first").schema.names == ["a", "b"]


@pytest.mark.parametrize("rule", ["identical", "union", "first"])
def test_a_conflict_of_types_names_the_column_and_two_objects_of_each(rule: str) -> None:
    with pytest.raises(SchemaMismatchError) as caught:
        plan(INT, INT, INT, TEXT, TEXT, schema=rule)
    text = str(caught.value)
    assert "b: Int64 in 3 (s3://b/t/0.parquet, s3://b/t/1.parquet); String in 2 " in text
    assert "(s3://b/t/3.parquet, s3://b/t/4.parquet)" in text
    assert "  a: " not in text
    assert str(pickle.loads(pickle.dumps(caught.value))) == text


def test_an_absent_column_is_named() -> None:
    with pytest.raises(SchemaMismatchError, match=r"c: absent in 2 \(.*\); Float64 in 1 \("):
        plan(INT, INT, MORE)


def test_a_nested_conflict_names_the_path() -> None:
    one = pa.table(
        {
            "s": [{"x": [{"y": 1}], "z": 1}],
            "m": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())),
        }
    )
    two = pa.table(
        {"s": [{"x": [{"y": "a"}]}], "m": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int32()))}
    )
    with pytest.raises(SchemaMismatchError) as caught:
        plan(one, two)
    text = str(caught.value)
    assert "s.x[].y: Int64 in 1 (s3://b/t/0.parquet); String in 1 (s3://b/t/1.parquet)" in text
    assert "s.z: Int64 in 1 (s3://b/t/0.parquet); absent in 1" in text
    assert "m[value]: Int64 in 1" in text


def test_many_differing_columns_are_cut_short() -> None:
    one = pa.table({f"c{i}": [1] for i in range(30)})
    two = pa.table({f"c{i}": ["x"] for i in range(30)})
    with pytest.raises(SchemaMismatchError, match="and 10 more columns"):
        plan(one, two)


def test_a_column_that_an_object_lacks_is_null_to_the_filter() -> None:
    tables = (INT, MORE)
    having = plan(*tables, schema="union", filter=((Term("c", ">", 1),),))
    assert [f.uri for c in having.chunks() for f in c.fragments] == ["s3://b/t/1.parquet"]
    lacking = plan(*tables, schema="union", filter=((Term("c", "is null"),),))
    assert [f.uri for c in lacking.chunks() for f in c.fragments] == ["s3://b/t/0.parquet"]
    with pytest.raises(FilterError, match="has no column 'd' to filter by"):
        plan(*tables, schema="union", filter=((Term("d", "is null"),),))


NEW = {"s3://b/t/ds=2024-01-02/new.parquet": parquet(pa.table({"a": [1]}))}
AFTER = (Term("ds", ">=", date(2024, 1, 1)),)


@pytest.mark.parametrize("filters", [(), (AFTER,), ((Term("ds", "is null"),),)])
def test_a_column_in_paths_and_in_files_is_refused(filters: Filter) -> None:
    """Rows of the file would be null in the column, and a filter would leave them out."""
    old = parquet(pa.table({"a": [2], "ds": [date(2024, 1, 1)]}))
    reader = DictReader({"s3://b/t/old.parquet": old, **NEW})
    request = PlanRequest("s3://b/t/", schema="union", filter=filters)
    with pytest.raises(SchemaMismatchError, match="'ds'") as caught:
        plan_dataset(request, reader)
    assert "s3://b/t/ds=2024-01-02/new.parquet" in str(caught.value)
    assert "s3://b/t/old.parquet" in str(caught.value)


def test_an_object_without_a_column_of_paths_is_pruned_as_null() -> None:
    """Its file is read to be sure, and has no part in the schema."""
    old = {"s3://b/t/old.parquet": parquet(pa.table({"a": ["text"], "other": [2]}))}
    request = PlanRequest("s3://b/t/", schema="union", filter=(AFTER,))
    result = plan_dataset(request, DictReader({**old, **NEW}))
    assert (result.explain.objects_pruned, result.explain.footers_read) == (1, 2)
    assert result.plan.schema.names == ["a", "ds"]
    again = plan_dataset(request, DictReader({**old, **NEW}), previous=result.plan)
    assert again.plan.to_bytes() == result.plan.to_bytes()
    nothing = replace(request, filter=((Term("ds", "==", date(2020, 1, 1)),),))
    assert plan_dataset(nothing, DictReader({**old, **NEW})).plan.rows == 0


def test_an_object_that_its_path_excludes_is_not_read() -> None:
    objects = {
        "s3://b/t/region=eu/old.parquet": b"no Parquet, and nobody looks",
        "s3://b/t/region=us/ds=2024-01-02/new.parquet": parquet(pa.table({"a": [1]})),
    }
    filters = ((Term("region", "==", "us"), *AFTER),)
    request = PlanRequest("s3://b/t/", schema="union", filter=filters)
    result = plan_dataset(request, DictReader(objects))
    assert (result.explain.objects_pruned, result.explain.footers_read) == (1, 1)
