"""How a command ends: an error as words, as one JSON object, as an exit code."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import asdict, is_dataclass
from typing import Any

from pipeline.config.masking import mask_text
from pipeline.errors import ChunkmapError
from pipeline.printable import continued, one_line_json, printable

PLANNING_HINTS = {
    "NoParquetError": "look at what is there, and at input.uri, input.include and input.exclude",
    "BadObjectsError": "replace them, leave them out (input.exclude), or set input.on_bad_object: "
    "skip, or quarantine",
    "HiveTypeError": "change input.hive_types, or leave the odd ones out (input.exclude)",
    "SchemaMismatchError": "set input.schema to union or first, or leave the odd ones out "
    "(input.exclude)",
    "TableFormatError": "write the table's current rows to a plain folder with an engine that "
    "reads it (Spark, DuckDB, Polars' scan_delta or scan_iceberg), and name that as input.uri; or "
    "leave the table out (input.exclude)",
    "FilterError": "mend input.filter: each term is [column, operator, value]",
    "ColumnError": "mend input.columns",
    "TargetError": "mend the job's chunks",
}
"""The next step for what the planner refuses: it knows nothing of jobs and their keys."""


def quiet_libraries() -> None:
    """Before Prefect and Dask are imported: their logs go to files and the server, not here."""
    os.environ.setdefault("DO_NOT_TRACK", "1")
    for name in ("distributed", "stamina", "asyncio", "tornado"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def describe(error: BaseException) -> dict[str, Any] | None:
    """An error as `--json` prints it; None for one that nobody foresaw: a bug of ours.

    Returns:
        `error` (its kind), `message`, `hint` (the next step, or None) and `exit_code`.
    """
    kind = type(error).__name__
    if isinstance(error, ChunkmapError):
        return _described(kind, str(error), error.hint, error.exit_code)
    if isinstance(error, KeyboardInterrupt):
        return _described("Interrupted", "interrupted", None, 130)
    # Typer's own, which it shows itself except with --json; its class has a private home.
    said = getattr(error, "format_message", None)
    if said is not None:
        return _described("UsageError", said(), "see --help", 2)
    from partitioning.errors import PlanningError

    if isinstance(error, PlanningError):
        return _described(kind, str(error), PLANNING_HINTS.get(kind), 2)
    return None


def _described(kind: str, message: str, hint: str | None, exit_code: int) -> dict[str, Any]:
    masked = hint if hint is None else mask_text(hint)
    return {"error": kind, "message": mask_text(message), "hint": masked, "exit_code": exit_code}


def report_error(error: BaseException, *, as_json: bool) -> int | None:
    """Show an error; returns the exit code, or None if it is a bug, whose traceback is wanted."""
    said = describe(error)
    if said is None:
        if as_json:
            print_object(_described(type(error).__name__, str(error), "this is a bug", 1))
        return None
    _print_error(said)
    if as_json:
        # A run that failed has figures besides its error, and stdout holds one object.
        figures = getattr(error, "summary", None)
        print_object((asdict(figures) if is_dataclass(figures) else {}) | said)  # type: ignore[arg-type]
    return int(said["exit_code"])


def _print_error(said: dict[str, Any]) -> None:
    """Print an error for people; lines of a message never look like lines of ours."""
    for name in ("message", "hint"):
        if said[name]:
            word = "error: " if name == "message" else "next:  "
            print(word + printable(continued(said[name], " " * len(word))), file=sys.stderr)


def show_usage_error(error: Any) -> int:
    """Show an error about the command line as typer does; returns the exit code."""
    from typer.rich_utils import rich_format_error

    message = printable(error.format_message())
    error.format_message = lambda: message
    rich_format_error(error)
    return int(error.exit_code)


def print_object(value: object) -> None:
    """One machine-readable object, on one line of stdout."""
    print(one_line_json(value), flush=True)
