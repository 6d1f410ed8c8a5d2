"""Stored types of a backfill: its record, its desired state, its windows and their progress."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Literal, get_args

import polars as pl
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt

from pipeline.report.humanize import byte_size, plural
from pipeline.runs.ledger.records import Origin
from pipeline.storage.documents import BackfillId, Moment
from pipeline.storage.table_versions import TableVersion

Reprocess = Literal["missing", "failed", "changed", "all"]
"""Which windows to do: `missing` in the output; `failed` in an earlier backfill; `changed` (input
or code changed since, or missing); `all`."""

DEFAULT_MAX_ACTIVE = 4
"""Default number of runs at a time."""
MAX_FOLDERS_NAMED = 5
"""Maximum number of folders outside of all windows that a record names."""
MAX_RUNS = 50
"""Approximate maximum number of runs of a backfill: each is a flow run in Prefect."""
MIN_RUN_BYTES = 1 << 30
"""Decoded bytes of a run, at least: a run takes seconds to start, whatever it has to do."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)


class Options(_Record):
    """Options of a backfill."""

    reprocess: Reprocess = "missing"
    windows_per_run: PositiveInt | None = None
    """Windows per run. Default: see `bytes_per_run`."""
    bytes_per_run: PositiveInt | None = None
    """Decoded bytes per run: a run takes windows until it has as many. Default: 1 GiB, or more if
    there would be over 50 runs."""
    max_active: PositiveInt = DEFAULT_MAX_ACTIVE
    """Runs at a time."""
    backwards: bool = False
    """Whether to begin with the newest window."""
    priority: int = 0
    """Priority of the batches on the cluster; higher goes first."""
    canary: int | str | None = None
    """Windows that go first: a number, or a share such as 1%."""
    canary_limit: int | str = 0
    """Chunks of the canary that may fail: a number, or a share. The backfill pauses above it."""
    canary_hold: bool = False
    """Whether to pause after the canary until the user resumes."""
    max_failures: int | str | None = None
    """Windows that may fail before the backfill stops: a number, or a share such as 5%."""
    all_or_nothing: bool = False
    """Whether to publish all windows in one manifest, once all are done."""
    idempotency_key: str = ""
    """Key that distinguishes backfills of the same request."""


@dataclass(frozen=True, slots=True)
class BackfillResumeOptions:
    """Options for resuming a backfill."""

    only: tuple[str, ...] = ()
    """Labels of the windows to do; default all that are not done."""
    only_failed: bool = False
    """Whether to retry failed windows only."""
    accept_code: bool = False
    """Whether to resume even if the transform's code has changed."""
    take_over: bool = False
    """Whether to drive even if another driver seems alive."""
    code: str = ""
    """Fingerprint of the code to run; default the code of the creation."""


BACKFILL_VERSION = 1
"""Format of a backfill's stored state. Older releases refuse a backfill with a higher one."""


class BackfillRecord(_Record):
    """Definition of a backfill; written once, before anything is mapped."""

    version: int = BACKFILL_VERSION
    backfill: BackfillId
    """Id: 12 hex digits, derived from the request, the plan and the code."""
    request: str
    """Digest of the request: while a backfill is unfinished, the same request finds it."""
    asked: str
    """Description of the requested windows, e.g. 2022-01-01 to 2025-01-01."""
    job: str
    output: str
    mode: str
    transform: str
    code: str
    """Fingerprint of the transform when the backfill was created."""

    @property
    def fingerprint(self) -> str:
        """Its code, as runs call it."""
        return self.code

    column: str
    """Column of the windows; several are joined by commas."""
    grain: str
    options: Options
    base: NonNegativeInt
    """Number of the manifest that was current before the backfill was planned."""
    windows: NonNegativeInt
    """Number of requested windows, with those that are skipped."""
    todo: NonNegativeInt
    runs: NonNegativeInt
    chunks: NonNegativeInt
    rows: NonNegativeInt
    decoded_bytes: NonNegativeInt
    created: Moment
    """Time of creation, in Unix seconds."""
    tables: tuple[TableVersion, ...] | None = None
    """Tables that the transform reads, with the versions for all its runs. None in old records."""
    columns: tuple[str, ...] = ()
    """Names of the result's columns, in the order that all files have."""
    types: tuple[str, ...] = ()
    """Types of these columns, as Polars spells them. Empty in old records."""
    origin: Origin | None = None
    """Where code and input came from. None in old records."""
    outside_objects: NonNegativeInt = 0
    """Number of objects of the input that are in no window, because a Hive value is null."""
    outside_bytes: NonNegativeInt = 0
    """Total bytes of these objects."""
    outside_folders: tuple[str, ...] = ()
    """First Hive folders of these objects."""

    @property
    def outside(self) -> str | None:
        """Note about objects of the input that are in no window; None if there are none."""
        if not self.outside_objects:
            return None
        single = self.outside_objects == 1
        objects = plural(self.outside_objects, "object")
        return (
            f"{objects} of the input ({byte_size(self.outside_bytes)}) "
            f"{'is' if single else 'are'} in no window, and no backfill reads "
            f"{'it' if single else 'them'}: {', '.join(self.outside_folders)}"
        )


