"""One engine and one cluster for all tests here, in the order of their files."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
import yaml

from tests.compose import images
from tests.compose.cluster import FILE, Cluster
from tests.compose.engine import Engine, NoEngineError, building_engine, running_engine
from tests.compose.jobs import put_small_objects

collect_ignore_glob = [] if os.environ.get("COMPOSE_TESTS") else ["test_*.py"]
"""They are a command of their own: `make test-compose`."""


@pytest.fixture(scope="session")
def prepared(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Engine, dict[str, images.Built]]]:
    # Not pytest's own folder, which is kept: an engine's data is gigabytes, some of it mounted.
    folder = tmp_path_factory.mktemp("engine")
    try:
        with building_engine(folder) as builder:
            images.provide_bases(builder, _expanded())
            made = {
                target: images.build(builder, target, tag)
                for target, tag in (("chunkmap", "chunkmap:local"), ("s3", "chunkmap-s3:local"))
            }
        for image in made.values():
            size, seconds = f"{image.bytes / 1e6:.0f} MB", f"{image.seconds:.0f} s"
            print(f"\n{image.tag}: {size}, built in {seconds}", flush=True)
        with running_engine(builder) as engine:
            yield engine, made
    except NoEngineError as why:
        pytest.skip(f"no container engine: {why}")
    finally:
        subprocess.run(["rm", "-rf", "--one-file-system", folder], check=False)


@pytest.fixture(scope="session")
def engine(prepared: tuple[Engine, dict[str, images.Built]]) -> Engine:
    return prepared[0]


@pytest.fixture(scope="session")
def built(prepared: tuple[Engine, dict[str, images.Built]]) -> dict[str, images.Built]:
    """The images of the Dockerfile, on base images that were pulled or made."""
    return prepared[1]


@pytest.fixture(scope="session")
def cluster(
    engine: Engine, built: dict[str, images.Built], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """The whole of it with one worker, from nothing; everything is removed afterwards."""
    jobs = tmp_path_factory.mktemp("jobs")
    jobs.chmod(0o755)
    (jobs / "demo.yaml").write_text((FILE.parent / "conf/jobs/demo.yaml").read_text("utf-8"))
    cluster = Cluster(engine, jobs)
    # Small, so that one chunk can be too large, and one chunk at a time, so that runs last.
    cluster.variables |= {"WORKER_MEMORY": "1g", "WORKER_THREADS": "1"}
    cluster.variables |= {"S3_INPUTS": "demo/tpch/,demo/small/,demo/daily/,demo/large/"}
    clock = time.perf_counter()
    try:
        cluster.up()
        cluster.await_healthy("prefect-worker")
        print(f"\nup from nothing: {time.perf_counter() - clock:.0f} s", flush=True)
        yield cluster
    finally:
        if not os.environ.get("COMPOSE_KEEP"):
            cluster("--profile", "*", "down", "--volumes", "--timeout", "20", check=False)


@pytest.fixture(scope="session")
def small(cluster: Cluster) -> pl.DataFrame:
    """The rows of s3://demo/small/, forty objects."""
    return put_small_objects(cluster.s3(), "small", 40)


def _expanded() -> dict[str, dict[str, dict[str, str]]]:
    """The compose file with its defaults; only for the names of images."""
    text = FILE.read_text("utf-8")
    found: dict[str, dict[str, dict[str, str]]] = yaml.safe_load(text)
    for service in found["services"].values():
        image = service.get("image", "")
        service["image"] = image.partition(":-")[2].rstrip("}") if image[:2] == "${" else image
    return found


@pytest.fixture(scope="session")
def jobs(cluster: Cluster) -> Path:
    """Where drivers find job files."""
    return cluster.jobs
