"""From a job to a run: probe the transform, plan the input, store the plan or resume one."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import polars as pl
from polars.io.plugins import register_io_source

from partitioning import (
    Plan,
    PlanningError,
    PlanRequest,
    PlanResult,
    plan_dataset,
)
from partitioning.hive_paths import raw_values
from partitioning.listing import list_objects
from partitioning.windows import WindowFilter
from pipeline.config.job import Job
from pipeline.config.settings import Settings
from pipeline.errors import (
    ConflictError,
    InputError,
    JobError,
    ObjectMissingError,
    StateError,
    UsageError,
)
from pipeline.runs.driver.appending import refuse_appending_again, refuse_losing_rows
from pipeline.runs.driver.batching import GUESSED_SPEED
from pipeline.runs.driver.former_folders import refuse_former_folders
from pipeline.runs.driver.overlap import in_normal_form, refuse_overlap
from pipeline.runs.driver.quarantine import refuse_many_quarantined
from pipeline.runs.ledger.find import runs_of
from pipeline.runs.ledger.keys import folders_of, refuse_long_keys
from pipeline.runs.ledger.ledger import Ledger, run_id
from pipeline.runs.ledger.records import RunRecord
from pipeline.runs.transforms.fingerprint import explain_difference, scheme_of
from pipeline.runs.transforms.loading import Transform, job_fingerprint, load_transform
from pipeline.runs.transforms.user_code import is_from_signal
from pipeline.runs.worker.chunk import filter_of
from pipeline.storage import Storage, StorageReader, Tables, parse, replaced_tables
from pipeline.storage.table_versions import TableVersion
from pipeline.table.columns import Columns, stored_columns
from pipeline.table.log import TableLog
from pipeline.table.manifest import CommitEntry, Manifest
from pipeline.table.publish import prepare_output
from pipeline.table.replay import Footprint, window_label
from pipeline.table.schemas import Addition, refuse_other_columns

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PreparedRun:
    """A run that is ready to be mapped."""

    ledger: Ledger
    plan: Plan
    fingerprint: str
    """Of the code that this driver will run."""
    is_new: bool
    """It was created just now."""
    notes: tuple[str, ...] = ()
    """What the user should know: what changed in the input, say."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What a transform does to no rows at all."""

    columns: tuple[str, ...] | None
    """Columns that it reads, or None if it cannot be told."""
    schema: pl.Schema | None
    """Of its result, or None if it cannot be told."""
    is_static: bool = False
    """Whether the result has this schema whatever the data are."""

    @property
    def result_columns(self) -> Columns:
        """Names and types of the result's columns; empty where they cannot be told."""
        return {name: str(kind) for name, kind in (self.schema or {}).items()}


UNKNOWN = Probe(None, None)
"""Of a transform that cannot cope with no rows."""


def request_of(job: Job, settings: Settings, size_columns: tuple[str, ...] | None) -> PlanRequest:
    """What the planner is asked for."""
    limits, chunks, source = settings.planner, job.chunks, job.input
    return PlanRequest(
        uri=tuple(parse(uri).uri for uri in source.uri),
        columns=source.columns,
        size_columns=size_columns,
        filter=filter_of(job),
        hive_types=tuple(source.hive_types.items()),
        include=source.include,
        exclude=source.exclude,
        schema=source.schema_,
        types=tuple(source.types.items()),
        int96=source.int96,
        object_column=source.object_column,
        on_bad_object="fail" if source.on_bad_object == "fail" else "skip",
        changed_only=source.changed_only,
        target=chunks.target,
        max_rows=chunks.max_rows,
        per_file=chunks.per_file,
        per_partition=chunks.per_partition,
        cross_partitions=chunks.cross_partitions,
        footer_concurrency=limits.footer_concurrency,
        footer_limit=limits.footer_limit,
        map_threshold=limits.map_threshold,
    )


