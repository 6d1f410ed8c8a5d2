"""Show chunkmap's log lines in the logs of Prefect's flow runs, with run, batch and chunk.

The driver's lines go to its flow run. Those of a worker are collected during a task run, returned
with its result, and sent by the driver. Both are limited, and secrets in them are masked, as they
are in what Prefect itself logs of errors.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from threading import Lock
from uuid import UUID

from prefect.context import FlowRunContext, TaskRunContext
from prefect.settings import get_current_settings
from typing_extensions import override

from pipeline.flows.event_sender import (
    FLUSH_SECONDS,
    EventSender,
    Origin,
    event_sender,
    flush_events,
)
from pipeline.flows.task_report import LogLine, cut
from pipeline.logs import with_ids
from pipeline.masking import mask_text

MAX_LINES = 1_000
"""Maximum number of a flow run's lines from its driver, and from its workers: as many warnings and
errors, and as many others."""
MAX_TASK_LINES = 50
"""Maximum numbers of lines from a worker in one task run."""
_OWN = logging.getLogger("pipeline")
_PREFECTS = ("prefect.flow_runs", "prefect.task_runs")
"""Loggers of Prefect that write the errors of runs."""
_SENDER = "pipeline.flows.event_sender"
"""Logger whose lines are about the Prefect server being away."""


@dataclass(slots=True)
class LineLimit:
    """Limits how many lines go to Prefect."""

    where: str
    """Where all of them are."""
    max_lines: int = MAX_LINES
    _counts: Counter[str] = field(default_factory=Counter)
    _lock: Lock = field(default_factory=Lock)

    def admit(self, level: int, message: str) -> str | None:
        """Return the message to send instead of this one; None if there were too many."""
        kind = "warnings" if level >= logging.WARNING else "lines"
        with self._lock:
            self._counts[kind] += 1
            count = self._counts[kind]
        if count <= self.max_lines:
            return message
        return f"further {kind} are in {self.where} only" if count == self.max_lines + 1 else None

    def admit_lines(self, lines: tuple[LogLine, ...]) -> list[LogLine]:
        """Select of a worker's lines those to send; Prefect's own are not limited here."""
        selected = []
        for line in lines:
            is_own = line.logger.partition(".")[0] == _OWN.name
            message = self.admit(line.level, line.message) if is_own else line.message
            if message is not None:
                selected.append(line.model_copy(update={"message": message}))
        return selected


# -- in the driver ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Target:
    sender: EventSender
    origin: Origin
    limit: LineLimit = field(default_factory=lambda: LineLimit("the driver's log"))


_targets: dict[UUID, _Target] = {}
"""Flow runs of this process that are running."""
_lock = Lock()


@contextmanager
def flow_logs(flush_seconds: float = FLUSH_SECONDS) -> Iterator[None]:
    """Show the log lines of the block in the current flow run; mask secrets in what it raises.

    Args:
        flush_seconds: How long to wait at the end until all lines and events are sent.
    """
    context = FlowRunContext.get()
    run = None if context is None or context.flow_run is None else context.flow_run.id
    for name in _PREFECTS:
        logging.getLogger(name).addFilter(_mask_record)
    sender = event_sender() if get_current_settings().logging.to_api.enabled else None
    try:
        with masked_errors():
            if run is None or sender is None:
                yield
            else:
                with _sending(run, _Target(sender, Origin())):
                    yield
    finally:
        if flush_seconds:
            flush_events(flush_seconds)


@contextmanager
def masked_errors() -> Iterator[None]:
    """Mask secrets in what the block raises, which Prefect stores and logs.

    Errors of chunkmap are masked already; users' functions and libraries raise others.
    """
    try:
        yield
    except Exception as error:
        error.args = tuple(mask_text(a) if isinstance(a, str) else a for a in error.args)
        raise


@contextmanager
def _sending(run: UUID, target: _Target) -> Iterator[None]:
    with _lock:
        _targets[run] = target
        if len(_targets) == 1:
            _routing.start()
    try:
        yield
    finally:
        with _lock:
            del _targets[run]
            if not _targets:
                _routing.stop()


class _ToFlowRun(logging.Handler):
    """Sends lines to the flow run that they are of."""

    @override
    def emit(self, record: logging.LogRecord) -> None:
        if _collecting.get() is not None or record.name == _SENDER:
            return  # A worker in the driver's process; or a line that would follow itself.
        run, target = _target()
        if target is None:
            return
        message = target.limit.admit(record.levelno, _message(record))
        if message is None:
            return
        task = TaskRunContext.get()
        line = {
            "name": record.name,
            "level": record.levelno,
            "message": message,
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "flow_run_id": str(run),
            "task_run_id": None if task is None else str(task.task_run.id),
        }
        target.sender.send(target.origin, (), [line])


def _target() -> tuple[UUID | None, _Target | None]:
    """Return the flow run of this thread; of a thread without one, the only one there is."""
    context = FlowRunContext.get()
    with _lock:
        if context is not None and context.flow_run is not None:
            run = context.flow_run.id
            return run, _targets.get(run)
        return next(iter(_targets.items())) if len(_targets) == 1 else (None, None)


class _ToOthers(logging.Handler):
    """Passes lines of the level that was set to the handlers that would have had them."""

    @override
    def emit(self, record: logging.LogRecord) -> None:
        logging.getLogger().callHandlers(record)


class _Routing:
    """Lets the flow run have lines of the level INFO, and all other handlers what they had."""

    def __init__(self) -> None:
        self._to_run, self._to_others = _ToFlowRun(logging.INFO), _ToOthers()
        self._before = logging.NOTSET, True

    def start(self) -> None:
        self._before = _OWN.level, _OWN.propagate
        level = _OWN.getEffectiveLevel()
        self._to_others.setLevel(level)
        _OWN.setLevel(min(level, logging.INFO))
        _OWN.addHandler(self._to_run)
        if _OWN.propagate:
            _OWN.propagate = False
            _OWN.addHandler(self._to_others)

    def stop(self) -> None:
        _OWN.removeHandler(self._to_run)
        _OWN.removeHandler(self._to_others)
        level, _OWN.propagate = self._before
        _OWN.setLevel(level)


_routing = _Routing()


def _message(record: logging.LogRecord) -> str:
    first, *rest = mask_text(record.getMessage()).split("\n", 1)
    lines = [with_ids(first), *rest]
    if record.exc_info:
        lines.append(logging.Formatter().formatException(record.exc_info))
    return cut("\n".join(lines))


def _mask_record(record: logging.LogRecord) -> bool:
    """Mask the secrets of a record, which has further handlers."""
    record.msg, record.args = mask_text(record.getMessage()), None
    if record.exc_info:
        # Formatters take this text where there is one.
        record.exc_text = mask_text(logging.Formatter().formatException(record.exc_info))
    return True


# -- on a worker -----------------------------------------------------------------------------------


@dataclass(slots=True)
class TaskLines:
    """The log lines of a task run on a worker."""

    add: Callable[[str, int, float, str], None]
    """Takes a line: its logger, level, time in Unix seconds and message."""
    limit: LineLimit = field(default_factory=lambda: LineLimit("the worker's log", MAX_TASK_LINES))


_collecting: ContextVar[TaskLines | None] = ContextVar("collecting", default=None)


@contextmanager
def collecting(lines: TaskLines) -> Iterator[None]:
    """Collect the log lines of the block, also those of threads with a copy of its context."""
    if _to_task not in _OWN.handlers:
        _OWN.addHandler(_to_task)  # Once; without a task run, it does nothing.
    token = _collecting.set(lines if get_current_settings().logging.to_api.enabled else None)
    try:
        yield
    finally:
        _collecting.reset(token)


class _ToTaskRun(logging.Handler):
    """Collects lines for the report of the task run that they are of."""

    @override
    def emit(self, record: logging.LogRecord) -> None:
        lines = _collecting.get()
        if lines is None:
            return
        message = lines.limit.admit(record.levelno, _message(record))
        if message is not None:
            lines.add(record.name, record.levelno, record.created, message)


_to_task = _ToTaskRun()
