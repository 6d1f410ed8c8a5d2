"""The data of a run report: the run, its completions, its failures and its phases.

Everything here is plain data, so that a report can be made from the ledger at any time, on any
machine, whether the run has ended or not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import polars as pl

RunState = Literal["done", "failed", "running", "interrupted"]

COMPLETION_SCHEMA = pl.Schema(
    {
        "chunk": pl.String,
        "index": pl.Int64,
        "batch": pl.String,
        "attempt": pl.String,
        "worker": pl.String,
        "started": pl.Float64,
        "seconds": pl.Float64,
        "read_seconds": pl.Float64,
        "compute_seconds": pl.Float64,
        "stage_seconds": pl.Float64,
        "rows_in": pl.Int64,
        "rows_out": pl.Int64,
        "bytes_in": pl.Int64,
        "bytes_out": pl.Int64,
        "encode_seconds": pl.Float64,
        "reads": pl.Int64,
        "writes": pl.Int64,
        "retries": pl.Int64,
        "throttled": pl.Int64,
        "request_limit": pl.Int64,
        "memory": pl.Int64,
        "code": pl.String,
    }
)
"""One row per completion. `started` is Unix seconds; `seconds` is the whole chunk, of which read,
compute and stage (upload) are parts (checks and waiting are the rest); encoding is part of compute.
`reads`, `writes`, `retries` and `throttled` are requests to S3, `request_limit` is the lowest limit
on concurrent ones (0 if none was throttled), `memory` is the worker's resident bytes. Missing
numbers count as zero, missing texts as empty; `started` must not be missing."""
OPTIONAL = (
    *("encode_seconds", "reads", "writes", "retries", "throttled", "request_limit"),
    *("memory", "code"),
)
"""Columns of completions that may be missing, as in those of earlier releases."""
PARTS = ("read", "compute", "encode", "upload")
"""Parts of a chunk's time, in order."""

FILE_SCHEMA = pl.Schema({"uri": pl.String, "bytes": pl.Int64, "rows": pl.Int64})
"""One row per file; `rows` may be null."""

FAILURE_SCHEMA = pl.Schema(
    {
        "chunk": pl.String,
        "index": pl.Int64,
        "batch": pl.String,
        "attempt": pl.String,
        "worker": pl.String,
        "at": pl.Float64,
        "error": pl.String,
        "message": pl.String,
        "trace": pl.String,
        "where": pl.String,
        "line": pl.String,
        "transient": pl.Boolean,
        "final": pl.Boolean,
    }
)
"""One row per failed attempt. `at` is Unix seconds; `error` is the name of the error's type;
`trace` has the user's frames first; `where` names the chunk's objects, rows and partition, `line`
the line of the user's code; `final` is whether the chunk was still failed at the end; `worker` is
empty if unknown."""


@dataclass(frozen=True, slots=True)
class Phase:
    """One span of the run as its driver saw it, such as plan, map or publish."""

    name: str
    started: float
    """Unix seconds."""
    seconds: float


@dataclass(frozen=True, slots=True)
class Requests:
    """Numbers of requests to S3, by how services price them."""

    reads: int = 0
    """GET and HEAD requests."""
    writes: int = 0
    """PUT, COPY, POST and LIST requests."""
    retries: int = 0
    """Operations that were tried again after a transient error."""
    throttled: int = 0
    """Requests that S3 refused because it got too many."""
    request_limit: int = 0
    """Lowest limit on concurrent requests of a process after that; 0 if none was refused."""

    def plus(self, other: Requests) -> Requests:
        """Add two numbers of requests."""
        limits = [limit for limit in (self.request_limit, other.request_limit) if limit]
        return Requests(
            self.reads + other.reads,
            self.writes + other.writes,
            self.retries + other.retries,
            self.throttled + other.throttled,
            min(limits, default=0),
        )


NO_REQUESTS = Requests()


@dataclass(frozen=True, slots=True)
class Attempt:
    """One driver's work on a run or backfill. Times are Unix seconds."""

    started: float
    finished: float
    state: str
    """How it ended: done, failed, cancelled, interrupted, held or running."""
    driver: str = ""
    """Process and host."""
    code: str = ""
    """Fingerprint of the code that it ran; empty if unknown."""
    commit: str = ""
    """Git commit of that code; empty if unknown."""
    phases: tuple[Phase, ...] = ()
    requests: Requests = NO_REQUESTS
    """Requests of the driver, without those of workers."""
    errors: tuple[str, ...] = ()
    """One sentence per kind of failure that was left when it ended."""


