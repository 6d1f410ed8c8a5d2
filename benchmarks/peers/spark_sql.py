"""PySpark: spark.read.parquet, DataFrame functions, write.parquet on local[cores].

Spark's own S3 client (hadoop-aws and the AWS SDK) is not on PyPI, and this benchmark installs
nothing from anywhere else. So the objects are copied to a local folder first and the results
afterwards to S3, both by pyarrow with many transfers at a time, and both count as work; what they
took is reported as `copy_seconds`. On this kind of data that is kinder to Spark than its own client
would be, and it keeps Spark's own Parquet reader and writer.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pyarrow import fs
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from benchmarks.peers.protocol import Spec, main, s3

THREADS = 8


def start(spec: Spec) -> SparkSession:
    """A session of this process, with half the memory of a small machine."""
    session: SparkSession = (
        SparkSession.builder.master(f"local[{spec.cores}]")
        .appName("benchmark")
        .config("spark.driver.memory", "4g")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.ui.enabled", "false")
        .config("spark.sql.parquet.compression.codec", "zstd")
        .config("spark.sql.parquet.inferTimestampNTZ.enabled", "true")
        .getOrCreate()
    )
    session.sparkContext.setLogLevel("ERROR")
    return session


def row_map(frame: Any) -> Any:
    """Revenue and charge of each line."""
    net = F.col("l_extendedprice") * (1 - F.col("l_discount"))
    return frame.select(
        "l_orderkey",
        "l_linenumber",
        "l_suppkey",
        "l_shipdate",
        net.alias("revenue"),
        (net * (1 + F.col("l_tax"))).alias("charge"),
        F.lit("EUR").alias("currency"),
    )


def by_month(frame: Any) -> Any:
    """The same, with the month."""
    return row_map(frame).withColumn("month", F.date_format("l_shipdate", "yyyy-MM"))


def with_measures(frame: Any) -> Any:
    """All columns, and three more."""
    net = F.col("l_extendedprice") * (1 - F.col("l_discount"))
    return frame.select(
        "*",
        net.alias("revenue"),
        (net * (1 + F.col("l_tax"))).alias("charge"),
        F.date_format("l_shipdate", "yyyy-MM").alias("month"),
    )


def few_rows(frame: Any) -> Any:
    """A filter that keeps little."""
    kept = frame.where(
        (F.col("l_quantity") == 1) & (F.col("l_discount") >= 0.09) & (F.col("l_shipmode") == "RAIL")
    )
    return kept.select("l_orderkey", "l_linenumber", "l_shipdate", "l_extendedprice", "l_comment")


def strings(frame: Any) -> Any:
    """Five functions of strings."""
    comment = F.col("l_comment")
    return frame.select(
        "l_orderkey",
        "l_linenumber",
        F.upper(comment).alias("loud"),
        F.length(comment).alias("letters"),
        F.contains(comment, F.lit("special")).alias("special"),
        F.replace(comment, F.lit("express"), F.lit("*******")).alias("masked"),
        F.concat_ws("/", "l_shipmode", "l_shipinstruct").alias("mode"),
    )


QUERIES = {
    "row-map": row_map,
    "partition-by": by_month,
    "add-columns": with_measures,
    "few-rows": few_rows,
    "strings": strings,
}


def write(session: SparkSession, spec: Spec, output: str) -> dict[str, Any]:
    """Copy in, map, copy out."""
    store = fs.S3FileSystem(**s3().arrow())
    folder = Path(tempfile.mkdtemp(prefix="chunkmap-bench-spark-"))
    try:
        clock = time.perf_counter()
        selector = fs.FileSelector(spec.input.removeprefix("s3://"), recursive=True)
        sources = [info for info in store.get_file_info(selector) if info.is_file]
        (folder / "in").mkdir()
        _copy([(store, info.path, str(folder / "in" / Path(info.path).name)) for info in sources])
        copied = time.perf_counter() - clock
        frame = session.read.parquet(str(folder / "in"))
        writer = QUERIES[spec.workload](frame).write.partitionBy(*spec.keys)
        writer.parquet(str(folder / "out"))
        clock = time.perf_counter()
        made = sorted((folder / "out").rglob("*.parquet"))
        target = output.removeprefix("s3://")
        names = [path.relative_to(folder / "out").as_posix() for path in made]
        pairs = zip(made, names, strict=True)
        _copy([(None, str(path), target + name) for path, name in pairs], store)
        return {"copy_seconds": copied + time.perf_counter() - clock, "files": len(made)}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _copy(files: list[tuple[Any, str, str]], target: Any = None) -> None:
    local = fs.LocalFileSystem()

    def copy(file: tuple[Any, str, str]) -> None:
        source, path, to = file
        fs.copy_files(
            path,
            to,
            source_filesystem=source or local,
            destination_filesystem=target or local,
            use_threads=False,
        )

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(copy, files))


def stop(session: SparkSession) -> None:
    """End the JVM."""
    session.stop()


if __name__ == "__main__":
    main(start, dict.fromkeys(QUERIES, write), stop, ("pyspark", "pyarrow"))
