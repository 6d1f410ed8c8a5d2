"""Run a task on a worker with Prefect's own task engine, but without the Prefect server.

The engine sends events and log lines to the server, for which workers would need its password,
which allows its holder to run any command where flows run. Here they are collected and returned
with the result, and the driver sends them (`pipeline.flows.task_run_events`).
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from functools import cache, partial
from threading import Lock
from typing import Any, NamedTuple, get_args
from uuid import UUID

import httpx
from prefect import Task
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas import State, TaskRun
from prefect.context import SyncClientContext
from prefect.logging import handlers
from prefect.settings import PREFECT_API_URL
from prefect.states import Pending
from prefect.task_engine import run_task_sync
from pydantic import PrivateAttr
from pydantic_core import to_jsonable_python

from pipeline.cluster.futures import announce, worker_address
from pipeline.concurrency import single_flight
from pipeline.errors import ChunkmapError, is_transient
from pipeline.flows.run_logs import TaskLines, collecting
from pipeline.flows.task_report import (
    MAX_CHARACTERS,
    MAX_LINE,
    MAX_LINES,
    MAX_STATES,
    STATE_NAME,
    ErrorReport,
    LogLine,
    StateReport,
    StateType,
    TaskReport,
    cut,
)
from pipeline.runs.transforms.parcels import KEPT
from pipeline.runs.transforms.user_code import is_from_signal, message_of
from pipeline.runs.worker.run_settings import lacking_functions

MAX_UNPICKLED = 8
"""Maximum parcels that a worker keeps unpickled, one per flow run on the cluster."""
RUNNING = "chunkmap-running"
"""Topic of the Dask events by which workers announce that a task run has started."""
LACKING = "chunkmap-lacking"
"""Topic of the events by which workers ask for functions that are sent by value."""
FETCH_SECONDS = 5.0
"""Seconds after which a worker asks again."""
FETCH_ATTEMPTS = 6


class TaskRunNames(NamedTuple):
    """The identity of a task run, as plain data."""

    id: str
    name: str
    dynamic_key: str
    flow_run_id: str | None


class ReportedTaskRun(TaskRun):
    """A task run that records each state it enters."""

    _states: list[StateReport] = PrivateAttr(default_factory=list)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "state" and isinstance(value, State) and len(self._states) < MAX_STATES:
            report = _state_report(value)
            if report.type == "RUNNING" and not self._states:
                announce(RUNNING, [str(self.id), report.at])
            self._states.append(report)

    @property
    def reported(self) -> tuple[StateReport, ...]:
        """States so far, without the initial one."""
        return tuple(self._states)


def _state_report(state: State[Any]) -> StateReport:
    name, known = state.name or "", get_args(StateType)
    # Other types are for runs that pause or stop on request, which batches do not.
    type_: StateType = state.type.value if state.type.value in known else "PENDING"  # type: ignore[assignment]
    return StateReport(
        type=type_,
        name=name if re.match(STATE_NAME, name) else state.type.value.title(),
        at=state.timestamp.timestamp(),
        message=None if state.message is None else cut(state.message),
    )


def run_packed(
    parcel: bytes,
    names: tuple[Any, ...],
    parameters: dict[str, Any],
    functions: Sequence[str] = (),
) -> bytes:
    """Run a task on a worker; returns a `TaskReport` as JSON.

    Args:
        parcel: The pickled task, context and settings, the same for all task runs of a flow run.
        names: The fields of `TaskRunNames`.
        parameters: The parameters of the task.
        functions: Digests of the functions that the task needs, and that are sent by value.
    """
    _fetch_functions(functions)
    task, context, sent = _unpickle(parcel)
    identity = TaskRunNames(*names)
    # Without tags, for whose limits the engine would request slots from the server; the driver
    # holds them.
    task_run = ReportedTaskRun(
        id=UUID(identity.id),
        name=identity.name,
        flow_run_id=None if identity.flow_run_id is None else UUID(identity.flow_run_id),
        task_key=task.task_key,
        dynamic_key=identity.dynamic_key,
        task_version=task.version,
        state=Pending(),
    )
    result, error = None, None
    with _collect_lines(identity.id) as lines, _offline(), _using(sent):
        try:
            result = run_task_sync(task, task_run=task_run, parameters=parameters, context=context)
        except BaseException as raised:
            # Dask would end the worker after a SystemExit or KeyboardInterrupt of its task.
            if is_from_signal(raised):
                raise
            error = _error_report(raised)
    report = TaskReport(
        states=task_run.reported,
        lines=tuple(lines),
        result=to_jsonable_python(result),
        error=error,
    )
    return report.model_dump_json().encode()


def _fetch_functions(digests: Sequence[str]) -> None:
    """Ask the driver for functions that this worker lacks, and wait for them.

    Without an answer the task run fails with an error that may pass.
    """
    lacking = lacking_functions(digests)
    address = worker_address() if lacking else None
    if address is None:
        return
    for _ in range(FETCH_ATTEMPTS):
        announce(LACKING, [address, lacking])
        if KEPT.wait_for(lacking, FETCH_SECONDS):
            return


def _error_report(error: BaseException) -> ErrorReport:
    hint = getattr(error, "hint", None)
    return ErrorReport(
        type=type(error).__name__[:200],
        message=cut(message_of(error)),
        hint=cut(hint) if isinstance(hint, str) else None,
        is_final=isinstance(error, ChunkmapError) and not is_transient(error),
        is_transient=is_transient(error),
    )


@single_flight(MAX_UNPICKLED)
def _unpickle(parcel: bytes) -> tuple[Task[..., Any], dict[str, Any], str]:
    task, context, sent = pickle.loads(parcel)
    return task, context, sent


# -- settings of the run ---------------------------------------------------------------------------

_sent: ContextVar[str] = ContextVar("sent", default="")


@contextmanager
def _using(sent: str) -> Iterator[None]:
    token = _sent.set(sent)
    try:
        yield
    finally:
        _sent.reset(token)


def settings_of_run() -> str:
    """Return the settings that were sent with the current task run; empty if there are none."""
    return _sent.get()


# -- no server -------------------------------------------------------------------------------------


class _NoServer(httpx.BaseTransport):
    """Refuses every request of Prefect's client."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("workers have no Prefect server; only the driver talks to it")


