"""Random schedules of faults: `make chaos N=100`, and one of them again: `make chaos SEED=…`."""

from __future__ import annotations

import os
import random

import pytest

from pipeline.table.log import TableLog
from pipeline.table.repair import repair
from tests.faults.conftest import NewScenario
from tests.faults.invariants import check_everything
from tests.faults.schedules import Schedule
from tests.faults.world import CHUNKS

pytestmark = [pytest.mark.faults, pytest.mark.chaos]


def _seeds() -> list[int]:
    if os.environ.get("CHAOS_SEED"):
        return [int(os.environ["CHAOS_SEED"])]
    count = int(os.environ.get("CHAOS") or 0)
    return [random.SystemRandom().randrange(1_000_000) for _ in range(count)]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", _seeds())
def test_a_random_schedule(new: NewScenario, seed: int, request: pytest.FixtureRequest) -> None:
    # Every fourth seed has the real engine, which takes ten times as long.
    cluster = None if seed % 4 else request.getfixturevalue("cluster")
    scenario = new()
    schedule = Schedule(seed, scenario, cluster)
    schedule.draw()
    ended = schedule.play()
    assert "Traceback" not in ended.said, ended
    scenario.inject()
    scenario.world.proxy.await_late()
    if schedule.is_tampered:
        repair(TableLog(scenario.storage, scenario.output))
    if cluster is not None and ended.code:
        cluster.repair()
        ended = cluster.start(scenario).wait(240)
    if ended.code:
        scenario.run_here_until_done()
    # What a driver has left there while its pointer was away, or what came late, is moved away.
    repair(TableLog(scenario.storage, scenario.output))
    check_everything(scenario, redone=CHUNKS * (1 + schedule.is_tampered), late=True)
