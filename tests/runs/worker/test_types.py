"""What columns come as: what Polars gives, or what is stored where Polars refuses or misreads."""

from __future__ import annotations

import io
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import polars as pl
import polars.selectors as cs
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from polars.testing import assert_frame_equal

from partitioning import ColumnError, FilterError, PlanRequest, Term, plan_dataset
from partitioning.explain import PlanResult
from pipeline.errors import UnreadableObjectError
from pipeline.runs.worker.chunk_source import ChunkSource, ReadOptions
from pipeline.storage import Storage, StorageReader
from tests.support.memory_storage import AT_ONCE, MemoryBackend

PREFIX = "s3://b/t/"
Row = tuple[pl.DataFrame, PlanResult]


def by_pyarrow(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def by_polars(frame: pl.DataFrame, **options: Any) -> bytes:
    sink = io.BytesIO()
    frame.write_parquet(sink, **options)
    return sink.getvalue()


def one(kind: pa.DataType, values: list[Any], **options: Any) -> bytes:
    return by_pyarrow(pa.table({"a": pa.array(values, kind)}), **options)


def read(*objects: bytes, query: Any = lambda lf: lf, **request: Any) -> Row:
    """All rows of objects, through plan and chunk."""
    backend = MemoryBackend()
    for number, data in enumerate(objects):
        backend.put(f"{PREFIX}{number}.parquet", data)
    storage = Storage({"s3": backend}, AT_ONCE)
    result = plan_dataset(PlanRequest(PREFIX, **request), StorageReader(storage))
    frames = []
    for chunk in result.plan.chunks():
        source = ChunkSource(
            storage,
            chunk,
            result.plan.dtypes,
            options=ReadOptions(
                int96=request.get("int96", "us"), object_column=request.get("object_column")
            ),
        )
        try:
            frames.append(query(source.scan()).collect())
        finally:
            source.close()
    return pl.concat(frames), result


# -- as Polars -----------------------------------------------------------------------------------

POINT = pa.field(
    "a",
    pa.binary(),
    metadata={"ARROW:extension:name": "geoarrow.wkb", "ARROW:extension:metadata": ""},
)
AS_POLARS: dict[str, bytes] = {
    "enum": by_polars(pl.DataFrame({"a": pl.Series(["b", "a"], dtype=pl.Enum(["b", "a"]))})),
    "categorical": one(pa.dictionary(pa.int32(), pa.string()), ["x", None, "y"]),
    "dictionary of integers": one(pa.dictionary(pa.int32(), pa.int64()), [5, None]),
    "int128": by_polars(pl.DataFrame({"a": pl.Series([2**100, -1, None], dtype=pl.Int128)})),
    "json": one(pa.json_(), ['{"k": 1}', None]),
    "uuid": one(pa.uuid(), [b"0123456789abcdef", None]),
    "unknown extension": by_pyarrow(pa.table([pa.array([b"x", None])], schema=pa.schema([POINT]))),
    "float16": one(pa.float16(), [1.5, None]),
    "time": one(pa.time64("ns"), [1_000, None]),
    "duration": one(pa.duration("s"), [1, None]),
    "seconds": one(pa.timestamp("s"), [1, None]),
    "zone": one(pa.timestamp("us", "Europe/Berlin"), [datetime(2024, 7, 1), None]),
    "fixed bytes": one(pa.binary(20), [b"x" * 20, None]),
    "map": one(pa.map_(pa.string(), pa.int32()), [[("k", 1)], None, []]),
    "list of nulls": one(pa.list_(pa.null()), [[None], None]),
    "fixed list": one(pa.list_(pa.int8(), 2), [[1, 2], None]),
    "small integers": one(pa.struct([("i", pa.int8()), ("u", pa.uint64())]), [{"i": 1, "u": 2}]),
    "decimal of 5": one(pa.decimal128(5, 2), [Decimal("1.25")], store_decimal_as_integer=True),
    "text without Arrow's schema": one(pa.large_string(), ["x"], store_schema=False),
    "binary": one(pa.binary(), [b"\xff"], store_schema=False),
    "null": one(pa.null(), [None, None]),
}  # fmt: skip


@pytest.mark.parametrize("name", AS_POLARS)
def test_columns_come_as_polars_reads_them(name: str) -> None:
    data = AS_POLARS[name]
    found, result = read(data)
    expected = pl.read_parquet(io.BytesIO(data))
    assert result.plan.dtypes == expected.schema
    assert_frame_equal(found, expected)
    assert result.explain.warnings == ()


def test_an_enum_compares_as_an_enum() -> None:
    """The order is the declared one; as text, or as a category, other rows would be found."""
    found, _ = read(AS_POLARS["enum"], query=lambda lf: lf.filter(pl.col("a") > "b"))
    assert found["a"].to_list() == ["a"]


# -- by pyarrow ----------------------------------------------------------------------------------


def test_times_with_an_offset_come_as_utc() -> None:
    instant = datetime(2024, 1, 1, 5, 30, tzinfo=UTC)
    found, result = read(one(pa.timestamp("us", "+05:30"), [instant, None]))
    assert found.schema == {"a": pl.Datetime("us", "UTC")}
    assert found["a"].to_list() == [instant, None]
    assert "+05:30" in result.explain.warnings[0]


def test_wide_decimals_come_as_decimals_of_38_digits() -> None:
    found, result = read(one(pa.decimal256(45, 2), [Decimal("1.23"), None]))
    assert found.schema == {"a": pl.Decimal(38, 2)}
    assert found["a"].to_list() == [Decimal("1.23"), None]
    assert "decimal256(45, 2), read as Decimal" in result.explain.warnings[0]


def test_a_decimal_that_does_not_fit_is_an_error_that_names_object_and_column() -> None:
    wide = one(pa.decimal256(45, 2), [Decimal(10) ** 40])
    with pytest.raises(UnreadableObjectError, match=r"s3://b/t/0\.parquet .*columns a: ") as caught:
        read(wide)
    assert caught.value.uri == "s3://b/t/0.parquet"


@pytest.mark.parametrize("encoding", ["DELTA_BYTE_ARRAY", "BYTE_STREAM_SPLIT"])
def test_encodings_of_fixed_bytes_that_polars_lacks(encoding: str) -> None:
    data = one(
        pa.binary(5), [b"12345", None, b"abcde"], use_dictionary=False,
        column_encoding={"a": encoding},
    )  # fmt: skip
    found, _ = read(data)
    assert found.schema == {"a": pl.Binary()}
    assert found["a"].to_list() == [b"12345", None, b"abcde"]


# -- INT96 ---------------------------------------------------------------------------------------

NEVER = datetime(9999, 12, 31, 23, 59, 59)


def int96(*values: datetime | None, **more: pa.Array) -> bytes:
    table = pa.table({"a": pa.array(values, pa.timestamp("us")), **more})
    return by_pyarrow(table, use_deprecated_int96_timestamps=True, store_schema=False)


def test_int96_reaches_beyond_2262() -> None:
    values = [NEVER, None, datetime(1, 1, 1), datetime(2024, 1, 1, 1, 2, 3, 456789)]
    found, result = read(int96(*values))
    assert found.schema == {"a": pl.Datetime("us")}
    assert found["a"].to_list() == values
    assert "INT96" in result.explain.warnings[0]


def test_int96_as_nanoseconds_keeps_them() -> None:
    sink = io.BytesIO()
    table = pa.table({"a": pa.array([1_700_000_000_123_456_789], pa.timestamp("ns"))})
    pq.write_table(table, sink, use_deprecated_int96_timestamps=True, store_schema=False)
    found, _ = read(sink.getvalue(), int96="ns")
    assert found.schema == {"a": pl.Datetime("ns")}
    assert found["a"].cast(pl.Int64).to_list() == [1_700_000_000_123_456_789]


def test_int96_that_does_not_fit_nanoseconds_is_an_error() -> None:
    with pytest.raises(
        UnreadableObjectError, match=r"column a: an INT96 time .* input\.int96 to us"
    ):
        read(int96(datetime(2024, 1, 1), NEVER), int96="ns")


def test_int96_in_lists() -> None:
    table = pa.table({"a": pa.array([[NEVER], None, [None]], pa.list_(pa.timestamp("us")))})
    data = by_pyarrow(table, use_deprecated_int96_timestamps=True, store_schema=False)
    found, _ = read(data)
    assert found["a"].to_list() == [[NEVER], None, [None]]
    with pytest.raises(UnreadableObjectError, match="INT96"):
        read(data, int96="ns")


def test_int96_beside_columns_that_polars_reads() -> None:
    text = pa.array([f"x{i}" for i in range(50)])
    data = int96(*[NEVER - timedelta(i) for i in range(50)], b=text)
    found, _ = read(data, max_rows=10)
    assert found["b"].to_list() == text.to_pylist()
    assert found["a"].to_list() == [NEVER - timedelta(i) for i in range(50)]


# -- queries that need no column -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (lambda lf: lf.with_row_index("r").select("r"), [0, 1, 2]),
        (lambda lf: lf.select(r=pl.int_range(pl.len())), [0, 1, 2]),
        (lambda lf: lf.select(r=pl.len()), [3]),
        (lambda lf: lf.with_columns(r=pl.lit(7)).select("r"), [7, 7, 7]),
        (lambda lf: lf.with_row_index("r").select("r").head(2), [0, 1]),
    ],
)
def test_queries_that_need_no_column_see_all_rows(query: Any, expected: list[int]) -> None:
    found, _ = read(one(pa.int64(), [5, 6, 7], row_group_size=2), query=query)
    assert found["r"].to_list() == expected