def probe(transform: Transform, schema: pl.Schema, tables: Tables | None = None) -> Probe:
    """Run a transform on no rows, and watch what it asks for.

    Args:
        transform: Of the job.
        schema: Of the data.
        tables: Notes which tables it reads, and in which versions.

    Raises:
        JobError: it does not return a LazyFrame.
        InputError: it needs a column that the data lacks, or a table that cannot be read.
    """
    tables = tables or Tables(is_open=True)
    with tables.used():
        found = _probe(transform, schema)
    if found == UNKNOWN and tables.problem is not None:
        raise InputError(
            f"{transform.name} reads a table that cannot be read: {tables.problem}",
            hint=tables.problem.hint,
        ) from tables.problem
    return found


def _probe(transform: Transform, schema: pl.Schema) -> Probe:
    asked: set[str] = set()

    def nothing(
        with_columns: list[str] | None, predicate: Any, n_rows: int | None, batch: int | None
    ) -> Any:
        names = list(schema) if with_columns is None else with_columns
        asked.update(names)
        yield pl.DataFrame(schema={name: schema[name] for name in names})

    try:
        result = transform.call(register_io_source(nothing, schema=schema, validate_schema=True))
        if isinstance(result, pl.LazyFrame):
            promised = None if asked else _promised_schema(result)
            columns, found = columns_read(result, asked), result.collect().schema
            return Probe(columns, found, is_static=found == promised)
    except pl.exceptions.ColumnNotFoundError as error:
        missing = str(error).splitlines()[0]
        raise InputError(
            f"{transform.name} needs a column that the data lacks: {missing}",
            hint=f"the data has {', '.join(schema)}",
        ) from error
    except BaseException as error:
        if is_from_signal(error):
            raise
        # Some transforms cannot cope with no rows; the chunks will show what is wrong.
        return UNKNOWN
    kind = type(result).__name__
    raise JobError(
        f"{transform.name} returned {kind}, not a LazyFrame",
        hint="return the frame's query itself, without .collect()",
    )


def _promised_schema(result: pl.LazyFrame) -> pl.Schema | None:
    """The columns that a query has whatever its data; None where they depend on them.

    Polars holds functions for single columns to the types that it expects of them; those for whole
    frames may return what they like. (A transform that has looked at data already may make another
    query of other data; whoever asks has to know that.)
    """
    said = result.explain(optimized=False)
    return None if any(word in said for word in _FRAME_FUNCTIONS) else result.collect_schema()


_FRAME_FUNCTIONS = ("OPAQUE_PYTHON", "MAP_GROUPS")
"""How Polars' plans show that a function of the user's makes whole frames."""


def columns_read(result: pl.LazyFrame, asked: set[str]) -> tuple[str, ...]:
    """The columns that collecting asked for; collects."""
    result.collect()
    return tuple(sorted(asked))


@dataclass(frozen=True, slots=True)
class PlannedInput:
    """What planning a job's input came to; nothing of it is stored yet."""

    result: PlanResult
    transform: Transform
    probe: Probe
    tables: Tables
    """What the transform was seen to read, and what the job declares."""


def plan_input(
    job: Job,
    settings: Settings,
    storage: Storage,
    previous: Plan | None = None,
    *,
    mapper: Any = None,
    keep: WindowFilter | None = None,
) -> PlannedInput:
    """Plan a job's input, or some windows of it; nothing is written.

    Raises:
        PlanningError: the input cannot be planned (missing, bad objects, differing schemas …).
        JobError, InputError, TransformNotAllowedError: the transform does not fit.
        UsageError: the input matches the output.
        QuarantineLimitError: more objects are bad than the job allows.
    """
    refuse_overlap(job)
    transform = load_transform(job.transform, job.params, settings.transforms)
    reader, tables = StorageReader(storage), declared_tables(job)
    request = replace(request_of(job, settings, None), keep=keep)
    if job.input.columns is None:
        request = replace(request, size_columns=_columns_read(request, reader, transform, tables))
    result = plan_dataset(request, reader, previous=previous, mapper=mapper)
    refuse_many_quarantined(job, result.plan, {one.uri for one in result.plan.skipped})
    visible = result.plan.dtypes
    if job.input.columns is not None:
        visible = pl.Schema({name: visible[name] for name in job.input.columns})
    return PlannedInput(result, transform, probe(transform, visible, tables), tables)


