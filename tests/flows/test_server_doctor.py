"""What the doctor says of a Prefect server, and that it reads it from a client."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from prefect.client.schemas.objects import StateType, WorkerStatus
from prefect.states import Completed, Running

from pipeline.flows import server_doctor
from pipeline.flows.server_doctor import (
    LateRun,
    LimitView,
    ServerFacts,
    late_finding,
    limit_findings,
    read_facts,
    settings_finding,
    version_finding,
)

ONE, TWO, GONE = (str(UUID(int=n)) for n in (1, 2, 3))
SERVICES: dict[str, Any] = {
    "scheduler": {"enabled": True},
    "late_runs": {"enabled": True},
    "triggers": {"enabled": True},
    "db_vacuum": {"enabled": ["events", "flow_runs"]},
}
FACTS = ServerFacts(
    version="3.8.8",
    settings={"server": {"services": SERVICES}},
    limits=(),
    deployments={ONE: "chunkmap/revenue", TWO: "chunkmap/clicks"},
    holding={ONE: 1},
    running=1,
    ended_holders={},
    late=(),
    late_count=0,
    online={},
)


@pytest.mark.parametrize(
    ("theirs", "level"),
    [
        ("3.8.8", "ok"),
        ("3.8.9+1.gabc", "ok"),
        ("3.9.0", "warning"),
        ("3.7.5", "error"),
        ("2.20.1", "error"),
        ("?", "error"),
    ],
)
def test_the_server_may_be_newer_but_not_older(theirs: str, level: str) -> None:
    finding = version_finding("3.8.8", theirs)
    assert finding.level == level
    assert theirs in finding.said


def test_services_that_are_off() -> None:
    assert settings_finding(FACTS.settings).level == "ok"
    off = {**SERVICES, "triggers": {"enabled": False}, "db_vacuum": {"enabled": []}}
    finding = settings_finding({"server": {"services": off}})
    assert finding.level == "warning"
    assert "no watchdog, no notifications" in finding.said
    assert "grows without end" in finding.said
    # A server of another version may have other sections.
    assert "triggers" not in settings_finding({"server": {"services": None}}).said


def problems(facts: ServerFacts, batch_limit: str | None = None) -> list[str]:
    found = list(limit_findings(facts, batch_limit))
    return [] if [each.level for each in found] == ["ok"] else [each.said for each in found]


def of_deployment(deployment: str, active: int, limit: int = 4) -> LimitView:
    return LimitView(f"deployment:{deployment}", limit, active)


def test_limits_in_order() -> None:
    limits = (of_deployment(ONE, 1), of_deployment(TWO, 0), LimitView("s3", 10, 8))
    assert problems(replace(FACTS, limits=limits), "s3") == []


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        (of_deployment(GONE, 1), f"1 limit of deleted deployments: deployment:{GONE}"),
        (of_deployment(ONE, 3), "2 slots of 4 of chunkmap/revenue are held by nothing"),
        (of_deployment(TWO, 1), "1 slot of 4 of chunkmap/clicks is held by nothing"),
    ],
)
def test_slots_that_nothing_holds(limit: LimitView, said: str) -> None:
    facts = replace(FACTS, limits=(of_deployment(ONE, 1), limit))
    assert problems(facts) == [said]


def test_slots_of_batches_are_held_by_runs_of_any_number() -> None:
    limits = (LimitView("s3 of shop", 10, 8),)
    assert problems(replace(FACTS, limits=limits)) == []
    idle = replace(FACTS, limits=limits, running=0)
    [finding] = limit_findings(idle, None)
    assert finding.said == "8 slots of 10 of s3 of shop are held by nothing"
    assert finding.fix.endswith("prefect gcl update 's3 of shop' --active-slots 0")


def test_a_limit_that_batches_name_must_exist() -> None:
    assert "there is no limit s3 (batches.concurrency_limit)" in problems(FACTS, "s3")[0]


def test_slots_of_tags_that_ended_task_runs_hold() -> None:
    [finding] = limit_findings(replace(FACTS, ended_holders={"db": 2}), None)
    assert "2 slots of the tag db are held by task runs that have ended" in finding.said
    assert finding.fix == "prefect concurrency-limit reset db"


def test_late_runs() -> None:
    assert late_finding(FACTS).level == "ok"
    late = (LateRun("revenue", "prod", 7200.0), LateRun("clicks", "prod", 60.0))
    finding = late_finding(replace(FACTS, late=late, late_count=2, online={"prod": 0}))
    assert finding.level == "warning"
    assert finding.said.startswith("2 runs should have started; the oldest, revenue, 2 h")
    start = "prefect worker start --pool prod"
    assert finding.fix == f'eval "$(chunkmap env --prefect)"; {start}'
    finding = late_finding(replace(FACTS, late=late, late_count=2, online={"prod": 1}))
    assert "no worker" not in finding.said
    assert "workers are busy" in finding.fix


class Client:
    """A server with one deployment, one late run, a run that ends meanwhile, and two limits."""

    def __init__(self) -> None:
        self.asked = 0

    def request(self, method: str, path: str) -> Any:
        answers = {"/admin/version": "3.8.8", "/admin/settings": dict(FACTS.settings)}
        return SimpleNamespace(json=lambda: answers[path])

    def read_global_concurrency_limits(self, limit: int, offset: int) -> list[Any]:
        name = f"deployment:{ONE}"
        return [SimpleNamespace(name=name, limit=2, active_slots=1)] if not offset else []

    def read_deployments(self, limit: int, offset: int) -> list[Any]:
        return [SimpleNamespace(id=UUID(ONE), name="revenue", flow_id="f")]

    def read_flow(self, flow: str) -> Any:
        return SimpleNamespace(name="chunkmap")

    def read_flow_runs(self, flow_run_filter: Any, sort: Any, limit: int, offset: int) -> list[Any]:
        state = flow_run_filter.state
        if state.name is not None:
            due = datetime.now(UTC) - timedelta(hours=1)
            late = SimpleNamespace(name="late", expected_start_time=due, work_pool_name="prod")
            return [late]
        assert StateType.RUNNING in state.type.any_
        self.asked += 1
        ended = [SimpleNamespace(deployment_id=UUID(ONE))]
        return ended if self.asked == 1 else []

    def read_concurrency_limits(self, limit: int, offset: int) -> list[Any]:
        return [SimpleNamespace(tag="db", active_slots=[UUID(int=n) for n in (7, 8, 9)])]

    def read_task_runs(self, task_run_filter: Any, limit: int) -> list[Any]:
        running = SimpleNamespace(id=UUID(int=7), state=Running())
        return [running, SimpleNamespace(id=UUID(int=8), state=Completed())]

    def read_workers_for_work_pool(self, pool: str) -> list[Any]:
        return [SimpleNamespace(status=WorkerStatus.OFFLINE)]


def test_what_is_read() -> None:
    client: Any = Client()
    facts = read_facts(client)
    assert facts.deployments == {ONE: "chunkmap/revenue"}
    assert facts.holding == {ONE: 1}, "a run that ended while it was read counts"
    assert facts.ended_holders == {"db": 2}
    assert facts.online == {"prod": 0}
    assert [each.seconds // 60 for each in facts.late] == [60.0]
    assert problems(facts) == ["2 slots of the tag db are held by task runs that have ended"]


def test_many_are_read_in_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_doctor, "PAGE", 2)
    numbers = list(range(5))
    assert server_doctor._pages(lambda offset: numbers[offset : offset + 2]) == numbers
    monkeypatch.setattr(server_doctor, "MAX_READ", 3)
    assert server_doctor._pages(lambda offset: [offset, offset + 1]) == [0, 1, 2, 3]
