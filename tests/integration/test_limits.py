"""Several runs share one S3: a limit in Prefect, of which each batch holds a slot."""

import json
import subprocess
from collections.abc import Iterator
from itertools import pairwise

import polars as pl
import pytest
from prefect.client.orchestration import get_client

from pipeline.flows.concurrency_slots import Slots
from pipeline.flows.server import talking_to
from pipeline.runs.ledger.ledger import Ledger
from tests.faults.world import await_that
from tests.integration.world import World

pytestmark = [pytest.mark.integration, pytest.mark.long]


def make_limit(world: World, name: str, slots: int) -> None:
    limit = {"name": name, "limit": slots, "active": True}
    world.ask_prefect("v2/concurrency_limits/", limit)


def spans(world: World, run: str, output: str) -> list[tuple[float, float]]:
    """From the first chunk's beginning to the last one's end, of each batch, in order of time."""
    done = Ledger(world.storage, output, run).read().completions
    ends = done.group_by("batch").agg(
        pl.col("started").min(), ended=(pl.col("started") + pl.col("seconds")).max()
    )
    return sorted(ends.select("started", "ended").iter_rows())


def test_batches_take_turns_where_the_limit_is_one(world: World) -> None:
    make_limit(world, "one-at-a-time", 1)
    job = world.job("turns", "shop.transforms:slow", params={"seconds": 0.05})
    done = world.chunkmap("run", job, "--json", CHUNKMAP_BATCHES__CONCURRENCY_LIMIT="one-at-a-time")
    assert done.code == 0, done.err
    found = spans(world, done.data["run"], "s3://demo/out/turns/")
    assert len(found) > 2
    assert all(before[1] <= after[0] + 0.05 for before, after in pairwise(found))


def held(world: World, name: str) -> int:
    """Slots of a limit that are taken."""
    found = world.ask_prefect("v2/concurrency_limits/filter", {})
    return next(int(limit["active_slots"]) for limit in found if limit["name"] == name)


@pytest.fixture
def prefect(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Prefect's settings are those of the world's server."""
    for name, value in world.settings.prefect.environment().items():
        monkeypatch.setenv(name, value)
    with talking_to(str(world.settings.prefect.api_url), 4):
        yield


def granted(slots: Slots, count: int) -> list[str]:
    found: list[str] = []

    def enough() -> bool:
        found.extend(slots.granted(0.2))
        return len(found) >= count

    await_that(enough, f"{count} slots")
    return found


@pytest.mark.usefixtures("prefect")
def test_slots_are_given_in_order_and_given_back(world: World) -> None:
    make_limit(world, "two", 2)
    slots = Slots(["two"], max_held=10)
    for name in ("a", "b", "c", "d"):
        slots.request(name)
    assert granted(slots, 2) == ["a", "b"]
    assert held(world, "two") == 2
    assert slots.granted(1.5) == []
    slots.release("c")  # Not wanted any more.
    slots.release("a")
    assert granted(slots, 1) == ["d"]
    slots.release("b")
    slots.release("d")
    await_that(lambda: held(world, "two") == 0, "slots that are given back")
    await_that(lambda: slots._thread is None, "the end of the thread")


@pytest.mark.usefixtures("prefect")
def test_no_more_slots_are_held_than_batches_can_run(world: World) -> None:
    """What waits in Dask's queue holds none: other runs may use them."""
    make_limit(world, "many", 5)
    slots = Slots(["many"], max_held=1)
    slots.request("a")
    slots.request("b")
    assert granted(slots, 1) == ["a"]
    assert slots.granted(1.5) == []
    assert held(world, "many") == 1
    for name in ("a", "b"):
        slots.release(name)
    await_that(lambda: held(world, "many") == 0, "slots that are given back")


@pytest.mark.usefixtures("prefect")
def test_a_lease_that_cannot_be_renewed_stops_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pipeline.flows.concurrency_slots.RENEW_SECONDS", 0.0)
    make_limit(world, "fleeting", 1)
    slots = Slots(["fleeting"])
    slots.request("a")
    assert granted(slots, 1) == ["a"]
    [lease] = slots._held.values()
    with get_client(sync_client=True) as client:
        assert lease.id is not None
        client.release_concurrency_slots_with_lease(lease.id)
    await_that(lambda: "is not renewed" in caplog.text, "a warning")
    slots.request("b")
    slots.max_held = 2
    assert granted(slots, 1) == ["b"]
    slots.release("a")
    slots.release("b")
    await_that(lambda: slots._thread is None, "the end of the thread")


def test_batches_go_on_where_prefect_does_not_answer(caplog: pytest.LogCaptureFixture) -> None:
    with talking_to("http://127.0.0.1:9/api", 0):
        slots = Slots(["nowhere"], max_held=3)
        for name in ("a", "b", "c"):
            slots.request(name)
        assert granted(slots, 3) == ["a", "b", "c"]
    assert caplog.text.count("run without a slot") == 1
    for name in ("a", "b", "c"):
        slots.release(name)
    await_that(lambda: slots._thread is None, "the end of the thread")


@pytest.mark.usefixtures("prefect")
def test_a_limit_that_nobody_made_limits_nothing(world: World) -> None:
    slots = Slots(["nobody-made-this"], max_held=2)
    slots.request("a")
    slots.request("b")
    assert granted(slots, 2) == ["a", "b"]
    slots.release("a")
    slots.release("b")


@pytest.mark.usefixtures("prefect")
def test_a_run_waits_for_the_slot_that_another_holds(world: World) -> None:
    make_limit(world, "taken", 1)
    other = Slots(["taken"])
    other.request("another run's")
    granted(other, 1)
    job = world.job("waits")
    limit = {"CHUNKMAP_BATCHES__CONCURRENCY_LIMIT": "taken"}
    with world.start("run", job, "--json", **limit) as process:
        world.await_some("s3://demo/out/waits.chunkmap/runs/", process)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(10)
        assert not world.objects("s3://demo/out/waits/")
        assert not [uri for uri, _ in world.objects(STAGED) if "/completions/" in uri]
        other.release("another run's")
        out, err = process.communicate(timeout=250)
    assert process.returncode == 0, err
    assert json.loads(out)["failed"] == 0
    await_that(lambda: held(world, "taken") == 0, "slots that are given back")


STAGED = "s3://demo/out/waits.chunkmap/"
