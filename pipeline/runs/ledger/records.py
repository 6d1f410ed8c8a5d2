"""Stored types of a run (record, completions, failures) and the progress computed from them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, Self

import polars as pl
from pydantic import BaseModel, ConfigDict, NonNegativeInt

from partitioning import Explain
from pipeline.report.humanize import plural
from pipeline.storage.documents import BackfillId, Moment, RunId
from pipeline.storage.table_versions import TableVersion

RUN_VERSION = 2
"""Format of a run's stored state: 2 has several outputs. Older releases refuse a run with a higher
one."""


class Planning(BaseModel):
    """What planning found and left out, for reports."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    objects_listed: NonNegativeInt = 0
    objects_pruned: NonNegativeInt = 0
    """Objects pruned by partition values."""
    objects_without_rows: NonNegativeInt = 0
    """Objects without row groups, or with all of them pruned by statistics."""
    objects_planned: NonNegativeInt = 0
    row_groups: NonNegativeInt = 0
    row_groups_pruned: NonNegativeInt = 0
    """Row groups pruned by statistics."""
    bytes_listed: NonNegativeInt = 0
    """Stored size of all listed objects."""
    bytes_to_read: NonNegativeInt = 0
    """Stored size of the columns and row groups to read."""
    bytes_decoded: NonNegativeInt = 0

    @classmethod
    def of(cls, explain: Explain) -> Self:
        """Take the figures of a planning."""
        return cls.model_validate(explain.to_dict())


class Origin(BaseModel):
    """Where a plan's code and input came from. For reports: nothing depends on it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    definitions: dict[str, str] = {}
    """Digest of each definition that the code reaches (see `job_definitions`)."""
    commit: str = ""
    """Git commit of the code, with `-dirty` if files had changed. Empty if unknown."""
    planning: Planning | None = None


class RunRecord(BaseModel):
    """Definition of a run; written once, before anything is mapped."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: int = 1
    """Format (see RUN_VERSION)."""
    run: RunId
    """Id: 16 hex digits, derived from plan, transform, parameters and output."""
    job: str
    """Name of the job."""
    plan: str
    """Id of the plan."""
    chunks: NonNegativeInt
    rows: NonNegativeInt
    transform: str
    fingerprint: str
    """Fingerprint of the transform's source and parameters when the run was created."""
    output: str
    """URI of the output prefix."""
    mode: str
    """Output mode: that of the job, or `overwrite` for a rebuild."""
    base: NonNegativeInt
    """Number of the manifest that was current when the run was created."""
    backfill: BackfillId | None = None
    """Id of the backfill of the run; None if it belongs to none."""
    tables: tuple[TableVersion, ...] | None = None
    """Tables that the transform reads, with the versions for all chunks. None in old records."""
    columns: tuple[str, ...] = ()
    """Names of the result's columns, found in planning, in the order that all files have. Empty if
    unknown."""
    types: tuple[str, ...] = ()
    """Types of these columns, as Polars spells them. Empty in old records."""
    created: Moment
    """Time of creation, in Unix seconds."""
    origin: Origin | None = None
    """Where code and input came from. None in old records."""
    outputs: tuple[str, ...] = ()
    """URIs of all outputs of the run, if it has several. Each has a ledger of the run; that of the
    first also has the driver's record, the failures and the report."""

    @property
    def first_output(self) -> str:
        """URI of the output whose ledger has the driver's record, the failures and the report."""
        return self.outputs[0] if self.outputs else self.output


PARTIAL = "partial"
"""Value of `Completion.upload` for a chunk whose result is in a partial, combined with others."""
REDUCE = "reduce"
"""Value of `Completion.batch` for the completion of a whole reduce instead of a chunk."""

MERGE = "merge-"
"""Start of `Completion.batch` for the completion of a merged file instead of a chunk."""


