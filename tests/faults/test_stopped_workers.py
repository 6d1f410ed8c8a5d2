"""A worker that is stopped until its chunk was done elsewhere, and then goes on."""

from __future__ import annotations

import os
import signal

import pytest

from tests.faults.cluster import Cluster
from tests.faults.conftest import NewScenario
from tests.faults.invariants import check_everything
from tests.faults.rules import Rule
from tests.faults.world import ROWS

pytestmark = pytest.mark.faults


@pytest.mark.long
def test_a_zombie_changes_nothing(new: NewScenario, cluster: Cluster) -> None:
    scenario = new(transform="gated")
    folder = scenario.world.folder / scenario.name
    folder.mkdir()
    for name in ("arrived", "gate"):
        os.mkfifo(folder / name)
    scenario.params = {"row": 9 * ROWS, "folder": str(folder)}
    scenario.inject()
    driver = cluster.start(scenario)
    pid = int((folder / "arrived").read_text())
    zombie = next(name for name, worker in cluster.workers.items() if worker.pid == pid)
    os.kill(pid, signal.SIGSTOP)
    try:
        ended = driver.wait()
        assert ended.code == 0, ended
        late = scenario.world.proxy.add(Rule("pass", "PutObject", "completions/", zombie))
        published = scenario.ledger.published()
    finally:
        os.kill(pid, signal.SIGCONT)
    (folder / "gate").write_text("go")
    assert late.happened.wait(30), "the zombie did not wake up"
    assert scenario.ledger.published() == published
    check_everything(scenario, redone=12, late=True)
