"""Decoded size as predicted from footers, against what Polars really holds."""

from __future__ import annotations

import io
import random
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from partitioning import PlanRequest, plan_dataset
from tests.support.stores import DictReader

N = 20_000
RANDOM = random.Random(0)
DAY = date(2024, 1, 1)
COLUMNS: dict[str, pa.Array] = {
    "int8": pa.array([i % 100 for i in range(N)], pa.int8()),
    "int64": pa.array(range(N), pa.int64()),
    "constant": pa.array([7] * N, pa.int64()),
    "nullable": pa.array([None if i % 3 else i for i in range(N)], pa.int32()),
    "double": pa.array([RANDOM.random() for _ in range(N)]),
    "bool": pa.array([i % 3 == 0 for i in range(N)]),
    "decimal": pa.array([Decimal(i).scaleb(-2) for i in range(N)], pa.decimal128(12, 2)),
    "date": pa.array([DAY + timedelta(i % 900) for i in range(N)]),
    "time": pa.array([datetime(2024, 1, 1) + timedelta(seconds=i) for i in range(N)]),
    "flag": pa.array(["NY"[i % 2] for i in range(N)]),
    "word": pa.array([f"word-{i % 500:020d}" for i in range(N)]),
    "short": pa.array([f"{RANDOM.getrandbits(32):08x}" for _ in range(N)]),
    "long": pa.array([f"{RANDOM.getrandbits(512):0128x}" for _ in range(N)]),
    "list": pa.array([list(range(i % 7)) for i in range(N)]),
    "struct": pa.array([{"a": i, "b": float(i)} for i in range(N)]),
    "category": pa.array([f"c{i % 9}" for i in range(N)]).dictionary_encode(),
}


def held(frame: pl.DataFrame) -> int:
    """Return the bytes of the distinct buffers behind a frame."""
    found: dict[int, int] = {}
    for column in frame.to_arrow(compat_level=pl.CompatLevel.newest()).columns:
        for chunk in column.chunks:
            found |= {b.address: b.size for b in chunk.buffers() if b is not None}
            if pa.types.is_dictionary(chunk.type):
                found |= {b.address: b.size for b in chunk.dictionary.buffers() if b is not None}
    return sum(found.values())


def predicted(data: bytes) -> int:
    reader = DictReader({"s3://b/a.parquet": data})
    return plan_dataset(PlanRequest("s3://b/a.parquet"), reader).plan.decoded_bytes


@pytest.mark.parametrize("dictionary", [True, False])
@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_as_predicted(name: str, dictionary: bool) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"x": COLUMNS[name]}), sink, use_dictionary=dictionary)
    actual = held(pl.read_parquet(io.BytesIO(sink.getvalue())))
    # Polars drops the validity of a column that turns out to have no nulls: N / 8.
    if (name, dictionary) == ("short", True):  # what a dictionary of short values costs at worst
        assert actual <= predicted(sink.getvalue()) <= 2 * actual
    else:
        assert predicted(sink.getvalue()) == pytest.approx(actual, rel=0.25, abs=N / 8)


@pytest.mark.parametrize("writer", ["polars", "pyarrow"])
def test_a_table_as_predicted(writer: str) -> None:
    table = pa.table({k: v for k, v in COLUMNS.items() if k != "category"})
    sink = io.BytesIO()
    frame: Any = pl.from_arrow(table)
    frame.write_parquet(sink) if writer == "polars" else pq.write_table(table, sink)
    actual = held(pl.read_parquet(io.BytesIO(sink.getvalue())))
    assert predicted(sink.getvalue()) == pytest.approx(actual, rel=0.1)
