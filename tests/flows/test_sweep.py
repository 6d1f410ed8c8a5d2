"""What the sweep does about dead drivers: with a double of Prefect's client, and real storage."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.schemas.objects import State, StateType
from prefect.exceptions import ObjectNotFound
from prefect.states import Completed, Running

from pipeline.flows import sweep
from tests.runs.backfill.test_dead_drivers import beat
from tests.support.memory_storage import MemoryBackend
from tests.support.publishing import PLAN
from tests.support.runs_by_hand import OUTPUT, Run, run_of


class Prefect:
    """The calls of Prefect's client that the sweep makes, and what it starts and emits."""

    def __init__(self) -> None:
        self.runs: dict[UUID, Any] = {}
        self.parents: dict[UUID, UUID] = {}
        self.events: list[tuple[str, str, Any, UUID]] = []
        self.started: dict[str, tuple[str, dict[str, Any]]] = {}

    def add(
        self,
        flow: str,
        name: str,
        state: State[Any],
        parent: UUID | None = None,
        stage: str | None = None,
    ) -> UUID:
        run, task = uuid4(), uuid4()
        if parent is not None:
            self.parents[task] = parent
        self.runs[run] = SimpleNamespace(
            id=run,
            name=stage or name,
            parameters={"name": name},
            flow_id=flow,
            state=state,
            parent_task_run_id=parent and task,
        )
        return run

    def __enter__(self) -> Prefect:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def read_flow_run(self, run: UUID) -> Any:
        if run not in self.runs:
            raise ObjectNotFound(Exception("no such flow run"))
        return self.runs[run]

    def read_flow(self, flow: str) -> Any:
        return SimpleNamespace(name=flow)

    def read_task_run(self, task: UUID) -> Any:
        return SimpleNamespace(flow_run_id=self.parents[task])

    def set_flow_run_state(self, run: UUID, state: State[Any], force: bool) -> None:
        self.runs[run].state = state

    def read_events(self, wanted: Any, limit: int) -> Any:
        known = [event for event in self.events if event[3] in wanted.id.id]
        return SimpleNamespace(events=known)

    def emit(self, event: str, output: str, payload: Any, event_id: UUID) -> None:
        self.events.append((event, output, payload, event_id))

    def run_deployment(self, name: str, **options: Any) -> None:
        assert (options["timeout"], options["as_subflow"]) == (0, False)
        self.started.setdefault(options["idempotency_key"], (name, options["parameters"]))


@pytest.fixture
def prefect(monkeypatch: pytest.MonkeyPatch) -> Prefect:
    prefect = Prefect()
    monkeypatch.setattr(sweep, "get_client", lambda sync_client: prefect)
    monkeypatch.setattr(sweep, "emit", prefect.emit)
    monkeypatch.setattr(sweep, "run_deployment", prefect.run_deployment)
    monkeypatch.setattr(sweep, "flush_events", lambda seconds: True)
    monkeypatch.setattr(sweep, "set_up_driver", lambda *_: None)
    return prefect


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    run = run_of(MemoryBackend().storage(), PLAN)
    monkeypatch.setattr(sweep, "open_storage", lambda settings: run.storage)
    return run


def swept(outputs: tuple[str, ...] = (OUTPUT,), **parameters: Any) -> State[Any]:
    state: State[Any] = sweep.sweep_drivers.fn(list(outputs), **parameters)
    return state


def test_nothing_is_done_where_nobody_died(prefect: Prefect, run: Run) -> None:
    beat(run.storage, run.ledger.prefix, state="interrupted")
    assert swept(resume=[OUTPUT]).message == "no driver has died"
    assert (prefect.started, prefect.events) == ({}, [])


def test_prefect_is_told_once_of_flow_runs_that_it_believes_to_run(
    prefect: Prefect, run: Run
) -> None:
    above = prefect.add("chunkmap", "test", Running())
    own = prefect.add("map_dataset", "test", Running(), above)
    beat(run.storage, run.ledger.prefix, flow_run=f"http://p/runs/flow-run/{own}")
    state = swept()
    assert state.is_completed()
    assert f"run {run.ledger.run} of test: its driver on another-machine is silent" in str(
        state.message
    )
    assert f"chunkmap status {run.ledger.run}" in str(state.message)
    states = [prefect.runs[each].state for each in (own, above)]
    assert {each.type for each in states} == {StateType.CRASHED}
    # People are notified of one of them, and the watchdog reacts to neither.
    assert [each.name for each in states] == ["Orphaned", "Silent"]
    swept()
    assert [prefect.runs[each].state for each in (own, above)] == states
    assert prefect.started == {}
    # An event about the output, of which recovery can follow.
    [(event, output, payload, _)] = prefect.events
    assert (event, output, payload["job"]) == ("chunkmap.run.died", OUTPUT, "test")


