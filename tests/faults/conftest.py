"""One world a test process, a scenario a test."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Callable, Container, Iterable, Iterator
from typing import Any

import pytest

from pipeline.runs.worker.chunk import open_run
from tests.faults.cluster import Cluster, running_cluster
from tests.faults.world import Scenario, World, running_world

NewScenario = Callable[..., Scenario]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves the long form out, unless `make chaos` asks for it."""
    if os.environ.get("CHAOS") or os.environ.get("CHAOS_SEED"):
        return
    left_out = [item for item in items if item.get_closest_marker("chaos")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def mostly_long(
    cases: Iterable[object],
    short: Container[str],
    name: Callable[[Any], str] = str,
    *,
    longer: Container[str] = (),
) -> list[Any]:
    """Parameters of which only some are in `make test` (short) or `make test-long` (longer)."""

    def marks(case: object) -> Any:
        if name(case) in short:
            return ()
        return pytest.mark.long if name(case) in longer else pytest.mark.chaos

    return [pytest.param(case, id=name(case), marks=marks(case)) for case in cases]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running_world(tmp_path_factory.mktemp("world")) as world:
        yield world


@pytest.fixture(scope="session")
def running(world: World) -> Iterator[Cluster]:
    with running_cluster(world) as cluster:
        yield cluster


@pytest.fixture
def cluster(running: Cluster) -> Cluster:
    """Prefect, a scheduler and two workers, all in order whatever the last test did."""
    running.repair()
    return running


@pytest.fixture(scope="module", autouse=True)
def inhabitant(world: World) -> Iterator[None]:
    """Makes this process the proxy's client `driver`, as the serial engine's batches see it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in world.environment("driver").items():
            patch.setenv(name, value)
        open_run.cache_clear()
        yield
    open_run.cache_clear()


@pytest.fixture
def new(world: World, request: pytest.FixtureRequest) -> Iterator[NewScenario]:
    """Makes scenarios over the usual dataset, or over one of their own."""
    label = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower())[:60].strip("-")

    def make(**said: object) -> Scenario:
        name = f"{label}-{uuid.uuid4().hex[:6]}"
        if said.pop("own_input", False):
            said["input"] = f"s3://demo/{name}/in/"
            world.write(str(said["input"]))
        said.setdefault("input", world.shared_input)
        return Scenario(world, name, **said)  # type: ignore[arg-type]

    world.proxy.reset()
    yield make
    world.proxy.reset()