class Control(_Record):
    """Desired state of a running backfill, set by users. Updated by compare-and-swap (If-Match)."""

    paused: bool = False
    cancelled: bool = False
    approved: bool = False
    """Whether to continue after the canary, whatever its result."""
    max_active: PositiveInt = DEFAULT_MAX_ACTIVE
    priority: int = 0
    retries: NonNegativeInt = 0
    """Number of retries requested so far; a running driver retries failed windows when it grows."""
    by: str = ""
    """Command that changed it last, or Prefect."""


_WINDOWS: dict[str, Any] = {
    "label": pl.String,
    "start": pl.String,  # ISO 8601, or the value itself
    "end": pl.String,  # exclusive; null for values
    "group": pl.Int64,  # rank of the run that maps it; null if there is nothing to do
    "run": pl.String,  # id of that run
    "canary": pl.Boolean,  # mapped before all others
    "skipped": pl.String,  # reason why there is nothing to do; null if there is
    "chunks": pl.Int64,
    "rows": pl.Int64,
    "stored_bytes": pl.Int64,
    "decoded_bytes": pl.Int64,
    "inputs": pl.String,  # see `selection.digest_inputs`
}
WINDOWS = pl.Schema(_WINDOWS)
"""Columns of a backfill's windows, one row per window, in the order of time."""

_PROGRESS: dict[str, Any] = {
    "label": pl.String,
    "state": pl.String,
    "done": pl.Int64,  # chunks
    "failed": pl.Int64,  # chunks
    "rows_in": pl.Int64,
    "rows_out": pl.Int64,
    "bytes_in": pl.Int64,
    "bytes_out": pl.Int64,
    "busy": pl.Float64,  # thread seconds
    "started": pl.Float64,  # Unix seconds, of the first chunk
    "ended": pl.Float64,  # Unix seconds, of the last chunk
    "reads": pl.Int64,  # requests to S3 that read
    "writes": pl.Int64,  # requests to S3 that write or list
    "retries": pl.Int64,  # storage operations that were tried again
    "checks": pl.Int64,  # made of its rows, as its commit says
    "warnings": pl.Int64,  # of these, failed ones that only warn
    "rejected": pl.Int64,  # rows in quarantine, as its commit says
}
PROGRESS = pl.Schema(_PROGRESS)
"""Columns of the windows' progress, one row per window, in the same order."""
REQUESTS = ("reads", "writes", "retries")
"""Columns of the progress with requests to S3."""
CHECKED = ("checks", "warnings", "rejected")
"""Columns of the progress with what checks have found."""
LATER = (*REQUESTS, *CHECKED)
"""Columns of the progress that earlier releases did not write."""

State = Literal["waiting", "mapping", "staged", "done", "failed", "skipped", "empty"]
"""State of a window. `staged`: mapped, not yet published. `empty`: no input."""
STATES: tuple[str, ...] = get_args(State)


def digest(*values: object) -> str:
    """Hash some values to 12 hex digits."""
    text = "\x1f".join(str(value) for value in values)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
