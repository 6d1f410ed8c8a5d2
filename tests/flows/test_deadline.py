"""When an output is late: as object storage knows it, at the moment that was promised."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from pipeline.config.job import Job
from pipeline.errors import StateError
from pipeline.flows import deadline, run_events
from pipeline.runs.backfill.plan import WindowSelection
from tests.support.backfills import Days, days
from tests.support.memory_storage import MemoryBackend
from tests.support.publishing import PLAN, published
from tests.support.runs_by_hand import OUTPUT, job_of

DEPLOYMENT = UUID(int=7)
HOUR = 3600.0

Check = Callable[..., tuple[str, list[str]]]


class Prefect:
    """What the flow asks of Prefect."""

    def __init__(self) -> None:
        self.scheduled = datetime.now(UTC)
        self.events: list[tuple[str, str, Any]] = []
        self.later: list[tuple[UUID, dict[str, Any]]] = []
        self.completed = False

    @property
    def flow_run(self) -> Any:
        return SimpleNamespace(scheduled_start_time=self.scheduled)

    @property
    def deployment(self) -> Any:
        return SimpleNamespace(id=str(DEPLOYMENT))

    def emit(self, event: str, output: str, payload: Any) -> None:
        self.events.append((event, output, payload))

    def emit_from(self, event: str, output: str, payload: Any, origin: Any) -> None:
        self.emit(event, output, payload)

    def run_deployment(self, deployment: UUID, **options: Any) -> None:
        self.later.append((deployment, options))

    def check(self, job: Job, **parameters: Any) -> str:
        """Return the message of the final state."""
        state = deadline.check_deadline.fn(job.to_yaml(), **parameters)
        return str(state.message)


@pytest.fixture
def prefect(monkeypatch: pytest.MonkeyPatch) -> Prefect:
    prefect = Prefect()
    monkeypatch.setattr(deadline, "runtime", prefect)
    monkeypatch.setattr(deadline, "emit", prefect.emit)
    monkeypatch.setattr(deadline, "run_deployment", prefect.run_deployment)
    monkeypatch.setattr(deadline, "flush_events", lambda seconds: True)
    monkeypatch.setattr(deadline, "has_completed_since", lambda output, since: prefect.completed)
    monkeypatch.setattr(deadline, "set_up_driver", lambda *_: None)
    return prefect


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> MemoryBackend:
    backend = MemoryBackend()
    monkeypatch.setattr(deadline, "open_storage", lambda settings: backend.storage())
    return backend


def test_a_run_with_a_span_is_checked_that_long_after_its_start(
    prefect: Prefect, backend: MemoryBackend
) -> None:
    assert prefect.check(job_of(), within=2 * HOUR).startswith("checks the output at")
    [(deployment, options)] = prefect.later
    assert deployment == DEPLOYMENT
    assert options["scheduled_time"] == prefect.scheduled + timedelta(hours=2)
    assert options["parameters"] == {"start": prefect.scheduled.isoformat()}
    # One that Prefect repeats schedules nothing twice, and nothing waits for the other run.
    prefect.check(job_of(), within=2 * HOUR)
    assert prefect.later[1][1]["idempotency_key"] == options["idempotency_key"]
    assert (options["timeout"], options["as_subflow"]) == (0, False)
    assert prefect.events == []


def test_what_is_published_since_the_start_is_on_time(
    prefect: Prefect, backend: MemoryBackend
) -> None:
    start = prefect.scheduled - timedelta(minutes=5)
    published(backend, PLAN, "append")
    on_time = prefect.check(job_of(), within=2 * HOUR, start=start.isoformat())
    assert (on_time, prefect.events) == ("on time", [])
    # What another run has published before is not what this one was to publish.
    start = datetime.now(UTC) + timedelta(seconds=1)
    late = prefect.check(job_of(), within=2 * HOUR, start=start.isoformat())
    assert late.startswith("test has published nothing within 2 h of its start at ")
    [(event, output, payload)] = prefect.events
    assert (event, output) == ("chunkmap.output.late", OUTPUT)
    assert payload == {"job": "test", "message": late}


def test_a_run_that_found_nothing_new_is_on_time(prefect: Prefect, backend: MemoryBackend) -> None:
    prefect.completed = True
    assert prefect.check(job_of()) == "on time"
    prefect.completed = False
    assert "published nothing by" in prefect.check(job_of())


def test_recovery_is_about_the_same_resource(prefect: Prefect, backend: MemoryBackend) -> None:
    """Events of runs name an output with a slash at its end, however the job spells it."""
    prefect.check(job_of(output=OUTPUT.rstrip("/")))
    assert [output for _, output, _ in prefect.events] == [OUTPUT]


def test_the_window_is_that_of_the_start(
    prefect: Prefect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = Days(tmp_path)
    made.write(days("2024-03-08", 1))
    job = made.job()
    made.run(job, WindowSelection(start="2024-03-08", end="2024-03-09"))
    # Its day ends before the check, which asks for the day before the start all the same.
    start = "2024-03-09T23:00:00+00:00"
    assert prefect.check(job, within=2 * HOUR, start=start) == "on time"
    prefect.completed = True  # Of a job with windows, only the window counts.
    late = prefect.check(job, within=2 * HOUR, start="2024-03-10T23:00:00+00:00")
    assert late.startswith("window 2024-03-09 of daily is not published within 2 h of its start")


def test_the_window_of_a_time_of_day_is_that_of_the_schedule(
    prefect: Prefect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run of 22:00 makes the day before; at 00:30, when it is checked, that day is over."""
    monkeypatch.chdir(tmp_path)
    made = Days(tmp_path)
    made.write(days("2024-03-08", 1))
    job = made.job()
    made.run(job, WindowSelection(start="2024-03-08", end="2024-03-09"))
    prefect.scheduled = datetime(2024, 3, 10, 0, 30, tzinfo=UTC)
    assert prefect.check(job, cron="0 22 * * *") == "on time"
    prefect.scheduled = datetime(2024, 3, 11, 0, 30, tzinfo=UTC)
    late = prefect.check(job, cron="0 22 * * *")
    assert late == "window 2024-03-09 of daily is not published by 2024-03-11 00:30 UTC"