@cache
def _client() -> SyncPrefectClient:
    client = SyncPrefectClient(
        "http://no-server.invalid/api", httpx_settings={"transport": _NoServer()}
    )
    return client.__enter__()  # Never exited: Prefect enters it again for each task run.


@contextmanager
def _offline() -> Iterator[None]:
    """Give Prefect a client that refuses every request.

    Without one, it makes a client for each task run, or starts a server.
    """
    token = SyncClientContext.__var__.set(SyncClientContext.model_construct(client=_client()))
    try:
        yield
    finally:
        SyncClientContext.__var__.reset(token)


# -- log lines -------------------------------------------------------------------------------------

_lines: dict[str, list[LogLine]] = {}
"""Log lines of the task runs in this process, by id."""
_lock = Lock()


@contextmanager
def _collect_lines(task_run_id: str) -> Iterator[list[LogLine]]:
    """Collect the log lines of a task run, Prefect's and ours, instead of sending them."""
    handlers.set_api_log_sink(_collect)
    lines = _lines[task_run_id] = []
    try:
        with collecting(TaskLines(partial(_add, lines))):
            yield lines
    finally:
        del _lines[task_run_id]


def _collect(log: dict[str, Any]) -> None:
    """Collect a log line of a task run; send any other, which is the driver's."""
    lines = _lines.get(str(log.get("task_run_id")))
    if lines is None:
        if PREFECT_API_URL.value():  # Drivers share a process with workers in tests.
            handlers.APILogWorker.instance().send(log)
        return
    at = datetime.fromisoformat(log["timestamp"]).timestamp()
    _add(lines, log["name"], log["level"], at, log["message"])


def _add(lines: list[LogLine], logger: str, level: int, at: float, message: str) -> None:
    with _lock:
        room = MAX_CHARACTERS - sum(len(line.message) for line in lines)
        if len(lines) < MAX_LINES and room > len(message[:MAX_LINE]):
            level = min(100, max(0, level))
            line = LogLine(logger=logger[:200], level=level, at=at, message=cut(message))
            lines.append(line)
