"""What a backfill is, what its users wish while it runs, and how far its windows are."""

from __future__ import annotations

import hashlib
from typing import Any, Literal, get_args

import polars as pl
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt

from pipeline.config.units import format_size
from pipeline.storage.documents import BackfillId, Moment
from pipeline.storage.table_versions import TableVersion

Reprocess = Literal["missing", "failed", "changed", "all"]
"""Which windows are done again: those that the output lacks; those that failed in an earlier
backfill; those whose input or code has changed since, and those that it lacks; all."""

ACTIVE = 4
"""Runs at a time, unless told otherwise."""
MAX_FOLDERS_NAMED = 5
"""Folders outside of all windows that a record names."""
RUNS = 50
"""About so many runs has a backfill, however many windows: each is a flow run in Prefect."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)


class Options(_Record):
    """How a backfill goes about its windows."""

    reprocess: Reprocess = "missing"
    windows_per_run: PositiveInt | None = None
    """Windows mapped as one set of chunks. Default: so many that there are about 50 runs."""
    max_active: PositiveInt = ACTIVE
    """Runs at a time."""
    backwards: bool = False
    """Newest window first."""
    priority: int = 0
    """Batches of a higher one go first on the cluster."""
    canary: int | str | None = None
    """Windows that go first: a number, or a share such as 1%."""
    canary_limit: int | str = 0
    """Chunks of the canary that may fail: a number, or a share. Beyond it, nothing else runs."""
    canary_hold: bool = False
    """Stop after the canary, until told to go on."""
    max_failures: int | str | None = None
    """Windows that may fail before the backfill stops: a number, or a share such as 5%."""
    all_or_nothing: bool = False
    """One commit of all windows, once all are done."""
    idempotency_key: str = ""
    """Another key, another backfill, though all else is the same."""


class BackfillRecord(_Record):
    """What a backfill is; written once, before anything is mapped."""

    version: int = 1
    backfill: BackfillId
    """12 hex digits, derived from what is asked for and what there is."""
    request: str
    """Digest of what was asked for: the same request again is the same unfinished backfill."""
    asked: str
    """What was asked for, in words: 2022-01-01 to 2025-01-01, say."""
    job: str
    output: str
    mode: str
    transform: str
    code: str
    """Fingerprint of the transform at the creation."""
    column: str
    """Of the windows; several are joined by commas."""
    grain: str
    options: Options
    base: NonNegativeInt
    """Manifest that was current at the creation."""
    windows: NonNegativeInt
    """Asked for; those that are skipped are among them."""
    todo: NonNegativeInt
    runs: NonNegativeInt
    chunks: NonNegativeInt
    rows: NonNegativeInt
    decoded_bytes: NonNegativeInt
    created: Moment
    """Unix seconds."""
    tables: tuple[TableVersion, ...] | None = None
    """Tables that the transform reads, in the versions that all its runs see. Old ones do not
    say."""
    columns: tuple[str, ...] = ()
    """Names of the result's columns, in the order that all files have."""
    outside_objects: NonNegativeInt = 0
    """Objects of the input that are in no window, whichever are asked for: a value is null."""
    outside_bytes: NonNegativeInt = 0
    """Of these, together."""
    outside_folders: tuple[str, ...] = ()
    """The first of their Hive values, as folders."""

    @property
    def outside(self) -> str | None:
        """What of the input is in no window, in a sentence; None if nothing is."""
        if not self.outside_objects:
            return None
        one = self.outside_objects == 1
        objects = "1 object" if one else f"{self.outside_objects:,} objects"
        return (
            f"{objects} of the input ({format_size(self.outside_bytes)}) {'is' if one else 'are'} "
            f"in no window, and no backfill reads {'it' if one else 'them'}: "
            f"{', '.join(self.outside_folders)}"
        )


class Control(_Record):
    """What users wish of a backfill while it runs. Replaced with If-Match."""

    paused: bool = False
    cancelled: bool = False
    approved: bool = False
    """Go on after the canary, whatever came of it."""
    max_active: PositiveInt = ACTIVE
    priority: int = 0
    retries: NonNegativeInt = 0
    """How often a retry was asked for; a driver at work tries what had failed once more."""
    by: str = ""
    """Who changed it last: a command, or Prefect."""


_WINDOWS: dict[str, Any] = {
    "label": pl.String,
    "start": pl.String,  # ISO 8601, or the value itself
    "end": pl.String,  # exclusive; null for values
    "group": pl.Int64,  # rank of the run that maps it; null where there is nothing to do
    "run": pl.String,  # its id
    "canary": pl.Boolean,  # tried before all others
    "skipped": pl.String,  # why there is nothing to do; null where there is
    "chunks": pl.Int64,
    "rows": pl.Int64,
    "stored_bytes": pl.Int64,
    "decoded_bytes": pl.Int64,
    "inputs": pl.String,  # digest of its objects
}
WINDOWS = pl.Schema(_WINDOWS)
"""The columns of a backfill's windows, a row each, in the order of time."""

_PROGRESS: dict[str, Any] = {
    "label": pl.String,
    "state": pl.String,
    "done": pl.Int64,  # chunks
    "failed": pl.Int64,  # chunks
    "rows_in": pl.Int64,
    "rows_out": pl.Int64,
    "bytes_in": pl.Int64,
    "bytes_out": pl.Int64,
    "busy": pl.Float64,  # seconds of threads
    "started": pl.Float64,  # Unix seconds, of the first chunk
    "ended": pl.Float64,  # Unix seconds, of the last chunk
}
PROGRESS = pl.Schema(_PROGRESS)
"""The columns of how far the windows are, a row each, in the same order."""

State = Literal["waiting", "mapping", "staged", "done", "failed", "skipped", "empty"]
"""Of a window. `staged`: mapped, not yet published. `empty`: the input holds nothing of it."""
STATES: tuple[str, ...] = get_args(State)


def digest(*said: object) -> str:
    """12 hex digits over some values."""
    text = "\x1f".join(str(one) for one in said)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
