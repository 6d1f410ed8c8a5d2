"""Read results with every Parquet reader that some Python interpreters can import, and compare.

    python -m tests.fuzz.readers /tmp/readers/bin/python …

The interpreters need pyarrow, and any of duckdb, daft, datafusion, fastparquet, polars and pyspark.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import polars as pl

from partitioning.footer_columns import FooterEdit
from pipeline.runs.worker.encoding import (
    MIN_ROWS,
    Compression,
    FileFormat,
    encodings_text,
    write_parquet,
)
from pipeline.runs.worker.slices import split
from tests.runs.worker.test_encoding import line_items
from tests.support.parquet_file import composed, written

SCRIPT = r"""
import sys
import pyarrow.parquet as pq

def as_texts(frame):
    return {name: [str(value) for value in frame[name]] for name in sorted(frame.columns)}

def pairs(frame):
    return sorted((int(row), "null" if value in (None, "None") or value != value else str(value))
                  for row, value in zip(frame["row"], frame["text"]))

def spark(path):
    import pyspark
    from pyspark.sql import SparkSession
    names = {"spark.ui.enabled": "false", "spark.driver.host": "127.0.0.1",
             "spark.driver.bindAddress": "127.0.0.1", "spark.sql.session.timeZone": "UTC",
             "spark.sql.sources.partitionColumnTypeInference.enabled": "false",
             "spark.sql.files.maxPartitionBytes": "30000"}  # Many splits of one file.
    builder = SparkSession.builder.master("local[1]")
    for name, value in names.items():
        builder = builder.config(name, value)
    return f"pyspark {pyspark.__version__}", builder.getOrCreate().read.parquet(path).toPandas()

def polars(path):
    import os, polars
    types = {"hive_schema": {"text": polars.String}} if os.path.isdir(path) else {}
    return f"polars {polars.__version__}", polars.read_parquet(path, **types).to_pandas()

def duckdb(path):
    import duckdb, os
    if os.path.isdir(path):
        path += "/**/*.parquet', hive_types = {'text': VARCHAR}, hive_partitioning = 'true"
    found = duckdb.sql(f"select * from read_parquet('{path}')")
    return f"duckdb {duckdb.__version__}", found.df()

def pyarrow(path):
    import pyarrow, pyarrow.dataset as ds
    types = ds.HivePartitioning(pyarrow.schema({"text": pyarrow.string()}))
    table = ds.dataset(path, partitioning=types).to_table()
    return f"pyarrow {pyarrow.__version__}", table.to_pandas()

def daft(path):
    import daft
    return f"daft {daft.__version__}", daft.read_parquet(path).to_pandas()

def datafusion(path):
    import datafusion
    context = datafusion.SessionContext()
    return f"datafusion {datafusion.__version__}", context.read_parquet(path).to_pandas()

def fastparquet(path):
    import fastparquet
    return f"fastparquet {fastparquet.__version__}", fastparquet.ParquetFile(path).to_pandas()

path, plain, layout, whole, kept = sys.argv[1:]
whole_frame = pq.read_table(plain).to_pandas()
in_order, by_wide = as_texts(whole_frame), as_texts(whole_frame.sort_values("wide"))
failed = False
readers = (polars, duckdb, daft, datafusion, fastparquet, spark)
for read, path in [(read, file) for read in readers for file in (path, kept)]:
    try:
        name, frame = read(path)
    except ImportError:
        continue
    if path == kept:
        # Spark reads the splits of a file in any order.
        name, frame = f"{name}, kept columns", frame.sort_values("wide")
    found, expected = as_texts(frame), by_wide if path == kept else in_order
    for column in [c for c in expected if str(expected[c][0]).count("-") == 2]:
        found[column] = [text[:10] for text in found[column]]
    wrong = [column for column in expected if found.get(column) != expected[column]]
    print(f"{name}: " + (f"differs in {', '.join(wrong)}" if wrong else "equal"))
    failed = failed or bool(wrong)
texts = pairs(pq.read_table(whole).to_pandas())
for read in (polars, duckdb, pyarrow, spark):
    try:
        name, frame = read(layout)
    except ImportError:
        continue
    wrong = pairs(frame) != texts
    print(f"{name}: partitions " + ("differ" if wrong else "equal"))
    failed = failed or wrong
sys.exit(failed)
"""
TEXTS = [
    *(
        "a/b",
        "c=d",
        "100%",
        "ä €",
        "x y+z",
        "..",
        "\t\n",
        "%2F",
        "'\"\\",
        "#?&:*[]{}",
        "007",
        "日本",
    ),
    *("2024-01-01", "true", "\x7f\x01", "null", "a.b~c-d_e", "ﬀ", None),
]
"""Values of a partition column that readers could take for others."""


def frame_of_every_choice() -> pl.DataFrame:
    """Columns that are written in each of the ways there are, with nulls in some."""
    frame = line_items(2 * MIN_ROWS)
    rows = pl.int_range(pl.len())
    return frame.with_columns(
        key_or_null=pl.when(rows % 7 > 0).then("key"),
        small=(rows % 5).cast(pl.Int8),
        falling=-rows.cast(pl.Int32),
        rate_or_null=pl.when(rows % 3 > 0).then("rate"),
        real=pl.col("amount").cast(pl.Float32),
    ).with_columns(pl.col("key_or_null", "rate_or_null").cast(pl.Float64))


def with_kept_columns(frame: pl.DataFrame) -> bytes:
    """Write a file whose first columns are those of an older one, in many row groups."""
    names, counts = frame.columns, [frame.height // 16] * 15
    counts.append(frame.height - sum(counts))
    half = len(names) // 2
    old = frame.select(names[:half]).to_arrow(compat_level=pl.CompatLevel.oldest())
    new = frame.select(names[half:]).to_arrow(compat_level=pl.CompatLevel.oldest())
    file = written(old, counts, write_page_index=True)
    return composed(file, written(new, counts), FooterEdit(tuple(names[:half])))


def write_layout(folder: Path) -> pl.DataFrame:
    """Write rows into Hive folders as a run does; return them."""
    frame = pl.DataFrame({"row": range(3 * len(TEXTS)), "text": TEXTS * 3})
    for below, rows in split(frame, ["text"], len(TEXTS)):
        (folder / below).mkdir(parents=True)
        data, _ = write_parquet(rows, FileFormat(Compression("zstd")))
        (folder / below / "part.parquet").write_bytes(data)
    return frame


def main() -> int:
    """Compare; return 1 if a reader differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("python", nargs="+", help="interpreters with the readers")
    frame = frame_of_every_choice()
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        path, plain = Path(folder, "auto.parquet"), Path(folder, "plain.parquet")
        data, chosen = write_parquet(frame, FileFormat(Compression("zstd")))
        path.write_bytes(data)
        frame.write_parquet(plain, use_pyarrow=True)
        print(encodings_text(chosen))
        layout, whole = Path(folder, "layout"), Path(folder, "whole.parquet")
        write_layout(layout).write_parquet(whole, use_pyarrow=True)
        kept = Path(folder, "kept.parquet")
        kept.write_bytes(with_kept_columns(frame))
        files = [path, plain, layout, whole, kept]
        for python in parser.parse_args().python:
            failed |= subprocess.run([python, "-c", SCRIPT, *files], check=False).returncode
    return failed


if __name__ == "__main__":
    sys.exit(main())
