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
from typing import Self

import orjson
import polars as pl

from partitioning import Plan
from pipeline.errors import AlreadyExistsError, ObjectMissingError, UsageError
from pipeline.job import Job, parse_job
from pipeline.records import (
    PARTIAL,
    REDUCE,
    Completion,
    Failure,
    Progress,
    RunRecord,
    Segment,
)
from pipeline.segments import (
    EMPTY,
    joined,
    pack_base,
    pack_segment,
    unpack_base,
    unpack_segments,
)
from pipeline.storage import Storage, join, parse, state_prefix

READERS = 64
"""Segments read at a time. At 100 ms each, 16 would take an hour and three quarters for a million,
and processor time, the same for any number, takes five minutes."""
BLOCK = 256
"""Segments parsed at once: a frame for each would take a millisecond, and the entries of a hundred
thousand of them as Python's objects would take gigabytes until they are frames."""


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
        self._loads = [EMPTY]
        self._names: set[str] = set()
        """Of the segments that were read since the base."""
        self._base = 0
        self._folded: frozenset[str] = frozenset()
        """Names of the segments that the base holds."""
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
        data = pack_segment(entries, schemas)
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
        stored = joined(self._stored(since))
        known = stored.completions.sort("index", "attempt")
        known = known.filter(~pl.col("attempt").is_in(list(self._void)))
        of_reduce = pl.col("batch") == REDUCE
        completions = known.filter(~of_reduce)
        chosen = _chosen(completions)
        return Progress(
            completions=completions.filter(chosen),
            spares=completions.filter(~chosen),
            reduced=known.filter(of_reduce),
            failures=stored.failures.sort("at"),
            schemas=stored.schemas,
        )

    def of_batch(self, batch: str) -> Progress:
        """What earlier tries of one batch have stored."""
        found = self._storage.objects(f"{self.prefix}completions/{batch}-")
        stored = unpack_segments(self._bytes(info.uri) for info in found)
        return Progress(stored.completions, EMPTY.completions, stored.failures, schemas={})

    def fold(self) -> None:
        """Write everything that is known as one object, so that the next reader reads one.

        A day of 8 workers that flush every 5 s leaves 138,000 segments: two minutes of reading.
        """
        if not self._names:
            self._stored()
        if not self._names:
            return  # Nothing, or nothing that is not folded already.
        whole, names = joined(self._loads), self._folded | self._names
        try:
            self._storage.put_new(self._base_uri(self._base + 1), pack_base(whole, names))
        except AlreadyExistsError:
            self._stored()  # Somebody else folds, too: go on from there.
        else:
            self._take_base(self._base + 1, whole, names)

    @property
    def unfolded(self) -> int:
        """Segments that were read one by one."""
        return len(self._names)

    def _stored(self, since: str = "") -> list[Segment]:
        """All that is known now, in any order."""
        prefix = self.prefix + "completions/"
        found = {info.uri.removeprefix(prefix) for info in self._storage.after(prefix, since)}
        newest = max(map(_base_number, found), default=0)
        if newest > self._base:
            # What else was read is read again: two that fold the same run at once are rare.
            data = self._storage.get(self._base_uri(newest)).data
            self._take_base(newest, *unpack_base(data))
        new = {name for name in found - self._names - self._folded if not _base_number(name)}
        if new:
            uris, loads = [prefix + name for name in sorted(new)], [EMPTY]
            with ThreadPoolExecutor(READERS) as pool:
                for start in range(0, len(uris), BLOCK):
                    packed = pool.map(self._bytes, uris[start : start + BLOCK])
                    loads.append(unpack_segments(packed))
            self._loads.append(joined(loads))
            self._names |= new
        return self._loads

    def _bytes(self, uri: str) -> bytes:
        return self._storage.get(uri).data

    def _base_uri(self, number: int) -> str:
        return f"{self.prefix}completions/base-{number:06d}.arrow"

    def _take_base(self, number: int, whole: Segment, names: frozenset[str]) -> None:
        """Go on from a base instead of the segments that it holds."""
        self._base, self._folded = number, names
        self._loads, self._names = [EMPTY, whole], set()


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


@lru_cache(64)
def _parsed(text: str, name: str) -> Job:
    """A stored job: asked for with every window that is published, and never changed."""
    return parse_job(text, name)


def _base_number(name: str) -> int:
    """Of a base; 0 of a segment."""
    base, _, rest = name.partition("-")
    return int(rest.removesuffix(".arrow")) if base == "base" else 0


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
