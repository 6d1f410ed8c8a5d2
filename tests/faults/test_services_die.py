"""kill -9 of the Prefect server, the scheduler, all workers, the S3 server."""

from __future__ import annotations

import time

import pytest

from tests.faults.cluster import Cluster
from tests.faults.conftest import NewScenario, mostly_long
from tests.faults.invariants import check_everything
from tests.faults.points import MAPPING, PUBLISHING, Point
from tests.faults.rules import Rule
from tests.faults.world import CHUNKS, Scenario

pytestmark = pytest.mark.faults

LEAVE_SECONDS = 30.0
"""How long a driver may take to end once it has published and reported, whatever is gone."""
STEPS = {
    "mapping": Rule("pass", "PutObject", "completions/", nth=2),
    "publishing": Rule("pass", "ListParts"),
    "reporting": Rule("pass", "PutObject", "report.html"),
}


def _fresh(rule: Rule) -> Rule:
    return Rule(rule.act, rule.kind, rule.path, rule.client, rule.nth)


@pytest.mark.parametrize("step", mostly_long(STEPS, {"mapping"}))
def test_the_prefect_server_dies(new: NewScenario, cluster: Cluster, step: str) -> None:
    scenario, reported = new(), list[float]()
    rule = _fresh(STEPS[step])
    rule.call = cluster.prefect.kill
    noted = Rule("pass", "PutObject", "report.json")
    noted.call = lambda _: reported.append(time.monotonic())
    scenario.inject(rule, noted)
    ended = cluster.start(scenario).wait()
    assert rule.happened.is_set()
    assert ended.code == 0, ended
    assert ended.summary["state"] == "done"
    assert time.monotonic() - reported[0] < LEAVE_SECONDS
    check_everything(scenario)


@pytest.mark.chaos
def test_the_prefect_server_dies_and_comes_back(new: NewScenario, cluster: Cluster) -> None:
    scenario = new()
    rule = _fresh(STEPS["mapping"])
    rule.call = cluster.prefect.kill
    scenario.inject(rule)
    driver = cluster.start(scenario)
    assert rule.happened.wait(60)
    cluster.prefect.wait(10)
    cluster.prefect.start()
    ended = driver.wait()
    assert ended.code == 0, ended
    check_everything(scenario)


@pytest.mark.long
def test_the_scheduler_dies_and_comes_back(new: NewScenario, cluster: Cluster) -> None:
    scenario = new()
    rule = _fresh(STEPS["mapping"])
    rule.call = cluster.scheduler.kill
    scenario.inject(rule)
    driver = cluster.start(scenario)
    assert rule.happened.wait(60)
    cluster.scheduler.wait(10)
    for worker in cluster.workers.values():
        worker.stop()
    cluster.repair()
    ended = driver.wait()
    assert ended.code == 0, ended
    check_everything(scenario, redone=CHUNKS)


@pytest.mark.chaos
def test_the_scheduler_dies_for_good(new: NewScenario, cluster: Cluster) -> None:
    scenario = new()
    rule = _fresh(STEPS["mapping"])
    rule.call = cluster.scheduler.kill
    scenario.inject(rule)
    ended = cluster.start(scenario).wait(240)
    assert ended.code in (1, 2), ended
    assert "Traceback" not in ended.said, ended
    cluster.repair()
    again = cluster.start(scenario).wait()
    assert again.code == 0, again
    assert again.summary["mapped"] < CHUNKS
    check_everything(scenario, redone=CHUNKS)


@pytest.mark.chaos
def test_every_worker_dies(new: NewScenario, cluster: Cluster) -> None:
    scenario = new()
    rule = _fresh(STEPS["mapping"])
    rule.call = cluster.kill_workers
    scenario.inject(rule)
    driver = cluster.start(scenario)
    assert rule.happened.wait(60)
    cluster.repair()
    ended = driver.wait()
    assert ended.code == 0, ended
    check_everything(scenario)


S3_DEATHS = [point for point in (*MAPPING, *PUBLISHING) if point.writes]


@pytest.mark.parametrize(
    "point",
    mostly_long(S3_DEATHS, {"complete an upload"}, lambda point: point.name),
)
def test_the_s3_server_dies_and_comes_back(new: NewScenario, point: Point) -> None:
    scenario = new()
    scenario.inject(rule := point.rule("lose"))
    rule.call = scenario.world.weed.kill
    driver = scenario.start_serially()
    assert rule.happened.wait(60)
    scenario.world.weed.wait(10)
    scenario.world.restart_s3()
    ended = driver.wait()
    _run_until_done(scenario, ended.code)
    check_everything(scenario)


def _run_until_done(scenario: Scenario, code: int) -> None:
    if code:
        scenario.inject()
        scenario.run_here_until_done()
