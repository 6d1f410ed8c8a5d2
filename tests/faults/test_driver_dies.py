"""kill -9 of a driver at each step, before and after the step has taken effect."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from tests.faults.cluster import Cluster
from tests.faults.conftest import NewScenario, mostly_long
from tests.faults.invariants import check_checked, check_everything
from tests.faults.points import CHECKING, POINTS, Point
from tests.faults.rules import Act, Rule
from tests.faults.world import CHECKED, CHUNKS

pytestmark = pytest.mark.faults

BEFORE: Act = "refuse"
AFTER: Act = "lose"
SHORT = {"lose store the run", "refuse complete an upload", "lose move the pointer"}


def deaths(points: Iterable[Point]) -> list[tuple[Point, Act]]:
    """Before each step, and after each that has an effect."""
    return [(p, act) for p in points for act in ((BEFORE, AFTER) if p.writes else (BEFORE,))]


def _named(death: tuple[Point, Act]) -> str:
    return f"{death[1]} {death[0].name}"


@pytest.mark.parametrize("death", mostly_long(deaths(POINTS), SHORT, _named))
def test_a_serial_driver_dies(new: NewScenario, death: tuple[Point, Act]) -> None:
    scenario, (point, act) = new(), death
    scenario.inject(rule := point.rule(act))
    driver = scenario.start_serially()
    rule.call = driver.kill
    ended = driver.wait()
    assert rule.happened.wait(5), ended
    assert ended.code == -9
    scenario.inject()
    scenario.run_here()
    check_everything(scenario)


@pytest.mark.parametrize(
    "death", mostly_long(deaths(CHECKING), {"lose copy rows in quarantine"}, _named)
)
def test_a_serial_driver_dies_while_checking(new: NewScenario, death: tuple[Point, Act]) -> None:
    scenario, (point, act) = new(changes=CHECKED), death
    scenario.inject(rule := point.rule(act))
    driver = scenario.start_serially()
    rule.call = driver.kill
    ended = driver.wait()
    assert rule.happened.wait(5), ended
    assert ended.code == -9
    scenario.inject()
    scenario.run_here()
    check_checked(scenario)


FLOW_DEATHS = {
    "having stored the run": (Rule("lose", "PutObject", "run.json"), 0),
    # What the workers had begun goes on without their driver.
    "mapping": (Rule("pass", "PutObject", "completions/", nth=2), CHUNKS // 2),
    "claiming the output": (Rule("lose", "PutObject", "HEAD.json"), 0),
    "completing the uploads": (Rule("refuse", "CompleteMultipartUpload", nth=7), 0),
    "copying": (Rule("lose", "CopyObject", nth=7), 0),
}


@pytest.mark.parametrize("step", mostly_long(FLOW_DEATHS, {"completing the uploads"}))
def test_a_flow_dies(new: NewScenario, cluster: Cluster, step: str) -> None:
    scenario, (rule, redone) = new(), FLOW_DEATHS[step]
    scenario.inject(rule)
    driver = cluster.start(scenario)
    rule.call = driver.kill
    assert driver.wait().code == -9
    scenario.inject()
    again = cluster.start(scenario).wait()
    assert again.code == 0, again
    check_everything(scenario, redone=redone)
