"""Chunks read through the engine's source are the dataset: nothing lost, doubled, or mixed."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from partitioning import Chunk, Plan, PlanRequest, Term, filter_expr, plan_dataset
from pipeline.errors import ObjectChangedError, ObjectMissingError, TransientStorageError
from pipeline.runs.worker import chunk_source, sparse_file
from pipeline.runs.worker.chunk_source import ChunkSource, ReadOptions
from pipeline.storage import Storage, StorageReader
from tests.support import plain
from tests.support.examples import fewer
from tests.support.faulty_storage import Faulty, each
from tests.support.memory_storage import AT_ONCE, MemoryBackend

PREFIX = "s3://b/t/"


# -- datasets ---------------------------------------------------------------------------------

COLUMNS: dict[str, tuple[pa.DataType, Callable[[int], Any]]] = {
    "text": (pa.string(), lambda i: f"värde {i}" * (i % 3)),
    "float": (pa.float64(), lambda i: i / 7),
    "flag": (pa.bool_(), lambda i: i % 2 == 0),
    "list": (pa.list_(pa.int32()), lambda i: list(range(i % 4))),
    "struct": (
        pa.struct([("a", pa.int64()), ("b.c", pa.list_(pa.string()))]),
        lambda i: {"a": i, "b.c": [str(i)] * (i % 2)},
    ),
    "money": (pa.decimal128(12, 2), lambda i: Decimal(i) / 4),
    "day": (pa.date32(), lambda i: date(2024, 1, 1 + i % 28)),
    "time": (pa.timestamp("us", "UTC"), lambda i: datetime(2024, 1, 1, i % 24, tzinfo=UTC)),
    "bytes": (pa.binary(), lambda i: bytes([i % 256] * (i % 5))),
    "text.dotted": (pa.large_string(), lambda i: "x" * i),
    "none": (pa.int8(), lambda i: None),
}


@st.composite
def objects(draw: st.DrawFn) -> tuple[dict[str, bytes], dict[str, pl.DataType]]:
    """A dataset as objects by key, and the types of its Hive columns."""
    names = draw(st.lists(st.sampled_from(sorted(COLUMNS)), unique=True, max_size=4))
    layouts: list[dict[str, pl.DataType]] = [
        {},
        {"k": pl.Int64()},
        {"d": pl.Date()},
        {"k": pl.Int64(), "s": pl.String()},
    ]
    hive = draw(st.sampled_from(layouts))
    values = {"k": ["1", "2", "3"], "d": ["2024-01-01", "2024-02-29"], "s": ["x y", "ü"]}
    found: dict[str, bytes] = {}
    start = 0
    for number in range(draw(st.integers(1, 4))):
        rows = draw(st.integers(0, 25)) or (1 if number == 0 else 0)
        folders = [f"{name}={draw(st.sampled_from(values[name]))}" for name in hive]
        lacking = draw(st.sets(st.sampled_from(names), max_size=1)) if names and number else set()
        nulls = draw(st.integers(2, 9))
        columns: dict[str, pa.Array] = {"id": pa.array(range(start, start + rows), pa.int64())}
        columns["always"] = pa.array(["here"] * rows, pa.string())
        for name in names:
            if name not in lacking:
                kind, make = COLUMNS[name]
                content = [None if i % nulls == 0 else make(i) for i in range(start, start + rows)]
                columns[name] = pa.array(content, kind)
        start += rows
        sink = io.BytesIO()
        pq.write_table(
            pa.table(columns),
            sink,
            row_group_size=draw(st.integers(1, 10)),
            compression=draw(st.sampled_from(["zstd", "none", "snappy"])),
            use_dictionary=draw(st.booleans()),
            write_page_index=draw(st.booleans()),
            data_page_size=64,
        )
        found["/".join([*folders, f"{number:02d}.parquet"])] = sink.getvalue()
    return found, hive


@st.composite
def cuts(draw: st.DrawFn) -> dict[str, Any]:
    """Ways to cut a dataset."""
    kind = draw(st.sampled_from(["target", "rows", "file", "partition", "across"]))
    if kind == "rows":
        return {"max_rows": draw(st.integers(1, 30))}
    if kind == "file":
        return {"per_file": True}
    if kind == "partition":
        return {"per_partition": True}
    tight = {"target": draw(st.integers(1, 3000)), "open_cost": draw(st.sampled_from([0, 100]))}
    least = draw(st.sampled_from([1, 16 << 20]))
    return tight | {"cross_partitions": kind == "across", "min_part": least}


def stored(found: Mapping[str, bytes]) -> tuple[MemoryBackend, Storage]:
    backend = MemoryBackend()
    for key, data in found.items():
        backend.put(PREFIX + key, data)
    return backend, Storage({"s3": backend}, AT_ONCE)


def plan_of(storage: Storage, **request: Any) -> Plan:
    return plan_dataset(PlanRequest(PREFIX, schema="union", **request), StorageReader(storage)).plan


def source_of(storage: Storage, plan: Plan, chunk: Chunk, **options: Any) -> ChunkSource:
    columns = options.pop("columns", None)
    return ChunkSource(storage, chunk, plan.dtypes, options=ReadOptions(columns=columns), **options)


def collected(
    storage: Storage, plan: Plan, query: plain.Rows = lambda frame: frame, **options: Any
) -> list[pl.DataFrame]:
    found = []
    for chunk in plan.chunks():
        source = source_of(storage, plan, chunk, **options)
        try:
            found.append(query(source.scan()).collect(engine="streaming"))
        finally:
            source.close()
    return found


@pytest.fixture
def in_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small objects are read in ranges, too, as tight as can be."""
    monkeypatch.setattr(chunk_source, "WHOLE_BYTES", 0)
    monkeypatch.setattr(sparse_file, "GAP_BYTES", 0)
    monkeypatch.setattr(sparse_file, "RANGE_BYTES", 100)


