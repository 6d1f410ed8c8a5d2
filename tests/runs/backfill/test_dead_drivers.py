"""Which runs and backfills nobody drives any more, as storage knows it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.runs.backfill.dead_drivers import (
    DEAD_SECONDS,
    find_dead_drivers,
    reason_not_to_resume,
    reason_not_to_resume_run,
)
from pipeline.runs.driver.heartbeat import DriverRecord, Heartbeat
from pipeline.storage import Storage
from pipeline.storage.documents import seal_json
from tests.support.backfills import Days, days
from tests.support.memory_storage import MemoryBackend
from tests.support.publishing import OTHER, PLAN, publish
from tests.support.runs_by_hand import OUTPUT, Run, run_of

LONG_AGO = 2 * DEAD_SECONDS


def beat(storage: Storage, prefix: str, silent: float = LONG_AGO, **more: Any) -> DriverRecord:
    """Store the record of a driver of another machine, which was seen last some time ago."""
    now = time.time()
    values: dict[str, Any] = {
        "driver": "d1",
        "host": "another-machine",
        "pid": 1,
        "process_started": 0.0,
        "started": now - silent,
        "seen": now - silent,
        **more,
    }
    record = DriverRecord.model_validate(values)
    storage.put(prefix + "driver.json", seal_json(record.model_dump_json().encode()))
    return record


@pytest.fixture
def run() -> Run:
    return run_of(MemoryBackend().storage(), PLAN)


def found(run: Run) -> list[tuple[str, str]]:
    return [(dead.kind, dead.id) for dead in find_dead_drivers(run.storage, OUTPUT)]


def test_a_run_whose_driver_is_silent_for_long(run: Run) -> None:
    assert found(run) == []  # No driver has begun.
    beat(run.storage, run.ledger.prefix, page=None, flow_run="http://p/runs/flow-run/1")
    [dead] = find_dead_drivers(run.storage, OUTPUT + "/")
    assert (dead.kind, dead.id, dead.job, dead.output) == ("run", run.ledger.run, "test", OUTPUT)
    assert (dead.driver, dead.page, dead.deaths) == ("d1", "http://p/runs/flow-run/1", 1)
    assert reason_not_to_resume_run(run.storage, run.ledger) == ""


@pytest.mark.parametrize("silent", [0.0, DEAD_SECONDS / 2])
def test_what_was_seen_lately_is_left_to_the_automations(run: Run, silent: float) -> None:
    beat(run.storage, run.ledger.prefix, silent)
    assert found(run) == []


@pytest.mark.parametrize("state", ["done", "failed", "held", "cancelled", "interrupted"])
def test_a_driver_that_recorded_its_end_has_not_died(run: Run, state: str) -> None:
    beat(run.storage, run.ledger.prefix, state=state)
    assert found(run) == []
    assert reason_not_to_resume_run(run.storage, run.ledger) == f"its driver ended ({state})"


def test_published_and_cancelled_runs_are_left_alone(run: Run) -> None:
    beat(run.storage, run.ledger.prefix)
    run.ledger.cancel()
    assert found(run) == []
    assert reason_not_to_resume_run(run.storage, run.ledger) == "it was cancelled"
    run.ledger.clear_cancel()
    assert found(run) == [("run", run.ledger.run)]
    run.complete()
    publish(run)  # By another driver, whose record is lost.
    assert found(run) == []
    assert reason_not_to_resume_run(run.storage, run.ledger) == "it is published"


def test_a_driver_on_this_machine_that_lives_is_not_dead(run: Run) -> None:
    heartbeat = Heartbeat.of(run.storage, run.ledger.prefix)
    heartbeat.write()
    later = time.time() + LONG_AGO  # It was suspended, say.
    assert find_dead_drivers(run.storage, OUTPUT, later) == []


def test_of_one_job_only_the_newest_run_counts(run: Run) -> None:
    beat(run.storage, run.ledger.prefix)
    newer = run_of(run.storage, OTHER)
    assert newer.record.created >= run.record.created
    assert found(run) == []
    beat(run.storage, newer.ledger.prefix)
    assert found(run) == [("run", newer.ledger.run)]


def test_drivers_that_died_in_a_row_are_counted(run: Run) -> None:
    now = time.time() - LONG_AGO
    earlier = [
        {"host": "a", "pid": 1, "started": now, "seen": now, "state": state}
        for state in ("running", "failed", "running", "running")
    ]
    beat(run.storage, run.ledger.prefix, earlier=earlier)
    [dead] = find_dead_drivers(run.storage, OUTPUT)
    assert dead.deaths == 3


def test_damaged_records_hide_nothing_else(run: Run) -> None:
    beat(run.storage, run.ledger.prefix)
    run.storage.put(f"{run.ledger.state}runs/0123456789abcdef/run.json", b"{}")
    assert found(run) == [("run", run.ledger.run)]


def test_backfills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = Days(tmp_path)
    made.write(days("2024-03-08", 2))
    store = made.create(made.job())
    progress = {"waiting": 1, "done": 1, "states": "?"}
    beat(store.storage, store.prefix, progress=progress)
    [dead] = find_dead_drivers(store.storage, store.output)
    assert (dead.kind, dead.id) == ("backfill", store.backfill)
    assert reason_not_to_resume(store) == ""
    for wish, reason in (("paused", "it is paused"), ("cancelled", "it is cancelled")):
        store.change("test", lambda _, wish=wish: {"paused": False, wish: True})  # type: ignore[misc]
        assert find_dead_drivers(store.storage, store.output) == []
        assert reason_not_to_resume(store) == reason
    store.change("test", lambda _: {"paused": False, "cancelled": False})
    beat(store.storage, store.prefix, progress={"done": 2})
    assert find_dead_drivers(store.storage, store.output) == []
    assert reason_not_to_resume(store) == "it is done"
