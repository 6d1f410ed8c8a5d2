"""The ledger of a run: what was planned, what is done, what is left. All of it in storage.

Workers append segments, the driver reads them; nobody rewrites anything. What is left is the plan
minus the completions, whoever asks, at any moment.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Self

import orjson
import polars as pl
import zstandard
from pydantic import BaseModel, ConfigDict

from partitioning import Plan
from pipeline.errors import AlreadyExistsError, ObjectMissingError, UsageError
from pipeline.job import Job, parse_job
from pipeline.storage import Storage, join, parse, state_prefix

READERS = 16
"""Segments read at a time."""


class RunRecord(BaseModel):
    """What a run is; written once, before anything is mapped."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: int = 1
    run: str
    """16 hex digits, derived from plan, transform, parameters and output."""
    job: str
    """The job's name."""
    plan: str
    """The plan's id."""
    chunks: int
    rows: int
    transform: str
    fingerprint: str
    """Of the transform's source and parameters, at the run's creation."""
    output: str
    """URI of the output prefix."""
    mode: str
    base: int
    """Number of the manifest that was current at the run's creation."""
    created: float
    """Unix seconds."""


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
    """The output's columns and types, as JSON."""
    uri: str
    """Where the output appears once published."""
    upload: str
    parts: tuple[str, ...]
    sha256: str


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
_KINDS = {"completion": COMPLETIONS, "failure": FAILURES}


def run_id(plan: Plan, job: Job, fingerprint: str) -> str:
    """16 hex digits: the same work to the same place is the same run, whoever submits it."""
    output = job.output.model_dump(mode="json", exclude={"keep_versions"})
    output["uri"] = parse(job.output.uri).uri.rstrip("/")
    said = [plan.id, job.transform, fingerprint, job.params, output]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Progress:
    """What the ledger says at one moment."""

    completions: pl.DataFrame
    """One row a chunk that is done (schema COMPLETIONS), in the plan's order."""
    spares: pl.DataFrame
    """Further completions of the same chunks: published never, aborted at publish."""
    failures: pl.DataFrame
    """Every failed try (schema FAILURES), oldest first."""

    def left(self, chunks: int) -> list[int]:
        """Indices of the chunks of a plan of this many that have no completion."""
        done = set(self.completions["index"].to_list())
        return [index for index in range(chunks) if index not in done]

    def failed(self) -> pl.DataFrame:
        """The last failure of each chunk that has no completion."""
        last = self.failures.unique("chunk", keep="last", maintain_order=True)
        return last.join(self.completions, on="chunk", how="anti").sort("index")