def test_a_late_run_of_yesterday_is_not_one_of_today(
    prefect: Prefect, backend: MemoryBackend
) -> None:
    published(backend, PLAN, "append")
    minute = datetime.now(UTC) + timedelta(minutes=2)
    prefect.scheduled = minute + timedelta(hours=4)  # What is there was published before.
    late = prefect.check(job_of(), cron=f"{minute.minute} {minute.hour} * * *")
    assert late.startswith("test has published nothing by")


def test_people_are_told_of_an_output_that_cannot_be_read(
    prefect: Prefect, backend: MemoryBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_events, "emit", prefect.emit_from)
    monkeypatch.setattr(run_events, "flush_events", lambda seconds: True)
    backend.put(f"{OUTPUT[:-1]}.chunkmap/HEAD.json", b"damaged")
    with pytest.raises(StateError):
        prefect.check(job_of())
    [(event, output, payload)] = prefect.events
    assert (event, output) == ("chunkmap.deadline.failed", OUTPUT)
    assert (payload["job"], payload["error"]) == ("deadline of test", "DamagedStateError")


@pytest.mark.parametrize(
    ("cron", "timezone", "before", "start"),
    [
        ("0 2 * * *", "UTC", "2024-03-10T06:00+00:00", "2024-03-10T02:00+00:00"),
        ("0 2 * * *", "Europe/Berlin", "2024-07-10T06:00+00:00", "2024-07-10T00:00+00:00"),
        ("0 22 * * 1-5", "UTC", "2024-03-11T06:00+00:00", "2024-03-08T22:00+00:00"),
        ("0 6 * * *", "UTC", "2024-03-10T06:00+00:00", "2024-03-09T06:00+00:00"),
    ],
)
def test_the_last_start_before_a_moment(cron: str, timezone: str, before: str, start: str) -> None:
    found = deadline.last_start(cron, timezone, datetime.fromisoformat(before))
    assert found == datetime.fromisoformat(start)
