"""Task runs on Dask, of which only the driver tells Prefect's server.

With each task run, prefect-dask sends the flow, its settings and the task. It dumps them anew,
pickles them once to name the future and once more to send it: 15 ms of a driver whose other work
for a batch is three. Here that is done once, without secrets (`pipeline.flows.worker_context`).
Workers return the states that a task run went through (`pipeline.flows.worker_task`), and the
driver sends them on, many at a time (`pipeline.flows.event_sender`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from prefect import Task
from prefect.context import FlowRunContext
from prefect.settings import get_current_settings

from pipeline.cluster.futures import fate, listen, pickled, submit
from pipeline.flows.event_sender import Origin, event_sender
from pipeline.flows.task_report import ErrorReport, LogLine, TaskReport, read_report
from pipeline.flows.task_run_events import TaskRunHistory, TaskRunTemplate
from pipeline.flows.worker_context import worker_context
from pipeline.flows.worker_task import RUNNING, TaskRunNames, run_packed

if TYPE_CHECKING:
    from pipeline.runs.driver.executor import Kind


@dataclass(frozen=True, slots=True)
class Ended:
    """How a task run ended."""

    kind: Kind
    result: Any = None
    """Plain data of a task run that finished without an error. It is what a worker says."""
    error: ErrorReport | None = None
    detail: str = ""
    """What is known otherwise."""


class SentTaskRun:
    """A task run that is under way."""

    def __init__(self, sender: TaskSender, future: Any, history: TaskRunHistory) -> None:
        self.future = future
        self._sender, self.history = sender, history

    def ended(self) -> Ended | None:
        """How it ended, or None while it is under way. To be asked until it has, once."""
        kind, detail = fate(self.future)
        if kind is None:
            return None
        if kind == "finished":
            try:
                report = read_report(self.future.result())
            except Exception as error:  # Whatever a worker sends must not end the driver.
                kind, detail = "error", f"{type(error).__name__}: {error}"
            else:
                return self._reported(report)
        self._sender.tell(self.history.crashed(detail))
        return Ended(kind, detail=detail)

    def cancel(self) -> None:
        """Wait for it no more. Unless it has begun it will not run, once this is forgotten."""
        self._sender.tell(self.history.cancelled("its result is not needed any more"))

    def begun(self, at: float) -> None:
        """Note that a worker says that it runs."""
        self._sender.tell(self.history.begun(at))

    def _reported(self, report: TaskReport) -> Ended:
        events = self.history.reported(report.states)
        self._sender.tell(events, self.history, report.lines)
        if report.error is None:
            return Ended("finished", report.result)
        detail = f"{report.error.type}: {report.error.message}"
        return Ended("error", error=report.error, detail=detail)


class TaskSender:
    """Submits runs of one task, with plain parameters, from the flow run that it is made in."""

    def __init__(self, runner: Any, task: Task[..., Any], parameters: Sequence[str]) -> None:
        """Pack what all of them take along.

        Args:
            runner: The flow's DaskTaskRunner.
            task: The task: not an async one, and without assets of its own.
            parameters: Names of the parameters that it will be given.
        """
        self._runner, self._name = runner, task.fn.__name__
        self._parcel = pickled((task, worker_context()))
        self._template = TaskRunTemplate(task, parameters)
        self._events, self._origin = event_sender(), Origin()
        self._has_logs = get_current_settings().logging.to_api.enabled
        self.tags = self._template.tags
        listen(runner, RUNNING, _note_running)

    def submit(self, **parameters: Any) -> SentTaskRun:
        """Start a task run, named by its parameter `name`."""
        context = FlowRunContext.get()
        if context is not None:
            context.flow_run_suspension_request.raise_if_requested()
        history = TaskRunHistory(self._template, str(parameters["name"]))
        first = history.pending()
        flow_run = self._template.flow_run_id
        names = TaskRunNames(
            str(history.id),
            history.name,
            history.dynamic_key,
            None if flow_run is None else str(flow_run),
        )
        key = f"{self._name}-{history.id}"
        future = submit(self._runner, key, run_packed, self._parcel, tuple(names), parameters)
        sent = _sent[str(history.id)] = SentTaskRun(self, future, history)
        self.tell(first)
        return sent

    def tell(
        self,
        events: Sequence[bytes],
        history: TaskRunHistory | None = None,
        lines: Sequence[LogLine] = (),
    ) -> None:
        """Send events, and log lines of a task run, to Prefect's server, soon."""
        if self._events is not None and (events or lines):
            logs = history.lines(lines) if history is not None and self._has_logs else []
            self._events.send(self._origin, events, logs)


_sent: WeakValueDictionary[str, SentTaskRun] = WeakValueDictionary()
"""Task runs under way of this process, by id."""


def _note_running(message: object) -> None:
    """Take what a worker announces; whatever is not of ours, or not of this form, is left out."""
    match message:
        case [str(task_run_id), float(at)]:
            sent = _sent.get(task_run_id)
            if sent is not None and isfinite(at):
                sent.begun(at)
