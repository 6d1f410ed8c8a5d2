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
    }
)
"""One row per completion. `started` is Unix seconds; `seconds` is the whole chunk, of which read,
compute and stage are parts (checks and waiting are the rest). Missing numbers count as zero,
missing texts as empty; `started` must not be missing."""

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

    def __post_init__(self) -> None:
        """Raise ValueError for an unknown state."""
        if self.state not in get_args(RunState):
            raise ValueError(f"state {self.state!r} is none of {', '.join(get_args(RunState))}")


@dataclass(frozen=True, slots=True)
class Phase:
    """One span of the run as its driver saw it: plan, map, publish."""

    name: str
    started: float
    """Unix seconds."""
    seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class RunReport:
    """The input of all renderers: a run with its completions and failures."""

    run: RunInfo
    completions: pl.DataFrame = field(default_factory=COMPLETION_SCHEMA.to_frame)
    """Columns as in COMPLETION_SCHEMA, in any order; a chunk may complete more than once."""
    failures: pl.DataFrame = field(default_factory=FAILURE_SCHEMA.to_frame)
    """Columns as in FAILURE_SCHEMA, in any order."""
    phases: tuple[Phase, ...] = ()
    not_counted: tuple[str, ...] = ()
    """One sentence per kind of ledger entry that this run cannot have written, and one about
    objects that could not be read."""

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
