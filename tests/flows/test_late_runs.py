"""After an outage, the last of the late runs of a schedule processes the windows of all."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from pipeline.flows import deployments
from pipeline.runs.backfill.plan import WindowSelection
from tests.support.backfills import Days, days

DEPLOYMENT = UUID(int=7)
BEGIN = datetime(2024, 3, 6, 2, tzinfo=UTC)
NOW = BEGIN + timedelta(days=4, hours=3)


class Client:
    """A server with late runs: one of each day at two, and one that was started by hand."""

    def __init__(self) -> None:
        times = [BEGIN + timedelta(days=day) for day in range(5)]
        times.append(datetime(2999, 1, 1, tzinfo=UTC))
        self.runs = [SimpleNamespace(expected_start_time=at, auto_scheduled=True) for at in times]
        by_hand = NOW - timedelta(minutes=1)
        self.runs.append(SimpleNamespace(expected_start_time=by_hand, auto_scheduled=False))

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def read_flow_runs(self, flow_run_filter: Any, sort: Any) -> list[Any]:
        assert flow_run_filter.deployment_id.any_ == [DEPLOYMENT]
        due = flow_run_filter.expected_start_time
        found = [run for run in self.runs if due.after_ <= run.expected_start_time <= due.before_]
        return sorted(found, key=lambda run: run.expected_start_time, reverse=True)


@pytest.fixture
def scheduled(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The current flow run, whose scheduled time a test sets."""
    run = SimpleNamespace(scheduled_start_time=BEGIN)
    runtime = SimpleNamespace(deployment=SimpleNamespace(id=str(DEPLOYMENT)), flow_run=run)
    monkeypatch.setattr(deployments, "runtime", runtime)
    monkeypatch.setattr(deployments, "get_client", lambda sync_client: Client())
    return run


def test_the_last_run_that_is_due(scheduled: SimpleNamespace) -> None:
    last = BEGIN + timedelta(days=4)
    assert deployments.later_run(BEGIN, NOW) == last
    assert deployments.later_run(last - timedelta(days=1), NOW) == last
    assert deployments.later_run(last, NOW) is None


@pytest.mark.usefixtures("own_folder")
def test_late_runs_are_one_backfill(
    scheduled: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Days(tmp_path)
    made.write(days("2024-03-04", 8))
    job = made.job()
    made.run(job, WindowSelection(start="2024-03-04", end="2024-03-05"))
    driven: list[Any] = []
    monkeypatch.setattr(deployments, "_drive", lambda settings, store: driven.append(store))
    monkeypatch.setattr(deployments, "set_up_driver", lambda *_: None)
    for day in range(5):
        scheduled.scheduled_start_time = BEGIN + timedelta(days=day)
        state = deployments.run_windows.fn(job.to_yaml())
        if day < 4:
            assert state.name == "Superseded"
            assert state.message == "left to the run that was scheduled for 2024-03-10 02:00 UTC"
    [store] = driven
    assert store.windows()["label"].to_list() == [f"2024-03-0{day}" for day in range(5, 10)]
