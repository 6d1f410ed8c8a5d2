"""Daft: read_parquet, expressions, write_parquet on its native runner, as its quickstart does."""

from __future__ import annotations

from typing import Any

import daft
from daft import col, lit
from daft.io import IOConfig, S3Config

from benchmarks.peers.protocol import Spec, main, own_cpu, s3


def start(spec: Spec) -> IOConfig:
    """Choose the runner, and say where S3 is."""
    where = s3()
    daft.set_runner_native(num_threads=spec.cores)
    return IOConfig(
        s3=S3Config(
            endpoint_url=where.endpoint,
            key_id=where.key,
            access_key=where.secret,
            region_name=where.region,
            use_ssl=where.endpoint.startswith("https"),
        )
    )


def row_map(frame: Any) -> Any:
    """Revenue and charge of each line."""
    net = col("l_extendedprice") * (lit(1) - col("l_discount"))
    return frame.select(
        "l_orderkey",
        "l_linenumber",
        "l_suppkey",
        "l_shipdate",
        net.alias("revenue"),
        (net * (lit(1) + col("l_tax"))).alias("charge"),
        lit("EUR").alias("currency"),
    )


def by_month(frame: Any) -> Any:
    """The same, with the month."""
    return row_map(frame).with_column("month", col("l_shipdate").strftime("%Y-%m"))


def with_measures(frame: Any) -> Any:
    """All columns, and three more."""
    net = col("l_extendedprice") * (lit(1) - col("l_discount"))
    return frame.with_columns(
        {
            "revenue": net,
            "charge": net * (lit(1) + col("l_tax")),
            "month": col("l_shipdate").strftime("%Y-%m"),
        }
    )


def few_rows(frame: Any) -> Any:
    """A filter that keeps little."""
    return frame.where(
        (col("l_quantity") == 1) & (col("l_discount") >= 0.09) & (col("l_shipmode") == "RAIL")
    ).select("l_orderkey", "l_linenumber", "l_shipdate", "l_extendedprice", "l_comment")


def strings(frame: Any) -> Any:
    """Five functions of strings."""
    comment = col("l_comment")
    return frame.select(
        "l_orderkey",
        "l_linenumber",
        comment.upper().alias("loud"),
        comment.length().alias("letters"),
        comment.contains("special").alias("special"),
        comment.replace("express", "*******").alias("masked"),
        (col("l_shipmode") + lit("/") + col("l_shipinstruct")).alias("mode"),
    )


QUERIES = {
    "row-map": row_map,
    "partition-by": by_month,
    "add-columns": with_measures,
    "few-rows": few_rows,
    "strings": strings,
}


def write(config: IOConfig, spec: Spec, output: str) -> int:
    """Map and write; returns the rows that were written, if it tells."""
    frame = daft.read_parquet(spec.glob(), io_config=config)
    mapped = QUERIES[spec.workload](frame)
    keys = list(spec.keys) or None
    mapped.write_parquet(output, compression="zstd", partition_cols=keys, io_config=config)
    return 0


if __name__ == "__main__":
    main(start, {"map": write}, packages=("daft",), cpu=own_cpu)
