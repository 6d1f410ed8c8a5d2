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

from pipeline.runs.worker.encoding import (
    MIN_ROWS,
    Compression,
    FileFormat,
    encodings_text,
    write_parquet,
)
from tests.runs.worker.test_encoding import line_items

SCRIPT = r"""
import sys
import pyarrow.parquet as pq

def as_texts(frame):
    return {name: [str(value) for value in frame[name]] for name in sorted(frame.columns)}

def spark(path):
    import pyspark
    from pyspark.sql import SparkSession
    names = {"spark.ui.enabled": "false", "spark.driver.host": "127.0.0.1",
             "spark.driver.bindAddress": "127.0.0.1", "spark.sql.session.timeZone": "UTC"}
    builder = SparkSession.builder.master("local[1]")
    for name, value in names.items():
        builder = builder.config(name, value)
    return f"pyspark {pyspark.__version__}", builder.getOrCreate().read.parquet(path).toPandas()

def polars(path):
    import polars
    return f"polars {polars.__version__}", polars.read_parquet(path).to_pandas()

def duckdb(path):
    import duckdb
    return f"duckdb {duckdb.__version__}", duckdb.sql(f"select * from '{path}'").df()

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

path, plain = sys.argv[1:]
expected = as_texts(pq.read_table(plain).to_pandas())
for read in (polars, duckdb, daft, datafusion, fastparquet, spark):
    try:
        name, frame = read(path)
    except ImportError:
        continue
    found = as_texts(frame)
    for column in [c for c in expected if str(expected[c][0]).count("-") == 2]:
        found[column] = [text[:10] for text in found[column]]
    wrong = [column for column in expected if found.get(column) != expected[column]]
    print(f"{name}: " + (f"differs in {', '.join(wrong)}" if wrong else "equal"))
    failed = globals().get("failed", False) or bool(wrong)
sys.exit(failed)
"""


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
        for python in parser.parse_args().python:
            failed |= subprocess.run([python, "-c", SCRIPT, path, plain], check=False).returncode
    return failed


if __name__ == "__main__":
    sys.exit(main())
