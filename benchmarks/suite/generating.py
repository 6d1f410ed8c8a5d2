"""Makes the files of the datasets: the same bytes of rows for the same seed, wherever it runs.

Every function yields (key below the dataset, Parquet file). All of them write plain types that
every peer reads: strings rather than string views, floats rather than decimals, zstd.
"""

from __future__ import annotations

import datetime
import io
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FIRST_WINDOW = datetime.date(1997, 1, 1)
"""First day of `windows`: ten thousand days from then on are all in the past."""
File = tuple[str, bytes]

STATIONS = 412
"""Weather stations of the one-trillion-row challenge."""
KINDS = ("view", "click", "cart", "order", "return")
WORDS = (
    "amber", "birch", "cobalt", "delta", "ember", "fjord",
    "garnet", "harbor", "indigo", "juniper", "kelp", "lagoon",
)  # fmt: skip


def parquet(table: pa.Table, row_group_rows: int) -> bytes:
    """A table as a Parquet file with row groups of this many rows."""
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=row_group_rows, compression="zstd")
    return sink.getvalue()


def tpch(table: str, scale_factor: int, parts: int, row_group_rows: int) -> Iterator[File]:
    """Generate a table of TPC-H with tpchgen-cli, in this many files.

    Its own files hold string views and decimals, which Daft and pandas refuse or turn into
    objects: both are written as plain strings and floats, for all alike.

    Raises:
        RuntimeError: tpchgen-cli is missing or failed.
    """
    beside = Path(sys.executable).parent / "tpchgen-cli"
    tool = str(beside) if beside.exists() else shutil.which("tpchgen-cli")
    if tool is None:
        raise RuntimeError("tpchgen-cli is not installed: pip install 'chunkmap[local]'")
    for part in range(1, parts + 1):
        with tempfile.TemporaryDirectory(prefix="chunkmap-bench-") as folder:
            command = [tool, "parquet", "-s", str(scale_factor), f"--tables={table}", "--quiet"]
            command += [f"--parts={parts}", f"--part={part}", f"--output-dir={folder}"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"tpchgen-cli failed: {done.stderr.strip()}")
            (made,) = Path(folder).rglob("*.parquet")
            plain = plain_types(pq.read_table(made))
        yield f"{table}-{part:04d}.parquet", parquet(plain, row_group_rows)


def plain_types(table: pa.Table) -> pa.Table:
    """The table with strings for string views and floats for decimals, without field ids."""
    fields = []
    for field in table.schema:
        kind = field.type
        if pa.types.is_string_view(kind) or pa.types.is_large_string(kind):
            kind = pa.string()
        elif pa.types.is_decimal(kind):
            kind = pa.float64()
        fields.append(pa.field(field.name, kind))
    return table.cast(pa.schema(fields))


def measurements(files: int, rows: int, row_group_rows: int, seed: int) -> Iterator[File]:
    """The one-trillion-row challenge's shape: station and measure, in equal files."""
    names = pa.array([f"station-{number:03d}" for number in range(STATIONS)])
    warmth = np.random.default_rng(seed).uniform(-10, 30, STATIONS)
    for number in range(files):
        random = np.random.default_rng([seed, number])
        station = random.integers(0, STATIONS, rows, dtype=np.int32)
        measure = np.round(random.normal(warmth[station], 10.0), 1)
        columns = {"station": names.take(pa.array(station)), "measure": pa.array(measure)}
        yield f"measurements-{number:05d}.parquet", parquet(pa.table(columns), row_group_rows)


def events(files: int, rows: int, row_group_rows: int, seed: int) -> Iterator[File]:
    """Events with Zipf keys; the first file is one row group, 50 times the size of the others."""
    for number in range(files):
        count, group = (row_group_rows * 50,) * 2 if number == 0 else (rows, row_group_rows)
        yield f"events-{number:05d}.parquet", parquet(_events(count, [seed, number]), group)


def _events(rows: int, seed: list[int]) -> pa.Table:
    random = np.random.default_rng(seed)
    start = np.datetime64("2024-01-01T00:00:00", "us")
    words = np.array(WORDS)
    text = words[random.integers(0, len(WORDS), (rows, 4))]
    joined = pa.array([" ".join(row) for row in text.tolist()])
    return pa.table(
        {
            "user": np.minimum(random.zipf(1.3, rows), 10**9).astype(np.int64),
            "kind": pa.array(KINDS).take(pa.array(random.integers(0, len(KINDS), rows))),
            "at": start + random.integers(0, 86_400_000_000, rows).astype("timedelta64[us]"),
            "value": np.round(random.exponential(20.0, rows), 2),
            "text": joined,
        }
    )


def small(files: int, rows: int, groups: int, seed: int) -> Iterator[File]:
    """Very many small files, each of some row groups, with an id that counts all rows."""
    for number in range(files):
        yield f"small-{number:06d}.parquet", parquet(_counted(number, rows, seed), rows // groups)


def windows(days: int, rows: int, seed: int) -> Iterator[File]:
    """Very many Hive partitions, one a day, each of one small file, with an id that counts."""
    for number in range(days):
        day = FIRST_WINDOW + datetime.timedelta(days=number)
        yield f"day={day}/part.parquet", parquet(_counted(number, rows, seed), rows)


def _counted(number: int, rows: int, seed: int) -> pa.Table:
    values = np.random.default_rng([seed, number]).random(rows)
    return pa.table({"id": np.arange(rows) + number * rows, "value": values})


def wide(files: int, rows: int, row_group_rows: int, seed: int) -> Iterator[File]:
    """A hundred columns: an id, 89 floats, five lists and five structs."""
    for number in range(files):
        random = np.random.default_rng([seed, number])
        columns: dict[str, pa.Array] = {"id": pa.array(np.arange(rows) + number * rows)}
        for column in range(89):
            columns[f"f{column:02d}"] = pa.array(random.random(rows))
        offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * 3)
        for column in range(5):
            values = pa.array(random.integers(0, 1000, rows * 3))
            columns[f"list{column}"] = pa.ListArray.from_arrays(offsets, values)
        for column in range(5):
            parts = [pa.array(random.integers(0, 100, rows)), pa.array(random.random(rows))]
            columns[f"struct{column}"] = pa.StructArray.from_arrays(parts, ["count", "score"])
        yield f"wide-{number:05d}.parquet", parquet(pa.table(columns), row_group_rows)


def daily(days: int, rows: int, seed: int) -> Iterator[File]:
    """One Hive partition a day from 2022-01-01 on, each of one file."""
    first = datetime.date(2022, 1, 1)
    for number in range(days):
        day = first + datetime.timedelta(days=number)
        yield f"day={day}/events.parquet", parquet(_events(rows, [seed, number]), rows)


def row_groups(files: int, groups: int, rows: int, seed: int) -> Iterator[File]:
    """A few files of very many small row groups: the cheapest way to very many chunks."""
    for number in range(files):
        random = np.random.default_rng([seed, number])
        count = groups * rows
        columns = {"id": np.arange(count) + number * count, "value": random.random(count)}
        yield f"groups-{number:04d}.parquet", parquet(pa.table(columns), rows)


lineitem = partial(tpch, "lineitem", row_group_rows=250_000)
orders = partial(tpch, "orders", row_group_rows=250_000)
supplier = partial(tpch, "supplier", row_group_rows=100_000)
