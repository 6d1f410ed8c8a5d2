"""Read and write the ledger of a run: its plan, completions and failures in storage.

Workers append segments and the driver reads them; nothing is rewritten. The work left is always
the plan minus the completions.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Self

import orjson
import polars as pl

from partitioning import Plan
from partitioning.integrity import checked_plan
from pipeline.concurrency import map_concurrently
from pipeline.config.job import (
    LATER_OUTPUT_KEYS,
    Job,
    date_to_json,
    keys_at_default,
    parse_job,
)
from pipeline.config.job_checks import Checks
from pipeline.errors import (
    AccessDeniedError,
    AlreadyExistsError,
    ObjectMissingError,
    StateError,
    UsageError,
)
from pipeline.quality.figures import Wanted
from pipeline.quality.results import CheckResult
from pipeline.runs.ledger.check_files import (
    StoredChecks,
    StoredResults,
    checks_identity,
    results_name,
)
from pipeline.runs.ledger.checks import EntryChecks, sentences
from pipeline.runs.ledger.completion_log import CompletionLog
from pipeline.runs.ledger.merge_plan import MergePlan
from pipeline.runs.ledger.records import (
    MERGE,
    PARTIAL,
    REDUCE,
    RUN_VERSION,
    Completion,
    Failure,
    Origin,
    Progress,
    RunRecord,
    Segment,
)
from pipeline.runs.ledger.reduce_plan import ReducePlan
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
from pipeline.table.errors import refuse_newer
from pipeline.uris import as_prefix

log = logging.getLogger(__name__)

_NUMBERED = re.compile(r"plan-([0-9]{4,9})\.arrow")


def run_id(
    plan: Plan,
    job: Job,
    fingerprint: str,
    backfill: str | None = None,
    tables: Sequence[TableVersion] | None = None,
    *,
    skips: bool = False,
    sees: bool = True,
) -> str:
    """Derive the id of a run (16 hex digits) from its work and its output.

    The same job submitted twice is one run. Other runs are those of a backfill (which may process
    its windows again), with another version of a table that the transform reads, or without bad
    objects (`skips`) after a run of the same plan has failed at them.

    A plan has whole row groups, so jobs with other filters, or that show the transform other
    columns, may have the same plan. Without `sees`, the id does not tell them apart, as in
    release 0.1.0.
    """
    # Options that may change in a mapped run do not count.
    free = {"keep_versions", "schema_", *keys_at_default(job.output, *LATER_OUTPUT_KEYS)}
    output = job.output.model_dump(mode="json", exclude=free)
    output["uri"] = parse(job.output.uri).uri.rstrip("/")
    parts: list[Any] = [plan.id, job.transform, fingerprint, job.params, output]
    parts += [backfill] if backfill else []
    if skips or job.input.on_bad_object == "quarantine":
        parts += [job.input.on_bad_object]
    parts += [[table.model_dump(mode="json") for table in tables]] if tables else []
    seen = job.input.model_dump(mode="json", include={"filter", "columns", "object_column"})
    parts += [seen] if sees and any(seen.values()) else []
    checked = checks_identity(job.checks)
    parts += [{"checks": checked}] if checked else []
    parts += [{"then": job.then.model_dump(exclude={"params"})}] if job.then is not None else []
    parts += [{"outputs": _identities(job)}] if job.outputs else []
    return hashlib.sha256(
        json.dumps(parts, sort_keys=True, default=date_to_json).encode()
    ).hexdigest()[:16]


def _identities(job: Job) -> list[Any]:
    """Return what counts of several outputs: their names, and what counts of a single one."""
    identities = []
    for name, output in job.outputs.items():
        free = {"keep_versions", "schema_", *keys_at_default(output, *LATER_OUTPUT_KEYS)}
        values = output.model_dump(mode="json", exclude=free)
        identities.append([name, values | {"uri": parse(output.uri).uri.rstrip("/")}])
    return identities


@dataclass(frozen=True, slots=True)
class FurtherOutput:
    """What the record of a run says of an output after the first."""

    uri: str
    mode: str
    """Output mode (see `RunRecord.mode`)."""
    base: int
    """Number of the manifest that was current when the run was created."""
    columns: tuple[str, ...] = ()
    """Names of the result's columns (see `RunRecord.columns`)."""


