"""Polars in one process: a lazy scan of S3 streamed into S3, as its user guide does it."""

from __future__ import annotations

from typing import Any

import polars as pl

from benchmarks import transforms
from benchmarks.peers.protocol import Spec, main, own_cpu, s3


def start(spec: Spec) -> dict[str, str]:
    """Nothing to start: the storage options."""
    return s3().object_store()


def scan(options: dict[str, str], uri: str) -> pl.LazyFrame:
    """A prefix as a LazyFrame; Hive partitions are columns of text, as elsewhere."""
    return pl.scan_parquet(uri, storage_options=options, try_parse_hive_dates=False)


def transformed(options: dict[str, str], spec: Spec) -> pl.LazyFrame:
    """The workload's query."""
    lines = scan(options, spec.input)
    if spec.workload == "join":
        return transforms.supplied(lines, scan(options, spec.params["suppliers"]))
    function: Any = getattr(transforms, spec.transform)
    mapped: pl.LazyFrame = function(lines, **spec.params)
    if spec.finalize:
        mapped = getattr(transforms, spec.finalize)(mapped)
    return mapped


def write(options: dict[str, str], spec: Spec, output: str) -> None:
    """Stream the query into one file, or into one for each Hive partition."""
    target: Any = output + "result.parquet"
    if spec.keys:
        target = pl.PartitionBy(output, key=list(spec.keys), include_key=False)
    transformed(options, spec).sink_parquet(target, compression="zstd", storage_options=options)


if __name__ == "__main__":
    main(start, {"map": write}, packages=("polars",), cpu=own_cpu)
