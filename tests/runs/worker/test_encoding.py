"""Encodings that are chosen for a result's columns."""

from __future__ import annotations

import io
import weakref
from collections.abc import Iterator
from dataclasses import replace
from datetime import date, timedelta
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from polars.testing.parametric import column, dataframes

from partitioning.page_rows import _HEADER
from partitioning.thrift import read_struct
from pipeline.errors import TransformError
from pipeline.runs.worker import encoding
from pipeline.runs.worker.encoding import (
    MIN_ROWS,
    Compression,
    FileFormat,
    can_choose,
    choose_encodings,
    encodings_text,
    refuse_objects,
    write_frames,
    write_parquet,
)
from tests.support.examples import fewer

ROWS = 2 * MIN_ROWS
ZSTD = FileFormat(Compression("zstd"))
DEFAULTS = replace(ZSTD, chooses=False)
FLAT: list[Any] = [
    *(pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64),
    *(pl.Float32, pl.Float64, pl.Boolean, pl.String, pl.Binary, pl.Date),
    *(pl.Datetime("ms"), pl.Datetime("us"), pl.Datetime("ns"), pl.Datetime("us", "Europe/Berlin")),
]


def line_items(rows: int = ROWS) -> pl.DataFrame:
    """Columns for which different encodings pay."""
    rng = np.random.default_rng(7)
    day = date(2024, 1, 1)
    return pl.DataFrame(
        {
            "key": np.sort(rng.integers(1, 1 << 28, rows)),
            "wide": rng.integers(-(1 << 62), 1 << 62, rows),
            "amount": rng.random(rows),
            "rate": rng.integers(0, 11, rows) / 100,
            "currency": pl.Series(["EUR", "USD"]).gather(rng.integers(0, 2, rows)),
            "comment": [f"{number:x}" for number in rng.integers(0, 1 << 60, rows)],
            "day": [day + timedelta(days=int(number)) for number in rng.integers(0, 900, rows)],
            "flag": rng.random(rows) < 0.5,
        }
    )


def encodings_of(data: memoryview, index: int, group: int = 0) -> set[str]:
    """Encodings of the data pages of a column, without those of levels and dictionaries."""
    chunk = pq.read_metadata(io.BytesIO(data)).row_group(group).column(index)
    return set(chunk.encodings) - {"RLE", "BIT_PACKED"}


def test_each_column_gets_what_pays() -> None:
    frame = line_items()
    data, chosen = write_parquet(frame, ZSTD)
    assert {name: how.encoding for name, how in chosen.items()} == {
        "key": "delta",
        "wide": "plain",
        "amount": "plain",
        "rate": "dictionary",
        "currency": "dictionary",
        "comment": "plain",
        "day": chosen["day"].encoding,
        "flag": "plain",
    }
    assert chosen["day"].encoding in ("delta", "dictionary")
    assert encodings_of(data, 0) == {"DELTA_BINARY_PACKED"}
    assert encodings_of(data, 1) == {"PLAIN"}
    assert "RLE_DICTIONARY" in encodings_of(data, 3)
    assert len(data) < len(write_parquet(frame, DEFAULTS)[0])
    assert_frame_equal(pl.read_parquet(io.BytesIO(data)), frame)


def test_the_same_frame_is_written_as_the_same_bytes() -> None:
    assert write_parquet(line_items(), ZSTD)[0] == write_parquet(line_items(), ZSTD)[0]


