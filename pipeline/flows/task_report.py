"""What a worker returns of one task run: its states, its log lines, and its result or error.

Plain JSON with limits on everything. The driver takes none of it on trust: it looks at these fields
alone, and makes Prefect's events of them itself.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from pipeline import errors
from pipeline.errors import (
    ChunkmapError,
    InputError,
    RunFailedError,
    SettingsError,
    StorageError,
    TransformError,
    TransformNotAllowedError,
)

MAX_REPORT_BYTES = 1 << 20
MAX_STATES = 50
MAX_LINES = 200
MAX_LINE = 4_000
"""Characters of a log line, of a state's message and of an error."""
MAX_CHARACTERS = 100_000
"""Of all log lines together."""

FROM_WORKERS = (InputError, SettingsError, StorageError, TransformError, TransformNotAllowedError)
"""Errors of workers that are raised in the driver as they are."""

StateType = Literal[
    "SCHEDULED", "PENDING", "RUNNING", "COMPLETED", "FAILED", "CANCELLED", "CRASHED"
]
STATE_NAME = r"^[A-Za-z]{1,40}$"
"""Names become a part of an event's."""
Text = Annotated[str, StringConstraints(max_length=MAX_LINE)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Moment = Annotated[float, Field(allow_inf_nan=False)]
"""Unix seconds, by the worker's clock."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class StateReport(_Model):
    """A state that the task run entered."""

    type: StateType
    name: Annotated[str, StringConstraints(pattern=STATE_NAME)]
    at: Moment
    message: Text | None = None


class LogLine(_Model):
    """A line that was logged for Prefect's pages."""

    logger: Name
    level: Annotated[int, Field(ge=0, le=100)]
    at: Moment
    message: Text


class ErrorReport(_Model):
    """The exception that a task run ended with."""

    type: Name
    message: Text
    hint: Text | None = None
    is_final: bool = False
    """Whether every task run of this kind would end like this."""
    is_transient: bool = False
    """Whether it may pass by itself: storage was away."""


class TaskReport(_Model):
    """What a worker returns of one task run."""

    states: Annotated[tuple[StateReport, ...], Field(max_length=MAX_STATES)]
    """In order, without the first one (Pending), which the driver gives."""
    lines: Annotated[tuple[LogLine, ...], Field(max_length=MAX_LINES)] = ()
    result: Any = None
    """Plain data; None if there is an error."""
    error: ErrorReport | None = None


def read_report(data: object) -> TaskReport:
    """Parse what came back from a worker.

    Raises:
        ValueError: it is not a report, or beyond the limits.
    """
    if not isinstance(data, bytes):
        raise ValueError(f"the worker returned no report but a {type(data).__name__}")
    if len(data) > MAX_REPORT_BYTES:
        raise ValueError(f"the worker's report has {len(data):,} bytes, over {MAX_REPORT_BYTES:,}")
    return TaskReport.model_validate_json(data)


def error_of(report: ErrorReport) -> ChunkmapError:
    """The error that a worker reports, as one to raise: of its class where that is one of ours."""
    found = getattr(errors, report.type, None)
    if isinstance(found, type) and issubclass(found, FROM_WORKERS):
        state = {"message": report.message, "hint": report.hint}
        return found._restore((report.message,), state)
    return RunFailedError(f"a worker raised {report.type}: {report.message}", hint=report.hint)


def cut(text: str) -> str:
    """A text without what a report has no room for, and what JSON or Prefect's database refuse."""
    short = text if len(text) <= MAX_LINE else text[: MAX_LINE - 3] + "..."
    return short.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()
