"""End a command with an error: as text, as one JSON object, as an exit code."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import sys
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from pipeline.cli.hints import with_environment
from pipeline.cli.terminal import results
from pipeline.errors import ChunkmapError
from pipeline.masking import mask_text
from pipeline.printable import error_text, one_line_json, printable

PLANNING_HINTS = {
    "NoParquetError": "check input.uri, input.include and input.exclude against the objects there",
    "BadObjectsError": "replace them, exclude them (input.exclude), or set input.on_bad_object to "
    "skip or quarantine",
    "HiveTypeError": "change input.hive_types, or exclude the differing objects (input.exclude)",
    "SchemaMismatchError": "set input.schema to union or first, or exclude the differing objects "
    "(input.exclude)",
    "TableFormatError": "read a Delta table with input.table; write the current rows of others to "
    "a plain folder with an engine that reads them (Spark, DuckDB, Polars' scan_iceberg), and name "
    "that as input.uri; or exclude the table (input.exclude)",
    "MissingFilesError": "the table's vacuum has deleted or replaced files: choose a newer version "
    "(input.version), or restore them",
    "FilterError": "fix input.filter: each term is [column, operator, value]",
    "ColumnError": "fix input.columns",
    "TargetError": "fix chunks in the job file",
}
"""Hints for errors of the planner, which does not know the keys of a job."""


def quiet_libraries() -> None:
    """Keep the logs of Prefect and Dask out of the terminal; call it before importing them."""
    os.environ.setdefault("DO_NOT_TRACK", "1")
    for name in ("distributed", "stamina", "asyncio", "tornado"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def describe(error: BaseException) -> dict[str, Any] | None:
    """Describe an error as `--json` prints it, or return None for an unexpected one (a bug).

    Returns:
        `error` (its kind), `message`, `hint` (the next step, or None) and `exit_code`.
    """
    kind = type(error).__name__
    if isinstance(error, ChunkmapError):
        return _to_dict(kind, str(error), error.hint, error.exit_code)
    if isinstance(error, KeyboardInterrupt):
        return _to_dict("Interrupted", "interrupted", None, 130)
    if isinstance(error, OSError) and error.errno in _FILE_ERRORS and error.filename:
        return _to_dict("FileError", f"{error.filename}: {error.strerror}", _file_hint(error), 1)
    # A usage error of typer, which shows it itself except with --json; its class is private.
    format_message = getattr(error, "format_message", None)
    if format_message is not None:
        return _to_dict("UsageError", format_message(), "see --help", 2)
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        from pipeline.cli.extras import extra_of

        extra = extra_of(error.name)
        hint = f"pip install 'chunkmap[{extra}]'"
        message = f"this command needs {error.name}, which is not installed"
        return _to_dict(kind, message, hint, 2) if extra else None
    from partitioning.errors import PlanningError

    if isinstance(error, PlanningError):
        return _to_dict(kind, str(error), PLANNING_HINTS.get(kind), 2)
    return None


_FILE_ERRORS = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST),
)
"""Errors of a file or folder of this machine that its user can fix; others are bugs."""


def _file_hint(error: OSError) -> str:
    """Name the next step for a file that cannot be read or written."""
    path = Path(os.fsdecode(error.filename))
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free some space, or set state_dir (CHUNKMAP_STATE_DIR) to another disk"
    try:
        from pipeline.config.settings import load_settings

        state = load_settings().state_dir
    except (ChunkmapError, OSError):
        return "check the permissions of the file and its folders"
    if path.absolute() == state or state in path.absolute().parents:
        return (
            f"make {state} a folder that you may read and write, or name another one: "
            "CHUNKMAP_STATE_DIR=~/.chunkmap (setting state_dir)"
        )
    return "check the permissions of the file and its folders, or work in another folder"


def _to_dict(kind: str, message: str, hint: str | None, exit_code: int) -> dict[str, Any]:
    masked = hint if hint is None else mask_text(hint)
    return {"error": kind, "message": mask_text(message), "hint": masked, "exit_code": exit_code}


def report_error(
    error: BaseException, *, as_json: bool, environment: str | None = None
) -> int | None:
    """Show an error.

    Args:
        error: The error.
        as_json: Print it as an object, too.
        environment: Environment that the command was given.

    Returns:
        The exit code, or None for a bug, whose traceback should be shown.
    """
    description = describe(error)
    if description is None:
        if as_json:
            print_object(_to_dict(type(error).__name__, str(error), "this is a bug", 1))
        return None
    description["hint"] = with_environment(description["hint"], environment)
    width = shutil.get_terminal_size().columns if sys.stderr.isatty() else None
    print(error_text(description["message"], description["hint"], width), file=sys.stderr)
    if as_json:
        # stdout holds one object: the figures of a failed run are merged with its error.
        figures = getattr(error, "summary", None)
        print_object((asdict(figures) if is_dataclass(figures) else {}) | description)  # type: ignore[arg-type]
    return int(description["exit_code"])


def show_usage_error(error: Any) -> int:
    """Show a usage error as typer does; returns the exit code."""
    from typer.rich_utils import rich_format_error

    message = printable(error.format_message())
    error.format_message = lambda: message
    rich_format_error(error)
    return int(error.exit_code)


def print_object(value: object) -> None:
    """Print one machine-readable object on one line of stdout."""
    print(one_line_json(value), file=results(), flush=True)