@dataclass(frozen=True, slots=True)
class CodeVersion:
    """A version of the code, and what it made."""

    code: str
    """Fingerprint."""
    commit: str
    """Git commit; empty if unknown."""
    chunks: int
    windows: tuple[str, ...] = ()
    """Labels of the windows that it made, in order; empty for a run without windows."""


@dataclass(frozen=True, slots=True)
class Pruned:
    """What planning listed, and left out before anything was read."""

    objects_listed: int
    objects_pruned: int
    """Objects pruned by partition values."""
    objects_without_rows: int
    """Objects of which statistics prune everything."""
    objects_planned: int
    row_groups: int
    row_groups_pruned: int
    bytes_listed: int
    bytes_to_read: int


@dataclass(frozen=True, slots=True)
class Estimated:
    """A figure that was estimated before a run, next to what it was."""

    name: str
    unit: Literal["seconds", "bytes"]
    expected: float | None
    """None if there was nothing to estimate it from."""
    actual: float | None
    """None if it is not known."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check of the result has found."""

    name: str
    outcome: Literal["passed", "warned", "quarantined", "refused"]
    found: str
    """Figures and limit, as a sentence."""
    examples: tuple[str, ...] = ()
    """Rows that failed, secrets masked and long values cut."""


@dataclass(frozen=True, slots=True, eq=False)
class MappedGroups:
    """What was mapped over the groups of the reduced result (`then`)."""

    function: str
    """`module:function`."""
    by: tuple[str, ...]
    """Columns whose values make up a group; empty if each row is one."""
    params: Mapping[str, str] = field(default_factory=dict)
    """Parameters of the function as texts, secrets masked."""
    pieces: int = 0
    """Pieces of the reduced result, each with whole groups, which is one file; 0: not reduced."""
    done: int = 0
    failed: int = 0
    """Pieces that were still failed at the end."""
    rows_in: int = 0
    rows_out: int = 0
    bytes_out: int = 0
    seconds: float = 0.0
    """Seconds of all workers."""
    longest: float = 0.0
    """Seconds of the piece that took longest."""
    requests: Requests = NO_REQUESTS
    """Requests to S3 of these pieces."""
    memory: int = 0
    """Bytes of the largest worker."""
    failures: pl.DataFrame = field(default_factory=FAILURE_SCHEMA.to_frame)
    """Failed attempts at pieces (schema FAILURE_SCHEMA); `where` names the groups."""

    def __post_init__(self) -> None:
        """Cast the failures to their schema."""
        failures = _conform(self.failures, FAILURE_SCHEMA, "failures of groups")
        object.__setattr__(self, "failures", failures)


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices of what a run uses, in one currency."""

    currency: str
    per_1000_reads: float
    per_1000_writes: float
    per_worker_hour: float


@dataclass(frozen=True, slots=True)
class RunInfo:
    """The identity and state of a run. Times are Unix seconds."""

    id: str
    job: str
    """Name of the job."""
    input: str
    """URI of the input, or several separated by spaces."""
    output: str
    mode: str
    """Mode of the output: error, append, overwrite or overwrite-partitions."""
    transform: str
    """`module:function`."""
    fingerprint: str
    """Fingerprint of the transform."""
    state: RunState
    chunks_planned: int
    rows_planned: int
    created: float
    started: float | None = None
    """Moment when the first driver started; None if none did."""
    finished: float | None = None
    """Moment when the last driver ended; None while it runs."""
    rounds: int = 0
    threads_per_worker: int | None = None
    """Chunks that a worker can map at once; None to use the maximum observed."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Versions, processor, workers: label to text."""
    tables: Mapping[str, str] = field(default_factory=dict)
    """Tables that the transform read, in addition to the input: URI to version."""
    prefect_url: str | None = None
    """Address of the flow run in the Prefect UI."""
    resume_command: str | None = None
    """Command that finishes the run; None if it is done."""
    chunks_published: int = 0
    """Chunks published although the run is not done (`--without-failed`)."""
    rows_done: int | None = None
    """Planned rows of the chunks that are done; None if unknown."""
    params: Mapping[str, str] = field(default_factory=dict)
    """Parameters of the transform as texts, secrets masked."""
    filter: str = ""
    """Filter of the input's rows; empty if there is none."""
    columns: tuple[str, ...] = ()
    """Columns of the input that the job selects; empty for all."""
    schema: Mapping[str, str] = field(default_factory=dict)
    """Columns of the output, with their types; empty if unknown."""
    layout: str = ""
    """Partitions, sizes and order of the output's files; empty if all is at its default."""
    encodings: str = ""
    """Columns of the output by encoding; empty: the writer's defaults."""
    kept: str = ""
    """What files keep of the input's as it is; empty if they are written whole."""
    commit: str = ""
    """Git commit of the code when the run was planned; empty if unknown."""
    memory_limit: int | None = None
    """Bytes of memory that a worker may use; None if unknown."""

    def __post_init__(self) -> None:
        """Raise ValueError for an unknown state."""
        if self.state not in get_args(RunState):
            raise ValueError(f"state {self.state!r} is none of {', '.join(get_args(RunState))}")


