"""Transforms that raise, hang, kill their process, eat all memory, or change their mind."""

from __future__ import annotations

import pytest

from pipeline.errors import SchemaChangedError
from pipeline.runs.driver.plan import ResumeOptions
from pipeline.runs.driver.summary import RunIncompleteError
from tests.faults.cluster import Cluster
from tests.faults.conftest import NewScenario, mostly_long
from tests.faults.invariants import check_output, oracle, read_all
from tests.faults.world import CHUNKS, ROWS, Ended, Scenario

pytestmark = pytest.mark.faults

ROW, CHUNK = 7 * ROWS + 3, 7
"""The bad row, and the chunk that it is in."""


def _others_are_done(scenario: Scenario, ended: Ended, error: str) -> None:
    """One chunk has failed and is named; all others are done; nothing is visible."""
    assert ended.code == 1, ended
    assert (ended.summary["failed"], ended.summary["state"]) == (1, "failed"), ended
    progress = scenario.ledger.read()
    assert progress.completions.height == CHUNKS - 1
    assert progress.failed().select("index", "error").rows() == [(CHUNK, error)]
    assert not read_all(scenario, scenario.output).keys


def test_one_chunk_raises(new: NewScenario) -> None:
    scenario = new(transform="raising", params={"row": ROW})
    with pytest.raises(RunIncompleteError):
        scenario.run_here()
    progress = scenario.ledger.read()
    assert progress.failed().select("index", "error").rows() == [(CHUNK, "TransformError")]
    assert "row 3503 is bad" in progress.failed()["message"][0]
    assert progress.failures.height == 1, "a bug is not tried again"
    assert progress.completions.height == CHUNKS - 1
    assert not read_all(scenario, scenario.output).keys


@pytest.mark.long
@pytest.mark.parametrize("kind", mostly_long(["panic", "exit", "interrupt"], {"exit"}))
def test_one_chunk_raises_what_is_no_exception(
    new: NewScenario, cluster: Cluster, kind: str
) -> None:
    """Dask ends a worker for the last two, with all that it was given."""
    scenario = new(transform="leaving", params={"row": ROW, "kind": kind})
    _others_are_done(scenario, cluster.start(scenario).wait(240), "TransformError")
    progress = scenario.ledger.read()
    assert "enough" in progress.failed()["message"][0]
    assert progress.failures.height == 1, "a bug is not tried again"
    assert all(worker.runs for worker in cluster.workers.values())


def test_one_chunk_returns_another_schema(new: NewScenario) -> None:
    scenario = new(transform="fickle", params={"row": ROW})
    with pytest.raises(SchemaChangedError, match=f"e.g. chunk {CHUNK}"):
        scenario.run_here()
    assert not read_all(scenario, scenario.output).keys


@pytest.mark.chaos
def test_one_chunk_hangs(new: NewScenario, cluster: Cluster) -> None:
    for name in list(cluster.workers):
        cluster.workers.pop(name).stop()
    for name in ("n0", "n1"):
        cluster.add_worker(name, nanny=True)
    cluster.await_workers(2)
    changes = {"chunk_timeout": 5}
    scenario = new(transform="hanging", params={"row": ROW}, changes=changes)
    _others_are_done(scenario, cluster.start(scenario).wait(), "ChunkTimeoutError")


@pytest.mark.chaos  # In tests/integration too: test_task_runs.py, test_worker_memory.py.
def test_one_chunk_kills_its_process(new: NewScenario, cluster: Cluster) -> None:
    for name in list(cluster.workers):
        cluster.workers.pop(name).stop()
    for name in ("n0", "n1"):
        cluster.add_worker(name, nanny=True)
    cluster.await_workers(2)
    scenario = new(transform="killing", params={"row": ROW})
    _others_are_done(scenario, cluster.start(scenario).wait(240), "WorkerKilledError")


@pytest.mark.chaos
def test_one_chunk_eats_all_memory(new: NewScenario, cluster: Cluster) -> None:
    for name in list(cluster.workers):
        cluster.workers.pop(name).stop()
    for name in ("n0", "n1"):
        cluster.add_worker(name, nanny=True, memory="800MB")
    cluster.await_workers(2)
    scenario = new(transform="greedy", params={"row": ROW})
    ended = cluster.start(scenario).wait(240)
    _others_are_done(scenario, ended, "WorkerKilledError")
    assert "chunks.target" in scenario.ledger.read().failed()["message"][0]


def test_a_fixed_transform_maps_only_what_failed(new: NewScenario) -> None:
    scenario = new(transform="raising", params={"row": ROW})
    with pytest.raises(RunIncompleteError):
        scenario.run_here()
    before = scenario.ledger.read().completions
    # The code is the same for everybody here: the bad row is taken out of its sight instead.
    fixed = Scenario(scenario.world, f"{scenario.name}-2", scenario.input, "raising")
    fixed.output, fixed.params = scenario.output, {"row": -1}
    summary = fixed.run_here(ResumeOptions(replan=True))
    assert summary.state == "done"
    check_output(fixed, oracle(fixed))
    assert before.height == CHUNKS - 1
