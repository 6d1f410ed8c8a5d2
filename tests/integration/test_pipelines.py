"""A pipeline on the real servers: killed in a stage, repeated, and repeated again."""

from __future__ import annotations

import threading
from typing import Any

import duckdb
import pytest

from tests.faults.world import await_that
from tests.ingest.conftest import orders
from tests.integration.world import World
from tests.servers.api import Api, serving

pytestmark = pytest.mark.integration

CALLS = """
def tell(facts, path):
    with open(path, "a") as file:
        file.write(f"{facts['stages']['totals']['rows']}\\n")
"""
PIPELINE = """\
name: whole
state: s3://demo/pipelines/whole/
parameters: {least: {type: integer, default: 40}}
pipeline:
  - name: orders
    ingest:
      name: orders
      http: {url: URL, records: data, pages: {by: cursor, parameter: after, path: meta.next}}
      output: {uri: s3://demo/out/whole-orders/}
  - name: totals
    when: rows > least
    map:
      name: totals
      input: {uri: s3://demo/out/whole-orders/}
      transform: shop.transforms:total
      output: {uri: s3://demo/out/whole-totals/}
  - name: warehouse
    load: {name: warehouse, input: {uri: s3://demo/out/whole-totals/},
           into: {uri: whole.duckdb, table: totals}}
  - {name: tell, call: "shop.calls:tell", params: {path: told.txt}, when: totals.changed}
"""


def runs_of(world: World) -> list[dict[str, Any]]:
    """The flow runs of this pipeline, newest first."""
    named = {"name": {"any_": ["whole least 40"]}}
    return world.in_prefect("flow_runs", flow_runs=named, sort="START_TIME_DESC")


ENDS = {
    ("chunkmap.ingest.completed", "s3://demo/out/whole-orders/"),
    ("chunkmap.run.completed", "s3://demo/out/whole-totals/"),
    ("chunkmap.load.completed", "whole.duckdb#totals"),
    ("chunkmap.pipeline.completed", "s3://demo/pipelines/whole/"),
}


def ends(world: World) -> set[tuple[str, str]]:
    """Events of this pipeline, and what they are about."""
    about = {"resource": {"id": [output for _, output in ENDS]}}
    found = world.ask_prefect("events/filter", {"filter": about, "limit": 50})["events"]
    return {(event["event"], event["resource"]["prefect.resource.id"]) for event in found}


def test_a_pipeline_that_was_killed_goes_on_and_is_then_unchanged(world: World) -> None:
    asked, released = threading.Event(), threading.Event()

    def script(query: str, times: int) -> None:
        if query == "after=c20" and times == 1:
            asked.set()
            released.wait(60)

    (world.root / "shop" / "calls.py").write_text(CALLS)
    with serving(Api(orders(45), by="cursor", script=script)) as api:
        (world.root / "whole.yaml").write_text(PIPELINE.replace("URL", api.url))
        with world.start("pipeline", "run", "whole.yaml") as process:
            assert asked.wait(100)
            process.kill()
        released.set()
        answer = world.chunkmap("pipeline", "run", "whole.yaml", "--json")
        assert answer.code == 0, answer.err
        assert [stage["state"] for stage in answer.data["stages"]] == ["done"] * 4
        assert [stage["rows"] for stage in answer.data["stages"]] == [45, 24, 24, 0]
        assert api.twice() == ["after=c20"], "it was not stored"
        with duckdb.connect(str(world.root / "whole.duckdb")) as connection:
            ids = [row[0] for row in connection.execute("SELECT id FROM totals").fetchall()]
        assert sorted(ids) == list(range(21, 45))
        newest, killed = runs_of(world)
        assert newest["state"]["type"] == "COMPLETED"
        assert killed["state"]["type"] != "COMPLETED"
        below = {"parent_flow_run_id": {"any_": [newest["id"]]}}
        stages = world.in_prefect("flow_runs", flow_runs=below)
        assert {stage["name"] for stage in stages} == {"orders", "totals", "warehouse"}
        again = world.chunkmap("pipeline", "run", "whole.yaml")
        assert again.code == 0, again.err
        assert again.out.count("unchanged") == 3 and "skipped" in again.out
        assert (world.root / "told.txt").read_text() == "24\n"
        assert api.twice() == ["after=c20"]
    [newest, *_] = runs_of(world)
    shown = {run["name"]: run["state"]["name"] for run in world.tasks_of(newest, 4)}
    assert shown == {
        "orders: unchanged": "Skipped",
        "totals: unchanged": "Skipped",
        "warehouse: unchanged": "Skipped",
        "tell: skipped": "Skipped",
    }
    await_that(lambda: ends(world) >= ENDS, "events of the pipeline and of its stages")