@dataclass(frozen=True, slots=True, eq=False)
class RunReport:
    """The input of all renderers: a run with its completions and failures."""

    run: RunInfo
    completions: pl.DataFrame = field(default_factory=COMPLETION_SCHEMA.to_frame)
    """Columns as in COMPLETION_SCHEMA, in any order; a chunk may complete more than once."""
    failures: pl.DataFrame = field(default_factory=FAILURE_SCHEMA.to_frame)
    """Columns as in FAILURE_SCHEMA, in any order."""
    phases: tuple[Phase, ...] = ()
    """Phases of all attempts, in order."""
    not_counted: tuple[str, ...] = ()
    """One sentence per kind of ledger entry that this run cannot have written, and one about
    objects that could not be read."""
    attempts: tuple[Attempt, ...] = ()
    """Attempts of drivers, oldest first; empty if unknown."""
    versions: tuple[CodeVersion, ...] = ()
    """Versions of the code that made the completions, oldest first."""
    pruned: Pruned | None = None
    inputs: pl.DataFrame = field(default_factory=FILE_SCHEMA.to_frame)
    """Objects of the input that are read (schema FILE_SCHEMA)."""
    outputs: pl.DataFrame = field(default_factory=FILE_SCHEMA.to_frame)
    """Files of the output (schema FILE_SCHEMA); staged ones too while nothing is published."""
    prices: Prices | None = None
    """Prices from the settings; None if there are none."""
    estimates: tuple[Estimated, ...] = ()
    """Estimates before the run, next to its figures; empty unless it is done."""
    checks: tuple[Checked, ...] = ()
    """Checks of the result; empty if there are none, or they were not made yet."""
    groups: MappedGroups | None = None
    """What was mapped over the groups of the reduced result; None if the job maps none."""

    @property
    def is_refused(self) -> bool:
        """Whether a check keeps the result from being published."""
        return any(check.outcome == "refused" for check in self.checks)

    def __post_init__(self) -> None:
        """Cast both frames to their schemas.

        Raises:
            ValueError: A column, or a moment in one, is missing.
        """
        object.__setattr__(
            self, "completions", _conform(self.completions, COMPLETION_SCHEMA, "completions")
        )
        object.__setattr__(self, "failures", _conform(self.failures, FAILURE_SCHEMA, "failures"))


def _conform(frame: pl.DataFrame, schema: pl.Schema, name: str) -> pl.DataFrame:
    later = [column for column in OPTIONAL if column in schema and column not in frame.columns]
    frame = frame.with_columns(pl.lit(None, schema[column]).alias(column) for column in later)
    missing = [column for column in schema if column not in frame.columns]
    if missing:
        raise ValueError(f"{name} lack {', '.join(missing)}; they have {', '.join(frame.columns)}")
    moment = "started" if "started" in schema else "at"
    if frame[moment].null_count():
        raise ValueError(f"{name} have {frame[moment].null_count()} rows without {moment!r}")
    empty: dict[pl.DataType, object] = {pl.String(): "", pl.Boolean(): False}
    columns = [pl.col(column).cast(dtype) for column, dtype in schema.items()]
    return frame.select(
        (column.fill_nan(0) if dtype.is_float() else column).fill_null(empty.get(dtype, 0))
        for column, dtype in zip(columns, schema.values(), strict=True)
    )
