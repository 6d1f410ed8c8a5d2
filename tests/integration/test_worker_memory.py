"""A chunk that eats all memory: it is named, its worker comes back, and the next job runs."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from pipeline.cluster import local
from tests.faults.world import await_that
from tests.integration.world import World, parquet, sales, tear_down

# One stack for all of them, and none of the shared one's: its workers are small.
# Four workers die and come back, which takes each of them up to a minute on a busy machine.
pytestmark = [
    pytest.mark.long,
    pytest.mark.integration,
    pytest.mark.xdist_group("memory"),
    pytest.mark.timeout(600),
]

CHUNKS, ROWS = 20, 250
GREEDY = """import os

import polars as pl


def greedy(frame: pl.LazyFrame, row: int) -> pl.LazyFrame:
    def eat(rows: pl.DataFrame) -> pl.DataFrame:
        held = []
        while row in rows["id"]:
            held.append(os.urandom(32 << 20))
        return rows

    return frame.map_batches(eat)
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A stack whose workers have little memory, and a table of twenty chunks."""
    world = World(tmp_path_factory.mktemp("small"))
    for folder in ("conf", "greed"):
        (world.root / folder).mkdir()
    (world.root / "greed" / "__init__.py").write_text(GREEDY)
    (world.root / "conf" / "base.yaml").write_text(
        "transforms: {allow: [greed]}\n"
        "batches: {max_chunks: 1}\n"
        "dask: {workers: 2, memory_per_worker: 600MiB, connect_timeout: 60}\n"
        "prefect: {connect_timeout: 60}\n"
    )
    try:
        up = world.chunkmap("up")
        assert up.code == 0, up.err
        for number in range(CHUNKS):
            rows = parquet(sales(number * ROWS, ROWS))
            world.storage.put(f"s3://demo/sales/{number:02d}.parquet", rows)
        yield world
    finally:
        tear_down(world)


def test_the_chunk_is_named_and_the_next_job_runs(small: World) -> None:
    chunks = {"per_file": True}
    job = small.job("eats", "greed:greedy", params={"row": 7 * ROWS + 3}, chunks=chunks)
    eaten = small.chunkmap("run", job, "--json")
    assert eaten.code == 1, eaten.err
    assert (eaten.data["mapped"], eaten.data["failed"]) == (CHUNKS - 1, 1), eaten.out
    [error] = eaten.data["errors"]
    assert "WorkerKilledError" in error
    assert "\ne.g. chunk 7: s3://demo/sales/07.parquet" in error

    job = small.job("eats-not", "greed:greedy", params={"row": -1}, chunks=chunks)
    done = small.chunkmap("run", job, "--json")
    assert done.code == 0, done.err
    assert small.frame("s3://demo/out/eats-not/").height == CHUNKS * ROWS
    await_that(lambda: len(_workers(small)) == 2, "all workers", 120)


@pytest.mark.long
def test_a_cluster_without_workers_is_told_and_started_again(small: World) -> None:
    assert small.chunkmap("cluster", "scale", "0").code == 0
    await_that(lambda: not _workers(small), "the workers' end")
    doctor = small.chunkmap("cluster", "doctor")
    assert doctor.code == 1
    assert "there are none" in doctor.out + doctor.err
    assert "chunkmap up" in doctor.out + doctor.err

    up = small.chunkmap("up")
    assert up.code == 0, up.err
    assert "Dask cluster: restarted, since it has no workers" in up.out + up.err
    assert up.out.count("runs already") + up.err.count("runs already") == 2
    assert len(_workers(small)) == 2
    assert [service.state for service in local.status(small.settings)] == ["running"] * 3


def _workers(world: World) -> list[object]:
    found: list[object] = json.loads(world.chunkmap("cluster", "status", "--json").out)["workers"]
    return found