def test_flow_runs_that_prefect_has_ended_stay(prefect: Prefect, run: Run) -> None:
    own = prefect.add("map_dataset", "test", Completed())
    beat(run.storage, run.ledger.prefix, flow_run=f"http://p/runs/flow-run/{own}")
    swept()
    assert prefect.runs[own].state.is_completed()


@pytest.mark.parametrize(
    ("flow", "name"), [("map_dataset", "another"), ("ingest", "test"), ("backfill", "test")]
)
def test_a_record_that_names_another_flow_run_does_not_end_it(
    prefect: Prefect, run: Run, flow: str, name: str
) -> None:
    other = prefect.add(flow, name, Running())
    beat(run.storage, run.ledger.prefix, flow_run=f"http://p/runs/flow-run/{other}")
    swept()
    assert prefect.runs[other].state.is_running()
    assert [event for event, *_ in prefect.events] == ["chunkmap.run.failed"]


def test_the_flow_run_of_a_stage_of_a_pipeline_ends(prefect: Prefect, run: Run) -> None:
    above = prefect.add("pipeline", "daily", Running())
    own = prefect.add("map_dataset", "test", Running(), above, stage="map")
    beat(run.storage, run.ledger.prefix, flow_run=f"http://p/runs/flow-run/{own}")
    swept()
    assert [prefect.runs[each].state.name for each in (own, above)] == ["Orphaned", "Silent"]
    assert [event for event, *_ in prefect.events] == ["chunkmap.run.died"]


@pytest.mark.parametrize("page", [None, "http://p/", f"http://p/{UUID(int=3)}", "\x00"])
def test_one_event_tells_of_a_flow_run_that_prefect_does_not_have(
    prefect: Prefect, run: Run, page: str | None
) -> None:
    beat(run.storage, run.ledger.prefix, flow_run=page)
    for _ in range(2):
        swept()
    [(event, output, payload, _)] = prefect.events
    assert (event, output) == ("chunkmap.run.failed", OUTPUT)
    assert (payload["run"], payload["job"], payload["error"]) == (
        run.ledger.run,
        "test",
        "DriverDied",
    )
    assert payload["command"] == f"chunkmap status {run.ledger.run} -o {OUTPUT}"
    beat(run.storage, run.ledger.prefix, flow_run=page, driver="d2")
    swept()
    assert len(prefect.events) == 2, "another driver is another incident"


def test_a_run_is_resumed_where_its_job_says_so_once(prefect: Prefect, run: Run) -> None:
    beat(run.storage, run.ledger.prefix)
    swept(resume_backfills=True)
    assert prefect.started == {}
    for _ in range(2):
        assert "resumed by chunkmap/run-prod" in str(
            swept(resume=[OUTPUT.rstrip("/")], suffix="-prod").message
        )
    [(name, parameters)] = prefect.started.values()
    assert name == "chunkmap/run-prod"
    assert parameters == {"job": run.ledger.job_text(), "run": run.ledger.run}


def test_drivers_that_die_again_and_again_are_not_replaced(prefect: Prefect, run: Run) -> None:
    died = {"host": "a", "pid": 1, "started": 1.0, "seen": 2.0, "state": "running"}
    beat(run.storage, run.ledger.prefix, earlier=[died, died])
    assert "not resumed, since its last 3 drivers died" in str(swept(resume=[OUTPUT]).message)
    assert prefect.started == {}


def test_one_output_that_cannot_be_read_hides_no_other(prefect: Prefect, run: Run) -> None:
    beat(run.storage, run.ledger.prefix)
    state = swept(("s3:///wrong/", OUTPUT))
    assert state.is_failed()
    assert str(state.message).startswith("s3:///wrong/: ")
    assert run.ledger.run in str(state.message)


def test_people_are_told_once_a_day_of_an_output_that_cannot_be_read(
    prefect: Prefect, run: Run
) -> None:
    for _ in range(3):
        swept(("s3:///wrong/",))
    [(event, output, payload, _)] = prefect.events
    assert (event, output) == ("chunkmap.sweep.failed", "s3:///wrong/")
    assert payload["message"].startswith("dead drivers of s3:///wrong/ cannot be found: ")
    assert payload["command"] == "chunkmap status -o s3:///wrong/"
