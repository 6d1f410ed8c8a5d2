"""Processes that die, networks that part, memory that is full: the same output in the end."""

from __future__ import annotations

import io
import json

import polars as pl
import pytest

from tests.compose.cluster import Cluster
from tests.compose.engine import wait_until
from tests.compose.jobs import (
    ROWS,
    assert_exactly_once,
    await_chunks,
    await_windows,
    put_daily_objects,
    write_job,
)

LONG = 900.0
KILLED = ("dask-worker", "dask-scheduler", "prefect-server", "s3")


@pytest.fixture(scope="module")
def daily(cluster: Cluster) -> pl.DataFrame:
    """The rows of s3://demo/daily/: thirty days of two objects."""
    return put_daily_objects(cluster.s3(), "daily", 30, 2)


def test_kill_each_in_turn_while_a_backfill_runs(cluster: Cluster, daily: pl.DataFrame) -> None:
    """After each death, windows go on being published; in the end, each is, once."""
    job, output = write_job(cluster.jobs, "daily", "wait", "{seconds: 3}", window="ds")
    before = {service: _starts(cluster, service) for service in KILLED}
    create = ("backfill", "create", "--windows-per-run", "2", "--max-active", "2")
    with cluster.running(job, *create) as run:
        for number, service in enumerate(KILLED):
            await_windows(cluster, run, output, 1 + 3 * number)
            cluster.crash(service)
        found = run.result(LONG)
    counts = found["counts"]
    assert (found["state"], found["todo"], counts["done"]) == ("done", 30, 30), found
    assert (counts["failed"], counts["chunks_failed"]) == (0, 0), found
    print(f"\nfour killed, the backfill ended in {found['seconds']:.0f} s", flush=True)
    assert_exactly_once(cluster, output, daily)
    for service in KILLED:
        cluster.await_healthy(service)
        # A worker whose scheduler dies is started anew, too.
        assert _starts(cluster, service) > before[service], service


def _starts(cluster: Cluster, service: str) -> int:
    return sum(int(container.details["RestartCount"]) for container in cluster.containers(service))


def test_kill_s3(cluster: Cluster, small: pl.DataFrame) -> None:
    """A driver without S3 for longer than its retries ends, and the same command goes on."""
    job, output = write_job(cluster.jobs, "small", "wait", "{seconds: 2}")
    with cluster.running(job) as run:
        await_chunks(cluster, run, output, 1)
        cluster.crash("s3")
        code, out, err = run.ended(LONG)
    print(f"\nwith S3 killed, the driver ended with {code}: {(err or out)[-300:]}", flush=True)
    cluster.await_healthy("s3")
    with cluster.running(job) as run:
        found = run.result(LONG)
    assert found["failed"] == 0
    assert code == 0 or 0 < found["mapped"] < found["chunks"], "what was done is not done again"
    assert_exactly_once(cluster, output, small)


def test_a_worker_is_cut_off_and_joins_again(cluster: Cluster, small: pl.DataFrame) -> None:
    job, output = write_job(cluster.jobs, "small", "wait", "{seconds: 2}")
    cluster.scale(2)
    cluster.await_healthy("dask-worker", 2)
    network = f"{cluster.project}_cluster"
    with cluster.running(job) as run:
        await_chunks(cluster, run, output, 2)
        worker = cluster.containers("dask-worker")[0]
        cluster.engine("network", "disconnect", network, worker.id)
        await_chunks(cluster, run, output, 6)
        cluster.engine("network", "connect", "--alias", "dask-worker", network, worker.id)
        found = run.result(LONG)
    assert found["failed"] == 0
    assert_exactly_once(cluster, output, small)

    def both() -> bool:
        said = cluster.chunkmap("cluster", "status", "--json", check=False)
        try:
            return len(json.loads(said)["workers"]) == 2
        except (ValueError, LookupError):
            return False

    assert wait_until(both, 300), "it has not joined again"
    cluster.scale(1)


def test_one_chunk_is_too_large_for_a_worker(cluster: Cluster, small: pl.DataFrame) -> None:
    """A small object that fills 1.3 GB of 1: its chunk alone fails, and the others are done."""
    s3 = cluster.s3().client()
    for number in range(4):
        _put(s3, f"large/{number}.parquet", small.slice(number * ROWS, ROWS))
    huge = pl.DataFrame({"id": pl.repeat(1, 80_000_000, eager=True, dtype=pl.Int64)})
    _put(s3, "large/huge.parquet", huge.with_columns(value=pl.lit(0.5)))
    job, _ = write_job(cluster.jobs, "large", "same")
    said = cluster.chunkmap("run", f"conf/jobs/{job}", "--json", check=False, seconds=LONG)
    found, _ = json.JSONDecoder().raw_decode(said[said.index("{") :])  # its lines come after it
    assert (found["chunks"], found["failed"], found["state"]) == (5, 1, "failed"), said[-3000:]
    cluster.await_healthy("dask-worker")


def _put(s3: object, key: str, frame: pl.DataFrame) -> None:
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    s3.put_object(Bucket="demo", Key=key, Body=buffer.getvalue())  # type: ignore[attr-defined]


def test_down_and_up_again(cluster: Cluster, small: pl.DataFrame) -> None:
    job, output = write_job(cluster.jobs, "small", "wait", "{seconds: 0.1}")
    cluster.chunkmap("run", f"conf/jobs/{job}")
    flows = cluster.inside("prefect-worker", "prefect", "flow-run", "ls", "--limit", "200")
    cluster("--profile", "*", "down")
    assert cluster.all_containers() == []
    cluster.up()
    cluster.await_healthy("prefect-worker")
    assert_exactly_once(cluster, output, small)
    again = cluster.inside("prefect-worker", "prefect", "flow-run", "ls", "--limit", "200")
    assert len(again.splitlines()) == len(flows.splitlines())
    said = json.loads(cluster.chunkmap("run", f"conf/jobs/{job}", "--json"))
    assert said["mapped"] == 0, "it was done before"
