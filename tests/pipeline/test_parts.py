"""Row groups that are cut into parts: together they are the whole, with and without an index."""

from __future__ import annotations

import io
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from partitioning import Plan, PlanRequest, plan_dataset
from pipeline import reading, sparse
from pipeline.reading import ChunkSource, ReadOptions
from pipeline.storage import Storage, StorageReader
from tests.pipeline.storage.memory import AT_ONCE, MemoryBackend

URI = "s3://b/t/a.parquet"
DAY = datetime(2024, 1, 1)


def field(name: str, kind: pa.DataType, *, nullable: bool = True) -> pa.Field:
    return pa.field(name, kind, nullable=nullable)


COLUMNS: dict[str, tuple[pa.Field, Any]] = {
    "flag": (field("flag", pa.bool_()), lambda i: i % 3 == 0),
    "flag!": (field("flag!", pa.bool_(), nullable=False), lambda i: i % 3 == 0),
    "few": (field("few", pa.string()), lambda i: f"kind {i % 5}"),
    "few!": (field("few!", pa.string(), nullable=False), lambda i: f"kind {i % 5}"),
    "text": (field("text", pa.string()), lambda i: f"värde {i}" * (i % 4)),
    "text!": (field("text!", pa.string(), nullable=False), lambda i: "x" * (i % 7)),
    "float!": (field("float!", pa.float64(), nullable=False), lambda i: i / 7),
    "money": (field("money", pa.decimal128(12, 2)), lambda i: Decimal(i) / 4),
    "money!": (field("money!", pa.decimal128(30, 2), nullable=False), lambda i: Decimal(i) / 4),
    "small": (field("small", pa.int8()), lambda i: i % 100),
    "category": (field("category", pa.dictionary(pa.int32(), pa.string())), lambda i: f"c{i % 4}"),
    "fixed!": (field("fixed!", pa.binary(5), nullable=False), lambda i: b"%05d" % (i % 1000)),
    "time": (field("time", pa.timestamp("us")), lambda i: DAY + timedelta(hours=i)),
    "time!": (
        field("time!", pa.timestamp("us"), nullable=False),
        lambda i: DAY + timedelta(hours=i),
    ),
    "none": (field("none", pa.int16()), lambda i: None),
    "list": (field("list", pa.list_(pa.int32())), lambda i: list(range(i % 6)) if i % 9 else None),
    "list!": (
        field("list!", pa.list_(pa.field("item", pa.string(), nullable=False)), nullable=False),
        lambda i: [str(i)] * (i % 4),
    ),
    "lists": (
        field("lists", pa.list_(pa.list_(pa.int64()))),
        lambda i: [[i] * (n % 3) for n in range(i % 4)],
    ),
    "struct": (
        field("struct", pa.struct([("a", pa.int64()), ("b", pa.list_(pa.string()))])),
        lambda i: {"a": i, "b": [f"{i}" * (i % 30)] * (i % 3)} if i % 5 else None,
    ),
    "struct!": (
        field(
            "struct!",
            pa.struct([pa.field("a", pa.int64(), nullable=False), ("c", pa.string())]),
            nullable=False,
        ),
        lambda i: {"a": i, "c": "y" * (i % 50)},
    ),
    "map": (
        field("map", pa.map_(pa.string(), pa.int32())),
        lambda i: [(f"k{n}", n) for n in range(i % 3)],
    ),
}


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    rows = draw(st.integers(2, 400))
    names = draw(st.lists(st.sampled_from(sorted(COLUMNS)), unique=True, min_size=1, max_size=5))
    nulls = draw(st.integers(2, 50))
    arrays, fields = [], [pa.field("id", pa.int64(), nullable=draw(st.booleans()))]
    arrays.append(pa.array(range(rows), pa.int64()))
    for name in names:
        kind, make = COLUMNS[name]
        values = [None if kind.nullable and i % nulls == 0 else make(i) for i in range(rows)]
        arrays.append(pa.array(values, kind.type))
        fields.append(kind)
    return pa.table(arrays, schema=pa.schema(fields))


writers = st.fixed_dictionaries(
    {
        "compression": st.sampled_from(["none", "snappy", "zstd", "gzip", "lz4", "brotli"]),
        "use_dictionary": st.booleans(),
        "write_page_index": st.booleans(),
        "data_page_size": st.integers(1, 2000),
        "write_batch_size": st.sampled_from([1, 3, 7, 20, 64]),
        "data_page_version": st.sampled_from(["1.0", "2.0"]),
        "use_deprecated_int96_timestamps": st.booleans(),
        "write_page_checksum": st.booleans(),
    }
)


def written(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    options.setdefault("row_group_size", table.num_rows)
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def stored(data: bytes) -> Storage:
    backend = MemoryBackend()
    backend.put(URI, data)
    return Storage({"s3": backend}, AT_ONCE)


def plan_of(storage: Storage, **request: Any) -> Plan:
    asked = {"least_part": 1, "open_cost": 0, **request}
    return plan_dataset(PlanRequest(URI, **asked), StorageReader(storage)).plan


def read(
    storage: Storage, plan: Plan, columns: list[str] | None = None, **options: Any
) -> tuple[list[pl.DataFrame], list[int]]:
    """The rows of each chunk, and the bytes that it took."""
    frames, sizes = [], []
    for chunk in plan.chunks():
        source = ChunkSource(storage, chunk, plan.dtypes, options=ReadOptions(**options))
        try:
            scan = source.scan() if columns is None else source.scan().select(columns)
            frames.append(scan.collect())
            sizes.append(source.bytes_read)
            assert frames[-1].height == chunk.rows
        finally:
            source.close()
    return frames, sizes


@pytest.fixture
def in_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small objects are read in ranges, too, as tight as can be."""
    monkeypatch.setattr(reading, "WHOLE_BYTES", 0)
    monkeypatch.setattr(sparse, "GAP_BYTES", 0)
    monkeypatch.setattr(sparse, "RANGE_BYTES", 100)


@pytest.mark.usefixtures("in_ranges")
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(table=tables(), options=writers, parts=st.integers(2, 20), verified=st.booleans())
def test_the_parts_of_a_row_group_are_the_whole(
    table: pa.Table, options: dict[str, Any], parts: int, verified: bool
) -> None:
    storage = stored(written(table, **options))
    whole = plan_of(storage)
    assert len(whole) == 1
    [expected], _ = read(storage, whole)
    assert expected["id"].to_list() == list(range(table.num_rows))
    plan = plan_of(storage, target=max(1, whole.decoded_bytes // parts))
    assert (len(plan) > 1) == (whole.decoded_bytes > 2 * max(1, whole.decoded_bytes // parts))
    assert plan.rows == table.num_rows
    found, _ = read(storage, plan, verify_checksums=verified)
    assert_frame_equal(pl.concat(found), expected)
    one = read(storage, plan, [expected.columns[-1]])[0]
    assert_frame_equal(pl.concat(one), expected.select(expected.columns[-1]))