def test_files_without_columns_have_rows() -> None:
    data = by_polars(pl.DataFrame(height=3))
    found, _ = read(data, query=lambda lf: lf.with_row_index("r"))
    assert found["r"].to_list() == [0, 1, 2]


def test_columns_whose_names_are_patterns_to_polars() -> None:
    table = pa.table({"*": [1, 2], "^a.*$": pa.array([3, 4], pa.int32()), "ab": ["x", "y"]})
    data = by_pyarrow(table)
    found, _ = read(data)
    assert_frame_equal(found, pl.DataFrame(pl.from_arrow(table)))
    found, _ = read(data, query=lambda lf: lf.select(cs.by_name("*")))
    assert found.to_dict(as_series=False) == {"*": [1, 2]}
    wide = table.set_column(1, "^a.*$", pa.array([5, 6], pa.int64()))
    both, _ = read(data, by_pyarrow(wide), schema="union")
    assert both["^a.*$"].to_list() == [3, 4, 5, 6]
    with pytest.raises(FilterError, match="its name as a pattern"):
        read(data, filter=((Term("*", ">", 1),),))


def test_the_objects_name_as_a_column() -> None:
    objects = one(pa.int64(), [1, 2]), one(pa.int64(), [3])
    found, _ = read(*objects, object_column="from", cross_partitions=True)
    assert found.rows() == [
        (1, "s3://b/t/0.parquet"), (2, "s3://b/t/0.parquet"), (3, "s3://b/t/1.parquet"),
    ]  # fmt: skip
    found, _ = read(*objects, object_column="from", query=lambda lf: lf.select("from"))
    assert found["from"].n_unique() == 2
    with pytest.raises(ColumnError, match="choose another"):
        read(*objects, object_column="a")
    with pytest.raises(FilterError, match="include and exclude"):
        read(*objects, object_column="from", filter=((Term("from", "==", "x"),),))


def test_a_time_of_day_stays_one() -> None:
    found, _ = read(one(pa.time32("ms"), [1_000]))
    assert found["a"].to_list() == [time(0, 0, 1)]
