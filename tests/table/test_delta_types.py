"""Columns of Delta tables: which fit, how they change, what statistics say of them."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest.mock import patch

import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from deltalake import DeltaTable
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from partitioning import ObjectInfo
from pipeline.config.job import Job
from pipeline.errors import JobError, SchemaChangedError, StateError
from pipeline.table.delta.actions import delta_columns, schema_of
from pipeline.table.delta.statistics import MAX_COLUMNS, read_statistics
from pipeline.table.delta.types import column_problems, name_problems, partition_values
from pipeline.table.log import TableLog
from pipeline.table.publish import prepare_output, rollback
from tests.support.examples import fewer
from tests.support.small import Small
from tests.support.stores import DictReader

GOOD: dict[str, pl.Series] = {
    "i8": pl.Series([1, None, -128], dtype=pl.Int8),
    "i16": pl.Series([1, None, -3], dtype=pl.Int16),
    "i32": pl.Series([1, None, -3], dtype=pl.Int32),
    "i64": pl.Series([1, None, 2**62], dtype=pl.Int64),
    "f32": pl.Series([1.5, None, float("nan")], dtype=pl.Float32),
    "f64": pl.Series([1.5, None, float("inf")], dtype=pl.Float64),
    "flag": pl.Series([True, None, False]),
    "text": pl.Series(["é" * 40, None, "a"]),
    "raw": pl.Series([b"\xff", None, b"a"]),
    "day": pl.Series([date(2024, 2, 29), None, date(1, 1, 1)]),
    "at": pl.Series([datetime(2024, 2, 29, 1, 2, 3, 456789), None, datetime(1969, 1, 1)]),
    "utc": pl.Series([datetime(2024, 2, 29, 1, 2, 3, 456789, UTC), None, None]),
    "price": pl.Series([Decimal("1.10"), None, Decimal("-2.25")], dtype=pl.Decimal(12, 2)),
    "list": pl.Series([[1, None], None, []], dtype=pl.List(pl.Int64)),
    "struct": pl.Series([{"a": 1, "b": "x"}, None, {"a": None, "b": "y"}]),
}
BAD: dict[str, Any] = {
    "UInt8": pl.UInt8,
    "UInt64": pl.UInt64,
    "Int128": pl.Int128,
    "Time": pl.Time,
    "Duration": pl.Duration("us"),
    "Categorical": pl.Categorical,
    "Enum": pl.Enum(["a"]),
    "Null": pl.Null,
    "Array": pl.Array(pl.Int64, 2),
    "ns": pl.Datetime("ns"),
    "ms": pl.Datetime("ms"),
    "Berlin": pl.Datetime("us", "Europe/Berlin"),
    "List": pl.List(pl.UInt8),
    "Struct": pl.Struct({"a": pl.List(pl.Time)}),
    "empty": pl.Struct({}),
}
CODE = """
import polars as pl


def same(frame):
    return frame


def unsigned(frame):
    return frame.with_columns(bad=pl.col("id").cast(pl.UInt8), worse=pl.lit(None).cast(pl.Time))


def none(frame):
    return frame.filter(pl.col("id") > 5)


def hidden(frame):
    return frame.map_batches(
        lambda whole: whole.with_columns(bad=pl.col("id").cast(pl.UInt8)),
        validate_output_schema=False,
    )