class Ledger:
    """Reads and writes one run's state in storage."""

    unit: ClassVar[str] = "chunk"
    """Noun for what its plan has."""

    def __init__(
        self,
        storage: Storage,
        output: str,
        run: str,
        plan: Plan | None = None,
        folder: str = "",
    ) -> None:
        """Name a run, without reading anything.

        Args:
            storage: Where the run's state is.
            output: URI of the output prefix.
            run: Id of the run.
            plan: Plan of the run, if the caller has it: entries are checked against it.
            folder: Folder of plan and completions below the run's, with a slash at its end.
        """
        self._storage = storage
        self._plan = plan
        self._stored_plan: Plan | None = None
        self._job: Job | None = None
        self._record: RunRecord | None = None
        self._published: int | None = None
        self._checks: EntryChecks | None = None
        self.run = run
        self.output = parse(output).uri.rstrip("/") + "/"
        self.state = state_prefix(self.output)
        self.run_prefix = join(self.state, "runs", run) + "/"
        self.prefix = self.run_prefix + folder
        self._log = CompletionLog(storage, self.prefix, self._check)
        self._void: set[str] = set()
        self._aside: set[str] = set()
        self._last: tuple[Segment, tuple[int, int], Progress] | None = None
        """The progress that was read last, after what it was made of."""

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
        types: Sequence[str] = (),
        skips: bool = False,
        sees: bool = True,
        mode: str | None = None,
        origin: Origin | None = None,
        further: Sequence[FurtherOutput] = (),
    ) -> Self:
        """Store a run's record, job and plan, each once; open an existing run as it is.

        The output mode is that of the job, if no other is given (see `RunRecord.mode`). If the job
        has several outputs, `further` are those after the first; each gets a ledger of its own.
        """
        run = run_id(plan, job, fingerprint, backfill, tables, skips=skips, sees=sees)
        ledger = cls(storage, job.output.uri, run, plan)
        record = RunRecord(
            version=RUN_VERSION if further else 1,
            run=ledger.run,
            job=job.name,
            plan=plan.id,
            chunks=len(plan),
            rows=plan.rows,
            transform=job.transform,
            fingerprint=fingerprint,
            output=ledger.output,
            mode=mode or job.output.mode,
            base=base,
            backfill=backfill,
            created=time.time(),
            tables=tables,
            columns=tuple(columns),
            types=tuple(types),
            origin=origin,
            outputs=(ledger.output, *(cls(storage, f.uri, run).output for f in further))
            if further
            else (),
        )
        parts = {"plan.arrow": plan.to_bytes(), "job.yaml": seal_text(job.to_yaml())}
        # The first output's record comes last: a run with a record is complete.
        for extra in further:
            own = cls(storage, extra.uri, run)
            values = {"output": own.output, "mode": extra.mode, "base": extra.base}
            values |= {"columns": extra.columns, "types": ()}
            own._store(record.model_copy(update=values), parts)
        is_first = ledger._store(record, parts)
        ledger._stored_plan = plan if is_first[0] else None
        ledger._job = job if is_first[1] else None
        ledger._record = record if is_first[2] else None
        return ledger

    def _store(self, record: RunRecord, parts: Mapping[str, bytes]) -> list[bool]:
        """Store a run's plan and job, then its record; return which of the three were new.

        Another plan of the same chunks may differ in estimates or skipped objects: the first one
        stored counts.
        """
        is_first = map_concurrently(lambda part: self._put_first(*part), parts.items())
        fields = set() if record.outputs else {"outputs"}
        document = seal_json(record.model_dump_json(indent=1, exclude=fields).encode())
        return [*is_first, self._put_first("run.json", document)]

    def _put_first(self, name: str, data: bytes) -> bool:
        """Store an object unless there is one; return whether it was stored."""
        try:
            self._storage.put_new(self.prefix + name, data)
        except AlreadyExistsError:
            return False
        return True

    @classmethod
    def open(cls, storage: Storage, run_uri: str) -> Self:
        """Open the ledger at `<output>.chunkmap/runs/<run>/`."""
        state, _, run = run_uri.rstrip("/").rpartition("/runs/")
        return cls(storage, state.removesuffix(".chunkmap"), run)

    def whole_job(self) -> Job:
        """Read the job of the run, of which a stage may do a part."""
        return self.job()

    def know(self, plan: Plan, job: Job) -> None:
        """Set the run's plan and job, which the caller has read."""
        self._plan, self._job = plan, job

    def record(self) -> RunRecord:
        """Read the run's record, once: it never changes.

        Raises:
            UsageError: there is no such run.
            StateError: the record is damaged, another run's, or of a newer release.
        """
        if self._record is None:
            self._record = self._read_record()
        return self._record

    def _read_record(self) -> RunRecord:
        uri = self.run_prefix + "run.json"
        try:
            data = self._storage.get(uri).data
        except ObjectMissingError as error:
            raise UsageError(f"there is no run {self.run} of {self.output}") from error
        record = parse_stored(RunRecord, data, uri)
        refuse_newer(uri, record.version, RUN_VERSION)
        if record.run != self.run or not same_place(record.output, self.output):
            raise StateError(uri, f"it is the record of run {record.run} of {record.output}")
        return record

    def job(self) -> Job:
        """Read the job as of the run's creation. Raises StateError if it is damaged.

        Of several outputs, `output` is that of this ledger.
        """
        if self._job is None:
            job = _parse_cached(self.job_text(), self.run_prefix + "job.yaml")
            names = [
                name
                for name, output in job.outputs.items()
                if same_place(as_prefix(parse(output.uri).uri), self.output)
            ]
            self._job = job.of_output(names[0]) if names else job
        return self._job

    def job_text(self) -> str:
        """Read the text of the job, with all outputs. Raises StateError if it is damaged."""
        uri = self.run_prefix + "job.yaml"
        return parse_text(self._storage.get(uri).data, uri)

    def of_outputs(self) -> list[Ledger]:
        """Return the run's ledgers, one per output; this one alone if the run has one output."""
        others = [Ledger(self._storage, uri, self.run, self._plan) for uri in self.record().outputs]
        return [self if other.output == self.output else other for other in others] or [self]

    def plan(self) -> Plan:
        """Read the frozen plan. Raises StateError if it is damaged."""
        if self._stored_plan is None:
            uri = self.prefix + "plan.arrow"
            data = self._storage.get(uri).data
            with reading(uri):
                self._stored_plan = checked_plan(data)
        return self._stored_plan

    def published(self) -> int | None:
        """Read the number of the manifest that published this run, as recorded by its driver."""
        if self._published is None:
            self._published = self._number("published.json")
        return self._published

    def _number(self, name: str) -> int | None:
        """Read the manifest number of an advisory note; None if there is none or it is damaged."""
        uri = self.run_prefix + name
        blob = self._storage.get_or_none(uri)
        try:
            return None if blob is None else parse_number(blob.data, "manifest", uri)
        except StateError as error:
            log.warning("%s; it is ignored", error)
            return None

    def note_published(self, manifest: int) -> None:
        """Record the manifest that published the run. Advisory: it only saves reading manifests."""
        self._storage.put(
            self.run_prefix + "published.json", seal_json(orjson.dumps({"manifest": manifest}))
        )
        self._published = manifest

    def mark_expired(self) -> None:
        """Record that the run's plan, completions and reports are deleted."""
        self._storage.put(self.run_prefix + "expired.json", orjson.dumps({"at": time.time()}))

    def is_expired(self) -> bool:
        """Whether the run's plan, completions and reports are deleted, since nothing needs them."""
        return self._storage.get_or_none(self.run_prefix + "expired.json") is not None

    def accept(self, manifest: int) -> None:
        """Record that manifests up to this one are no conflict for the run.

        The run's base stays the same: its own commits are searched from there.
        """
        self._storage.put(
            self.run_prefix + "accepted.json", seal_json(orjson.dumps({"manifest": manifest}))
        )

    def accepted(self) -> int:
        """Read the number of the newest manifest that is no conflict for the run."""
        return self._number("accepted.json") or 0

    def allow_widening(self) -> None:
        """Record that this run may widen the output's schema, even if its stored job does not."""
        self._storage.put(self.run_prefix + "widen.json", orjson.dumps({"at": time.time()}))

    def widens(self) -> bool:
        """Whether this run may add columns to the output or widen types."""
        if self.job().output.schema_ == "widen":
            return True
        return self._storage.get_or_none(self.run_prefix + "widen.json") is not None

    def use_checks(self, checks: Checks) -> None:
        """Set the checks of the result, where they are other than those of the stored job."""
        document = StoredChecks(checks=checks).model_dump_json(by_alias=True)
        self._storage.put(self.run_prefix + "checks.json", seal_json(document.encode()))

    def checks(self) -> Checks:
        """Read the checks of the result. Raises StateError if they are damaged."""
        stored = self.job().checks
        if stored.is_empty:
            return stored  # A job with checks is not the same as one without.
        uri = self.run_prefix + "checks.json"
        blob = self._storage.get_or_none(uri)
        return stored if blob is None else parse_stored(StoredChecks, blob.data, uri).checks

    def check_results(self, window: str | None = None) -> tuple[CheckResult, ...]:
        """Read what the checks of the result have found; empty if they were not made.

        Args:
            window: Label of a window; None: the whole run.
        """
        if self.job().checks.is_empty:
            return ()
        uri = f"{self.run_prefix}{results_name(window)}"
        blob = self._storage.get_or_none(uri)
        return () if blob is None else parse_stored(StoredResults, blob.data, uri).results

    def cancel(self) -> None:
        """Request the run's driver and workers to stop."""
        self._storage.put(self.run_prefix + "cancel.json", orjson.dumps({"at": time.time()}))

    def is_cancelled(self) -> bool:
        """Whether a stop was requested."""
        # For missing objects, S3 denies access to clients without the right to list, e.g. workers.
        with suppress(AccessDeniedError):
            return self._storage.get_or_none(self.run_prefix + "cancel.json") is not None
        return False

    def clear_cancel(self) -> None:
        """Withdraw the request to stop, when a driver starts."""
        self._storage.delete(self.run_prefix + "cancel.json")

    def write_segment(
        self,
        name: str,
        entries: Sequence[Completion | Failure],
        schemas: Iterable[str] = (),
    ) -> None:
        """Append a segment of completions and failures.

        Args:
            name: Unique name of the segment.
            entries: Completions and failures.
            schemas: Schemas of the completions' outputs, as JSON.
        """
        data = pack_segment(entries, schemas)
        self._storage.put_new(f"{self.prefix}completions/{name}.jsonl.zst", data)

    def merge_plans(self) -> list[MergePlan]:
        """Read the merge plans, newest first.

        Raises:
            StateError: one is damaged.
        """
        return map_concurrently(self.merge_plan, self._numbers("merge/"))

    def _numbers(self, folder: str) -> list[int]:
        """List the numbers of the plans in a folder, newest first."""
        prefix = self.prefix + folder
        names = (info.uri.removeprefix(prefix) for info in self._storage.objects(prefix))
        numbers = [int(match[1]) for name in names if (match := _NUMBERED.fullmatch(name))]
        return sorted(numbers, reverse=True)

    def merge_plan(self, number: int) -> MergePlan:
        """Read a merge plan. Raises StateError if it is missing or damaged."""
        uri = self._merge_plan_uri(number)
        with reading(uri, "run the job again with --replan"):
            return MergePlan.unpack(self._storage.get(uri).data, number)

    def store_merge_plan(self, number: int, data: bytes) -> None:
        """Store a merge plan. Raises AlreadyExistsError if there is another of this number."""
        self._storage.put_new(self._merge_plan_uri(number), data)

    def _merge_plan_uri(self, number: int) -> str:
        return f"{self.prefix}merge/plan-{number:04d}.arrow"

    def store_reduce_plan(self, completions: pl.DataFrame) -> bool:
        """Let the partials of these completions count, whatever copies of batches store later.

        Returns:
            Whether they do; otherwise another driver was faster, so read again.

        Raises:
            StateError: the reduce plan is damaged.
        """
        plan, numbers = ReducePlan.of(completions), self._numbers("reduce/")
        if numbers and self._reduce_plan(numbers[0]).partials.equals(plan.partials):
            return True
        self._last = None
        uri = self._reduce_plan_uri(numbers[0] + 1 if numbers else 1)
        try:
            self._storage.put_new(uri, plan.pack())
        except AlreadyExistsError:
            return False
        return True

    def _reduce_plan(self, number: int) -> ReducePlan:
        uri = self._reduce_plan_uri(number)
        with reading(uri, "delete this object, then run the job again: the reduce is done again"):
            return ReducePlan.unpack(self._storage.get(uri).data)

    def _reduce_plan_uri(self, number: int) -> str:
        return f"{self.prefix}reduce/plan-{number:04d}.arrow"

    def void(self, attempts: Iterable[str]) -> None:
        """Stop counting these attempts, because their staged outputs no longer exist."""
        self._void |= set(attempts)

    def set_aside(self, attempts: Iterable[str]) -> None:
        """Treat these attempts as duplicates: other attempts at their chunks are published."""
        self._aside |= set(attempts)

    def read(self, since: str = "") -> Progress:
        """Read everything that is stored now; segments read before are not read again.

        Args:
            since: Name of a batch: read only new segments of this batch and of those with greater
                names. A run of a million chunks may have as many segments, and listing all of them
                takes a minute.
        """
        stored = self._log.read(since)
        without = len(self._void), len(self._aside)  # Both only grow.
        if self._last is not None and self._last[0] is stored and self._last[1] == without:
            return self._last[2]
        self._last = None
        progress = self._count(stored)
        if not since:  # Otherwise batches are in flight, and the next time there is more.
            self._last = stored, without, progress
        return progress

    def _count(self, stored: Segment) -> Progress:
        """Choose among what is stored."""
        counted = stored.completions.sort("index", "attempt")
        counted = counted.filter(~pl.col("attempt").is_in(list(self._void)))
        of_reduce = pl.col("batch") == REDUCE
        of_merge = pl.col("batch").str.starts_with(MERGE)
        of_chunk = ~of_reduce & ~of_merge
        aside = counted["attempt"].is_in(list(self._aside))
        completions = counted.filter(of_chunk & ~aside)
        chosen = self._choose(completions)
        return Progress(
            problems=sentences(stored.problems),
            completions=completions.filter(chosen),
            duplicates=pl.concat([completions.filter(~chosen), counted.filter(of_chunk & aside)]),
            reduced=counted.filter(of_reduce),
            merged=counted.filter(of_merge),
            failures=stored.failures.sort("at"),
            schemas=stored.schemas,
        )

    def _choose(self, completions: pl.DataFrame) -> pl.Series:
        """Mark one completion per chunk, by a fixed rule, so that all readers choose the same.

        Of staged outputs, choose the first. The chunks of a partial count together: choose those
        of the newest reduce plan all of whose partials count; without one, the largest.
        """
        chunks = completions["chunk"]
        if PARTIAL not in completions["upload"] or chunks.is_unique().all():
            return chunks.is_first_distinct()
        if self.job().reduce is not None:
            for number in self._numbers("reduce/"):
                chosen = self._reduce_plan(number).choose(completions)
                if chosen is not None:
                    return chosen
        return _largest(completions)

    def of_batch(self, batch: str) -> Progress:
        """Read what earlier attempts at one batch have stored."""
        stored = self._log.of_batch(batch)
        return Progress(stored.completions, EMPTY.completions, stored.failures, schemas={})

    def compact(self) -> None:
        """Write all segments read so far as one object, so that the next reader is faster."""
        self._log.compact()

    @property
    def uncompacted(self) -> int:
        """Number of segments that were read one by one."""
        return self._log.uncompacted

    def _check(self, some: Segment) -> Segment:
        """Keep the valid entries; each entry is checked once, when it is read."""
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
                groups=self.job().then is not None,
                wanted=Wanted.of(self.job().checks),
                merges=self.job().output.merges,
                checks_rows=self.job().checks.rows is not None,
            )
        return self._checks.check(some)


def _largest(completions: pl.DataFrame) -> pl.Series:
    """Mark the completions of partials that have no chunk in common, the largest first.

    Remaining chunks are mapped again.
    """
    taken: set[str] = set()
    uris: set[str] = set()
    distinct = completions.select(pl.struct("uri", "chunk").is_first_distinct()).to_series()
    groups = completions.filter(distinct).group_by("uri").agg("chunk", pl.len())
    for uri, chunks, _ in groups.sort("len", "uri", descending=[True, False]).iter_rows():
        if taken.isdisjoint(chunks):
            taken |= set(chunks)
            uris.add(uri)
    return completions["uri"].is_in(list(uris)) & distinct


@lru_cache(64)
def _parse_cached(text: str, name: str) -> Job:
    """Parse a stored job, which never changes and is read for every window that is published."""
    return parse_job(text, name)


def segment_name(batch: str, attempt: str, number: int) -> str:
    """Return the name of a batch's n-th segment."""
    return f"{batch}-{attempt}-{number:04d}"
