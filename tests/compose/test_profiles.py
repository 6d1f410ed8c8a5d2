"""What may be added: Prometheus, and Redis with more than one Prefect server."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import polars as pl

from tests.compose.cluster import Cluster
from tests.compose.engine import wait_until
from tests.compose.jobs import write_job


def test_prometheus_sees_scheduler_workers_and_s3(cluster: Cluster, small: pl.DataFrame) -> None:
    job, _ = write_job(cluster.jobs, "small", "wait", "{seconds: 0.1}")
    cluster("--profile", "monitoring", "up", "--detach", "--no-build", "--no-deps", "prometheus")
    cluster.await_healthy("prometheus")
    cluster.chunkmap("run", f"conf/jobs/{job}")

    def ask(path: str) -> Any:
        address = f"http://127.0.0.1:{cluster.ports['PROMETHEUS_PORT']}/api/v1/{path}"
        with urllib.request.urlopen(address, timeout=10) as answer:
            return json.load(answer)["data"]

    def up() -> set[str]:
        targets = ask("targets")["activeTargets"]
        return {target["labels"]["job"] for target in targets if target["health"] == "up"}

    assert wait_until(lambda: up() == {"dask-scheduler", "dask-worker", "s3"}, 120), up()

    def chunks() -> float:
        found = ask("query?query=sum(chunkmap_chunks_total)")["result"]
        return float(found[0]["value"][1]) if found else 0.0

    assert wait_until(lambda: chunks() >= 40, 120), chunks()
    cluster("--profile", "monitoring", "rm", "--stop", "--force", "prometheus")


def test_two_prefect_servers_share_redis(cluster: Cluster) -> None:
    cluster.variables |= {"PREFECT_REDIS": "redis", "COMPOSE_PROFILES": "redis"}
    first = cluster.ports["PREFECT_PORT"]
    # As many ports as servers: the engine takes one for each.
    cluster.variables["PREFECT_PORTS"] = f"{first}-{first + 1}"
    try:
        flags = ("up", "--detach", "--no-build", "--scale", "prefect-server=2")
        cluster(*flags, "--scale", "dask-worker=1")
        cluster.await_healthy("prefect-server", 2)
        cluster.await_healthy("prefect-services")
        cluster.await_healthy("prefect-worker")
        for _ in range(2):  # whichever of them is asked
            said = cluster.inside(
                "prefect-worker",
                *("prefect", "deployment", "run", "chunkmap/run"),
                *("--param", "job=conf/jobs/demo.yaml", "--watch"),
            )
            assert "finished successfully" in said
    finally:
        cluster("--profile", "redis", "rm", "--stop", "--force", "redis", "prefect-services")
        for name in ("PREFECT_REDIS", "COMPOSE_PROFILES", "PREFECT_PORTS"):
            del cluster.variables[name]
        cluster.up()
