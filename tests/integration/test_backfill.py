"""`chunkmap backfill` on the real stack: to its end, cancelled, paused, killed, fixed."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from pipeline.flows.deployments import resume_backfill
from pipeline.runs.backfill.dead_drivers import reason_not_to_resume
from pipeline.runs.backfill.store import BackfillStore, backfills_of
from pipeline.runs.driver.heartbeat import DriverRecord
from pipeline.table.log import TableLog
from tests.integration.world import AnyProcess, World, parquet, sales
from tests.support import forks

pytestmark = pytest.mark.integration

DAYS = [date(2024, 2, 25) + timedelta(days=number) for number in range(12)]
"""Over a leap day and the end of a month."""
EACH = 100
INPUT = "s3://demo/daily/"


@pytest.fixture(scope="module", autouse=True)
def daily(world: World) -> None:
    for number, day in enumerate(DAYS):
        rows = parquet(sales(number * EACH, EACH))
        world.storage.put(f"{INPUT}ds={day}/0.parquet", rows)


def job(world: World, name: str, transform: str = "total", **more: Any) -> str:
    return world.job(
        name,
        f"shop.transforms:{transform}",
        INPUT,
        window={"column": "ds", "grain": "day"},
        output={"mode": "overwrite-partitions"},
        chunks={"per_file": True},
        **more,
    )


def oracle(above: float = 10) -> pl.DataFrame:
    rows = sales(0, EACH * len(DAYS)).filter(pl.col("price") > above)
    return rows.with_columns(total=pl.col("price"))


def output_of(name: str) -> str:
    return f"s3://demo/out/{name}/"


def the_backfill(world: World, name: str) -> BackfillStore:
    [record] = backfills_of(world.storage, output_of(name))
    return BackfillStore(world.storage, record.output, record.backfill)


def frame(world: World, name: str) -> pl.DataFrame:
    found = world.frame(output_of(name))
    return found.select(column for column in found.columns if column != "ds")


def published(world: World, name: str) -> int:
    return len(TableLog(world.storage, output_of(name)).manifest().commits)


def awaited(what: Callable[[], Any], process: AnyProcess | None = None) -> Any:
    """What a question answers, once it answers with something true. S3 has no event to wait for."""
    deadline = time.monotonic() + 120
    while not (answer := what()):
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "nothing came"
        time.sleep(0.1)
    return answer


def driver_at_work(world: World, name: str, process: AnyProcess) -> DriverRecord:
    """The driver, once it has published something and has not yet published all."""

    def seen() -> DriverRecord | None:
        if not backfills_of(world.storage, output_of(name)):
            return None
        driver = the_backfill(world, name).driver()
        return driver if driver and published(world, name) else None

    found: DriverRecord = awaited(seen, process)
    assert published(world, name) < len(DAYS)
    return found


def set_state(world: World, driver: DriverRecord, state: str) -> None:
    """What the buttons of Prefect's pages do."""
    run = str(driver.flow_run).rpartition("/")[2]
    world.ask_prefect(f"flow_runs/{run}/set_state", {"state": {"type": state}, "force": True})


def prefect_state(world: World, driver: DriverRecord) -> str:
    run = str(driver.flow_run).rpartition("/")[2]
    [shown] = world.in_prefect("flow_runs", flow_runs={"id": {"any_": [run]}})
    return str(shown["state_type"])


def artifacts_of(world: World, driver: DriverRecord) -> dict[str, dict[str, Any]]:
    """The artifacts of a driver's flow run, by their keys."""
    run = str(driver.flow_run).rpartition("/")[2]
    found = world.in_prefect("artifacts", flow_runs={"id": {"any_": [run]}})
    return {artifact["key"]: artifact for artifact in found}


@contextmanager
def settings_of_stack(world: World) -> Iterator[None]:
    """Let this process load the settings of the stack, as a worker of a pool in its folder does."""
    before = Path.cwd()
    os.chdir(world.root)
    try:
        yield
    finally:
        os.chdir(before)


@pytest.fixture
def slowly(world: World) -> Iterator[Callable[[str], forks.Running]]:
    """Starts a backfill that takes a second a window, one run at a time."""
    started: list[forks.Running] = []

    def start(name: str) -> forks.Running:
        path = job(world, name, "slow", params={"seconds": 0.6})
        command = ("backfill", "create", path, "--windows-per-run", "1", "--max-active", "2")
        started.append(world.start(*command, "--json"))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_every_window_is_published_once(world: World) -> None:
    path = job(world, "all-days")
    made = world.chunkmap("backfill", "create", path, "--windows-per-run", "3", "--json")
    assert made.code == 0, made.err
    assert_frame_equal(frame(world, "all-days"), oracle())
    assert published(world, "all-days") == len(DAYS)
    store = the_backfill(world, "all-days")
    driver = store.driver()
    assert driver is not None and driver.state == "done"
    assert prefect_state(world, driver) == "COMPLETED"
    shown = artifacts_of(world, driver)
    assert shown[f"backfill-{store.backfill}"]["data"] == 100.0
    rows = json.loads(shown[f"windows-{store.backfill}"]["data"])
    assert {row["window"]: row["state"] for row in rows} == {str(day): "done" for day in DAYS}
    assert rows[0]["window"] == str(DAYS[-1])
    again = world.chunkmap("backfill", "create", path, "--json")
    assert again.code == 0, again.err
    assert len(backfills_of(world.storage, output_of("all-days"))) == 1


