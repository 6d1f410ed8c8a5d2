"""Ray Data: read_parquet, map_batches with a Polars function over Arrow tables, write_parquet."""

from __future__ import annotations

import os
from typing import Any

import polars as pl
import pyarrow as pa
import ray
from pyarrow import fs

from benchmarks import transforms
from benchmarks.peers.protocol import Spec, main, s3


def start(spec: Spec) -> fs.S3FileSystem:
    """A local Ray with as many CPUs as everybody has."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    variables = {"POLARS_MAX_THREADS": "1", "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    ray.init(
        num_cpus=spec.cores,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": variables},
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    return fs.S3FileSystem(**s3().arrow())


def write(store: fs.S3FileSystem, spec: Spec, output: str) -> None:
    """Map and write."""
    function: Any = getattr(transforms, spec.transform)
    params = dict(spec.params)

    def batch(table: pa.Table) -> pa.Table:
        frame = pl.from_arrow(table)
        assert isinstance(frame, pl.DataFrame)
        mapped: pl.LazyFrame = function(frame.lazy(), **params)
        return mapped.collect().to_arrow(compat_level=pl.CompatLevel.oldest())

    data = ray.data.read_parquet(
        spec.input.removeprefix("s3://"), filesystem=store, columns=_columns(spec)
    )
    mapped = data.map_batches(batch, batch_format="pyarrow", batch_size=None)
    mapped.write_parquet(
        output.removeprefix("s3://"),
        partition_cols=list(spec.keys) or None,
        filesystem=store,
        compression="zstd",
    )


LINE = "l_orderkey l_linenumber l_suppkey l_shipdate l_extendedprice l_discount l_tax"
COLUMNS = {
    "row-map": LINE,
    "partition-by": LINE,
    "few-rows": "l_orderkey l_linenumber l_shipdate l_extendedprice l_comment l_quantity "
    "l_discount l_shipmode",
    "strings": "l_orderkey l_linenumber l_comment l_shipmode l_shipinstruct",
    "python": "user",
}
"""Ray cannot see into a function: its users name the columns."""


def _columns(spec: Spec) -> list[str] | None:
    named = COLUMNS.get(spec.workload)
    return named.split() if named else None


@ray.remote
def nothing(number: int) -> int:
    """A task that does nothing."""
    return number


def tasks(store: fs.S3FileSystem, spec: Spec, output: str) -> dict[str, int]:
    """As many tasks as there would be chunks."""
    return {"tasks": len(ray.get([nothing.remote(number) for number in range(spec.tasks)]))}


def stop(store: fs.S3FileSystem) -> None:
    """End the local Ray."""
    ray.shutdown()


if __name__ == "__main__":
    main(start, {"map": write, "ledger": tasks}, stop, ("ray", "polars", "pyarrow"))
