"""Row groups that are cut into parts: together they are the whole, with and without an index."""

from __future__ import annotations

import io
from dataclasses import replace
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

from partitioning import Chunk, Plan, PlanRequest, plan_dataset
from partitioning.page_index import parse_page_index
from partitioning.page_rows import check_page
from partitioning.parquet_footer import FooterSelection, parse_footer
from partitioning.thrift import ThriftError
from pipeline.errors import UnreadableObjectError, WrongPageIndexError
from pipeline.runs.worker import chunk_source, sparse_file
from pipeline.runs.worker.chunk_source import ChunkSource, ReadOptions
from pipeline.storage import Storage, StorageReader
from tests.fuzz import corpus
from tests.support.examples import fewer
from tests.support.memory_storage import AT_ONCE, MemoryBackend

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
    asked = {"min_part": 1, "open_cost": 0, **request}
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
    monkeypatch.setattr(chunk_source, "WHOLE_BYTES", 0)
    monkeypatch.setattr(sparse_file, "GAP_BYTES", 0)
    monkeypatch.setattr(sparse_file, "RANGE_BYTES", 100)


@pytest.mark.usefixtures("in_ranges")
@settings(
    max_examples=fewer(80),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
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


def part_of(chunk: Chunk, start: int, stop: int) -> Chunk:
    """Rows of a chunk that is one row group."""
    [whole] = chunk.fragments
    part = replace(whole, part=(start, stop), rows=stop - start, row_start=start)
    return replace(chunk, fragments=(part,))


@pytest.mark.usefixtures("in_ranges")
@settings(
    max_examples=fewer(100),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(table=tables(), options=writers, data=st.data())
def test_any_rows_of_a_row_group_can_be_read(
    table: pa.Table, options: dict[str, Any], data: st.DataObject
) -> None:
    storage = stored(written(table, **{**options, "write_page_index": True}))
    plan = plan_of(storage)
    [expected], _ = read(storage, plan)
    start = data.draw(st.integers(0, table.num_rows - 1))
    stop = data.draw(st.integers(start + 1, table.num_rows))
    source = ChunkSource(storage, part_of(plan.chunk(0), start, stop), plan.dtypes)
    names = data.draw(st.lists(st.sampled_from(expected.columns), min_size=1, unique=True))
    try:
        # Columns that come later are in a file of their own, with other rows before the part's.
        assert_frame_equal(
            source.scan().select(names[0]).collect(),
            expected.select(names[0]).slice(start, stop - start),
        )
        rest = source.scan().filter(pl.col("id") % 3 != 1).select(names).collect()
        there = expected.slice(start, stop - start).filter(pl.col("id") % 3 != 1)
        assert_frame_equal(rest, there.select(names))
        assert source.scan().select(pl.len()).collect().item() == stop - start
    finally:
        source.close()


def wide(rows: int) -> pa.Table:
    """Columns that no dictionary makes small, of pages that do not begin together."""
    return pa.table(
        {
            "id": pa.array(range(rows), pa.int64()),
            "text": [f"{i * 7919 % rows:>30}" for i in range(rows)],
            "list": [[i, -i] for i in range(rows)],
        }
    )


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_only_the_pages_of_a_part_are_read(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse_file, "GAP_BYTES", 0)
    data = written(
        wide(50_000), write_page_index=True, data_page_version=version, use_dictionary=False,
        data_page_size=16 << 10, compression="none",
    )  # fmt: skip
    storage = stored(data)
    whole = plan_of(storage)
    plan = plan_of(storage, target=-(-whole.decoded_bytes // 10))
    assert len(plan) == 10
    found, sizes = read(storage, plan)
    assert pl.concat(found)["id"].to_list() == list(range(50_000))
    # The footer, the index, and half a page at each end of each column come on top.
    most = len(data) // 10 + (64 << 10) + 3 * 2 * (16 << 10)
    assert max(sizes) < most < len(data) / 3
    assert plan.stored_bytes == whole.stored_bytes, "each byte is planned once"


def test_without_an_index_each_part_reads_all_and_says_so() -> None:
    data = written(wide(50_000), use_dictionary=False, compression="none")
    storage = stored(data)
    whole = plan_of(storage)
    plan = plan_of(storage, target=-(-whole.decoded_bytes // 10))
    assert len(plan) == 4, "a row group is not read more often"
    found, sizes = read(storage, plan)
    assert pl.concat(found)["id"].to_list() == list(range(50_000))
    assert min(sizes) >= whole.stored_bytes
    assert [chunk.stored_bytes for chunk in plan.chunks()] == [whole.stored_bytes] * 4
    assert [chunk.decoded_bytes for chunk in plan.chunks()] == [whole.decoded_bytes] * 4


def test_a_file_by_polars() -> None:
    sink = io.BytesIO()
    frame = pl.DataFrame(wide(5_000))
    frame.write_parquet(sink, row_group_size=5_000, data_page_size=4_000)
    storage = stored(sink.getvalue())
    plan = plan_of(storage, target=20_000)
    assert len(plan) > 2
    assert_frame_equal(pl.concat(read(storage, plan)[0]), frame)


@pytest.mark.usefixtures("in_ranges")
@settings(
    max_examples=fewer(100),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    version=st.sampled_from(["1.0", "2.0"]), at=st.floats(0, 1, exclude_max=True),
    bit=st.integers(0, 7),
)  # fmt: skip
def test_a_damaged_index_is_as_good_as_none_or_an_error(version: str, at: float, bit: int) -> None:
    table = wide(300)
    data = bytearray(
        written(table, write_page_index=True, data_page_size=200, write_batch_size=10,
                data_page_version=version)
    )  # fmt: skip
    plan = plan_of(stored(bytes(data)), target=2_000)
    assert len(plan) > 4
    footer = footer_of(bytes(data))
    columns = footer.groups[0].columns
    start = columns[0].index_start
    stop = columns[-1].index_start + columns[-1].index_length
    data[start + int(at * (stop - start))] ^= 1 << bit
    storage = stored(bytes(data))
    damaged = plan_of(storage, target=2_000)
    for chunk in damaged.chunks():
        source = ChunkSource(storage, chunk, damaged.dtypes)
        first = chunk.fragments[0].row_start
        try:
            found = source.scan().collect()
        except UnreadableObjectError as error:
            assert "row group 0, column " in error.reason
        else:
            assert_frame_equal(found, pl.DataFrame(table).slice(first, chunk.rows))
        finally:
            source.close()


def footer_of(data: bytes) -> Any:
    length = int.from_bytes(data[-8:-4], "little")
    return parse_footer(data[-8 - length : -8], len(data), FooterSelection(encodings=True))


@settings(max_examples=fewer(100), deadline=None)
@given(table=tables(), options=writers)
def test_a_page_that_has_other_rows_than_its_index_says_is_found_out(
    table: pa.Table, options: dict[str, Any]
) -> None:
    data = written(table, **{**options, "write_page_index": True})
    [group] = footer_of(data).groups
    for column in group.columns:
        raw = data[column.index_start : column.index_start + column.index_length]
        index = parse_page_index(raw, column, group.rows)
        values = 0
        for at, (offset, length) in enumerate(zip(index.offsets, index.lengths, strict=True)):
            page, rows = data[offset : offset + length], index.rows[at + 1] - index.rows[at]
            values += check_page(page, column, rows).values
            for wrong in (rows - 1, rows + 1):
                with pytest.raises(ThriftError, match="rows"):
                    check_page(page, column, wrong)
            for cut in (page[:-1], page + b"x", page[:3], b""):
                with pytest.raises(ThriftError):
                    check_page(cut, column, rows)
        assert values == column.values


def test_an_index_of_other_rows_is_an_error_where_it_shows() -> None:
    """Pages whose rows the index shifts: the parts that meet them say so."""
    table = wide(300)
    data = written(table, write_page_index=True, data_page_size=200, write_batch_size=10)
    column = footer_of(data).groups[0].columns[0]
    raw = data[column.index_start : column.index_start + column.index_length]
    rows = parse_page_index(raw, column, 300).rows
    # The third page begins a row later: 10 rows are 20 as a zigzag number, and 11 are 22.
    old, new = (bytes([0x16, 2 * (rows[2] + more), 0]) for more in (0, 1))
    assert raw.count(old) == 1
    changed = data.replace(raw, raw.replace(old, new))
    storage = stored(changed)
    plan = plan_of(storage)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunk_source, "WHOLE_BYTES", 0)
        options = ReadOptions(skip_unreadable=True)
        part = part_of(plan.chunk(0), 0, rows[2])
        source = ChunkSource(storage, part, plan.dtypes, options=options)
        with pytest.raises(WrongPageIndexError, match="row group 0, column id, page at") as caught:
            source.prefetch(["id"])
        assert not source.leave_out(caught.value), "another part may be shifted, and not show it"
        source.close()


def assert_parts_are_the_whole(data: bytes, target: int, **options: Any) -> None:
    storage = stored(data)
    whole, plan = plan_of(storage, **options), plan_of(storage, target=target, **options)
    assert len(plan) > 4
    expected, found = read(storage, whole, **options)[0], read(storage, plan, **options)[0]
    assert_frame_equal(pl.concat(found), pl.concat(expected))


@pytest.mark.usefixtures("in_ranges")
@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("dictionary", [True, False])
@pytest.mark.parametrize("unit", ["us", "ns"])
def test_times_of_int96_that_are_never_null(version: str, dictionary: bool, unit: str) -> None:
    # Pages of the small numbers hold more rows, so there are rows to make up in those of times.
    fields = [COLUMNS["time!"][0], pa.field("small", pa.int8())]
    times = [DAY + timedelta(hours=i) for i in range(500)]
    table = pa.table([times, [i % 100 for i in range(500)]], schema=pa.schema(fields))
    data = written(
        table, write_page_index=True, data_page_size=100, write_batch_size=7,
        data_page_version=version, use_dictionary=dictionary,
        use_deprecated_int96_timestamps=True, store_schema=False,
    )  # fmt: skip
    assert_parts_are_the_whole(data, 1_000, int96=unit)


@pytest.mark.usefixtures("in_ranges")
@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("nullable", [True, False])
def test_other_encodings_than_plain_ones(version: str, nullable: bool) -> None:
    columns: dict[str, tuple[pa.DataType, str, Any]] = {
        "delta": (pa.int64(), "DELTA_BINARY_PACKED", lambda i: i * 3),
        "lengths": (pa.string(), "DELTA_LENGTH_BYTE_ARRAY", lambda i: "x" * (i % 40)),
        "prefixes": (pa.string(), "DELTA_BYTE_ARRAY", lambda i: f"prefix {i}"),
        "split": (pa.float64(), "BYTE_STREAM_SPLIT", lambda i: i / 3),
        "fixed": (pa.binary(6), "BYTE_STREAM_SPLIT", lambda i: b"%06d" % i),
        "flag": (pa.bool_(), "RLE", lambda i: i % 7 == 0),
    }
    schema = pa.schema([pa.field(n, kind, nullable) for n, (kind, _, _) in columns.items()])
    values = [
        [None if nullable and i % 11 == 0 else make(i) for i in range(500)]
        for _, _, make in columns.values()
    ]
    data = written(
        pa.table([pa.array(v, f.type) for v, f in zip(values, schema, strict=True)], schema=schema),
        write_page_index=True, data_page_size=100, write_batch_size=7, use_dictionary=False,
        column_encoding={name: encoding for name, (_, encoding, _) in columns.items()},
        data_page_version=version,
    )  # fmt: skip
    assert_parts_are_the_whole(data, 5_000)


@pytest.mark.usefixtures("in_ranges")
@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("nulls", [0, 3])
@pytest.mark.parametrize("name", sorted(corpus.TYPES))
def test_every_type_by_its_pages(name: str, nulls: int, version: str) -> None:
    values = corpus.column(name, nulls)
    is_nullable = bool(nulls) or pa.types.is_null(values.type)
    values = pa.concat_arrays([values] * 4)
    numbers = pa.array([n % 100 for n in range(len(values))], pa.int8())
    fields = [pa.field(name, values.type, nullable=is_nullable), pa.field("number", pa.int8())]
    data = written(
        pa.table([values, numbers], schema=pa.schema(fields)), write_page_index=True,
        data_page_size=16, write_batch_size=2, data_page_version=version,
    )  # fmt: skip
    storage = stored(data)
    plan = plan_of(storage)
    [expected], _ = read(storage, plan)
    for start in range(0, len(values), 5):
        stop = min(start + 5, len(values))
        source = ChunkSource(storage, part_of(plan.chunk(0), start, stop), plan.dtypes)
        assert_frame_equal(source.scan().collect(), expected.slice(start, stop - start))
        source.close()
