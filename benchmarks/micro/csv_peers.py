"""One CSV file in S3 becomes one Parquet file in S3, by Polars or DuckDB in one process.

It runs in the environment of the peer, and prints its seconds and peak memory as JSON.
"""

from __future__ import annotations

import json
import resource
import sys
import time

from benchmarks.peers.protocol import s3


def polars(source: str, target: str) -> None:
    import polars as pl

    options = s3().object_store()
    frame = pl.scan_csv(source, storage_options=options)
    frame.sink_parquet(target, compression="zstd", storage_options=options)


def duckdb(source: str, target: str) -> None:
    from benchmarks.peers.duckdb_sql import start
    from benchmarks.peers.protocol import Spec

    connection = start(Spec(**json.loads(sys.argv[4])))
    connection.execute(
        f"COPY (FROM read_csv('{source}')) TO '{target}' (FORMAT parquet, COMPRESSION zstd)"
    )


if __name__ == "__main__":
    work = {"polars": polars, "duckdb": duckdb}[sys.argv[1]]
    started = time.perf_counter()
    work(sys.argv[2], sys.argv[3])
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "peak": peak}))
