"""Make the events that report task runs to the Prefect server.

Prefect 3 records task runs only by events, one per state (`prefect.task-run.*`), which its engine
sends. Here the driver makes them from what it knows of the submission, and from the few fields that
a worker returns. They equal the events of Prefect's own engine, which
tests/flows/test_task_run_events.py checks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from threading import Lock
from typing import Any
from uuid import UUID, uuid4

import orjson
from prefect import Task
from prefect.client.schemas import TaskRun
from prefect.client.schemas.objects import RunInput, TaskRunPolicy
from prefect.context import FlowRunContext, TagsContext
from prefect.states import Pending

from pipeline.flows.task_report import LogLine, StateReport, StateType, cut

TIGHT_TIMING = timedelta(minutes=5)
"""Maximum time between two events that Prefect orders by `follows`."""
TICK = timedelta(microseconds=1)

NOT_SENT = {
    "id",
    "created",
    "updated",
    "flow_run_id",
    "state_id",
    "state_type",
    "state_name",
    "state",
    "estimated_start_time_delta",
    "estimated_run_time",
}
"""Fields of a task run that events of Prefect's engine leave out."""
FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


class TaskRunTemplate:
    """The fields that all runs of a task in one flow run share."""

    def __init__(self, task: Task[..., Any], parameters: Sequence[str]) -> None:
        """Collect the fields from the task and the current flow run.

        Args:
            task: The task.
            parameters: The names of its parameters.
        """
        context, tags = FlowRunContext.get(), TagsContext.get()
        run = None if context is None else context.flow_run
        self.task_name, self.task_key = task.name, task.task_key
        self.tags = sorted(set(task.tags) | set(tags.current_tags or ()))
        self.flow_run_id: UUID | None = None if run is None else run.id
        inputs: dict[str, set[RunInput]] = {name: set() for name in parameters}
        example = TaskRun(
            name="",
            flow_run_id=self.flow_run_id,
            task_key=task.task_key,
            dynamic_key="",
            task_version=task.version,
            empirical_policy=TaskRunPolicy(
                retries=task.retries,
                retry_delay=task.retry_delay_seconds,
                retry_jitter_factor=task.retry_jitter_factor,
            ),
            tags=self.tags,
            task_inputs=inputs,
            flow_run_run_count=0 if run is None else run.run_count,
            expected_start_time=datetime.now(UTC),
            state=Pending(),
        )
        self.fields: dict[str, Any] = example.model_dump(
            mode="json", exclude_none=True, exclude=NOT_SENT
        )
        self.related = [
            {"prefect.resource.id": f"prefect.tag.{tag}", "prefect.resource.role": "tag"}
            for tag in self.tags
        ]