def declared_tables(job: Job) -> Tables:
    """The tables that a job declares, as they are now; open for those that planning finds.

    Raises:
        InputError: one of them is not there.
    """
    tables = Tables(is_open=True)
    for uri in job.tables:
        try:
            tables.version(uri)
        except ObjectMissingError as error:
            raise InputError(f"there is no table {uri} (the job's `tables`)") from error
    return tables


def _columns_read(
    request: PlanRequest, reader: StorageReader, transform: Transform, tables: Tables
) -> tuple[str, ...] | None:
    """What the transform asks of one readable object; for estimates of sizes only."""
    listed = list_objects(request, reader)
    for info, directory in sorted(
        zip(listed.objects, listed.directories, strict=True), key=lambda pair: pair[0].uri
    )[:3]:
        alone = replace(request, uri=info.uri, filter=(), keep=None, include=("**",), exclude=())
        with suppress(PlanningError):
            schema = plan_dataset(alone, reader).plan.dtypes
            # Alone, it also has the partition values of folders above the input's prefix.
            above = {name for name, _ in raw_values(info.uri)}
            above -= {name for name, _ in raw_values(directory)}
            columns = probe(transform, schema, tables).columns
            return columns and tuple(name for name in columns if name not in above)
    return None


@dataclass(frozen=True, slots=True)
class ResumeOptions:
    """What a user allows when a run is taken up again."""

    accept_code: bool = False
    """Go on although the transform's code has changed."""
    replan: bool = False
    """Plan anew instead of going on with the frozen plan."""
    take_over: bool = False
    """Drive although another driver seems to be alive."""
    run: str | None = None
    """Take up this very run, whatever else there is."""
    only_failed: bool = False
    """Map the chunks that have failed, and leave alone those that were never tried."""


def plan_run(
    job: Job, settings: Settings, storage: Storage, resume: ResumeOptions, mapper: Any = None
) -> PreparedRun:
    """Find the run that a job means: an unfinished one of the same job, or a new one.

    Args:
        job: The job.
        settings: How to plan.
        storage: Where.
        resume: What the user allows.
        mapper: Reads the footers of large inputs elsewhere (see `partitioning.plan_dataset`).

    Raises:
        ConflictError: the unfinished run was made by other code.
        And what `plan_input` and `prepare_output` raise.
    """
    if resume.run is None:
        refuse_overlap(job)
    code = job_fingerprint(job, settings.transforms)
    records = runs_of(storage, job.output.uri)
    if resume.run is not None:
        return _resumed(_named(records, resume.run), code, storage, resume)
    same = _same_job(job, storage, records)
    published = [one for one in same if _is_published(storage, one)]
    if len(published) < len(same) and not resume.replan:
        unfinished = [one for one in same if one not in published]
        return _with_rule(job, _resumed(unfinished[-1], code, storage, resume))
    ledgers, done = (
        tuple(Ledger(storage, one.output, one.run) for one in records)
        for records in (same, published)
    )
    fresh = _NewRun(settings, storage, code, ledgers, done, mapper, resume.accept_code)
    return _with_rule(job, fresh.plan(job))


def _with_rule(job: Job, planned: PreparedRun) -> PreparedRun:
    """Note what the job says now about the output's schema: the run's stored job may say less."""
    if job.output.schema_ == "widen" and not planned.ledger.widens():
        planned.ledger.allow_widening()
    return planned


