"""The ledger of a run: what was planned, what is done, what is left. All of it in storage.

Workers append segments, the driver reads them; nobody rewrites anything. What is left is the plan
minus the completions, whoever asks, at any moment.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from typing import Any, Self

import orjson
import polars as pl
import pyarrow as pa
import zstandard

from partitioning import Plan
from partitioning.tablefile import TableFile, pack_tables
from pipeline.errors import AlreadyExistsError, ObjectMissingError, UsageError
from pipeline.job import Job, parse_job
from pipeline.records import (
    COMPLETIONS,
    FAILURES,
    PARTIAL,
    REDUCE,
    Completion,
    Failure,
    Progress,
    RunRecord,
    Segment,
    digest_of,
)
from pipeline.storage import Storage, join, parse, state_prefix

READERS = 16
"""Segments read at a time."""


def run_id(plan: Plan, job: Job, fingerprint: str, backfill: str | None = None) -> str:
    """16 hex digits: the same work to the same place is the same run, whoever submits it.

    A backfill's runs are its own: it may be told to do again what has been done.
    """
    output = job.output.model_dump(mode="json", exclude={"keep_versions"})
    output["uri"] = parse(job.output.uri).uri.rstrip("/")
    said = [plan.id, job.transform, fingerprint, job.params, output]
    said += [backfill] if backfill else []
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


class Ledger:
    """One run's state in storage."""

    def __init__(self, storage: Storage, output: str, run: str) -> None:
        self._storage = storage
        self.run = run
        self.output = parse(output).uri.rstrip("/") + "/"
        self.state = state_prefix(self.output)
        self.prefix = join(self.state, "runs", run) + "/"
        self._segments: dict[str, Segment] = {}
        self._folded: frozenset[str] = frozenset()
        self._base = 0
        self._void: set[str] = set()

    @classmethod
    def create(
        cls,
        storage: Storage,
        job: Job,
        plan: Plan,
        fingerprint: str,
        base: int,
        *,
        backfill: str | None = None,
    ) -> Self:
        """Store a run's record, job and plan, each once; an existing run is opened as it is."""
        ledger = cls(storage, job.output.uri, run_id(plan, job, fingerprint, backfill))
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
            backfill=backfill,
            created=time.time(),
        )
        # The record comes last: a run that has one is whole. A plan of the same chunks may have
        # other estimates, or other objects that it goes without: the first one counts.
        with suppress(AlreadyExistsError):
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
        return _parsed(text, self.prefix + "job.yaml")

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

    def accept(self, manifest: int) -> None:
        """Note that whoever drives has seen the output up to this manifest, and goes on top of it.

        The run's base stays: what it has published itself is looked for from there.
        """
        self._storage.put(self.prefix + "accepted.json", orjson.dumps({"manifest": manifest}))

    def accepted(self) -> int:
        """The newest manifest that nobody who published it is in conflict with."""
        blob = self._storage.get_if_there(self.prefix + "accepted.json")
        return 0 if blob is None else int(json.loads(blob.data)["manifest"])

    def cancel(self) -> None:
        """Ask whoever drives the run to stop."""
        self._storage.put(self.prefix + "cancel.json", orjson.dumps({"at": time.time()}))

    def is_cancelled(self) -> bool:
        """Whether somebody has asked the driver to stop."""
        return self._storage.get_if_there(self.prefix + "cancel.json") is not None

    def clear_cancel(self) -> None:
        """Take the wish back: a driver that begins anew was told to."""
        self._storage.delete(self.prefix + "cancel.json")

    def write_segment(
        self,
        name: str,
        entries: Sequence[Completion | Failure],
        schemas: Iterable[str] = (),
    ) -> None:
        """Append completions and failures under a name that nobody else uses.

        Args:
            name: Of the segment.
            entries: Completions and failures.
            schemas: Of the completions' outputs, as JSON.
        """
        lines = [{"kind": "schema", "columns": schema} for schema in schemas]
        lines += [_line(entry) for entry in entries]
        data = zstandard.compress(b"\n".join(map(orjson.dumps, lines)))
        self._storage.put_new(f"{self.prefix}completions/{name}.jsonl.zst", data)

    def void(self, attempts: Iterable[str]) -> None:
        """Do not count these attempts: what they staged is gone. Whoever publishes finds out."""
        self._void |= set(attempts)

    def read(self, since: str = "") -> Progress:
        """Everything that is stored now; what was read before is not read again.

        Args:
            since: Name of a batch: look for what this one and those of greater names have stored,
                and for nothing else that is new. A run of a million chunks may have as many
                segments, whose names alone take a minute to list.
        """
        stored = self._stored(since)
        known = pl.concat([one.completions for one in stored]).sort("index", "attempt")
        known = known.filter(~pl.col("attempt").is_in(list(self._void)))
        of_reduce = pl.col("batch") == REDUCE
        completions = known.filter(~of_reduce)
        chosen = _chosen(completions)
        return Progress(
            completions=completions.filter(chosen),
            spares=completions.filter(~chosen),
            reduced=known.filter(of_reduce),
            failures=pl.concat([one.failures for one in stored]).sort("at"),
            schemas={digest: text for one in stored for digest, text in one.schemas.items()},
        )

    def of_batch(self, batch: str) -> Progress:
        """What earlier tries of one batch have stored."""
        found = self._storage.objects(f"{self.prefix}completions/{batch}-")
        parts = [_EMPTY, *(self._read_segment(info.uri) for info in found)]
        return Progress(
            completions=pl.concat([one.completions for one in parts]),
            spares=COMPLETIONS.to_frame(),
            failures=pl.concat([one.failures for one in parts]),
            schemas={},
        )

    def fold(self) -> None:
        """Write everything that is known as one object, so that the next reader reads one.

        A day of 8 workers that flush every 5 s leaves 138,000 segments: two minutes of reading.
        """
        known = [_EMPTY, *self._segments.values()] if self._segments else self._stored()
        names = [*self._folded, *(name for name in self._segments if not _is_base(name))]
        whole = Segment(
            pl.concat([one.completions for one in known]),
            pl.concat([one.failures for one in known]),
            {digest: text for one in known for digest, text in one.schemas.items()},
        )
        tables = {
            "completions": whole.completions.to_arrow(),
            "failures": whole.failures.to_arrow(),
            "segments": pl.DataFrame({"name": names}, schema={"name": pl.String}).to_arrow(),
        }
        base = f"base-{self._base + 1:06d}.arrow"
        try:
            data = pack_tables(tables, {"schemas": whole.schemas})
            self._storage.put_new(f"{self.prefix}completions/{base}", data)
        except AlreadyExistsError:
            self._stored()  # Somebody else folds, too: go on from there.
        else:
            self._base, self._folded, self._segments = (
                self._base + 1,
                frozenset(names),
                {base: whole},
            )

    @property
    def unfolded(self) -> int:
        """Segments that were read one by one."""
        return sum(not _is_base(name) for name in self._segments)

    def _stored(self, since: str = "") -> list[Segment]:
        """All segments that are known now, the newest base first."""
        prefix = self.prefix + "completions/"
        found = {info.uri.removeprefix(prefix) for info in self._storage.after(prefix, since)}
        newest = max((name for name in found if _is_base(name)), default=None)
        if newest is not None and newest not in self._segments:
            self._open_base(newest)
        known = self._segments.keys() | set(self._folded)
        new = sorted(name for name in found - known if not _is_base(name))
        if len(new) == 1:
            self._segments[new[0]] = self._read_segment(prefix + new[0])
        elif new:
            with ThreadPoolExecutor(READERS) as pool:
                read = pool.map(lambda name: self._read_segment(prefix + name), new)
                self._segments.update(zip(new, read, strict=True))
        return [_EMPTY, *self._segments.values()]

    def _open_base(self, name: str) -> None:
        """Take a base instead of the segments that it holds."""
        file = TableFile(self._storage.get(f"{self.prefix}completions/{name}").data)
        frames = {
            part: pl.DataFrame(pl.from_arrow(file.table(part))).cast(dict(schema))  # type: ignore[arg-type]
            for part, schema in (("completions", COMPLETIONS), ("failures", FAILURES))
        }
        self._folded = frozenset(file.table("segments")["name"].to_pylist())
        self._base = int(name.removeprefix("base-").removesuffix(".arrow"))
        kept = {n: one for n, one in self._segments.items() if n not in self._folded}
        kept = {n: one for n, one in kept.items() if not _is_base(n)}
        self._segments = {name: Segment(**frames, schemas=file.meta["schemas"]), **kept}

    def _read_segment(self, uri: str) -> Segment:
        rows: dict[str, list[dict[str, Any]]] = {"completion": [], "failure": [], "schema": []}
        for line in zstandard.decompress(self._storage.get(uri).data).splitlines():
            entry = orjson.loads(line)
            rows[entry.pop("kind")].append(entry)
        return Segment(
            _frame(rows["completion"], COMPLETIONS),
            _frame(rows["failure"], FAILURES),
            {digest_of(one["columns"]): one["columns"] for one in rows["schema"]},
        )


