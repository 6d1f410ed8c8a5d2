"""From nothing to published results."""

from __future__ import annotations

import json
from typing import Any

import polars as pl

from tests.compose.cluster import Cluster
from tests.compose.images import Built
from tests.compose.jobs import write_job

LINEITEMS_SINCE_1994 = 4_336_142
"""Of 6,001,215 at scale factor 1."""


def test_images_are_of_a_sane_size(built: dict[str, Built]) -> None:
    # On Debian's own Python (0.27 GB), which stands in for a slimmer one, it is 1.51 GB; the
    # largest packages: Polars and pyarrow (0.17 GB each), deltalake (0.13), vl_convert (0.08).
    assert built["chunkmap"].bytes < 1.6e9
    assert built["s3"].bytes < 0.6e9


def test_the_demo_job(cluster: Cluster) -> None:
    found = json.loads(cluster("run", "--rm", "-T", "driver", "demo", "--json"))
    assert found["verified"]["problems"] == []
    assert found["verified"]["rows"] == LINEITEMS_SINCE_1994
    rows = cluster.s3("driver").read("s3://demo/revenue/").height
    assert rows == LINEITEMS_SINCE_1994


def test_a_deployment_runs_a_job(cluster: Cluster) -> None:
    """Prefect's way: the work pool's worker starts it. The run is complete: nothing is mapped."""
    said = cluster.inside(
        "prefect-worker",
        *("prefect", "deployment", "run", "chunkmap/run"),
        *("--param", "job=conf/jobs/demo.yaml", "--watch"),
    )
    assert "finished successfully" in said


def test_every_worker_uses_the_drivers_versions(cluster: Cluster) -> None:
    ids = {container.details["Image"] for container in cluster.containers("dask-worker")}
    ids |= {container.details["Image"] for container in cluster.containers("dask-scheduler")}
    ids |= {container.details["Image"] for container in cluster.containers("prefect-worker")}
    assert len(ids) == 1


def test_lines_of_drivers_and_workers_are_objects_that_name_the_run(
    cluster: Cluster, small: pl.DataFrame
) -> None:
    job, _ = write_job(cluster.jobs, "small", "wait", "{seconds: 0}")
    with cluster.running(job) as run:
        code, out, said = run.ended()
    assert code == 0, said[-3000:]
    name = json.loads(out)["run"]
    ours = [line for line in _objects(said) if line["logger"] == "pipeline.runs.driver.run"]
    assert ours, said[-3000:]
    assert {line["run"] for line in ours} == {name}
    lines = _objects(cluster("logs", "--no-log-prefix", "--tail", "500", "dask-worker"))
    theirs = [line for line in lines if line.get("run") == name]
    assert theirs
    assert all(line["batch"] for line in theirs)


def _objects(text: str) -> list[dict[str, Any]]:
    """The lines of a log that are objects of ours."""
    return [json.loads(line) for line in text.splitlines() if line.startswith('{"time": ')]
