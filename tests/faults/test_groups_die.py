"""Runs that map groups of a reduced result: deaths of drivers and workers, and lost replies."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.runs.admin.vacuum import vacuum
from tests.faults.cluster import Cluster
from tests.faults.conftest import NewScenario, mostly_long
from tests.faults.faulty import parted
from tests.faults.invariants import check_everything, unfinished
from tests.faults.points import Point
from tests.faults.rules import Act, Rule
from tests.faults.world import TRANSFORMS

pytestmark = pytest.mark.faults

GROUPED: dict[str, Any] = {
    "transform": "parted",
    "changes": {
        "reduce": {"combine": f"{TRANSFORMS}:joined"},
        "then": {"function": f"{TRANSFORMS}:doubled", "by": ["value"], "max_groups": 30},
    },
}
POINTS = (
    Point("store the reduce plan", "PutObject", "reduce/plan-"),
    Point("store a piece", "PutObject", "reduced/", 2),
    Point("store that it is reduced", "PutObject", "completions/reduce-"),
    Point("list the pieces", "ListObjectsV2", "reduced/"),
    Point("read a footer of a piece", "GetObject", "reduced/", 2),
    Point("store the plan of pieces", "PutObject", "then/0001/plan.arrow"),
    Point("read a piece", "GetObject", "reduced/", 5),
    Point("stage an object", "PutObject", "/staged/", 2),
    Point("store completions of pieces", "PutObject", "then/0001/completions/"),
    Point("drop a piece", "DeleteObject", "reduced/", 2),
)
SHORT = {"lose store the plan of pieces"}
DEATHS: list[tuple[Point, Act]] = [
    (point, act)
    for point in POINTS
    for act in (("refuse", "lose") if point.writes else ("refuse",))
]


def _named(death: tuple[Point, Act]) -> str:
    return f"{death[1]} {death[0].name}"


@pytest.mark.parametrize("death", mostly_long(DEATHS, SHORT, _named))
def test_a_serial_driver_dies(new: NewScenario, death: tuple[Point, Act]) -> None:
    scenario, (point, act) = new(**GROUPED), death
    scenario.inject(rule := point.rule(act))
    driver = scenario.start_serially()
    rule.call = driver.kill
    ended = driver.wait()
    assert rule.happened.wait(5), ended
    assert ended.code == -9
    scenario.inject()
    scenario.run_here()
    check_everything(scenario, transform=parted)
    # A process may die between staging a result and storing its completion.
    vacuum(scenario.storage, scenario.output, older_than=0.0)
    assert not unfinished(scenario)
    check_everything(scenario, transform=parted)


@pytest.mark.parametrize("act", mostly_long(["503", "truncate", "lose"], {"lose"}))
def test_every_step_fails_once(new: NewScenario, act: Act) -> None:
    scenario = new(**GROUPED)
    rules = {point.name: point.rule(act) for point in POINTS if point.writes or act != "lose"}
    scenario.inject(*rules.values())
    scenario.run_here()
    assert [name for name, rule in rules.items() if not rule.happened.is_set()] == []
    check_everything(scenario, transform=parted)


STEPS = {
    "mapping groups": Rule("refuse", "PutObject", "/staged/", "w0"),
    "having mapped groups": Rule("lose", "PutObject", "/staged/", "w0"),
    "storing completions": Rule("lose", "PutObject", "then/0001/completions/", "w0"),
}


@pytest.mark.long
@pytest.mark.parametrize("step", mostly_long(STEPS, {"mapping groups"}))
def test_a_worker_dies(new: NewScenario, cluster: Cluster, step: str) -> None:
    scenario, rule = new(**GROUPED), STEPS[step]
    rule.call = cluster.workers["w0"].kill
    scenario.inject(rule)
    ended = cluster.start(scenario).wait()
    assert rule.happened.is_set()
    assert ended.code == 0, ended
    check_everything(scenario, transform=parted)


@pytest.mark.chaos
def test_a_flow_dies_while_its_workers_map_groups(new: NewScenario, cluster: Cluster) -> None:
    scenario = new(**GROUPED)
    rule = Rule("pass", "PutObject", "/staged/", nth=2)
    scenario.inject(rule)
    driver = cluster.start(scenario)
    rule.call = driver.kill
    assert driver.wait().code == -9
    scenario.inject()
    again = cluster.start(scenario).wait()
    assert again.code == 0, again
    check_everything(scenario, transform=parted)
