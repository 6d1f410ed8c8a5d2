"""Dask workers as chunkmap needs them, whoever started them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import dask
import pytest
from distributed import Client

from pipeline.cluster import local_cluster
from pipeline.cluster.dask_profiler import stop_profiler
from pipeline.cluster.futures import memory_limit
from pipeline.cluster.local_cluster import start_local_cluster
from tests.support.plain_dask import plain_client

pytestmark = pytest.mark.integration


def profilers(dask_worker: Any) -> list[str]:
    return sorted(name for name in dask_worker.periodic_callbacks if "profile" in name)


@pytest.mark.long
def test_our_workers_have_no_profiler() -> None:
    with start_local_cluster(1) as cluster, Client(cluster, set_as_default=False) as client:
        [found] = client.run(profilers).values()
    assert found == []


@pytest.mark.long
def test_a_local_cluster_replaces_nannies_that_gave_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one does whose worker is ended while it starts."""
    monkeypatch.setattr(local_cluster, "REPLACE_SECONDS", 0.2)
    with start_local_cluster(1) as cluster, Client(cluster, set_as_default=False) as client:
        [before] = client.scheduler_info()["workers"]
        cluster.sync(cluster.workers[0].close)
        assert client.submit(os.getpid).result(timeout=120) > 0
        assert before not in client.scheduler_info()["workers"]


@pytest.mark.long
def test_each_cluster_of_a_process_has_its_own_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nannies leave theirs in the process, and would prefer them to what they are told."""
    monkeypatch.setenv("CHUNKMAP_ONE", "the process's own")
    monkeypatch.delenv("CHUNKMAP_TWO", raising=False)
    found = []
    for given in ({"CHUNKMAP_ONE": "1", "CHUNKMAP_TWO": "2"}, {"CHUNKMAP_ONE": "3"}, {}):
        with (
            start_local_cluster(1, environment=given) as cluster,
            Client(cluster, set_as_default=False) as client,
        ):
            found += client.run(variables).values()
    assert found == [["1", "2"], ["3", None], ["the process's own", None]]


def variables() -> list[str | None]:
    return [os.environ.get(name) for name in ("CHUNKMAP_ONE", "CHUNKMAP_TWO")]


LIMIT = 700_000_000


@pytest.fixture(scope="module")
def plain() -> Iterator[Client]:
    """A client of a worker that somebody else has started, in their way."""
    with (
        dask.config.set({"distributed.worker.profile.enabled": True}),
        plain_client(memory_limit=LIMIT) as client,
    ):
        yield client


def test_a_batch_stops_the_profiler_of_other_workers(plain: Client) -> None:
    assert set(*plain.run(profilers).values()) == {"profile", "profile-cycle"}
    plain.submit(stop_profiler).result()
    assert list(plain.run(profilers).values()) == [[]]


def test_a_worker_knows_its_limit(plain: Client) -> None:
    assert plain.submit(memory_limit).result(60) == LIMIT
