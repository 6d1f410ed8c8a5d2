"""Dask futures and Polars by hand: Client.map over the files, as many teams do it today."""

from __future__ import annotations

from typing import Any

import polars as pl
from distributed import Client, LocalCluster
from s3fs import S3FileSystem

from benchmarks import transforms
from benchmarks.peers.protocol import Spec, main, s3


def start(spec: Spec) -> Client:
    """One worker process a core; Polars in each with one thread."""
    cluster = LocalCluster(
        n_workers=spec.cores,
        threads_per_worker=1,
        dashboard_address=None,
        host="127.0.0.1",
        env={"POLARS_MAX_THREADS": "1"},
    )
    client = Client(cluster)
    client.wait_for_workers(spec.cores)
    return client


def map_file(source: str, target: str, transform: str, params: dict[str, Any]) -> None:
    """Map one file into one file."""
    options = s3().object_store()
    function: Any = getattr(transforms, transform)
    mapped: pl.LazyFrame = function(pl.scan_parquet(source, storage_options=options), **params)
    mapped.sink_parquet(target, compression="zstd", storage_options=options)


def write(client: Client, spec: Spec, output: str) -> None:
    """List the files, map a function over them, wait for all."""
    store = S3FileSystem(**s3().fsspec(), use_listings_cache=False)
    keys = sorted(store.find(spec.input))
    sources = [f"s3://{key}" for key in keys]
    targets = [f"{output}{number:06d}.parquet" for number in range(len(keys))]
    futures = client.map(
        map_file, sources, targets, transform=spec.transform, params=dict(spec.params)
    )
    client.gather(futures)


def nothing(number: int) -> int:
    """A task that does nothing."""
    return number


def tasks(client: Client, spec: Spec, output: str) -> dict[str, int]:
    """As many tasks as there would be chunks."""
    futures = client.map(nothing, range(spec.tasks), pure=False)
    return {"tasks": len(client.gather(futures))}


if __name__ == "__main__":
    main(start, {"map": write, "ledger": tasks}, Client.close, ("dask", "polars", "s3fs"))
