"""kill -9 of a driver at each step, before and after the step has taken effect."""

from __future__ import annotations

import pytest

from tests.faults.conftest import NewScenario
from tests.faults.invariants import check_everything
from tests.faults.points import POINTS, Point
from tests.faults.rules import Act

pytestmark = pytest.mark.faults

DEATHS = [(p, act) for p in POINTS for act in (("refuse", "lose") if p.writes else ("refuse",))]


@pytest.mark.parametrize(
    ("point", "act"), DEATHS, ids=[f"{act} {point.name}" for point, act in DEATHS]
)
def test_a_serial_driver_dies(new: NewScenario, point: Point, act: Act) -> None:
    scenario = new()
    scenario.inject(rule := point.rule(act))
    driver = scenario.start_serially()
    rule.call = driver.kill
    ended = driver.wait()
    assert rule.happened.wait(5), ended
    assert ended.code == -9
    scenario.inject()
    scenario.run_here()
    check_everything(scenario)
