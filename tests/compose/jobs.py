"""Inputs, job files and what must come of them."""

from __future__ import annotations

import io
from collections.abc import Iterable
from datetime import date, timedelta
from pathlib import Path
from uuid import uuid4

import polars as pl
from botocore.exceptions import BotoCoreError, ClientError

from tests.compose.cluster import S3, Cluster, Run
from tests.compose.engine import wait_until

ROWS = 1000
"""Of each object, which is a chunk."""


def put_small_objects(s3: S3, prefix: str, count: int) -> pl.DataFrame:
    """Objects of `id` and `value` under s3://demo/PREFIX/, each a chunk; returns all rows."""
    return _put(s3, (f"{prefix}/{number:04}.parquet" for number in range(count)))


def put_daily_objects(s3: S3, prefix: str, days: int, each: int) -> pl.DataFrame:
    """The same by days, some objects each: windows of a backfill."""
    first = date(2024, 1, 1)
    folders = [f"{prefix}/ds={first + timedelta(days=day)}" for day in range(days)]
    return _put(s3, (f"{folder}/{number}.parquet" for folder in folders for number in range(each)))


def _put(s3: S3, keys: Iterable[str]) -> pl.DataFrame:
    client = s3.client()
    frames = []
    for number, key in enumerate(keys):
        first = number * ROWS
        frame = pl.DataFrame({"id": range(first, first + ROWS)}).with_columns(
            value=pl.col("id") / 7
        )
        buffer = io.BytesIO()
        frame.write_parquet(buffer)
        client.put_object(Bucket="demo", Key=key, Body=buffer.getvalue())
        frames.append(frame)
    return pl.concat(frames)


def write_job(
    folder: Path, source: str, transform: str, params: str = "{}", window: str | None = None
) -> tuple[str, str]:
    """A job file of a chunk for each object; returns its name and its own output.

    With a column for windows, it is one for backfills.
    """
    name = f"job-{uuid4().hex[:8]}"
    output = f"s3://demo/out/{name}/"
    (folder / f"{name}.yaml").write_text(
        f"name: {name}\n"
        f"input: {{uri: s3://demo/{source}/}}\n"
        "chunks: {per_file: true}\n"
        f"transform: cluster_transforms:{transform}\n"
        f"params: {params}\n"
        f"output: {{uri: {output}, mode: {'overwrite-partitions' if window else 'error'}}}\n"
        + (f"window: {{column: {window}, grain: day}}\n" if window else ""),
        "utf-8",
    )
    return f"{name}.yaml", output


def await_chunks(cluster: Cluster, run: Run, output: str, count: int, seconds: float = 300) -> None:
    """Until a run has stored some completions, at least this many chunks' worth of segments."""
    s3 = cluster.s3()
    prefix = output.removeprefix("s3://demo/").rstrip("/") + ".chunkmap/runs/"

    def stored() -> bool:
        return sum("/completions/" in key for key in s3.keys("demo", prefix)) >= count

    assert wait_until(stored, seconds, lambda: run.is_over), "nothing is being completed"
    assert not run.is_over, "it ended before anything could happen to it"


def await_windows(
    cluster: Cluster, run: Run, output: str, count: int, seconds: float = 300
) -> None:
    """Until a backfill has published at least so many days, while it still runs."""
    s3 = cluster.s3()
    prefix = output.removeprefix("s3://demo/")

    def published() -> int:
        try:
            return len({key.split("/ds=")[1][:10] for key in s3.keys("demo", prefix)})
        except (BotoCoreError, ClientError):
            return 0  # S3 is starting again

    assert wait_until(lambda: published() >= count, seconds, lambda: run.is_over), (
        f"{published()} windows are published, not {count}"
    )
    assert not run.is_over, "it ended before anything could happen to it"


def assert_exactly_once(cluster: Cluster, output: str, expected: pl.DataFrame) -> None:
    """The output holds each row of the input once, by a plain read and by its manifest."""
    found = cluster.s3("driver").read(output).select("id", "value").sort("id")
    assert found.equals(expected.sort("id"))
    cluster.chunkmap("verify", output)