class Ledger:
    """One run's state in storage."""

    def __init__(self, storage: Storage, output: str, run: str) -> None:
        self._storage = storage
        self.run = run
        self.output = parse(output).uri.rstrip("/") + "/"
        self.state = state_prefix(self.output)
        self.prefix = join(self.state, "runs", run) + "/"
        self._segments: dict[str, dict[str, list[dict[str, Any]]]] = {}
        self._void: set[str] = set()

    @classmethod
    def create(cls, storage: Storage, job: Job, plan: Plan, fingerprint: str, base: int) -> Self:
        """Store a run's record, job and plan, each once; an existing run is opened as it is."""
        ledger = cls(storage, job.output.uri, run_id(plan, job, fingerprint))
        record = RunRecord(
            run=ledger.run,
            job=job.name,
            plan=plan.id,
            chunks=len(plan),
            rows=plan.rows,
            transform=job.transform,
            fingerprint=fingerprint,
            output=ledger.output,
            mode=job.output.mode,
            base=base,
            created=time.time(),
        )
        # The record comes last: a run that has one is whole.
        storage.put_new(ledger.prefix + "plan.arrow", plan.to_bytes())
        with suppress(AlreadyExistsError):
            storage.put_new(ledger.prefix + "job.yaml", job.to_yaml().encode())
        with suppress(AlreadyExistsError):
            storage.put_new(ledger.prefix + "run.json", record.model_dump_json(indent=1).encode())
        return ledger

    @classmethod
    def open(cls, storage: Storage, run_uri: str) -> Self:
        """The ledger at `<output>.chunkmap/runs/<run>/`."""
        state, _, run = run_uri.rstrip("/").rpartition("/runs/")
        return cls(storage, state.removesuffix(".chunkmap"), run)

    def record(self) -> RunRecord:
        """The run's record. Raises UsageError when there is no such run."""
        try:
            return RunRecord.model_validate_json(self._storage.get(self.prefix + "run.json").data)
        except ObjectMissingError as error:
            raise UsageError(f"there is no run {self.run} of {self.output}") from error

    def job(self) -> Job:
        """The job as it was when the run was created."""
        text = self._storage.get(self.prefix + "job.yaml").data.decode()
        return parse_job(text, self.prefix + "job.yaml")

    def plan(self) -> Plan:
        """The frozen plan."""
        return Plan.from_bytes(self._storage.get(self.prefix + "plan.arrow").data)

    def published(self) -> int | None:
        """The number of the manifest that this run was published in, as its driver noted it."""
        blob = self._storage.get_if_there(self.prefix + "published.json")
        return None if blob is None else int(json.loads(blob.data)["manifest"])

    def note_published(self, manifest: int) -> None:
        """Note where the run was published: a short cut, never needed for correctness."""
        self._storage.put(self.prefix + "published.json", orjson.dumps({"manifest": manifest}))

    def write_segment(self, name: str, entries: Sequence[Completion | Failure]) -> None:
        """Append completions and failures under a name that nobody else uses."""
        lines = b"\n".join(
            orjson.dumps({"kind": type(entry).__name__.lower(), **asdict(entry)})
            for entry in entries
        )
        data = zstandard.compress(lines)
        self._storage.put_new(f"{self.prefix}completions/{name}.jsonl.zst", data)

    def void(self, attempts: Iterable[str]) -> None:
        """Do not count these attempts: what they staged is gone. Whoever publishes finds out."""
        self._void |= set(attempts)

    def read(self) -> Progress:
        """Everything that is stored now; segments read before are not read again."""
        found = {info.uri for info in self._storage.objects(self.prefix + "completions/")}
        new = sorted(found - self._segments.keys())
        with ThreadPoolExecutor(READERS) as pool:
            self._segments.update(zip(new, pool.map(self._read_segment, new), strict=True))
        stored = self._collect("completion").sort("index", "attempt")
        completions = stored.filter(~pl.col("attempt").is_in(list(self._void)))
        first = completions["chunk"].is_first_distinct()
        return Progress(
            completions=completions.filter(first),
            spares=completions.filter(~first),
            failures=self._collect("failure").sort("at"),
        )

    def _read_segment(self, uri: str) -> dict[str, list[dict[str, Any]]]:
        data = zstandard.decompress(self._storage.get(uri).data)
        kinds: dict[str, list[dict[str, Any]]] = {kind: [] for kind in _KINDS}
        for line in data.splitlines():
            entry = orjson.loads(line)
            kinds[entry.pop("kind")].append(entry)
        return kinds

    def _collect(self, kind: str) -> pl.DataFrame:
        rows = [row for kinds in self._segments.values() for row in kinds[kind]]
        return pl.DataFrame(rows, schema=_KINDS[kind], orient="row")


def runs_of(storage: Storage, output: str) -> list[RunRecord]:
    """The records of all runs of an output, oldest first."""
    prefix = join(state_prefix(parse(output).uri), "runs") + "/"
    records = [info.uri for info in storage.objects(prefix) if info.uri.endswith("/run.json")]
    with ThreadPoolExecutor(READERS) as pool:
        blobs = list(pool.map(storage.get, records))
    found = [RunRecord.model_validate_json(blob.data) for blob in blobs]
    return sorted(found, key=lambda record: record.created)


def to_ipc(frame: pl.DataFrame) -> bytes:
    """A frame as Arrow IPC bytes."""
    buffer = io.BytesIO()
    frame.write_ipc(buffer, compression="zstd")
    return buffer.getvalue()


def segment_name(batch: str, attempt: str, number: int) -> str:
    """The name of a batch's n-th segment."""
    return f"{batch}-{attempt}-{number:04d}"


def iterate(frame: pl.DataFrame) -> Iterable[Completion]:
    """A frame's rows as records."""
    for row in frame.iter_rows(named=True):
        yield Completion(**{**row, "parts": tuple(row["parts"])})