# -- the property -----------------------------------------------------------------------------

QUERIES: dict[str, plain.Rows] = {
    "all": lambda f: f,
    # Not with `reverse()`: Polars' of a struct that is null throughout forgets what is in it.
    "reversed": lambda f: f.with_row_index("#").sort("#", descending=True).drop("#"),
    "projected": lambda f: f.select("id"),
    "computed": lambda f: f.with_columns(twice=pl.col("id") * 2).drop("id"),
    "filtered": lambda f: f.filter(pl.col("id") % 3 == 1),
    "nothing": lambda f: f.filter(pl.lit(False)),
    "filtered by what is not shown": lambda f: f.filter(pl.col("id") > 7).select(pl.exclude("id")),
    "first": lambda f: f.head(3),
    "first of the filtered": lambda f: f.filter(pl.col("id") % 2 == 0).head(2),
    "filtered of the first": lambda f: f.head(4).filter(pl.col("id") % 2 == 0),
    "slice": lambda f: f.slice(2, 3),
    "last": lambda f: f.tail(2),
    "length": lambda f: f.select(pl.len()),
    "length of the filtered": lambda f: f.filter(pl.col("id") % 2 == 0).select(pl.len()),
    "joined with itself": lambda f: f.join(
        f.select("id", same=pl.col("id") + 1), on="id", maintain_order="left"
    ),
    "twice": lambda f: pl.concat([f.filter(pl.col("id") > 3), f.select(pl.all())]),
    "grouped": lambda f: f.group_by(pl.col("id") % 3).agg(pl.len()).sort("id"),
    "hive only": lambda f: f.select(pl.col("^k|d|s$")),
}


