"""Errors that this package raises. All are a `ChunkmapError`, with a `hint`: the next step."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from partitioning.errors import FilterError, PlanningError
from pipeline.errors import (
    AccessDeniedError,
    BucketMissingError,
    ChecksFailedError,
    ChunkmapError,
    ConflictError,
    EngineUnavailableError,
    InputError,
    InvalidUriError,
    JobError,
    OutputNotEmptyError,
    RunCancelledError,
    RunFailedError,
    RunInterruptedError,
    SettingsError,
    StorageError,
    TransformError,
    TransformNotAllowedError,
    UsageError,
    VersionMismatchError,
)

if TYPE_CHECKING:
    from pipeline.runs.backfill.summary import BackfillHeldError, BackfillIncompleteError
    from pipeline.runs.driver.summary import RunIncompleteError
    from pipeline.table.errors import FilesMissingError

__all__ = [
    "AccessDeniedError",
    "BackfillHeldError",
    "BackfillIncompleteError",
    "BucketMissingError",
    "ChecksFailedError",
    "ChunkmapError",
    "ConflictError",
    "EngineUnavailableError",
    "FilesMissingError",
    "FilterError",
    "InputError",
    "InvalidUriError",
    "JobError",
    "OutputNotEmptyError",
    "PlanningError",
    "RunCancelledError",
    "RunFailedError",
    "RunIncompleteError",
    "RunInterruptedError",
    "SettingsError",
    "StorageError",
    "TransformError",
    "TransformNotAllowedError",
    "UsageError",
    "VersionMismatchError",
]

_MODULES = {
    "BackfillHeldError": "pipeline.runs.backfill.summary",
    "BackfillIncompleteError": "pipeline.runs.backfill.summary",
    "FilesMissingError": "pipeline.table.errors",
    "RunIncompleteError": "pipeline.runs.driver.summary",
}
"""Modules of errors with figures, which are imported on first use: they import Polars."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
