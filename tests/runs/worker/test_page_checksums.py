"""Damaged pages: read as they are by default, and refused by name where the job asks for it."""

from __future__ import annotations

import io

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from partitioning import Chunk, PlanRequest, plan_dataset
from pipeline.errors import UnreadableObjectError
from pipeline.runs.transforms.loading import Transform
from pipeline.runs.worker.chunk import apply
from pipeline.runs.worker.chunk_source import WHOLE_BYTES, ChunkSource, ReadOptions
from pipeline.storage import Storage, StorageReader
from tests.support.memory_storage import MemoryBackend
from tests.support.runs_by_hand import job_of

URI = "s3://b/t/a.parquet"
GROUPS, BAD = 3, 1


def written(rows: int, *, checksums: bool = True, version: str = "1.0", dictionary: bool) -> bytes:
    """Three row groups of two columns, and a nested one."""
    numbers = np.arange(rows, dtype=np.int64)
    rng = np.random.default_rng(1)
    table = pa.table(
        {
            "a": rng.integers(0, 50, rows) if dictionary else numbers,
            "b": numbers,
            "s": pa.array([{"x": int(n), "y": [int(n)]} for n in numbers]),
        }
    )
    sink = io.BytesIO()
    pq.write_table(
        table,
        sink,
        row_group_size=-(-rows // GROUPS),
        compression="none",
        use_dictionary=["a"] if dictionary else False,
        data_page_version=version,
        write_page_checksum=checksums,
        write_statistics=False,
    )
    return sink.getvalue()


def damaged(data: bytes, leaf: int) -> bytes:
    """Another value in the last page of a column in the second row group."""
    column = pq.read_metadata(io.BytesIO(data)).row_group(BAD).column(leaf)
    start = column.dictionary_page_offset or column.data_page_offset
    at = start + column.total_compressed_size - 8
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)


def read(data: bytes, columns: list[str], *, verified: bool) -> pl.DataFrame:
    backend = MemoryBackend()
    backend.put(URI, data)
    storage = Storage({"s3": backend})
    plan = plan_dataset(PlanRequest("s3://b/t/"), StorageReader(storage)).plan
    chunk: Chunk = plan.chunk(0)
    options = ReadOptions(verify_checksums=verified)
    source = ChunkSource(storage, chunk, plan.dtypes, options=options)
    transform = Transform("m:f", "code", lambda frame: frame.select(columns))
    try:
        return apply(transform, source.scan())
    finally:
        source.close()


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("rows", [300, 60_000])
@pytest.mark.parametrize("dictionary", [False, True])
def test_a_damaged_page_is_named_and_nothing_of_it_is_read(
    rows: int, version: str, dictionary: bool
) -> None:
    good = written(rows, version=version, dictionary=dictionary)
    assert (len(good) > WHOLE_BYTES) == (rows > 300), "whole, and by ranges"
    bad = damaged(good, 1)
    sound = read(good, ["a", "b", "s"], verified=True)
    assert sound.height == rows
    # Without being asked nobody notices, which is what this is for.
    assert read(bad, ["b"], verified=False).height == rows
    with pytest.raises(UnreadableObjectError) as caught:
        read(bad, ["b"], verified=True)
    assert f"{URI} cannot be read: row group {BAD}, column b" in str(caught.value)
    # What is not read is not looked at.
    assert read(bad, ["a", "s"], verified=True).equals(sound.select("a", "s"))


def test_a_damaged_page_of_a_dictionary_or_of_a_nested_column() -> None:
    good = written(300, dictionary=True)
    for leaf, column in ((0, "a"), (2, "s.x"), (3, "s.y")):
        with pytest.raises(UnreadableObjectError, match=f"row group {BAD}, column {column}"):
            read(damaged(good, leaf), ["a", "s"], verified=True)


def test_pages_without_checksums_pass() -> None:
    data = written(300, checksums=False, dictionary=False)
    assert read(data, ["a", "b"], verified=True).height == 300


def test_a_job_asks_for_it_and_says_nothing_of_it_otherwise() -> None:
    assert not job_of().input.verify_checksums
    assert "verify_checksums" not in job_of().to_yaml()
    asked = job_of(input={"uri": "s3://in/t/", "verify_checksums": True})
    assert "verify_checksums: true" in asked.to_yaml()