@dataclass(frozen=True, slots=True)
class _NewRun:
    """Plans the input now. The same input, code and output are the same run as before."""

    settings: Settings
    storage: Storage
    code: str
    same: tuple[Ledger, ...]
    """The runs of the same job, oldest first."""
    published: tuple[Ledger, ...]
    """Those of them that are published."""
    mapper: Any
    accept_code: bool

    @property
    def previous(self) -> Ledger | None:
        """The last run of the same job."""
        return self.same[-1] if self.same else None

    def plan(self, job: Job) -> PreparedRun:
        previous = self.previous
        if job.output.mode == "append" or job.input.changed_only:
            # What an earlier run of this job appended is not appended again. One that was never
            # published has appended nothing.
            previous = self.published[-1] if self.published else previous
            changes = job.input.model_copy(update={"changed_only": bool(self.published)})
            job = job.model_copy(update={"input": changes})
        before = previous.plan() if previous else None
        with ThreadPoolExecutor(1) as pool:
            # The first request of its kind takes a while, and planning waits for others meanwhile.
            days = pool.submit(self.storage.abort_days, job.output.uri)
            planning = plan_input(job, self.settings, self.storage, before, mapper=self.mapper)
        result = planning.result
        if previous is not None and before is not None and not len(result.plan):
            held = result.explain.objects_unchanged
            note = f"the output holds all {held:,} objects of the input already"
            notes = (note, *_tables_replaced(previous.record(), planning.tables.versions))
            return PreparedRun(previous, before, self.code, False, notes)
        return self._store(job, planning, days.result())

    def _store(self, job: Job, planning: PlannedInput, abort_days: float | None) -> PreparedRun:
        result, tables = planning.result, planning.tables.versions
        plan, uri = result.plan, job.output.uri
        code, same = self._code_of_run(job, plan, tables)
        refuse_long_keys(uri, plan)
        run = run_id(plan, job, code, tables=tables)
        skips = job.input.on_bad_object == "skip" and self._has_failed_at_bad(job, run)
        if skips:
            run = run_id(plan, job, code, tables=tables, skips=True)
        is_new = self.previous is None or self.previous.run != run
        table_log = TableLog(self.storage, uri)
        manifest = prepare_output(table_log, job.output.mode, run)
        _refuse_beside_backfills(manifest, job)
        refuse_former_folders(table_log, job.output.mode, plan, [run])
        if job.output.mode == "append":
            earlier = [one for one in self.published if one.run != run]
            refuse_appending_again(table_log, manifest, earlier, plan)
        refuse_losing_rows(job, plan)
        notes = (*result.explain.warnings, *_check_lifecycle(job, plan, abort_days), *same)
        planned = planned_footprints(job, plan)
        refuse_planned_columns(table_log, manifest, job, planning.probe, planned)
        ledger = Ledger.create(
            self.storage,
            job,
            plan,
            code,
            manifest.number,
            tables=tables,
            columns=tuple(planning.probe.result_columns),
            skips=skips,
        )
        if not is_new:
            # Asked for again, with the output as it is now in sight: that is no conflict any more.
            ledger.accept(manifest.number)
        return PreparedRun(ledger, plan, self.code, is_new, notes if is_new else ())

    def _has_failed_at_bad(self, job: Job, run: str) -> bool:
        """Whether there is a run of this id whose chunks are to fail at a bad object."""
        try:
            return Ledger(self.storage, job.output.uri, run).job().input.on_bad_object == "fail"
        except (StateError, JobError, ObjectMissingError):
            return False

    def _code_of_run(
        self, job: Job, plan: Plan, tables: tuple[TableVersion, ...]
    ) -> tuple[str, tuple[str, ...]]:
        """The fingerprint to name the run by: of the same run under another scheme, if allowed.

        Raises:
            ConflictError: such a run has published to an output that takes no second one.
        """
        record = self.previous.record() if self.previous is not None else None
        if record is None or scheme_of(record.fingerprint) == scheme_of(self.code):
            return self.code, ()
        if run_id(plan, job, record.fingerprint, tables=tables) != record.run:
            return self.code, ()
        if self.accept_code:
            return record.fingerprint, ()
        difference = explain_difference(record.transform, record.fingerprint, self.code)
        explanation = f"run {record.run} has mapped this very input, and {difference}"
        hint = "if it has not, or that does not matter: --accept-code"
        if job.output.mode == "error":
            raise ConflictError(explanation, hint=f"{hint} takes that run as this one")
        return self.code, (f"{explanation}; it is mapped again ({hint} would not)",)


