"""Runs whose files are merged: deaths of drivers and workers, and lost replies, while merging."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.runs.admin.vacuum import vacuum
from tests.faults.cluster import Cluster
from tests.faults.conftest import NewScenario, mostly_long
from tests.faults.invariants import check_everything, unfinished
from tests.faults.points import Point
from tests.faults.rules import Act, Rule
from tests.faults.world import CHUNKS

pytestmark = pytest.mark.faults

MERGED: dict[str, Any] = {
    "transform": "parted",
    "layout": {"partition_by": ["part"], "file_bytes": 8000, "sort_by": ["value"]},
}
POINTS = (
    Point("store a partial result", "PutObject", "partials/", 3),
    Point("list the partial results", "ListObjectsV2", "partials/"),
    Point("read an index", "GetObject", "partials/", 2),
    Point("store the merge plan", "PutObject", "merge/plan-"),
    Point("read slices", "GetObject", "partials/", CHUNKS + 5),
    Point("stage an object", "PutObject", "/staged/", 2),
    Point("store completions of files", "PutObject", "completions/merge-"),
    Point("drop a partial result", "DeleteObject", "partials/", 2),
)
SHORT = {"refuse stage an object"}
DEATHS: list[tuple[Point, Act]] = [
    (point, act)
    for point in POINTS
    for act in (("refuse", "lose") if point.writes else ("refuse",))
]


def _named(death: tuple[Point, Act]) -> str:
    return f"{death[1]} {death[0].name}"


@pytest.mark.parametrize("death", mostly_long(DEATHS, SHORT, _named))
def test_a_serial_driver_dies(new: NewScenario, death: tuple[Point, Act]) -> None:
    scenario, (point, act) = new(**MERGED), death
    scenario.inject(rule := point.rule(act))
    driver = scenario.start_serially()
    rule.call = driver.kill
    ended = driver.wait()
    assert rule.happened.wait(5), ended
    assert ended.code == -9
    scenario.inject()
    scenario.run_here()
    check_everything(scenario)
    # Of a file that the driver had staged, nothing may say so.
    assert len(unfinished(scenario)) <= 2
    vacuum(scenario.storage, scenario.output, older_than=0.0)
    assert not unfinished(scenario)


@pytest.mark.parametrize("act", mostly_long(["503", "truncate", "lose"], {"lose"}))
def test_every_step_fails_once(new: NewScenario, act: Act) -> None:
    scenario = new(**MERGED)
    rules = {point.name: point.rule(act) for point in POINTS if point.writes or act != "lose"}
    scenario.inject(*rules.values())
    scenario.run_here()
    assert [name for name, rule in rules.items() if not rule.happened.is_set()] == []
    check_everything(scenario)


STEPS = {
    "merging": Rule("refuse", "PutObject", "/staged/", "w0"),
    "having merged": Rule("lose", "PutObject", "/staged/", "w0"),
    "reading slices": Rule("refuse", "GetObject", "partials/", "w0", nth=2),
    "storing completions": Rule("lose", "PutObject", "completions/merge-", "w0"),
}


@pytest.mark.long
@pytest.mark.parametrize("step", mostly_long(STEPS, {"merging"}))
def test_a_worker_dies(new: NewScenario, cluster: Cluster, step: str) -> None:
    scenario, rule = new(**MERGED), STEPS[step]
    rule.call = cluster.workers["w0"].kill
    scenario.inject(rule)
    ended = cluster.start(scenario).wait()
    assert rule.happened.is_set()
    assert ended.code == 0, ended
    check_everything(scenario)


@pytest.mark.long
def test_a_flow_dies_while_its_workers_merge(new: NewScenario, cluster: Cluster) -> None:
    scenario = new(**MERGED)
    rule = Rule("pass", "PutObject", "/staged/", nth=2)
    scenario.inject(rule)
    driver = cluster.start(scenario)
    rule.call = driver.kill
    assert driver.wait().code == -9
    scenario.inject()
    again = cluster.start(scenario).wait()
    assert again.code == 0, again
    check_everything(scenario)