@dataclass(frozen=True, slots=True)
class Completion:
    """Record of a chunk that is mapped and staged."""

    chunk: str
    index: int
    batch: str
    attempt: str
    """Unique id of this attempt at the chunk; also in the metadata of its staged output."""
    worker: str
    started: float
    """Start of the attempt, in Unix seconds."""
    seconds: float
    """Seconds from the start of reading to the end of staging."""
    read_seconds: float
    compute_seconds: float
    """Seconds in the transform and in encoding its result, without waiting for its input."""
    stage_seconds: float
    rows_in: int
    """Rows that the transform received: planned rows minus those removed by the job's filter."""
    rows_out: int
    bytes_in: int
    """Bytes that were read."""
    bytes_out: int
    """Bytes of the staged Parquet file."""
    code: str
    """Fingerprint of the transform that made the output."""
    schema: str
    """Digest of the output's schema, which is in the segment."""
    uri: str
    """Final URI of the output, once published."""
    upload: str
    parts: tuple[str, ...]
    sha256: str
    left_out: tuple[str, ...] = ()
    """URI and reason, separated by a tab, of each object that could not be read (see
    `input.on_bad_object`). Its rows are not counted."""
    filled: tuple[str, ...] = ()
    """Names of all-null columns that were cast to the type which they have in other chunks."""
    encode_seconds: float = 0.0
    """Seconds in encoding the result, which `compute_seconds` includes. 0 in old records."""
    reads: int = 0
    """GET and HEAD requests since the batch's last completion; the batch's total is exact."""
    writes: int = 0
    """PUT, COPY, POST and LIST requests since the batch's last completion."""
    retries: int = 0
    """Storage operations that were tried again since the batch's last completion."""
    memory: int = 0
    """Resident bytes of the worker's process after the transform. 0 in old records."""
    encodings: str = ""
    """Columns of the output by encoding, e.g. `delta: id; plain:3: price`. Empty: the writer's
    defaults."""
    throttled: int = 0
    """Requests that S3 refused for load since the batch's last completion."""
    request_limit: int = 0
    """Lowest limit on concurrent requests after such a refusal; 0 if none was refused."""
    checked: str = ""
    """What checks need of the result, as JSON (see `ledger.check_files`). Empty: nothing."""
    copied: int = 0
    """Bytes of the file that the store has copied from the input's (see `output.keep`)."""
    rewritten: str = ""
    """Why a file whose columns are to be kept was rewritten. Empty: it was not."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Record of a failed attempt at a chunk."""

    chunk: str
    index: int
    batch: str
    attempt: str
    worker: str
    at: float
    """Time of the failure, in Unix seconds."""
    error: str
    """Name of the error's class."""
    message: str
    transient: bool
    trace: str
    """User's frames, then the end of the whole traceback."""
    where: str = ""
    """Objects, rows and partition of the chunk."""
    line: str = ""
    """File, line and function of the user's code that raised it. Empty if unknown."""


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
"""Number and an example of the entries that are not counted, by reason."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Entries of one or several stored segments."""

    completions: pl.DataFrame
    failures: pl.DataFrame
    schemas: dict[str, str]
    """Schemas of outputs, as JSON, by digest."""
    problems: Problems = field(default_factory=dict)
    """Entries that were refused."""


def digest_of(schema: str) -> str:
    """Hash a schema (as JSON) to the digest that completions name."""
    return hashlib.sha256(schema.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a run, computed from its ledger at one moment."""

    completions: pl.DataFrame
    """One row per chunk that is done (schema COMPLETIONS), in the plan's order."""
    duplicates: pl.DataFrame
    """Duplicate completions: never published, aborted when the run is."""
    failures: pl.DataFrame
    """All failed attempts (schema FAILURES), oldest first."""
    schemas: dict[str, str]
    """Schemas of outputs, as JSON, by digest."""
    reduced: pl.DataFrame = field(default_factory=COMPLETIONS.to_frame)
    """Completions of whole reduces (schema COMPLETIONS); `chunk` names the reduce's last step."""
    merged: pl.DataFrame = field(default_factory=COMPLETIONS.to_frame)
    """Completions of merged files (schema COMPLETIONS); `chunk` is the file's id in its merge plan,
    `index` its number there."""
    problems: tuple[str, ...] = ()
    """One sentence per kind of entry that is not counted, because it is unreadable or this run
    cannot have written it."""

    def left(self, chunks: int) -> list[int]:
        """List the indices of chunks without a completion, in a plan of `chunks` chunks."""
        done = set(self.completions["index"].to_list())
        return [index for index in range(chunks) if index not in done]

    def left_out(self) -> tuple[str, ...]:
        """Describe the objects that could not be read and were left out, if there are any."""
        left_out = self.completions["left_out"].explode(empty_as_null=False).drop_nulls()
        if left_out.is_empty():
            return ()
        uris = left_out.str.split("\t").list.first().n_unique()
        return (
            f"{plural(uris, 'object')} could not be read, and left out (input.on_bad_object), "
            f"such as {left_out[0].replace(chr(9), ': ')}",
        )

    def failed(self) -> pl.DataFrame:
        """Return the last failure of each chunk without a completion."""
        last = self.failures.unique("chunk", keep="last", maintain_order=True)
        return last.join(self.completions, on="chunk", how="anti").sort("index")
