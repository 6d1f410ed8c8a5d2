"""What tests of a Prefect pipeline usually show, of chunkmap's flows on the real servers.

Deployments are in test_deploy.py.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal, assert_series_equal

from tests.integration.world import ROWS, Answer, World, parquet, sales

pytestmark = pytest.mark.integration

TRANSFORMS = """
import os
from pathlib import Path

import polars as pl


def dies_once(frame: pl.LazyFrame, path: str) -> pl.LazyFrame:
    def once(rows: pl.DataFrame) -> pl.DataFrame:
        if rows.height and not Path(path).exists():
            Path(path).touch()
            os._exit(3)
        return rows

    return frame.map_batches(once)


def refuses(frame: pl.LazyFrame) -> pl.LazyFrame:
    def refuse(rows: pl.DataFrame) -> pl.DataFrame:
        if rows.height:
            raise ValueError("no such price")
        return rows

    return frame.map_batches(refuse)
"""


@pytest.fixture(scope="module", autouse=True)
def transforms(world: World) -> None:
    (world.root / "shop" / "flows.py").write_text(TRANSFORMS)


@pytest.fixture(scope="module")
def mapped(world: World) -> Answer:
    """A run whose chunks take a while."""
    return world.chunkmap("run", world.job("shown", "shop.transforms:slow"), "--json")


def batches(world: World, run: Answer) -> list[dict[str, Any]]:
    """The task runs of a command that map chunks."""
    tasks = world.tasks_of(world.flow_run_of(run), run.data["batches"] + 2)  # plan and publish
    return [task for task in tasks if task["name"].startswith("r1-")]


def test_flow_execution(world: World, mapped: Answer) -> None:
    assert mapped.code == 0, mapped.err
    run = world.flow_run_of(mapped)
    assert (run["name"], run["state_type"]) == ("shown", "COMPLETED")
    assert_frame_equal(world.frame("s3://demo/out/shown/"), sales(0, ROWS))


def test_parallel_execution(world: World, mapped: Answer) -> None:
    """Batches run at the same time, on two workers."""
    spans = [(b["start_time"], b["end_time"]) for b in batches(world, mapped)]
    spans.sort()
    assert any(later < end for (_, end), (later, _) in pairwise(spans))


def test_caching(world: World, mapped: Answer) -> None:
    """A run of the same input and code is not made again."""
    asked = {
        "flow_runs": {"name": {"any_": ["shown"]}},
        "task_runs": {"name": {"like_": "r1-"}},
    }
    before = len(batches(world, mapped))
    assert before == world.ask_prefect("task_runs/count", asked) == mapped.data["batches"]
    again = world.chunkmap("run", "shown.yaml", "--json")
    assert (again.code, again.data["run"], again.data["mapped"]) == (0, mapped.data["run"], 0)
    # Its page is still that of the flow run that mapped the chunks.
    assert again.data["prefect_ui"] == mapped.data["prefect_ui"]
    assert world.ask_prefect("task_runs/count", asked) == before


@pytest.mark.long
def test_dynamic_mapping(world: World) -> None:
    """What is mapped follows from what is there when the flow runs."""
    source, chunks = "s3://demo/grows/", []
    for number in range(2):
        world.storage.put(f"{source}{number}.parquet", parquet(sales(number * 1000, 1000)))
        job = world.job("grows", source=source, output={"mode": "overwrite"})
        said = world.chunkmap("run", job, "--json").data
        chunks.append(said["chunks"])
        assert said["mapped"] == said["chunks"]
    assert chunks[1] == 2 * chunks[0]
    expected = sales(0, 2000).filter(pl.col("price") > 10)["id"]
    assert_series_equal(world.frame("s3://demo/out/grows/")["id"], expected)


@pytest.mark.long
def test_task_retry(world: World) -> None:
    """Chunks whose worker dies are mapped again, by the same flow run."""
    params = {"path": str(world.root / "died")}
    said = world.chunkmap("run", world.job("dies", "shop.flows:dies_once", params=params), "--json")
    assert said.code == 0, said.err
    assert (world.root / "died").exists()
    assert said.data["failed"] == 0
    assert world.flow_run_of(said)["state_type"] == "COMPLETED"
    assert_frame_equal(world.frame("s3://demo/out/dies/"), sales(0, ROWS))


def test_error_handling(world: World) -> None:
    """A failure for good fails the flow run, with its reason, and publishes nothing."""
    said = world.chunkmap("run", world.job("refuses", "shop.flows:refuses"), "--json")
    assert (said.code, said.data["state"]) == (1, "failed")
    run = world.flow_run_of("refuses")
    assert run["state_type"] == "FAILED"
    assert "ValueError: no such price" in str(said.data["errors"])
    assert f"run {said.data['run']} ended with" in run["state"]["message"]
    assert not world.objects("s3://demo/out/refuses/")


@pytest.mark.long
def test_subflows(world: World) -> None:
    """A stage of a pipeline is a flow run of its own below that of the pipeline."""
    stage = {"name": "staged", "map": world.job("staged")}
    text = f"name: nested\nstate: s3://demo/pipelines/nested/\npipeline: [{stage}]\n"
    (world.root / "nested.yaml").write_text(text)
    answer = world.chunkmap("pipeline", "run", "nested.yaml", "--json")
    assert answer.code == 0, answer.err
    below = {"parent_flow_run_id": {"any_": [world.flow_run_of("nested")["id"]]}}
    [child] = world.in_prefect("flow_runs", flow_runs=below)
    assert (child["name"], child["state_type"]) == ("staged", "COMPLETED")
