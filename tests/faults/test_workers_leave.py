"""SIGTERM to a worker in the middle of a batch: the chunk at hand is its last."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections import Counter

import pytest

from pipeline.cluster.local.processes import HOST
from tests.faults.cluster import Cluster
from tests.faults.conftest import NewScenario
from tests.faults.invariants import check_everything
from tests.faults.rules import Rule
from tests.faults.world import CHUNKS, Process, Scenario, await_that

pytestmark = pytest.mark.faults

STOP_SECONDS = 20


def add_own(cluster: Cluster, name: str, **more: str) -> Process:
    """A worker as containers run it, with its nanny."""
    environment = {
        **cluster.environment(name),
        "CHUNKMAP_DASK__SCHEDULER": cluster.address,
        "CHUNKMAP_DASK__STOP_SECONDS": str(STOP_SECONDS),
        "CHUNKMAP_DASK__THREADS_PER_WORKER": "1",
        **more,
    }
    command = (sys.executable, "-m", "pipeline.cluster.worker", "--name", name, "--host", HOST)
    worker = Process(
        name, (*command, "--dashboard-address", ":0"), environment, cluster.world.folder
    )
    cluster.workers[name], cluster.labels[name] = worker.start(), name
    return worker


@pytest.fixture
def own(cluster: Cluster) -> Cluster:
    """A worker as containers run it, which leaves, and a plain one, which stays."""
    cluster.workers.pop("w0").stop()
    add_own(cluster, "leaver")
    cluster.await_workers(2)
    return cluster


def uploads(scenario: Scenario) -> Counter[str]:
    """How often each output was staged, in either way, by file name."""
    found = [request for request, _ in scenario.world.proxy.log]
    begun = [request.path for request in found if request.kind == "CreateMultipartUpload"]
    copied = [
        request.path
        for request in found
        if request.kind == "PutObject" and "/staged/" in request.path
    ]
    keys = [*begun, *(path.rpartition(".")[0] for path in copied)]
    return Counter(key.rpartition("/")[2] for key in keys)


@pytest.mark.parametrize(
    "group",
    [pytest.param(False, id="process"), pytest.param(True, id="group", marks=pytest.mark.long)],
)
def test_a_worker_that_is_told_to_stop_hands_back(
    new: NewScenario, own: Cluster, group: bool
) -> None:
    scenario, leaver = new(transform="slow", params={"seconds": 0.2}), own.workers["leaver"]
    told: list[float] = []

    def tell(*_: object) -> None:
        told.append(time.monotonic())
        (os.killpg if group else os.kill)(leaver.pid, signal.SIGTERM)

    # The first two batches have six chunks and four.
    staging = Rule("pass", "UploadPart|PutObject", "/part-", "leaver", nth=2, call=tell)
    scenario.inject(staging)
    driver = own.start(scenario)
    await_that(lambda: told, "the worker's second chunk")
    assert leaver.wait(STOP_SECONDS) == 0
    assert time.monotonic() - told[0] < STOP_SECONDS
    ended = driver.wait()
    assert ended.code == 0, ended
    assert ended.summary["failed"] == 0
    assert ended.summary["rounds"] == 1
    assert re.search(r" [1-9]\d* handed back", leaver.said(20_000)), leaver.said()
    staged = uploads(scenario)
    assert len(staged) == CHUNKS
    assert set(staged.values()) == {1}, "a chunk was mapped twice"
    check_everything(scenario)


@pytest.mark.long
def test_a_worker_whose_lifetime_is_over_is_followed_by_a_fresh_one(
    new: NewScenario, own: Cluster
) -> None:
    own.workers.pop("leaver").stop()
    own.workers.pop("w1").stop()
    mortal = add_own(own, "mortal", CHUNKMAP_DASK__LIFETIME="4")
    own.await_workers(1)
    scenario = new(transform="slow", params={"seconds": 0.4})
    ended = own.start(scenario).wait()
    assert ended.code == 0, ended
    assert mortal.said(50_000).count("Registered to:") >= 2
    assert set(uploads(scenario).values()) == {1}, "a chunk was mapped twice"
    check_everything(scenario)


@pytest.mark.long
def test_one_that_does_not_end_is_ended_and_its_batch_goes_on_elsewhere(
    new: NewScenario, own: Cluster
) -> None:
    own.workers.pop("leaver").stop()
    hasty = add_own(own, "hasty", CHUNKMAP_DASK__STOP_SECONDS="0.3")
    own.await_workers(2)
    scenario = new(transform="slow", params={"seconds": 1.2})
    scenario.inject(
        Rule(
            "pass", "GetObject", "/in/", "hasty", call=lambda _: os.kill(hasty.pid, signal.SIGTERM)
        )
    )
    driver = own.start(scenario)
    await_that(lambda: not hasty.runs, "the worker's end")
    scenario.world.proxy.reset()
    assert driver.wait().code == 0
    check_everything(scenario, redone=CHUNKS)