def refuse_planned_columns(
    table_log: TableLog, manifest: Manifest, job: Job, probe: Probe, planned: Sequence[Footprint]
) -> None:
    """Refuse a plan whose result could not be published beside files that stay in the output.

    Only where the transform's columns do not depend on its data; otherwise publishing will tell.

    Args:
        table_log: Of the output.
        manifest: What it holds.
        job: The job.
        probe: Of its transform.
        planned: What is to be published first (see `planned_footprints`).

    Raises:
        SchemaChangedError: naming the columns and the way on.
    """
    if job.reduce is not None or not probe.is_static or not manifest.commits:
        return
    text = json.dumps(probe.result_columns)
    additions = [Addition(one, stored_columns(text, min(one.folders))) for one in planned]
    widens = job.output.schema_ == "widen"
    refuse_other_columns(table_log, manifest, additions, lambda: widens)


def planned_footprints(job: Job, plan: Plan, rule: str = "") -> list[Footprint]:
    """Where a plan's files will be, and what they will replace; one for each window.

    Args:
        job: The job.
        plan: Of its input.
        rule: How windows are cut (see `manifest.rule_of`), if it is published by windows.
    """
    by_window: dict[str | None, list[str]] = {}
    for folder in folders_of(plan).str.strip_suffix("/").unique().sort():
        label = window_label(rule, folder) if rule else None
        by_window.setdefault(label, []).append(folder)
    return [_planned(job.output.mode, rule, *pair) for pair in by_window.items()]


def _planned(mode: str, rule: str, label: str | None, folders: list[str]) -> Footprint:
    entry = CommitEntry(
        name="", run="", mode=mode, files=1, rows=0, bytes=0, window=label, rule=rule
    )
    replaces = frozenset(folders) if mode == "overwrite-partitions" else frozenset[str]()
    return Footprint(entry, replaces, dict.fromkeys(folders, ()))


def _refuse_beside_backfills(manifest: Manifest, job: Job) -> None:
    """Raise UsageError where appending the whole input would bring a backfill's rows twice."""
    if job.output.mode != "append":
        return
    windows = sum(entry.window is not None for entry in manifest.commits)
    if windows:
        raise UsageError(
            f"{job.output.uri} holds {windows:,} windows that backfills have published; a run that "
            "appends knows nothing of them, and would bring their rows twice",
            hint="append what is missing: chunkmap backfill create JOB.yaml",
        )


def _tables_replaced(record: RunRecord, now: tuple[TableVersion, ...]) -> tuple[str, ...]:
    """What to say where tables are other versions than those that a run has read."""
    then = {one.uri: one for one in record.tables or ()}
    replaced = [one.uri for one in now if then.get(one.uri, one) != one]
    if not replaced:
        return ()
    return (
        f"{', '.join(replaced)} was replaced since; rows that were appended before keep their "
        "values",
    )


def _check_lifecycle(job: Job, plan: Plan, days: float | None) -> tuple[str, ...]:
    """Check a run against the bucket's lifecycle rule for incomplete uploads; return warnings.

    Args:
        job: The job.
        plan: Plan of its input.
        days: Days after which the bucket aborts incomplete uploads; None if it never does.

    Raises:
        UsageError: The rule would abort staged outputs before one thread could map the plan.
    """
    if days is None:
        return ()
    longest = plan.decoded_bytes / GUESSED_SPEED / 86400
    unit = "day" if days == 1 else "days"
    rule = f"the bucket of {job.output.uri} aborts incomplete uploads after {days:g} {unit}"
    if longest > days:
        raise UsageError(
            f"{rule}, and this run may take {longest:.1f} days on one thread: staged outputs would "
            "be lost before they are published",
            hint="lengthen the lifecycle rule, or split the input into several jobs",
        )
    return (f"{rule}: a run that is not published by then maps those chunks again",)


