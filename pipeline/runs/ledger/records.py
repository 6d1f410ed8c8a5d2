"""What a run leaves in storage: its record, completions and failures, and what they add up to."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import polars as pl
from pydantic import BaseModel, ConfigDict, NonNegativeInt

from pipeline.storage.documents import BackfillId, Moment, RunId
from pipeline.storage.table_versions import TableVersion


class RunRecord(BaseModel):
    """What a run is; written once, before anything is mapped."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: int = 1
    run: RunId
    """16 hex digits, derived from plan, transform, parameters and output."""
    job: str
    """The job's name."""
    plan: str
    """The plan's id."""
    chunks: NonNegativeInt
    rows: NonNegativeInt
    transform: str
    fingerprint: str
    """Of the transform's source and parameters, at the run's creation."""
    output: str
    """URI of the output prefix."""
    mode: str
    base: NonNegativeInt
    """Number of the manifest that was current at the run's creation."""
    backfill: BackfillId | None = None
    """The backfill that it belongs to, if it does to one."""
    tables: tuple[TableVersion, ...] | None = None
    """Tables that the transform reads, in the versions that all chunks see. Old runs do not say."""
    columns: tuple[str, ...] = ()
    """Names of the result's columns as planning saw them: the order that all files have. Empty if
    it could not be told."""
    created: Moment
    """Unix seconds."""


PARTIAL = "partial"
"""In place of an upload: the chunk's result is in a partial (its URI), combined with others."""
REDUCE = "reduce"
"""In place of a batch: the completion is not of a chunk but of the whole reduce."""


@dataclass(frozen=True, slots=True)
class Completion:
    """The proof that a chunk is done."""

    chunk: str
    index: int
    batch: str
    attempt: str
    """Unique to this try of this chunk; also in the metadata of what it staged."""
    worker: str
    started: float
    """Unix seconds."""
    seconds: float
    """From the moment the chunk was at hand to the end of its staging."""
    read_seconds: float
    compute_seconds: float
    """In the transform, and encoding what came out of it."""
    stage_seconds: float
    rows_in: int
    """Rows that reached the transform: those planned, less those the job's filter took away."""
    rows_out: int
    bytes_in: int
    """Bytes that were read."""
    bytes_out: int
    """Bytes of the staged Parquet file."""
    code: str
    """Fingerprint of the transform that made it."""
    schema: str
    """Digest of the output's columns and types; what they are is in the segment."""
    uri: str
    """Where the output appears once published."""
    upload: str
    parts: tuple[str, ...]
    sha256: str
    left_out: tuple[str, ...] = ()
    """Objects that could not be read, with the reason behind a tab (see
    `input.on_bad_object`); their rows are in none of the figures."""
    filled: tuple[str, ...] = ()
    """Columns of nothing but nulls that were given the type which they have elsewhere."""


@dataclass(frozen=True, slots=True)
class Failure:
    """One failed try of one chunk."""

    chunk: str
    index: int
    batch: str
    attempt: str
    worker: str
    at: float
    """Unix seconds."""
    error: str
    """Name of the error's class."""
    message: str
    transient: bool
    trace: str
    """The end of the traceback."""


_TYPES: dict[str, Any] = {
    "str": pl.String,
    "int": pl.Int64,
    "float": pl.Float64,
    "bool": pl.Boolean,
    "tuple[str, ...]": pl.List(pl.String),
}


def _schema(record: type) -> pl.Schema:
    return pl.Schema({n: _TYPES[t] for n, t in record.__annotations__.items()})


COMPLETIONS = _schema(Completion)
FAILURES = _schema(Failure)


Problems = dict[str, tuple[int, str]]
"""Entries of a ledger that do not count: by the reason, how many, and an example."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One stored segment, or several folded into one."""

    completions: pl.DataFrame
    failures: pl.DataFrame
    schemas: dict[str, str]
    """Columns and types of outputs, as JSON, by digest."""
    problems: Problems = field(default_factory=dict)
    """What was refused."""


def digest_of(schema: str) -> str:
    """The digest by which completions name the schema of their output (given as JSON)."""
    return hashlib.sha256(schema.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Progress:
    """What the ledger says at one moment."""

    completions: pl.DataFrame
    """One row a chunk that is done (schema COMPLETIONS), in the plan's order."""
    duplicates: pl.DataFrame
    """Further completions of the same chunks: published never, aborted at publish."""
    failures: pl.DataFrame
    """Every failed try (schema FAILURES), oldest first."""
    schemas: dict[str, str]
    """Columns and types of outputs, as JSON, by digest."""
    reduced: pl.DataFrame = field(default_factory=COMPLETIONS.to_frame)
    """Completions of whole reduces (schema COMPLETIONS); `chunk` names what was reduced."""
    problems: tuple[str, ...] = ()
    """A sentence for each kind of entry that does not count, because this run cannot have written
    it, or because it cannot be read."""

    def left(self, chunks: int) -> list[int]:
        """Indices of the chunks of a plan of this many that have no completion."""
        done = set(self.completions["index"].to_list())
        return [index for index in range(chunks) if index not in done]

    def left_out(self) -> tuple[str, ...]:
        """A sentence about objects that could not be read and were left out, if there are any."""
        found = self.completions["left_out"].explode(empty_as_null=False).drop_nulls()
        if found.is_empty():
            return ()
        uris = found.str.split("\t").list.first().n_unique()
        return (
            f"{uris:,} objects could not be read and are left out (input.on_bad_object), "
            f"such as {found[0].replace(chr(9), ': ')}",
        )

    def failed(self) -> pl.DataFrame:
        """The last failure of each chunk that has no completion."""
        last = self.failures.unique("chunk", keep="last", maintain_order=True)
        return last.join(self.completions, on="chunk", how="anti").sort("index")
