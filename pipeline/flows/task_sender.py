"""Submit task runs to Dask; only the driver reports them to the Prefect server.

With each task run, prefect-dask sends the flow, its settings and the task. It dumps them each time,
pickles them once to name the future and once more to send it: 15 ms per batch, in a driver whose
other work for a batch takes 3 ms. Here they are pickled once, without secrets
(`pipeline.flows.worker_context`). Workers return the states of a task run
(`pipeline.flows.worker_task`), and the driver sends them to Prefect in bulk
(`pipeline.flows.event_sender`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from weakref import WeakSet, WeakValueDictionary

from prefect import Task
from prefect.context import FlowRunContext
from prefect.settings import get_current_settings

from pipeline.cluster.futures import call_worker, fate, listen, pickled, submit
from pipeline.flows.event_sender import current_origin, event_sender
from pipeline.flows.run_logs import LineLimit
from pipeline.flows.task_report import ErrorReport, LogLine, TaskReport, read_report
from pipeline.flows.task_run_events import TaskRunHistory, TaskRunTemplate
from pipeline.flows.worker_context import worker_context
from pipeline.flows.worker_task import LACKING, RUNNING, TaskRunNames, run_packed
from pipeline.runs.worker.run_settings import keep_functions

if TYPE_CHECKING:
    from pipeline.runs.driver.executor import Kind


@dataclass(frozen=True, slots=True)
class Ended:
    """How a task run ended."""

    kind: Kind
    result: Any = None
    """Untrusted plain data that a worker returned, if the task run finished without an error."""
    error: ErrorReport | None = None
    detail: str = ""
    """Reason of any other end."""


class SentTaskRun:
    """A task run in flight."""

    def __init__(self, sender: TaskSender, future: Any, history: TaskRunHistory) -> None:
        self.future = future
        self._sender, self.history = sender, history

    def ended(self) -> Ended | None:
        """Return how it ended, or None while it is in flight; do not call it after the end."""
        kind, detail = fate(self.future)
        if kind is None:
            return None
        if kind == "finished":
            try:
                report = read_report(self.future.result())
            except Exception as error:  # No data of a worker may end the driver.
                kind, detail = "error", f"{type(error).__name__}: {error}"
            else:
                return self._read(report)
        self._sender.send_events(self.history.crashed(detail))
        return Ended(kind, detail=detail)

    def cancel(self) -> None:
        """Mark it as cancelled. Dask does not start it once this object is deleted."""
        self._sender.send_events(self.history.cancelled("its result is no longer needed"))

    def begun(self, at: float) -> None:
        """Record that a worker has started it."""
        self._sender.send_events(self.history.begun(at))

    def _read(self, report: TaskReport) -> Ended:
        events = self.history.reported(report.states)
        self._sender.send_events(events, self.history, report.lines)
        if report.error is None:
            return Ended("finished", report.result)
        detail = f"{report.error.type}: {report.error.message}"
        return Ended("error", error=report.error, detail=detail)


class TaskSender:
    """Submits runs of one task, with plain parameters, from the flow run in which it is made."""

    def __init__(
        self,
        runner: Any,
        task: Task[..., Any],
        parameters: Sequence[str],
        sent: str = "",
        functions: Mapping[str, bytes] = MappingProxyType({}),
    ) -> None:
        """Pickle the task and its context, which all task runs share.

        Args:
            runner: The flow's DaskTaskRunner.
            task: The task, which must not be async or have assets.
            parameters: The names of its parameters.
            sent: The settings of the run (see `sent_settings`); empty: workers use their own.
            functions: Pickled functions that these name, by digest. A worker that lacks one, e.g.
                since it has just joined the cluster, asks for it.
        """
        self.runner, self.functions = runner, functions
        self._name, self._digests = task.fn.__name__, tuple(functions)
        self._parcel = pickled((task, worker_context(), sent))
        self._template = TaskRunTemplate(task, parameters)
        self._events, self._origin = event_sender(), current_origin()
        self._has_logs = get_current_settings().logging.to_api.enabled
        self._limit = LineLimit("the logs of the workers")
        self.tags = self._template.tags
        listen(runner, RUNNING, _note_running)
        if functions:
            _senders.add(self)
            listen(runner, LACKING, partial(_send_functions, runner))

    def submit(
        self, resources: Mapping[str, float] | None = None, /, **parameters: Any
    ) -> SentTaskRun:
        """Start a task run, named by its parameter `name`, on a worker that has the resources."""
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
        arguments = (self._parcel, tuple(names), parameters, self._digests)
        future = submit(self.runner, key, run_packed, *arguments, resources=resources)
        sent = _sent[str(history.id)] = SentTaskRun(self, future, history)
        self.send_events(first)
        return sent

    def send_events(
        self,
        events: Sequence[bytes],
        history: TaskRunHistory | None = None,
        lines: tuple[LogLine, ...] = (),
    ) -> None:
        """Queue events, and log lines of a task run, for the Prefect server."""
        if self._events is not None and (events or lines):
            logs: list[Mapping[str, Any]] = []
            if history is not None and self._has_logs:
                logs = history.lines(self._limit.admit_lines(lines))
            self._events.send(self._origin, events, logs)


_sent: WeakValueDictionary[str, SentTaskRun] = WeakValueDictionary()
"""Task runs in flight of this process, by id."""


_senders: WeakSet[TaskSender] = WeakSet()
"""Senders of this process whose task runs need functions that are sent by value."""


def _send_functions(runner: Any, message: object) -> None:
    """Send a worker the functions that it says it lacks, if they are of runs on this cluster."""
    match message:
        case [str(address), [*digests]]:
            known = {
                digest: parcel
                for sender in list(_senders)
                if sender.runner is runner
                for digest, parcel in sender.functions.items()
            }
            found = [known[digest] for digest in digests if digest in known]
            if found:
                call_worker(runner, address, keep_functions, found)


def _note_running(message: object) -> None:
    """Handle a worker's announcement; ignore those of other drivers or another form."""
    match message:
        case [str(task_run_id), float(at)]:
            sent = _sent.get(task_run_id)
            if sent is not None and isfinite(at):
                sent.begun(at)
