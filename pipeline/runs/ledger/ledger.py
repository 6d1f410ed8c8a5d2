"""The ledger of a run: what was planned, what is done, what is left. All of it in storage.

Workers append segments, the driver reads them; nobody rewrites anything. What is left is the plan
minus the completions, whoever asks, at any moment.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, Self

import orjson
import polars as pl

from partitioning import Plan
from partitioning.integrity import checked_plan
from pipeline.config.job import Job, parse_job
from pipeline.errors import (
    AccessDeniedError,
    AlreadyExistsError,
    ObjectMissingError,
    StateError,
    UsageError,
)
from pipeline.runs.ledger.checks import EntryChecks, sentences
from pipeline.runs.ledger.completion_log import CompletionLog
from pipeline.runs.ledger.records import (
    PARTIAL,
    REDUCE,
    Completion,
    Failure,
    Progress,
    RunRecord,
    Segment,
)
from pipeline.runs.ledger.segments import EMPTY, pack_segment
from pipeline.storage import Storage, join, parse, same_place, state_prefix
from pipeline.storage.documents import (
    parse_number,
    parse_stored,
    parse_text,
    reading,
    seal_json,
    seal_text,
)
from pipeline.storage.table_versions import TableVersion

log = logging.getLogger(__name__)


def run_id(
    plan: Plan,
    job: Job,
    fingerprint: str,
    backfill: str | None = None,
    tables: Sequence[TableVersion] | None = None,
    *,
    skips: bool = False,
) -> str:
    """16 hex digits: the same work to the same place is the same run, whoever submits it.

    A backfill's runs are its own: it may be told to do again what has been done. With another
    version of a table that the transform reads it is other work. So it is to go without bad objects
    (`skips`) after a run of the same plan has failed at them.
    """
    # What may be changed in a run that is mapped leaves it the same.
    output = job.output.model_dump(mode="json", exclude={"keep_versions", "schema_"})
    output["uri"] = parse(job.output.uri).uri.rstrip("/")
    said: list[Any] = [plan.id, job.transform, fingerprint, job.params, output]
    said += [backfill] if backfill else []
    if skips or job.input.on_bad_object == "quarantine":
        said += [job.input.on_bad_object]
    said += [[one.model_dump(mode="json") for one in tables]] if tables else []
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


class Ledger:
    """One run's state in storage."""

    def __init__(self, storage: Storage, output: str, run: str, plan: Plan | None = None) -> None:
        """Name a run; nothing is read yet.

        Args:
            storage: Where.
            output: URI of the output prefix.
            run: Its id.
            plan: Its plan, where the caller has it: entries are checked against it.
        """
        self._storage = storage
        self._plan = plan
        self._stored_plan: Plan | None = None
        self._job: Job | None = None
        self._checks: EntryChecks | None = None
        self.run = run
        self.output = parse(output).uri.rstrip("/") + "/"
        self.state = state_prefix(self.output)
        self.prefix = join(self.state, "runs", run) + "/"
        self._log = CompletionLog(storage, self.prefix, self._checked)
        self._void: set[str] = set()
        self._aside: set[str] = set()

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
        tables: tuple[TableVersion, ...] | None = None,
        columns: Sequence[str] = (),
        skips: bool = False,
    ) -> Self:
        """Store a run's record, job and plan, each once; an existing run is opened as it is."""
        run = run_id(plan, job, fingerprint, backfill, tables, skips=skips)
        ledger = cls(storage, job.output.uri, run, plan)
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
            tables=tables,
            columns=tuple(columns),
        )
        # The record comes last: a run that has one is whole. A plan of the same chunks may have
        # other estimates, or other objects that it goes without: the first one counts.
        with suppress(AlreadyExistsError):
            storage.put_new(ledger.prefix + "plan.arrow", plan.to_bytes())
            ledger._stored_plan = plan
        with suppress(AlreadyExistsError):
            storage.put_new(ledger.prefix + "job.yaml", seal_text(job.to_yaml()))
            ledger._job = job
        with suppress(AlreadyExistsError):
            said = seal_json(record.model_dump_json(indent=1).encode())
            storage.put_new(ledger.prefix + "run.json", said)
        return ledger

    @classmethod
    def open(cls, storage: Storage, run_uri: str) -> Self:
        """The ledger at `<output>.chunkmap/runs/<run>/`."""
        state, _, run = run_uri.rstrip("/").rpartition("/runs/")
        return cls(storage, state.removesuffix(".chunkmap"), run)

    def know(self, plan: Plan, job: Job) -> None:
        """Take over the run's plan and job from a caller who has read them."""
        self._plan, self._job = plan, job

    def record(self) -> RunRecord:
        """The run's record.

        Raises:
            UsageError: there is no such run.
            StateError: the record is damaged, or another run's.
        """
        uri = self.prefix + "run.json"
        try:
            data = self._storage.get(uri).data
        except ObjectMissingError as error:
            raise UsageError(f"there is no run {self.run} of {self.output}") from error
        record = parse_stored(RunRecord, data, uri)
        if record.run != self.run or not same_place(record.output, self.output):
            raise StateError(uri, f"it is the record of run {record.run} of {record.output}")
        return record

    def job(self) -> Job:
        """The job as it was when the run was created. Raises StateError if it is damaged."""
        if self._job is None:
            uri = self.prefix + "job.yaml"
            self._job = _parsed(parse_text(self._storage.get(uri).data, uri), uri)
        return self._job

    def plan(self) -> Plan:
        """The frozen plan. Raises StateError if it is damaged."""
        if self._stored_plan is None:
            uri = self.prefix + "plan.arrow"
            data = self._storage.get(uri).data
            with reading(uri):
                self._stored_plan = checked_plan(data)
        return self._stored_plan

    def published(self) -> int | None:
        """The number of the manifest that this run was published in, as its driver noted it."""
        return self._number("published.json")

    def _number(self, name: str) -> int | None:
        """The manifest that a note names. A note is never needed: a damaged one counts as none."""
        uri = self.prefix + name
        blob = self._storage.get_or_none(uri)
        try:
            return None if blob is None else parse_number(blob.data, "manifest", uri)
        except StateError as error:
            log.warning("%s; it is left out of account", error)
            return None

    def note_published(self, manifest: int) -> None:
        """Note where the run was published: a short cut, never needed for correctness."""
        self._storage.put(
            self.prefix + "published.json", seal_json(orjson.dumps({"manifest": manifest}))
        )

    def accept(self, manifest: int) -> None:
        """Note that whoever drives has seen the output up to this manifest, and goes on top of it.

        The run's base stays: what it has published itself is looked for from there.
        """
        self._storage.put(
            self.prefix + "accepted.json", seal_json(orjson.dumps({"manifest": manifest}))
        )

    def accepted(self) -> int:
        """The newest manifest that nobody who published it is in conflict with."""
        return self._number("accepted.json") or 0

    def allow_widening(self) -> None:
        """Note that the output may be widened by this run, though its stored job says nothing."""
        self._storage.put(self.prefix + "widen.json", orjson.dumps({"at": time.time()}))

    def widens(self) -> bool:
        """Whether the output may get further columns, or wider types, by this run."""
        if self.job().output.schema_ == "widen":
            return True
        return self._storage.get_or_none(self.prefix + "widen.json") is not None

    def cancel(self) -> None:
        """Ask whoever drives the run to stop."""
        self._storage.put(self.prefix + "cancel.json", orjson.dumps({"at": time.time()}))

    def is_cancelled(self) -> bool:
        """Whether somebody has asked the driver to stop."""
        # S3 forbids an absent object to whoever may not list it, which workers may not.
        with suppress(AccessDeniedError):
            return self._storage.get_or_none(self.prefix + "cancel.json") is not None
        return False

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

    def set_aside(self, attempts: Iterable[str]) -> None:
        """Choose none of these attempts: others of their chunks are to be published instead."""
        self._aside |= set(attempts)

    def read(self, since: str = "") -> Progress:
        """Everything that is stored now; what was read before is not read again.

        Args:
            since: Name of a batch: look for what this one and those of greater names have stored,
                and for nothing else that is new. A run of a million chunks may have as many
                segments, whose names alone take a minute to list.
        """
        stored = self._log.stored(since)
        known = stored.completions.sort("index", "attempt")
        known = known.filter(~pl.col("attempt").is_in(list(self._void)))
        of_reduce = pl.col("batch") == REDUCE
        aside = known["attempt"].is_in(list(self._aside))
        completions = known.filter(~of_reduce & ~aside)
        chosen = _chosen(completions)
        return Progress(
            problems=sentences(stored.problems),
            completions=completions.filter(chosen),
            duplicates=pl.concat([completions.filter(~chosen), known.filter(~of_reduce & aside)]),
            reduced=known.filter(of_reduce),
            failures=stored.failures.sort("at"),
            schemas=stored.schemas,
        )

    def of_batch(self, batch: str) -> Progress:
        """What earlier tries of one batch have stored."""
        stored = self._log.of_batch(batch)
        return Progress(stored.completions, EMPTY.completions, stored.failures, schemas={})

    def compact(self) -> None:
        """Write everything that is known as one object, so that the next reader reads one."""
        self._log.compact()

    @property
    def uncompacted(self) -> int:
        """Segments that were read one by one."""
        return self._log.uncompacted

    def _checked(self, some: Segment) -> Segment:
        """What counts of some entries: each is checked once, when it is read."""
        if some.completions.is_empty() and some.failures.is_empty():
            return some
        if self._checks is None:
            self._checks = EntryChecks(
                plan=self._plan or self.plan(),
                run=self.run,
                output=self.output,
                prefix=self.prefix,
                tokens=self._storage.token_rule(self.output),
                reduces=self.job().reduce is not None,
            )
        return self._checks.checked(some)


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


def segment_name(batch: str, attempt: str, number: int) -> str:
    """The name of a batch's n-th segment."""
    return f"{batch}-{attempt}-{number:04d}"
