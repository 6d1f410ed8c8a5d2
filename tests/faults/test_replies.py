"""Requests that fail, are late, or whose reply is lost: the run goes on without being told."""

from __future__ import annotations

import pytest

from tests.faults.conftest import NewScenario, mostly_long
from tests.faults.invariants import check_checked, check_everything, unfinished
from tests.faults.points import CHECKING, POINTS, WRITES, Point
from tests.faults.rules import Act, Rule
from tests.faults.world import CHECKED, CHUNKS

pytestmark = pytest.mark.faults


def test_nothing_goes_wrong(new: NewScenario) -> None:
    scenario = new()
    summary = scenario.run_here()
    assert (summary.chunks, summary.mapped, summary.rows_out) == (CHUNKS, CHUNKS, 12_000)
    kinds = {request.kind for request, _ in scenario.world.proxy.log}
    assert {"CompleteMultipartUpload", "CopyObject"} <= kinds, "outputs are staged in both ways"
    check_everything(scenario)
    assert not unfinished(scenario)


@pytest.mark.chaos
@pytest.mark.parametrize("point", WRITES, ids=lambda point: point.name)
def test_the_reply_to_a_write_is_lost(new: NewScenario, point: Point) -> None:
    scenario = new()
    rule = point.rule("lose")
    scenario.inject(rule)
    scenario.run_here()
    assert rule.happened.is_set()
    check_everything(scenario)


ACTS: tuple[Act, ...] = ("refuse", "reset", "500", "503", "truncate", "lose")


@pytest.mark.parametrize("act", mostly_long(ACTS, {"503", "lose"}))
def test_every_step_fails_once(new: NewScenario, act: Act) -> None:
    scenario = new()
    rules = {point.name: point.rule(act) for point in (WRITES if act == "lose" else POINTS)}
    scenario.inject(*rules.values())
    scenario.run_here()
    assert [name for name, rule in rules.items() if not rule.happened.is_set()] == []
    check_everything(scenario)


@pytest.mark.parametrize("act", mostly_long(ACTS, ()))
def test_every_step_of_checks_fails_once(new: NewScenario, act: Act) -> None:
    scenario = new(changes=CHECKED)
    points = [point for point in CHECKING if point.writes or act != "lose"]
    rules = {point.name: point.rule(act) for point in points}
    scenario.inject(*rules.values())
    scenario.run_here()
    assert [name for name, rule in rules.items() if not rule.happened.is_set()] == []
    check_checked(scenario)


@pytest.mark.parametrize("seed", mostly_long(range(4), {"1"}))
def test_a_fifth_of_all_requests_fails(new: NewScenario, seed: int) -> None:
    scenario = new()
    rules = [Rule(act, times=None, share=0.2 / len(ACTS)) for act in ACTS]
    scenario.inject(*(rule.seeded(seed * 100 + n) for n, rule in enumerate(rules)))
    scenario.run_here_until_done()
    check_everything(scenario)
