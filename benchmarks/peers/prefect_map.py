"""Prefect as its tutorials show it: a task, mapped over the files, on its own thread pool.

The server is the one that PREFECT_API_URL names.
"""

from __future__ import annotations

from typing import Any

import polars as pl
from prefect import flow, task
from prefect.logging import disable_run_logger
from s3fs import S3FileSystem

from benchmarks import transforms
from benchmarks.peers.protocol import Spec, main, s3


def start(spec: Spec) -> None:
    """Nothing to start: the server runs."""


@task
def map_file(source: str, target: str, transform: str, params: dict[str, Any]) -> None:
    """Map one file into one file."""
    options = s3().object_store()
    function: Any = getattr(transforms, transform)
    mapped: pl.LazyFrame = function(pl.scan_parquet(source, storage_options=options), **params)
    mapped.sink_parquet(target, compression="zstd", storage_options=options)


@task
def nothing(number: int) -> int:
    """A task that does nothing."""
    return number


@flow
def map_files(input: str, output: str, transform: str, params: dict[str, Any]) -> None:
    """List the files and map the task over them."""
    from prefect import unmapped

    store = S3FileSystem(**s3().fsspec(), use_listings_cache=False)
    keys = sorted(store.find(input))
    sources = [f"s3://{key}" for key in keys]
    targets = [f"{output}{number:06d}.parquet" for number in range(len(keys))]
    map_file.map(sources, targets, transform, unmapped(params)).result()


@flow
def map_nothing(tasks: int) -> int:
    """As many tasks as there would be chunks."""
    return len(nothing.map(range(tasks)).result())


def write(state: None, spec: Spec, output: str) -> None:
    """Run the flow."""
    with disable_run_logger():
        map_files(spec.input, output, spec.transform, dict(spec.params))


def tasks(state: None, spec: Spec, output: str) -> dict[str, int]:
    """Run the flow of nothing."""
    with disable_run_logger():
        return {"tasks": map_nothing(spec.tasks)}


if __name__ == "__main__":
    main(start, {"map": write, "ledger": tasks}, packages=("prefect", "polars", "s3fs"))