@pytest.mark.usefixtures("in_ranges")
@settings(
    max_examples=fewer(80),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(made=objects(), cut=cuts(), name=st.sampled_from(sorted(QUERIES)))
def test_chunks_are_the_dataset(
    made: tuple[dict[str, bytes], dict[str, pl.DataType]], cut: dict[str, Any], name: str
) -> None:
    found, hive = made
    _, storage = stored(found)
    plan = plan_of(storage, **cut)
    expected = plain.dataset(found, hive)
    assert_frame_equal(pl.concat(collected(storage, plan)), expected)
    query = QUERIES[name]
    if name == "hive only" and not hive:
        return
    pieces, start = [], 0
    for chunk in plan.chunks():
        pieces.append(expected.slice(start, chunk.rows))
        start += chunk.rows
    assert start == expected.height == plan.rows
    assert_frame_equal(pl.concat(collected(storage, plan, query)), plain.mapped(pieces, query))


@settings(max_examples=fewer(25), deadline=None)
@given(made=objects(), cut=cuts(), least=st.integers(0, 40))
def test_the_jobs_filter_takes_rows_away_and_counts_them(
    made: tuple[dict[str, bytes], dict[str, pl.DataType]], cut: dict[str, Any], least: int
) -> None:
    found, hive = made
    _, storage = stored(found)
    terms = ((Term("id", ">=", least),),)
    plan = plan_of(storage, filter=terms, **cut)
    expected = plain.dataset(found, hive).filter(pl.col("id") >= least)
    rows, filtered = [], 0
    for chunk in plan.chunks():
        source = source_of(storage, plan, chunk, row_filter=filter_expr(terms, plan.schema))
        rows.append(source.scan().select(pl.exclude("id")).collect())
        rows.append(source.scan().select("id").collect())
        filtered += source.rows_filtered
        source.close()
    assert plan.rows - filtered == expected.height
    if rows:
        assert_frame_equal(pl.concat(rows[1::2]), expected.select("id"))
        assert_frame_equal(pl.concat(rows[::2]), expected.drop("id"))


def test_named_columns_are_all_that_a_transform_sees() -> None:
    _, storage = stored({"k=1/a.parquet": parquet(10)})
    plan = plan_of(storage)
    [frame] = collected(storage, plan, columns=("text", "id"))
    assert frame.columns == ["text", "id"]


def test_a_source_is_collected_as_often_as_one_likes() -> None:
    _, storage = stored({"a.parquet": parquet(10)})
    plan = plan_of(storage)
    source = source_of(storage, plan, plan.chunk(0))
    first, again = source.scan().collect(), source.scan().collect(engine="streaming")
    both = pl.collect_all([source.scan().head(1), source.scan().select("id")])
    assert_frame_equal(first, again)
    assert_frame_equal(both[1], first.select("id"))
    source.close()
    source.close()


# -- what comes over the network --------------------------------------------------------------


def parquet(rows: int, start: int = 0, group: int = 1 << 20, **wide: int) -> bytes:
    """A file of `id`, `text`, and columns of so many random bytes a row."""
    random = np.random.default_rng(start)
    columns: dict[str, Any] = {"id": range(start, start + rows)}
    columns["text"] = [f"t{i}" for i in range(start, start + rows)]
    columns |= {name: [random.bytes(size) for _ in range(rows)] for name, size in wide.items()}
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, row_group_size=group, use_dictionary=False)
    return sink.getvalue()


def test_only_the_columns_that_are_asked_for_are_read() -> None:
    data = parquet(1000, group=500, big=3000, other=1000)
    _, storage = stored({"a.parquet": data})
    plan = plan_of(storage)
    source = source_of(storage, plan, plan.chunk(0))
    assert source.bytes_read == 0
    assert source.scan().select(pl.len()).collect().item() == 1000
    footer = source.bytes_read
    assert footer <= 64 << 10
    assert source.scan().select("other").collect().height == 1000
    other = source.bytes_read - footer
    assert 1_000_000 < other < 1_100_000
    source.scan().select("other").collect()
    assert source.bytes_read == footer + other  # held here by now
    assert source.columns_read == {"other"} or source.columns_read == {"other", "id"}
    source.scan().filter(pl.col("id") == 3).select("big").collect()
    assert len(data) * 0.95 < source.bytes_read <= len(data) + (2 * sparse_file.GAP_BYTES)
    source.close()


def test_only_the_row_groups_of_the_chunk_are_read() -> None:
    data = parquet(1000, group=250, big=4000)
    _, storage = stored({"a.parquet": data})
    plan = plan_of(storage, max_rows=250)
    assert len(plan) == 4
    for chunk in plan.chunks():
        source = source_of(storage, plan, chunk)
        assert source.scan().select("big").collect().height == 250
        assert 1_000_000 < source.bytes_read < 1_100_000
        source.close()


def test_small_objects_take_one_request() -> None:
    backend, _ = stored({"a.parquet": parquet(100)})
    counted = Faulty(backend, lambda n, name: None)
    storage = Storage({"s3": counted}, AT_ONCE)
    plan = plan_of(storage)
    counted.calls.clear()
    collected(storage, plan)
    assert counted.calls == ["get_ranges"]


def test_small_objects_need_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_source, "SparseFile", None)
    _, storage = stored({f"k={n}/a.parquet": parquet(100, 100 * n) for n in range(3)})
    frames = collected(storage, plan_of(storage))
    assert pl.concat(frames)["id"].to_list() == [*range(300)]


