"""A large set over several Dask workers: plan, progress, result, report.

Millions of taxi trips are in S3, in many objects. Each worker reads, transforms and stages the
chunks that it gets; when all are done, they are published at once. While it runs, look at the pages
of Prefect and Dask that `chunkmap up` names, or stop it by Ctrl-C and start it again: it resumes.

    chunkmap up
    python -m examples.distributed [--objects 24] [--workers 4]
"""

import argparse
import io
from datetime import datetime
from pathlib import Path

import polars as pl

from examples.commands import chunkmap
from pipeline import scan_output
from pipeline.storage import own_storage

HERE = Path(__file__).parent
INPUT, OUTPUT = "s3://demo/examples/trips/", "s3://demo/examples/priced-trips/"
ROWS = 250_000
"""Trips in an object."""


def put_trips(number: int) -> None:
    """Store an object of trips, unless it is there."""
    uri = f"{INPUT}{number:04d}.parquet"
    if own_storage().objects(uri):
        return
    numbers = pl.int_range(number * ROWS, (number + 1) * ROWS, eager=True)
    trips = pl.DataFrame({"id": numbers}).select(
        "id",
        start=datetime(2024, 1, 1) + pl.duration(seconds=pl.col("id") % 31_000_000),
        seconds=60 + pl.col("id") * 7919 % 3600,
        meters=200 + pl.col("id") * 104_729 % 30_000,
    )
    data = io.BytesIO()
    trips.write_parquet(data)
    own_storage().put(uri, data.getvalue())


def main() -> None:
    """Store the trips and map them."""
    parser = argparse.ArgumentParser(description="A large set over several Dask workers.")
    parser.add_argument("--objects", type=int, default=24, help="Number of objects.")
    parser.add_argument("--workers", type=int, help="Number of Dask workers; default as it is.")
    options = parser.parse_args()
    for number in range(options.objects):
        put_trips(number)
    print(f"{options.objects * ROWS:,} trips are in {INPUT}")
    if options.workers:
        chunkmap("cluster", "scale", str(options.workers))
    chunkmap("run", HERE / "job.yaml")
    chunkmap("verify", OUTPUT)
    by_hour = scan_output(OUTPUT).group_by(hour=pl.col("start").dt.hour())
    print(by_hour.agg(trips=pl.len(), euros=pl.col("cents").sum() / 100).sort("hour").collect())


if __name__ == "__main__":
    main()