def _named(records: list[RunRecord], run: str) -> RunRecord:
    for record in records:
        if record.run == run:
            return record
    raise UsageError(f"there is no run {run}")


def _same_job(job: Job, storage: Storage, records: list[RunRecord]) -> list[RunRecord]:
    """The runs of this very job, oldest first; not those of its backfills."""
    own = [one for one in records if one.backfill is None]
    ledgers = [(one, Ledger(storage, job.output.uri, one.run)) for one in own]
    return [one for one, ledger in ledgers if _is_of(ledger, job)]


def _is_of(ledger: Ledger, job: Job) -> bool:
    """Whether a run asks for the same; of one whose job is damaged it cannot be told."""
    try:
        return _asks_the_same(ledger.job(), job)
    except (StateError, JobError, ObjectMissingError) as error:
        log.warning("run %s is left out of account: %s", ledger.run, error)
        return False


def _asks_the_same(stored: Job, job: Job) -> bool:
    """Whether two jobs differ in nothing but what a driver may choose anew."""
    free = {"retries", "rounds", "max_failures", "chunk_timeout", "name"}
    nested = {"input": {"changed_only", "max_quarantined"}, "output": {"schema_"}}
    kept = {**nested, **dict.fromkeys(free, True)}
    ours, theirs = (in_normal_form(one) for one in (stored, job))
    return ours.model_dump(exclude=kept) == theirs.model_dump(exclude=kept)  # type: ignore[arg-type]


def _is_published(storage: Storage, record: RunRecord) -> bool:
    return Ledger(storage, record.output, record.run).published() is not None


def _resumed(record: RunRecord, code: str, storage: Storage, resume: ResumeOptions) -> PreparedRun:
    if record.fingerprint != code and not resume.accept_code:
        raise ConflictError(
            f"run {record.run} of this job is unfinished, and "
            f"{explain_difference(record.transform, record.fingerprint, code)}",
            hint="resume with the new code: --accept-code; or start over: --replan",
        )
    replaced = replaced_tables(record.tables or ())
    if replaced:
        raise ConflictError(
            f"run {record.run} of this job is unfinished, and {replaced}, which the "
            "transform reads, was replaced since it was planned",
            hint="start over with the new table: --replan; or put the earlier version back",
        )
    ledger = Ledger(storage, record.output, record.run)
    table_log = TableLog(storage, record.output)
    prepare_output(table_log, record.mode, record.run)
    notes = [f"resuming run {record.run}: its plan of {record.chunks:,} chunks is frozen"]
    plan = ledger.plan()
    refuse_former_folders(table_log, record.mode, plan, [record.run])
    changes = input_changes(storage, ledger.job(), plan)
    if changes:
        notes.append(f"{changes}; --replan would plan them too")
    return PreparedRun(ledger, plan, code, False, tuple(notes))


def input_changes(storage: Storage, job: Job, plan: Plan) -> str | None:
    """What a listing of the input shows beside a plan, in a sentence; None if nothing changed."""
    request = PlanRequest(
        uri=tuple(parse(uri).uri for uri in job.input.uri),
        include=job.input.include,
        exclude=job.input.exclude,
    )
    try:
        listed = list_objects(request, StorageReader(storage)).objects
    except PlanningError as error:
        return f"the input cannot be listed any more ({error})"
    now = {info.uri: (info.etag.strip('"'), info.size) for info in listed}
    objects = plan.table("objects").select(["uri", "etag", "size"]).to_pylist()
    then = {row["uri"]: (row["etag"].strip('"'), row["size"]) for row in objects}
    added, removed = len(now.keys() - then.keys()), len(then.keys() - now.keys())
    changed = sum(now[uri] != then[uri] for uri in now.keys() & then.keys())
    if not (added or removed or changed):
        return None
    return (
        f"the input has changed since: {added:,} objects added, {removed:,} removed, "
        f"{changed:,} changed"
    )
