"""How others plan the same dataset: they list it and read every footer.

Each function returns how many row groups (or partitions made of them) it found, so that a test can
see that the work was done.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.micro.planning_server import KEY, SECRET, Server

_THREADS = 32
"""More made pyarrow slower here: its S3 client keeps 25 connections."""


def dask_partitions(server: Server, uri: str) -> int:
    """Plan with `dask.dataframe.read_parquet`, which reads footers to honour `blocksize`."""
    import dask.dataframe as dd

    frame: Any = dd.read_parquet(
        uri,
        storage_options=server.storage_options(),
        blocksize="128MiB",
        aggregate_files=True,
        split_row_groups="adaptive",
    )
    return int(frame.npartitions)


def pyarrow_row_groups(server: Server, uri: str) -> int:
    """Plan with `pyarrow.dataset`: list, then every fragment's metadata, in threads."""
    import pyarrow.dataset as ds
    from pyarrow import fs

    store = fs.S3FileSystem(
        access_key=KEY,
        secret_key=SECRET,
        endpoint_override=server.endpoint,
        region="us-east-1",
    )
    dataset = ds.dataset(
        uri.removeprefix("s3://").rstrip("/"), filesystem=store, format="parquet",
        partitioning="hive",
    )  # fmt: skip

    def count(fragment: Any) -> int:
        fragment.ensure_complete_metadata()
        return len(fragment.row_groups)

    with ThreadPoolExecutor(_THREADS) as pool:
        return sum(pool.map(count, dataset.get_fragments()))
