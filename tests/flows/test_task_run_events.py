"""The events that the driver makes of task runs are those that Prefect's own engine sends."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from prefect import tags, task
from prefect.cache_policies import NO_CACHE
from prefect.events.schemas.events import Event
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED,
    PREFECT_LOGGING_TO_API_ENABLED,
    temporary_settings,
)
from prefect.task_engine import run_task_sync
from prefect.utilities import engine as prefect_engine

from pipeline.flows.task_report import LogLine, StateReport
from pipeline.flows.task_run_events import TaskRunHistory, TaskRunTemplate

WANTED = {"name": "b1", "spec": "0-3"}


@pytest.fixture(autouse=True)
def no_server() -> Iterator[None]:
    """Settings of a server that is not asked for its version, since it is not there."""
    there = {
        PREFECT_API_URL: "http://127.0.0.1:9/api",
        PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED: False,
        PREFECT_LOGGING_TO_API_ENABLED: False,
    }
    with temporary_settings(there):
        yield


@task(name="fails-once", task_run_name="{name}", retries=1, cache_policy=NO_CACHE)
def fails_once(name: str, spec: str) -> int:
    """Fail at the first call of each name."""
    if name not in _called:
        _called.add(name)
        raise ValueError("not yet")
    return 3


@task(name="fails", task_run_name="{name}", cache_policy=NO_CACHE)
def fails(name: str, spec: str) -> None:
    """Fail."""
    raise ValueError(f"no {spec}")


_called: set[str] = set()


def as_prefect_sends(monkeypatch: pytest.MonkeyPatch, one: Any) -> list[dict[str, Any]]:
    """The events of one run of a task, as Prefect's engine would send them."""
    found: list[Event] = []

    def note(**named: Any) -> Event:
        follows = named.pop("follows", None)
        found.append(Event(**named, follows=follows and follows.id))
        return found[-1]

    monkeypatch.setattr(prefect_engine, "emit_event", note)
    _called.clear()
    given: dict[str, set[Any]] = {name: set() for name in WANTED}
    run_task_sync(one, parameters=dict(WANTED), dependencies=given, return_type="state")
    return [json.loads(event.model_dump_json()) for event in found]


def as_we_send(theirs: list[dict[str, Any]], one: Any) -> list[dict[str, Any]]:
    """Ours, of the same states at the same times."""
    history = TaskRunHistory(TaskRunTemplate(one, list(WANTED)), "b1")
    states = []
    for event in theirs[1:]:
        state = event["payload"]["validated_state"]
        at = datetime.fromisoformat(event["occurred"]).timestamp()
        states.append(
            StateReport(type=state["type"], name=state["name"], at=at, message=state["message"])
        )
    time.sleep(0.01)  # A worker's report comes after the states in it.
    history.first = history._at = datetime.fromisoformat(theirs[0]["occurred"])
    return [json.loads(event) for event in (*history.pending(), *history.reported(states))]


def comparable(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without what is of each run anew."""
    order = {event["id"]: number for number, event in enumerate(events)}
    for event in events:
        event["id"], event["follows"] = order[event["id"]], order.get(event["follows"])
        event["resource"].pop("prefect.resource.id")
        event["resource"]["prefect.resource.name"] = "b1"  # Theirs is renamed after the first.
        run = event["payload"]["task_run"]
        run["name"] = "b1"
        run.pop("dynamic_key")
        run["expected_start_time"] = "then"
        run["total_run_time"] = round(run["total_run_time"], 5)
    return events


@pytest.mark.parametrize("one", [fails_once, fails], ids=lambda one: one.name)
def test_they_are_what_prefects_engine_sends(monkeypatch: pytest.MonkeyPatch, one: Any) -> None:
    with tags("nightly"):
        # A tag makes the engine ask the server for slots, which is not there.
        monkeypatch.setattr("prefect.task_engine._concurrency", _no_slots)
        theirs = as_prefect_sends(monkeypatch, one)
        ours = as_we_send(theirs, one)
    assert len(theirs) in (3, 4)
    assert comparable(ours) == comparable(theirs)
    assert [event["related"] for event in ours] == len(ours) * [
        [{"prefect.resource.id": "prefect.tag.nightly", "prefect.resource.role": "tag"}]
    ]


class _no_slots:
    def __init__(self, **_: Any) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


def history() -> TaskRunHistory:
    return TaskRunHistory(TaskRunTemplate(fails, list(WANTED)), "b1")


def state(type_: Any, at: float, name: str = "") -> StateReport:
    return StateReport(type=type_, name=name or type_.title(), at=at, message="")


def occurred(events: list[bytes]) -> list[tuple[str, datetime]]:
    found = [json.loads(event) for event in events]
    return [(event["event"], datetime.fromisoformat(event["occurred"])) for event in found]


@pytest.mark.parametrize("off", [-1e6, -1e18, 0.0, 1e6, 1e300])
def test_a_workers_clock_does_not_matter_for_the_order(off: float) -> None:
    """Prefect's server leaves out a state that is older than the one it has."""
    one = history()
    events = one.pending()
    at = time.time() + off
    events += one.begun(at)
    events += one.reported([state("RUNNING", at), state("COMPLETED", at + 1)])
    found = occurred(events)
    assert [name.rpartition(".")[2] for name, _ in found] == ["Pending", "Running", "Completed"]
    times = [when for _, when in found]
    assert times == sorted(set(times))
    assert (datetime.now(UTC) - times[0]).total_seconds() < 60
    assert times[-1].timestamp() < time.time() + 1


def test_what_was_announced_is_not_sent_again() -> None:
    one = history()
    one.pending()
    now = time.time()
    assert len(one.begun(now)) == 1
    assert one.begun(now) == []
    found = one.reported([state("RUNNING", now), state("COMPLETED", now)])
    assert [name for name, _ in occurred(found)] == ["prefect.task-run.Completed"]
    assert one.begun(now) == one.crashed("late") == one.cancelled("late") == []
    assert one.reported([state("RUNNING", now), state("FAILED", now)]) == []


def test_a_report_that_does_not_end_is_a_crash() -> None:
    one = history()
    one.pending()
    found = one.reported([state("RUNNING", time.time())])
    assert [name for name, _ in occurred(found)] == [
        "prefect.task-run.Running",
        "prefect.task-run.Crashed",
    ]


def test_a_run_whose_worker_died_has_crashed_and_says_why() -> None:
    one = history()
    one.pending()
    one.begun(time.time())
    [event] = one.crashed("tcp://10.0.0.1:1 and others died with it")
    found = json.loads(event)
    assert found["payload"]["validated_state"]["type"] == "CRASHED"
    assert "died with it" in found["resource"]["prefect.state-message"]
    assert found["payload"]["task_run"]["end_time"] == found["occurred"]


def test_lines_are_of_this_task_run_and_of_its_time() -> None:
    one = history()
    now = time.time()
    lines = [LogLine(logger="a", level=20, at=at, message="x\0y") for at in (0.0, now, 1e20)]
    found = one.lines(lines)
    assert {line["task_run_id"] for line in found} == {str(one.id)}
    assert "\0" not in str(found[0]["message"])
    for line in found:
        at = datetime.fromisoformat(line["timestamp"]).timestamp()
        assert abs(at - now) < 60
