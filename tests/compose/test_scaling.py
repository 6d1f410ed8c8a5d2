"""Workers come and go while a job runs."""

from __future__ import annotations

import time

import polars as pl

from tests.compose.cluster import Cluster
from tests.compose.jobs import assert_exactly_once, await_chunks, write_job

GRACE_SECONDS = 45.0
"""What a worker's container has to stop (stop_grace_period)."""


def test_one_to_four_to_one(cluster: Cluster, small: pl.DataFrame) -> None:
    job, output = write_job(cluster.jobs, "small", "wait", "{seconds: 8}")
    with cluster.running(job) as run:
        await_chunks(cluster, run, output, 1)
        cluster.scale(4)
        cluster.await_healthy("dask-worker", 4)
        await_chunks(cluster, run, output, 4)
        cluster.scale(1)
        assert len(cluster.containers("dask-worker")) == 1
        found = run.result()
    assert found["failed"] == 0
    assert_exactly_once(cluster, output, small)


def test_a_worker_that_is_stopped_hands_back(cluster: Cluster, small: pl.DataFrame) -> None:
    job, output = write_job(cluster.jobs, "small", "wait", "{seconds: 2}")
    cluster.scale(2)
    cluster.await_healthy("dask-worker", 2)
    with cluster.running(job) as run:
        await_chunks(cluster, run, output, 2)
        worker = cluster.containers("dask-worker")[0]
        clock = time.monotonic()
        cluster.engine("stop", "--time", str(int(GRACE_SECONDS)), worker.id)
        seconds = time.monotonic() - clock
        details = cluster.engine("inspect", "--format", "{{.State.ExitCode}}", worker.id).strip()
        found = run.result()
    assert seconds < GRACE_SECONDS
    assert details == "0", "it was killed, or failed"
    assert found["failed"] == 0
    assert_exactly_once(cluster, output, small)
    cluster.scale(1)