class TaskRunHistory:
    """The states of one task run, as events. Thread-safe."""

    def __init__(self, template: TaskRunTemplate, name: str) -> None:
        self.id = uuid4()
        self.name = name
        self.dynamic_key = str(uuid4())
        self.first = datetime.now(UTC)
        """Moment of its submission, and of its state Pending."""
        self._template = template
        self._fields = {**template.fields, "name": name, "dynamic_key": self.dynamic_key}
        self._fields["expected_start_time"] = _iso(self.first)
        self._state: StateReport | None = None
        self._at, self._event = self.first, ""
        self._run_count, self._run_time = 0, timedelta()
        self._from_worker = 0
        self._lock = Lock()

    def pending(self) -> list[bytes]:
        """Enter Pending, the first state."""
        with self._lock:
            return self._enter(self._driver_state("PENDING", "Pending", ""), self.first)

    def begun(self, at: float) -> list[bytes]:
        """Enter Running when a worker announces it, before its report.

        Args:
            at: Unix seconds, by the worker's clock.
        """
        with self._lock:
            if self._from_worker or self._is_over:
                return []
            self._from_worker = 1
            state = StateReport(type="RUNNING", name="Running", at=at, message="")
            return self._enter(state, self._moment(at))

    def reported(self, states: Sequence[StateReport]) -> list[bytes]:
        """Enter the states of a worker's report that were not announced before.

        If the last one is not final, enter Crashed.
        """
        with self._lock:
            events = []
            for state in states[self._from_worker :]:
                if not self._is_over:
                    events += self._enter(state, self._moment(state.at))
            self._from_worker = max(self._from_worker, len(states))
            if not self._is_over:
                events += self._end("CRASHED", "Crashed", "its worker reported no final state")
            return events

    def crashed(self, reason: str) -> list[bytes]:
        """Enter Crashed: its worker died, or its report is invalid."""
        with self._lock:
            return self._end("CRASHED", "Crashed", reason)

    def cancelled(self, reason: str) -> list[bytes]:
        """Enter Cancelled: its result is not needed."""
        with self._lock:
            return self._end("CANCELLED", "Cancelled", reason)

    @property
    def _is_over(self) -> bool:
        return self._state is not None and self._state.type in FINAL

    def _end(self, type_: StateType, name: str, reason: str) -> list[bytes]:
        if self._is_over:
            return []
        state = self._driver_state(type_, name, cut(reason))
        return self._enter(state, self._moment(state.at))

    def _driver_state(self, type_: StateType, name: str, message: str) -> StateReport:
        now = datetime.now(UTC).timestamp()
        return StateReport(type=type_, name=name, at=now, message=message)

    def _moment(self, at: float) -> datetime:
        """Clamp a worker's time to between the last state and now.

        The Prefect server refuses a state that is older than the last one.
        """
        return max(self._at + TICK, _between(self._at, at, datetime.now(UTC)))

    def _enter(self, state: StateReport, at: datetime) -> list[bytes]:
        """Enter a state, as Prefect's engine does; returns its event as JSON."""
        before, fields = self._state, self._fields
        if before is not None and before.type == "RUNNING":
            self._run_time += at - self._at
        if state.type == "RUNNING":
            self._run_count += 1
            fields.setdefault("start_time", _iso(at))
        if state.type in FINAL and "start_time" in fields:
            fields["end_time"] = _iso(at)
        fields["run_count"] = self._run_count
        fields["total_run_time"] = self._run_time.total_seconds()
        event_id = str(uuid4())
        event = {
            "id": event_id,
            "occurred": _iso(at),
            "event": f"prefect.task-run.{state.name}",
            "follows": self._event if self._event and at - self._at < TIGHT_TIMING else None,
            "resource": {
                "prefect.resource.id": f"prefect.task-run.{self.id}",
                "prefect.resource.name": self.name,
                "prefect.run-count": str(self._run_count),
                "prefect.state-message": _message(state),
                "prefect.state-name": state.name,
                "prefect.state-timestamp": at.isoformat(),
                "prefect.state-type": state.type,
                "prefect.orchestration": "client",
            },
            "payload": {
                "intended": {"from": before and before.type, "to": state.type},
                "initial_state": before and _to_dict(before),
                "validated_state": {**_to_dict(state), "data": None},
                "task_run": fields,
            },
            "related": self._template.related,
        }
        self._state, self._at, self._event = state, at, event_id
        return [orjson.dumps(event)]

    def lines(self, lines: Sequence[LogLine]) -> list[Mapping[str, Any]]:
        """Convert a worker's log lines to the form of Prefect's API, for this task run only."""
        run, now = self._template.flow_run_id, datetime.now(UTC)
        return [
            {
                "name": line.logger,
                "level": line.level,
                "message": cut(line.message),
                "timestamp": _iso(_between(self.first, line.at, now)),
                "flow_run_id": None if run is None else str(run),
                "task_run_id": str(self.id),
            }
            for line in lines
        ]


def _to_dict(state: StateReport) -> dict[str, Any]:
    return {
        "type": state.type,
        "name": state.name,
        "message": _message(state),
        # The engine's flag for an exception after the last retry.
        "state_details": {"retriable": False} if state.type == "FAILED" else {},
    }


def _message(state: StateReport) -> str:
    return cut(state.message or "")


def _between(first: datetime, at: float, last: datetime) -> datetime:
    """Clamp a time in Unix seconds to between two moments."""
    if at <= first.timestamp():
        return first
    return last if at >= last.timestamp() else datetime.fromtimestamp(at, UTC)


def _iso(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")