"""


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Small:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return Small(tmp_path, CODE)


def table(small: Small, **more: object) -> dict[str, Any]:
    return {"output": {"table": {"format": "delta"}, **more}}


def read(small: Small) -> pl.DataFrame:
    return pl.scan_delta(f"{small.root}/out").collect()


def columns_of(frame: pl.DataFrame) -> dict[str, str]:
    return {name: str(kind) for name, kind in frame.schema.items()}


@pytest.mark.parametrize("kind", BAD.values(), ids=BAD)
def test_types_that_delta_lacks_are_refused(kind: pl.DataType) -> None:
    [problem] = column_problems({"c": str(pl.Series([], dtype=kind).dtype)})
    assert "column 'c'" in problem
    assert "cast" in problem or "convert" in problem or "drop" in problem


def test_all_other_types_fit() -> None:
    assert column_problems(columns_of(pl.DataFrame(GOOD))) == []


@pytest.mark.parametrize("names", [["a b"], ["a=b"], ["a,b"], ["id", "ID"]])
def test_names_that_delta_refuses(names: list[str]) -> None:
    assert len(list(name_problems(names))) == 1


def test_a_job_is_refused_before_it_is_mapped(small: Small) -> None:
    small.write("a.parquet", pl.DataFrame({"id": [1]}))
    with pytest.raises(JobError, match=r"'bad' is of type UInt8.*int16.*'worse' is of type Time"):
        small.run(small.job("unsigned", **table(small)))
    assert not (small.root / "out.chunkmap" / "runs").exists()
    # Where columns depend on the data, it is refused before anything is visible.
    with pytest.raises(SchemaChangedError, match="'bad' is of type UInt8"):
        small.run(small.job("hidden", **table(small)))
    assert not (small.root / "out").exists()


def test_every_type_is_read_back_equal(small: Small) -> None:
    frame = pl.DataFrame(GOOD).with_row_index("id").cast({"id": pl.Int64})
    small.write("a.parquet", frame)
    small.run(small.job(**table(small)))
    assert_frame_equal(read(small), frame)
    assert_frame_equal(small.rows(), frame)
    arrow = DeltaTable(f"{small.root}/out").to_pyarrow_table()
    assert arrow.num_rows == 3 and arrow.column("price").to_pylist()[0] == Decimal("1.10")


def test_odd_partition_values_survive(small: Small) -> None:
    values = ["a/b", "a=b", "%20", "x y", "é", None, "1", "+", "?#&"]
    frame = pl.DataFrame({"id": range(9), "k": values, "n": [*range(8), None]})
    small.write("a.parquet", frame)
    small.run(small.job(**table(small, partition_by=["k", "n"])))
    both = read(small).sort("id").select("id", "k", "n")
    assert_frame_equal(both, frame)
    assert_frame_equal(small.rows().sort("id").select("id", "k", "n"), frame)
    some = pl.scan_delta(f"{small.root}/out").filter(pl.col("k") == "a/b").collect()
    assert some["id"].to_list() == [0]


def test_folders_of_the_input_are_partitions(small: Small) -> None:
    for day in ("2024-01-01", "2024-01-02"):
        for hour in ("01", "12"):
            small.write(f"day={day}/hour={hour}/a.parquet", pl.DataFrame({"id": [1]}))
    small.run(small.job(**table(small)))
    assert DeltaTable(f"{small.root}/out").metadata().partition_columns == ["day", "hour"]
    assert_frame_equal(
        read(small).sort("day", "hour").select("id", "day", "hour"),
        small.rows().sort("day", "hour").select("id", "day", "hour"),
    )
    # Values of another type would not fit; nothing of them is published.
    small.write("day=never/hour=1/a.parquet", pl.DataFrame({"id": [1]}))
    with pytest.raises(SchemaChangedError, match="'day' is of type date, but has 'never'"):
        small.run(small.job(**table(small)))
    assert small.rows().height == 4


def test_columns_change_only_when_asked(small: Small) -> None:
    small.write("a.parquet", pl.DataFrame({"id": [1]}))
    small.run(small.job(**table(small)))
    small.write("b.parquet", pl.DataFrame({"id": [2], "more": ["x"]}))
    (small.root / "in" / "a.parquet").unlink()
    for mode in ("append", "overwrite"):
        with pytest.raises(SchemaChangedError, match="more") as caught:
            small.run(small.job(mode=mode, **table(small)))
        assert "output.schema: widen" in str(caught.value.hint)
    small.run(small.job(**table(small, schema="widen")))
    both = pl.DataFrame({"id": [1, 2], "more": [None, "x"]})
    assert_frame_equal(read(small).sort("id"), both)
    assert_frame_equal(small.rows().sort("id"), both)
    # Delta has no wider types, but another table in the same place.
    (small.root / "in" / "b.parquet").unlink()
    small.write("c.parquet", pl.DataFrame({"id": ["three"]}))
    with pytest.raises(SchemaChangedError):
        small.run(small.job(**table(small, schema="widen")))
    with pytest.raises(SchemaChangedError, match="id: long / string"):
        small.run(small.job(mode="overwrite", **table(small)))
    small.run(small.job(mode="overwrite", **table(small, schema="widen")))
    assert_frame_equal(read(small).select("id"), pl.DataFrame({"id": ["three"]}))
    assert read(small).height == 1
    rollback(TableLog(small.storage, small.output), 2)
    assert_frame_equal(read(small).sort("id").select("id", "more"), both)
    old = DeltaTable(f"{small.root}/out", version=0)
    assert old.to_pyarrow_table().to_pydict() == {"id": [1]}


def test_a_narrower_type_does_not_become_wider(small: Small) -> None:
    small.write("a.parquet", pl.DataFrame({"id": [1]}, schema={"id": pl.Int32}))
    small.run(small.job(**table(small)))
    small.write("b.parquet", pl.DataFrame({"id": [2]}, schema={"id": pl.Int64}))
    job = small.job(input={"uri": small.input, "include": ["b.*"]}, **table(small, schema="widen"))
    with pytest.raises(SchemaChangedError, match="id: integer / long"):
        small.run(job)


def plain_first(small: Small, first: Any, second: Any) -> Callable[..., Job]:
    """An output of plain files whose id has one type, and jobs for an input that has another."""
    value = None if first == pl.Null else 1
    small.write("a.parquet", pl.DataFrame({"id": pl.Series([value], dtype=first)}))
    small.run(small.job())
    (small.root / "in" / "a.parquet").unlink()
    small.write("b.parquet", pl.DataFrame({"id": pl.Series([2], dtype=second)}))
    return small.job


@pytest.mark.parametrize(
    ("first", "second"), [(pl.Int64, pl.Int32), (pl.Int32, pl.Int64), (pl.Null, pl.Int64)]
)
def test_plain_files_that_do_not_fit_do_not_become_a_table(
    small: Small, first: Any, second: Any
) -> None:
    job = plain_first(small, first, second)
    with pytest.raises(SchemaChangedError, match="'id' is of type") as caught:
        small.run(job(**table(small, schema="widen")))
    assert "overwrite" in str(caught.value.hint)
    assert not (small.root / "out" / "_delta_log").exists()
    assert small.rows()["id"].to_list() == [None if first == pl.Null else 1]
    small.run(job(mode="overwrite", **table(small, schema="widen")))
    assert read(small)["id"].to_list() == [2]


def test_a_table_is_not_rolled_back_to_files_of_types_that_delta_lacks(small: Small) -> None:
    job = plain_first(small, pl.UInt8, pl.Int64)
    small.run(job(mode="overwrite", **table(small, schema="widen")))
    with pytest.raises(SchemaChangedError, match="UInt8, which Delta lacks") as caught:
        rollback(TableLog(small.storage, small.output), 1)
    assert "chunkmap history" in str(caught.value.hint)
    assert read(small)["id"].to_list() == [2]
    rollback(TableLog(small.storage, small.output), 0)  # Empty fits.
    assert read(small).is_empty()


def test_a_table_is_not_rolled_back_to_other_partition_columns(small: Small) -> None:
    small.write("a.parquet", pl.DataFrame({"id": [1], "k": [1]}))
    small.run(small.job())
    small.run(small.job(mode="overwrite", **table(small, schema="widen", partition_by=["k"])))
    table_log = TableLog(small.storage, small.output)
    with pytest.raises(SchemaChangedError, match="has no partition columns, the table k="):
        rollback(table_log, 1)
    assert table_log.head()[0].current == 2
    # Where such a version is current all the same, the error says what to do, and that works.
    with patch("pipeline.table.delta.commit.refuse_rollback"), pytest.raises(StateError) as caught:
        rollback(table_log, 1)
    assert "move _delta_log/ away" in str(caught.value.hint)
    shutil.rmtree(small.root / "out" / "_delta_log")
    prepare_output(TableLog(small.storage, small.output), "append", "0" * 16)
    assert DeltaTable(f"{small.root}/out").metadata().partition_columns == []
    assert_frame_equal(read(small), pl.DataFrame({"id": [1], "k": [1]}))


def test_a_timestamp_without_a_zone_may_come_later(small: Small) -> None:
    """It is a feature that the table must then have."""
    small.write("a.parquet", pl.DataFrame({"id": [1]}))
    small.run(small.job(**table(small)))
    at = datetime(2024, 1, 1)
    small.write("b.parquet", pl.DataFrame({"id": [2], "at": [at]}))
    job = small.job(input={"uri": small.input, "include": ["b.*"]}, **table(small, schema="widen"))
    small.run(job)
    assert read(small).sort("id")["at"].to_list() == [None, at]


def test_a_table_is_made_with_the_first_rows(small: Small) -> None:
    small.write("a.parquet", pl.DataFrame({"id": [1], "k": [2]}))
    job = small.job("none", **table(small, partition_by=["k"]))
    small.run(job)
    assert not (small.root / "out").exists()
    small.run(small.job(**table(small, partition_by=["k"])))
    assert_frame_equal(read(small), pl.DataFrame({"id": [1], "k": [2]}))


@pytest.mark.parametrize(
    ("folder", "types", "message"),
    [
        ("k=1", {}, "the table none"),
        ("", {"k": "long"}, "has no partition columns, the table k="),
        ("k=", {"k": "string"}, "empty text"),
        ("k=x", {"k": "long"}, "'x'"),
        ("k=300", {"k": "byte"}, "'300'"),
        ("k=0000-00-00", {"k": "date"}, "'0000-00-00'"),
        ("k=2024-02-31", {"k": "date"}, "'2024-02-31'"),
        ("k=1/j=2", {"j": "long", "k": "long"}, "has k=/j=, the table j=/k="),
    ],
)
def test_folders_that_do_not_fit(folder: str, types: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        partition_values(folder, types)


def test_values_are_spelled_as_delta_spells_them() -> None:
    types = {"a": "integer", "b": "string", "c": "date", "d": "string"}
    folder = "a=007/b=x%2Fy%20z/c=2024-02-29/d=__HIVE_DEFAULT_PARTITION__"
    assert partition_values(folder, types) == {
        "a": "7",
        "b": "x/y z",
        "c": "2024-02-29",
        "d": None,
    }


# -- statistics --------------------------------------------------------------------------------


VALUES = {
    "i": st.integers(-(2**63), 2**63 - 1),
    "small": st.integers(-128, 127),
    "text": st.text(max_size=80),
    "day": st.dates(),
    "at": st.datetimes(),
    "price": st.decimals(-(10**9), 10**9, places=2, allow_nan=False),
    "flag": st.booleans(),
    "float": st.floats(width=64),
}
KINDS: dict[str, Any] = {
    "i": pl.Int64,
    "small": pl.Int8,
    "text": pl.String,
    "day": pl.Date,
    "at": pl.Datetime("us"),
    "price": pl.Decimal(12, 2),
    "flag": pl.Boolean,
    "float": pl.Float64,
}
ROWS = st.lists(
    st.fixed_dictionaries({name: st.none() | some for name, some in VALUES.items()}), max_size=12
)


def statistics(frame: pl.DataFrame, **options: Any) -> dict[str, Any]:
    buffer = io.BytesIO()
    frame.write_parquet(buffer, **options)
    reader = DictReader({"s3://b/a": buffer.getvalue()})
    types = schema_of(delta_columns(columns_of(frame)), [], {}).columns
    found: dict[str, Any] = json.loads(
        read_statistics(reader, [reader.info("s3://b/a")], types)["s3://b/a"]
    )
    return found


@settings(max_examples=fewer(60), deadline=None)
@given(rows=ROWS, polars=st.booleans())
def test_statistics_bound_the_values(rows: list[dict[str, Any]], polars: bool) -> None:
    frame = pl.DataFrame(rows, schema=KINDS)
    found = statistics(frame, row_group_size=5, use_pyarrow=not polars)
    assert found["numRecords"] == frame.height
    for name in KINDS:
        assert found["nullCount"].get(name, 0) == frame[name].null_count()
    assert not {"flag", "float"} & {*found["minValues"], *found["maxValues"]}
    parse: dict[str, Callable[[Any], Any]] = {
        "day": date.fromisoformat,
        "at": datetime.fromisoformat,
        "price": lambda number: Decimal(repr(number)),
    }
    for name, bound in found["minValues"].items():
        low = parse.get(name, lambda same: same)(bound)
        high = parse.get(name, lambda same: same)(found["maxValues"][name])
        assert all(low <= value <= high for value in frame[name].drop_nulls())
    for name in ("i", "small", "day", "at", "price"):
        if frame[name].count():
            assert name in found["minValues"], name


def test_only_the_first_columns_have_statistics() -> None:
    frame = pl.DataFrame({f"c{at:02}": [at] for at in range(MAX_COLUMNS + 3)})
    found = statistics(frame)
    assert len(found["minValues"]) == len(found["nullCount"]) == MAX_COLUMNS


def test_a_footer_that_cannot_be_read_has_no_statistics() -> None:
    reader = DictReader({"s3://b/a": b"PAR1 nothing PAR1"})
    infos = [reader.info("s3://b/a"), ObjectInfo("s3://b/gone", '"x"', 100)]
    reader.objects["s3://b/gone"] = b""
    assert read_statistics(reader, infos, {"id": "long"}) == {}


def test_readers_skip_files_by_our_statistics(small: Small) -> None:
    for number in range(4):
        rows = range(number * 10, number * 10 + 10)
        text = [f"{'x' * 40}{row:03}" for row in rows]
        small.write(f"{number}.parquet", pl.DataFrame({"id": rows, "text": text}))
    small.run(small.job(**table(small)))
    actions = pl.DataFrame(
        pl.from_arrow(pa.table(DeltaTable(f"{small.root}/out").get_add_actions(flatten=True)))
    )
    assert actions["num_records"].to_list() == [10] * 4
    assert sorted(actions["min.id"].to_list()) == [0, 10, 20, 30]
    for at in range(40):
        where = pl.col("text") == f"{'x' * 40}{at:03}"
        assert pl.scan_delta(f"{small.root}/out").filter(where).collect()["id"].to_list() == [at]
        dataset = DeltaTable(f"{small.root}/out").to_pyarrow_dataset()
        found = dataset.to_table(filter=ds.field("id") == at)
        assert found.num_rows == 1
