"""Define a worker's report of one task run: its states, log lines, and result or error.

Reports are plain JSON with limits on everything. The driver does not trust them: it reads only
these fields, and makes Prefect's events from them itself.
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
from pipeline.masking import mask_text

MAX_REPORT_BYTES = 1 << 20
MAX_STATES = 50
MAX_LINES = 200
MAX_LINE = 4_000
"""Maximum characters of a log line, of a state's message and of an error."""
MAX_CHARACTERS = 100_000
"""Maximum characters of all log lines together."""

FROM_WORKERS = (InputError, SettingsError, StorageError, TransformError, TransformNotAllowedError)
"""Classes of workers' errors that the driver raises as such."""

StateType = Literal[
    "SCHEDULED", "PENDING", "RUNNING", "COMPLETED", "FAILED", "CANCELLED", "CRASHED"
]
STATE_NAME = r"^[A-Za-z]{1,40}$"
"""Pattern of names of states, which become a part of an event's name."""
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
    """A line that was logged for the Prefect UI."""

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
    """Whether every task run of this kind would fail in the same way."""
    is_transient: bool = False
    """Whether a retry may succeed, e.g. because storage was unavailable."""


class TaskReport(_Model):
    """A worker's report of one task run."""

    states: Annotated[tuple[StateReport, ...], Field(max_length=MAX_STATES)]
    """States in order, without the first (Pending), which the driver sets."""
    lines: Annotated[tuple[LogLine, ...], Field(max_length=MAX_LINES)] = ()
    result: Any = None
    """Result as plain data; None if there is an error."""
    error: ErrorReport | None = None


def read_report(data: object) -> TaskReport:
    """Parse a worker's report.

    Raises:
        ValueError: It is not a report, or exceeds the limits.
    """
    if not isinstance(data, bytes):
        raise ValueError(f"the worker returned a {type(data).__name__} instead of a report")
    if len(data) > MAX_REPORT_BYTES:
        raise ValueError(
            f"the worker's report has {len(data):,} bytes, more than {MAX_REPORT_BYTES:,}"
        )
    return TaskReport.model_validate_json(data)


def error_of(report: ErrorReport) -> ChunkmapError:
    """Make an exception of a reported error, of the same class if that is in FROM_WORKERS."""
    kind = getattr(errors, report.type, None)
    if isinstance(kind, type) and issubclass(kind, FROM_WORKERS):
        state = {"message": report.message, "hint": report.hint}
        return kind._restore((report.message,), state)
    return RunFailedError(f"a worker raised {report.type}: {report.message}", hint=report.hint)


def cut(text: str) -> str:
    """Mask secrets and shorten to the limit, without characters that Prefect's database refuses."""
    text = mask_text(text)
    short = text if len(text) <= MAX_LINE else text[: MAX_LINE - 3] + "..."
    return short.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()