@pytest.mark.parametrize("small", [True, False])
def test_columns_that_an_object_lacks_are_null_in_every_type(
    small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunk_source, "SMALL_BYTES", 1 << 20 if small else 0)
    schema = pl.Schema(
        {
            "list": pl.List(pl.Struct({"a": pl.Int8, "b": pl.Array(pl.Float32, 2)})),
            "enum": pl.Enum(["x", "y"]),
            "category": pl.Categorical(),
            "money": pl.Decimal(38, 3),
            "nothing": pl.Null(),
            "moment": pl.Datetime("ns", "Europe/Berlin"),
            "id": pl.Int64(),
        }
    )
    _, storage = stored({"d=2024-02-29/a.parquet": parquet(5)})
    [chunk] = plan_of(storage).chunks()
    dtypes = pl.Schema({**schema, "d": pl.Date()})
    source = ChunkSource(storage, chunk, dtypes)
    found = source.scan().select("d", *schema).collect()
    source.close()
    day = pl.Series("d", [date(2024, 2, 29)] * 5)
    nulls = [pl.Series(name, [None] * 5, dtype=kind) for name, kind in schema.items()]
    assert_frame_equal(found, pl.DataFrame([day, *nulls[:-1], pl.Series("id", range(5))]))


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def no_descriptor_stays_open(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(chunk_source, "WHOLE_BYTES", 0)  # Whole objects need none.
    pl.LazyFrame({"a": [1]}).collect(engine="streaming")  # its threads are started
    before = descriptors()
    yield
    assert descriptors() == before


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="there is no /proc to look at")
@pytest.mark.usefixtures("no_descriptor_stays_open")
def test_a_closed_source_holds_nothing() -> None:
    _, storage = stored({f"{n}.parquet": parquet(50, 50 * n) for n in range(5)})
    plan = plan_of(storage)
    assert len(plan) == 1
    kept = collected(storage, plan)
    assert kept[0].height == 250


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="there is no /proc to look at")
@pytest.mark.usefixtures("no_descriptor_stays_open")
def test_a_source_that_cannot_be_opened_holds_nothing() -> None:
    backend, storage = stored({f"{n}.parquet": parquet(50, 50 * n) for n in range(5)})
    plan = plan_of(storage)
    backend.put(PREFIX + "3.parquet", parquet(50, 1000))
    for _ in range(3):
        source = source_of(storage, plan, plan.chunk(0))
        with pytest.raises(ObjectChangedError):
            source.prefetch(["id"])
        source.close()


# -- versions ---------------------------------------------------------------------------------


def raised(error: BaseException) -> list[type]:
    """The kinds of an error, its causes and its contexts: Polars wraps what a source raises."""
    seen: BaseException | None = error
    kinds = []
    while seen is not None:
        kinds.append(type(seen))
        seen = seen.__cause__ or seen.__context__
    return kinds


@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize("what", ["changed", "missing", "cut"])
@pytest.mark.usefixtures("in_ranges")
def test_an_object_that_is_not_the_planned_one_is_found_out(what: str, opened: bool) -> None:
    data = parquet(100, group=10)
    backend, storage = stored({"a.parquet": data, "b.parquet": parquet(100, 100)})
    plan = plan_of(storage)
    source = source_of(storage, plan, plan.chunk(0))
    if opened:
        source.prefetch(["id"])  # footer and one column are here already
    uri = PREFIX + "a.parquet"
    if what == "missing":
        backend.delete(uri)
    else:
        backend.put(uri, parquet(100, 5) if what == "changed" else data[: len(data) // 2])
    expected = ObjectMissingError if what == "missing" else ObjectChangedError
    with pytest.raises(Exception) as caught:
        source.scan().collect(engine="streaming")
    assert expected in raised(caught.value)
    source.close()
    fresh = source_of(storage, plan, plan.chunk(0))
    with pytest.raises(expected, match=r"a\.parquet"):
        fresh.prefetch(["id"])
    fresh.close()


def test_a_plan_that_names_other_rows_is_refused() -> None:
    _, storage = stored({"a.parquet": parquet(100, group=50)})
    plan = plan_of(storage)
    chunk = plan.chunk(0)
    fragment = chunk.fragments[0]
    for other in (replace(fragment, rows=99), replace(fragment, row_group_stop=3, rows=150)):
        wrong = replace(chunk, fragments=(other,))
        with pytest.raises(ObjectChangedError):
            source_of(storage, plan, wrong).prefetch(["id"])


@pytest.mark.usefixtures("in_ranges")
def test_a_broken_connection_in_the_middle_of_a_scan_comes_out_as_such() -> None:
    backend, _ = stored({"a.parquet": parquet(100, group=10)})
    storage = Storage({"s3": Faulty(backend, each("get_ranges", 0, None))}, AT_ONCE)
    plan = plan_of(storage)
    broken = Storage({"s3": Faulty(backend, each("get_ranges", 99, "before"))}, AT_ONCE)
    source = source_of(broken, plan, plan.chunk(0))
    with pytest.raises(Exception) as caught:
        source.scan().select("id").collect(engine="streaming")
    assert TransientStorageError in raised(caught.value)
    source.close()