@pytest.mark.long
def test_prefect_shows_a_flow_run_for_each_run(world: World) -> None:
    path = job(world, "shown-days")
    made = world.chunkmap("backfill", "create", path, "--windows-per-run", "4", "--json")
    assert made.code == 0, made.err
    below = {"parent_flow_run_id": {"any_": [world.flow_run_of(made)["id"]]}}
    names = [run["name"] for run in world.in_prefect("flow_runs", flow_runs=below)]
    assert sorted(names) == ["2024-02-25 to 2024-02-28", "2024-02-29 to 2024-03-03"]


@pytest.mark.long
def test_cancelling_in_prefect_cancels_it(world: World, slowly: Any) -> None:
    process = slowly("cancelled-days")
    driver = driver_at_work(world, "cancelled-days", process)
    set_state(world, driver, "CANCELLING")
    process.communicate(timeout=120)
    assert process.returncode == 1
    assert prefect_state(world, driver) == "CANCELLED"
    store = the_backfill(world, "cancelled-days")
    assert store.control().cancelled
    assert 0 < published(world, "cancelled-days") < len(DAYS)
    refused = world.chunkmap(
        "backfill", "resume", store.backfill, "-o", output_of("cancelled-days")
    )
    assert refused.code == 2
    assert "cancelled" in refused.err


@pytest.mark.long
def test_pausing_in_prefect_pauses_it(world: World, slowly: Any) -> None:
    process = slowly("paused-days")
    driver = driver_at_work(world, "paused-days", process)
    set_state(world, driver, "PAUSED")
    store = the_backfill(world, "paused-days")
    awaited(lambda: store.control().paused, process)
    set_state(world, driver, "RUNNING")
    awaited(lambda: not store.control().paused, process)
    process.communicate(timeout=200)
    assert process.returncode == 0
    assert_frame_equal(frame(world, "paused-days"), sales(0, EACH * len(DAYS)))


@pytest.mark.long
def test_pausing_by_command_is_seen_in_prefect(world: World, slowly: Any) -> None:
    process = slowly("held-days")
    driver = driver_at_work(world, "held-days", process)
    store = the_backfill(world, "held-days")
    output = ("-o", output_of("held-days"))
    assert world.chunkmap("backfill", "pause", store.backfill, *output).code == 0
    awaited(lambda: prefect_state(world, driver) == "PAUSED", process)
    assert world.chunkmap("backfill", "resume", store.backfill, *output).code == 0
    awaited(lambda: prefect_state(world, driver) == "RUNNING", process)
    process.communicate(timeout=200)
    assert process.returncode == 0
    assert prefect_state(world, driver) == "COMPLETED"


@pytest.mark.long
def test_another_driver_goes_on_where_one_was_killed(world: World, slowly: Any) -> None:
    process = slowly("killed-days")
    driver_at_work(world, "killed-days", process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    store = the_backfill(world, "killed-days")
    output = ("-o", output_of("killed-days"))
    status = world.chunkmap("backfill", "status", store.backfill, *output, "--json")
    assert status.code == 0, status.err
    done = world.chunkmap("backfill", "resume", store.backfill, *output, "--json")
    assert done.code == 0, done.err
    assert_frame_equal(frame(world, "killed-days"), sales(0, EACH * len(DAYS)))
    assert published(world, "killed-days") == len(DAYS)


def test_an_interrupted_backfill_stays_interrupted(world: World, slowly: Any) -> None:
    """An automation resumes what Prefect calls crashed, and asks S3 before it does."""
    process = slowly("interrupted-days")
    driver = driver_at_work(world, "interrupted-days", process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 130
    assert prefect_state(world, driver) == "CANCELLED"
    store = the_backfill(world, "interrupted-days")
    assert reason_not_to_resume(store) == "its driver ended (interrupted)"
    output = output_of("interrupted-days")
    with settings_of_stack(world):
        state = resume_backfill.fn(output, store.backfill, only_if_dead=True)
    assert state.is_completed()
    assert state.message == "not resumed: its driver ended (interrupted)"
    assert published(world, "interrupted-days") < len(DAYS)