_ARROW: dict[pl.DataType | type[pl.DataType], pa.DataType] = {
    pl.String: pa.large_string(),
    pl.Int64: pa.int64(),
    pl.Float64: pa.float64(),
    pl.Boolean: pa.bool_(),
    pl.List(pl.String): pa.large_list(pa.large_string()),
}


def _line(entry: Completion | Failure) -> dict[str, Any]:
    """An entry as JSON's own types; `asdict` would copy each value deeply, for nothing."""
    values = {name: getattr(entry, name) for name in entry.__slots__}
    return {"kind": type(entry).__name__.lower(), **values}


def _frame(rows: list[dict[str, Any]], schema: pl.Schema) -> pl.DataFrame:
    """Rows as a frame, by way of Arrow.

    Polars by itself makes each list a series: 200 rows take three times as long, 2,000 six times.
    """
    fields = pa.schema([(name, _ARROW[dtype]) for name, dtype in schema.items()])
    return pl.DataFrame(pl.from_arrow(pa.Table.from_pylist(rows, schema=fields)))


def _chosen(completions: pl.DataFrame) -> pl.Series:
    """Which of several completions of a chunk counts, by a fixed rule: the same for everybody.

    Of staged outputs the first. Partials hold several chunks, which count together: a partial is
    taken if none of its chunks is in one that was taken before; chunks left over are mapped again.
    """
    if PARTIAL not in completions["upload"]:
        return completions["chunk"].is_first_distinct()
    taken: set[str] = set()
    uris: set[str] = set()
    groups = completions.group_by("uri").agg("chunk", pl.len())
    for uri, chunks, _ in groups.sort("len", "uri", descending=[True, False]).iter_rows():
        if taken.isdisjoint(chunks):
            taken |= set(chunks)
            uris.add(uri)
    return completions["uri"].is_in(list(uris))


_EMPTY = Segment(COMPLETIONS.to_frame(), FAILURES.to_frame(), {})


@lru_cache(64)
def _parsed(text: str, name: str) -> Job:
    """A stored job: asked for with every window that is published, and never changed."""
    return parse_job(text, name)


def _is_base(name: str) -> bool:
    return name.startswith("base-")


def runs_of(storage: Storage, output: str) -> list[RunRecord]:
    """The records of all runs of an output, oldest first."""
    prefix = join(state_prefix(parse(output).uri), "runs") + "/"
    records = [info.uri for info in storage.objects(prefix) if info.uri.endswith("/run.json")]
    with ThreadPoolExecutor(READERS) as pool:
        blobs = list(pool.map(storage.get, records))
    found = [RunRecord.model_validate_json(blob.data) for blob in blobs]
    return sorted(found, key=lambda record: record.created)


def segment_name(batch: str, attempt: str, number: int) -> str:
    """The name of a batch's n-th segment."""
    return f"{batch}-{attempt}-{number:04d}"