@settings(deadline=None, max_examples=fewer(40))
@given(
    st.sampled_from(FLAT).flatmap(
        lambda dtype: dataframes(
            [column("values", dtype=dtype, allow_null=True)], min_size=1, max_size=60
        )
    ),
    st.booleans(),
)
def test_any_values_are_read_back(few: pl.DataFrame, is_sorted: bool) -> None:
    frame = pl.concat([few] * (MIN_ROWS // few.height + 1))
    frame = frame.sort("values") if is_sorted else frame
    assert can_choose(frame)
    data, chosen = write_parquet(frame, ZSTD)
    assert list(chosen) == ["values"]
    assert_frame_equal(pl.read_parquet(io.BytesIO(data)), frame)
    assert_frame_equal(pl.DataFrame(pl.from_arrow(pq.read_table(io.BytesIO(data)))), frame)


@pytest.mark.parametrize(
    "values",
    [
        pl.Series([[1, 2]], dtype=pl.List(pl.Int64)),
        pl.Series([{"a": 1}]),
        pl.Series(["x"], dtype=pl.Categorical),
        pl.Series(["x"], dtype=pl.Enum(["x"])),
        pl.Series([timedelta(1)]),
        pl.Series([1], dtype=pl.Int128),
        pl.Series([None], dtype=pl.Null),
        pl.Series(["1.5"]).str.to_decimal(scale=1),
    ],
    ids=str,
)
def test_other_types_are_written_by_polars(values: pl.Series) -> None:
    frame = pl.DataFrame({"values": pl.concat([values] * ROWS, rechunk=True)})
    data, chosen = write_parquet(frame, ZSTD)
    assert not chosen
    assert data == write_parquet(frame, DEFAULTS)[0]
    assert_frame_equal(pl.read_parquet(io.BytesIO(data)), frame)


@pytest.mark.parametrize(
    "kind",
    [
        pl.Object(),
        pl.List(pl.Object()),
        pl.Array(pl.Object(), 2),
        pl.Struct({"a": pl.Int8(), "b": pl.List(pl.Struct({"c": pl.Object()}))}),
    ],
    ids=str,
)
def test_python_objects_are_refused(kind: pl.DataType) -> None:
    with pytest.raises(TransformError, match="column 'o' has Python objects"):
        refuse_objects(pl.Schema({"n": pl.List(pl.Int64()), "o": kind}))


def test_small_frames_are_written_by_polars() -> None:
    frame = line_items(MIN_ROWS - 1)
    data, chosen = write_parquet(frame, ZSTD)
    assert not chosen
    assert data == write_parquet(frame, replace(DEFAULTS, compression=Compression("zstd", 1)))[0]
    assert len(data) < 1.1 * len(write_parquet(frame, DEFAULTS)[0])
    named = replace(ZSTD, compression=Compression("zstd", 3))
    assert write_parquet(frame, named)[0] == write_parquet(frame, DEFAULTS)[0]


def test_differences_of_more_than_32_bits_are_not_delta_encoded() -> None:
    """fastparquet decodes them to wrong values."""
    edge = encoding.MAX_DELTA_RANGE
    steps = pl.col("narrow")
    frame = pl.DataFrame({"narrow": range(ROWS)}).with_columns(
        one_step=pl.when(steps < ROWS // 2).then(steps).otherwise(steps + edge),
        unsigned=steps.cast(pl.UInt32),
        moment=(steps * 86_400_000_000).cast(pl.Datetime("us")),
    )
    chosen = choose_encodings(frame, ZSTD.compression)
    assert chosen["narrow"].encoding == "delta"
    assert {chosen[name].encoding for name in ("one_step", "unsigned", "moment")} <= {
        *("plain", "dictionary")
    }


def test_wide_differences_of_later_row_groups_are_not_delta_encoded() -> None:
    """The first row group chooses, and fastparquet reads all of them."""
    steps, group = pl.col("narrow"), pl.col("narrow") // ROWS
    frame = pl.DataFrame({"narrow": range(3 * ROWS)}).with_columns(
        second=pl.when(group == 1).then(steps * 2**20).otherwise(steps),
        third=pl.when(group == 2).then(steps * 2**20).otherwise(steps),
        moment=pl.when(group == 2).then(steps * 2**20).otherwise(steps).cast(pl.Datetime("us")),
        between=steps + group * 2**40,
    )
    how = replace(ZSTD, row_group_rows=ROWS)
    first = how.choose(frame[:ROWS])
    assert {column.encoding for column in first.values()} == {"delta"}
    data, chosen = write_frames(frame.iter_slices(7_000), how)
    delta = {name for name, column in chosen.items() if column.encoding == "delta"}
    assert delta == {"narrow", "between"}, "no row group of `between` is wide"
    for number in range(3):
        for at, name in enumerate(frame.columns):
            used = {"DELTA_BINARY_PACKED"} if name in delta else {"PLAIN"}
            assert encodings_of(data, at, number) == used
    assert_frame_equal(pl.read_parquet(io.BytesIO(data)), frame)
    again, _ = write_frames(frame.iter_slices(ROWS), how)
    assert bytes(again) == bytes(data), "how frames are cut matters"


@pytest.mark.parametrize(
    ("text", "codec"),
    [("zstd", "ZSTD"), ("zstd:9", "ZSTD"), ("snappy", "SNAPPY"), ("gzip:1", "GZIP"),
     ("lz4", "LZ4"), ("brotli", "BROTLI"), ("uncompressed", "UNCOMPRESSED")],
)  # fmt: skip
def test_every_codec(text: str, codec: str) -> None:
    frame = line_items()
    data, chosen = write_parquet(frame, FileFormat(Compression.parse(text)))
    file = pq.read_metadata(io.BytesIO(data))
    assert file.row_group(0).column(0).compression == codec
    assert len({how.level for how in chosen.values()}) <= (2 if text == "zstd" else 1)
    assert_frame_equal(pl.read_parquet(io.BytesIO(data)), frame)


def test_row_groups_have_the_rows_that_are_asked_for() -> None:
    data, chosen = write_parquet(line_items(), replace(ZSTD, row_group_rows=10_000))
    assert chosen
    groups = pq.read_metadata(io.BytesIO(data))
    assert groups.row_group(0).num_rows == 10_000
    assert groups.num_row_groups == -(-ROWS // 10_000)


def test_the_description_is_short() -> None:
    how = encoding.ColumnEncoding("plain", 1)
    assert (
        encodings_text({"a": how, "b": how._replace(encoding="delta")}) == "delta:1: b; plain:1: a"
    )
    assert len(encodings_text({f"column {i}": how for i in range(500)})) == encoding.MAX_TEXT


@pytest.mark.parametrize("rows", [ROWS, MIN_ROWS - 1])
def test_row_groups_have_the_bytes_that_are_asked_for(rows: int) -> None:
    frame = line_items(rows)
    size = frame.to_arrow(compat_level=encoding.OLDEST).nbytes
    data, _ = write_parquet(frame, replace(ZSTD, row_group_bytes=size // 4))
    assert pq.read_metadata(io.BytesIO(data)).num_row_groups in (4, 5)
    tight = replace(ZSTD, row_group_bytes=size // 4, row_group_rows=rows // 10)
    data, _ = write_parquet(frame, tight)
    assert pq.read_metadata(io.BytesIO(data)).num_row_groups in (10, 11)
    assert write_parquet(frame.head(0), tight)[0]


@pytest.mark.parametrize("chooses", [True, False])
@pytest.mark.parametrize("rows", [ROWS, 100])
def test_columns_have_the_dictionaries_that_are_asked_for(chooses: bool, rows: int) -> None:
    frame = line_items(rows)
    how = replace(ZSTD, chooses=chooses, dictionary=("comment", "key"))
    data, _ = write_parquet(frame, how)
    group = pq.read_metadata(io.BytesIO(data)).row_group(0)
    columns = [group.column(at) for at in range(frame.width)]
    named = {c.path_in_schema for c in columns if c.dictionary_page_offset is not None}
    assert named == {"comment", "key"}
    assert_frame_equal(pl.read_parquet(io.BytesIO(data)), frame)


@pytest.mark.parametrize("rows", [ROWS, 100])
def test_a_page_index_is_written_where_it_is_asked_for(rows: int) -> None:
    frame = line_items(rows)
    data, _ = write_parquet(frame, replace(ZSTD, page_index=True))
    column_chunk = pq.read_metadata(io.BytesIO(data)).row_group(0).column(0)
    assert column_chunk.has_offset_index and column_chunk.has_column_index
    assert_frame_equal(pl.read_parquet(io.BytesIO(data)), frame)


def test_a_row_group_has_one_page_unless_an_index_lets_readers_skip_pages() -> None:
    pages = {}
    for has_index in (False, True):
        data, _ = write_parquet(line_items(), replace(ZSTD, page_index=has_index))
        wide = pq.read_metadata(io.BytesIO(data)).row_group(0).column(1)
        start, pages[has_index] = wide.data_page_offset, 0
        while start < wide.data_page_offset + wide.total_compressed_size:
            header, size = read_struct(bytes(data[start : start + 200]), 0, _HEADER)
            start, pages[has_index] = start + size + header[3], pages[has_index] + 1
    assert pages == {False: 1, True: 4}


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    ("how", "groups"),
    [
        (ZSTD, 1),
        (replace(ZSTD, row_group_rows=40_000), 2),
        (replace(ZSTD, row_group_rows=10_000, page_index=True), 7),
        (replace(ZSTD, row_group_rows=7_000, dictionary=("key",)), 10),
        (replace(DEFAULTS, row_group_rows=50_000), 2),
    ],
)
def test_frames_are_written_as_one_file(how: FileFormat, groups: int, nested: bool) -> None:
    frame = line_items()
    if nested:
        frame = frame.select("key", pl.concat_list("amount", "rate").alias("both"))
        how = replace(how, dictionary=None)
    cuts = [0, 1, 1, 9_000, 33_000, 33_001, frame.height]
    parts = (frame[start:stop] for start, stop in pairwise(cuts))
    data, _ = write_frames(parts, how)
    file = pq.read_metadata(io.BytesIO(data))
    assert_frame_equal(pl.read_parquet(io.BytesIO(data)), frame)
    if not nested:  # Polars' writer, which writes nested columns, makes groups of equal size.
        assert file.num_row_groups == groups
    again, _ = write_frames(frame.iter_slices(5_000), how)
    assert bytes(again) == bytes(data), "how frames are cut matters"


def test_of_flat_frames_one_row_group_is_in_memory() -> None:
    """Frames are taken as they are needed, and those of written row groups are let go."""
    frame, alive = line_items(), list[weakref.ref[pl.DataFrame]]()
    most = 0

    def parts() -> Iterator[pl.DataFrame]:
        nonlocal most
        for part in frame.iter_slices(2_000):
            alive.append(weakref.ref(part))
            most = max(most, sum(known() is not None for known in alive))
            yield part
            del part

    write_frames(parts(), replace(ZSTD, row_group_rows=8_000))
    assert most <= 8, f"{most} frames of a quarter of a row group were alive"
