"""Prepare a run of a job: probe the transform, plan the input, store the plan or resume one."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import compress
from typing import Any

import polars as pl
from polars.io.plugins import register_io_source

from partitioning import (
    Plan,
    PlanRequest,
    PlanResult,
    plan_dataset,
)
from partitioning.windows import WindowFilter
from pipeline.concurrency import map_concurrently
from pipeline.config.job import Job
from pipeline.config.settings import Settings
from pipeline.errors import (
    ConflictError,
    InputError,
    JobError,
    ObjectMissingError,
    OutputNotEmptyError,
    StateError,
    TransformError,
    UsageError,
)
from pipeline.report.humanize import plural
from pipeline.runs.driver.appending import (
    refuse_appended_since,
    refuse_appending_again,
    refuse_losing_rows,
    refuse_windows_since,
)
from pipeline.runs.driver.batching import GUESSED_SPEED
from pipeline.runs.driver.check_stage import refuse_impossible
from pipeline.runs.driver.former_folders import refuse_former_folders
from pipeline.runs.driver.heartbeat import read_driver
from pipeline.runs.driver.in_place import (
    InPlace,
    find_in_place,
    refuse_other_folders,
    refuse_outdated,
)
from pipeline.runs.driver.job_changes import (
    appends_same_rows,
    has_same_job,
    input_changes,
    is_same_job,
    reads_alike,
)
from pipeline.runs.driver.origin import explain_code, origin_of
from pipeline.runs.driver.overlap import is_in_place, refuse_nested_outputs, refuse_overlap
from pipeline.runs.driver.quarantine import refuse_many_quarantined
from pipeline.runs.driver.rebuild import Rebuild
from pipeline.runs.driver.tables import pinned_request, refuse_tables
from pipeline.runs.ledger.find import runs_of
from pipeline.runs.ledger.keys import folders_of, refuse_long_keys
from pipeline.runs.ledger.ledger import FurtherOutput, Ledger, run_id
from pipeline.runs.ledger.records import RunRecord
from pipeline.runs.transforms.fingerprint import scheme_of
from pipeline.runs.transforms.loading import Transform, job_fingerprint, load_transform
from pipeline.runs.transforms.user_code import is_from_signal
from pipeline.runs.worker.chunk import (
    filter_of,
    missing_column,
    not_a_frame,
    virtual_columns,
    wrong_outputs,
)
from pipeline.runs.worker.keep import kept_of, result_schema, row_problem
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
    """Fingerprint of the code that this driver will run."""
    is_new: bool
    """Whether the run was created just now."""
    notes: tuple[str, ...] = ()
    """Notes for the user, e.g. how the input has changed."""
    speed: float = 0.0
    """Speed of a thread in the last run of this code (see `DriverRecord.speed`); 0: unknown."""
    is_contained: bool = False
    """Whether the current version has what the run made, perhaps in files of later runs."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Result of running a transform on no rows."""

    columns: tuple[str, ...] | None
    """Columns that the transform reads; None if unknown."""
    schema: pl.Schema | None
    """Schema of its result; None if unknown."""
    is_static: bool = False
    """Whether the result has this schema for any data."""
    new_columns: tuple[str, ...] = ()
    """Columns that the transform returns, where the output keeps others of the input."""
    further: Mapping[str, pl.Schema] = field(default_factory=dict)
    """Schemas of the results for the outputs after the first, if there are several; empty if
    unknown."""

    @property
    def result_columns(self) -> Columns:
        """Names and types of the result's columns; empty if unknown."""
        return {name: str(kind) for name, kind in (self.schema or {}).items()}

    def of_output(self, name: str) -> Probe:
        """Return the probe for an output after the first."""
        return replace(self, schema=self.further.get(name), further={})


UNKNOWN_PROBE = Probe(None, None)
"""Probe of a transform that fails on no rows."""


def plan_request(job: Job, settings: Settings, size_columns: tuple[str, ...] | None) -> PlanRequest:
    """Translate a job and settings into a request to the planner."""
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
        per_file=chunks.per_file or job.output.keep is not None,
        per_partition=chunks.per_partition,
        cross_partitions=chunks.cross_partitions,
        footer_concurrency=limits.footer_concurrency,
        footer_limit=limits.footer_limit,
        map_threshold=limits.map_threshold,
    )


def probe(
    transform: Transform,
    schema: pl.Schema,
    tables: Tables | None = None,
    outputs: Collection[str] = (),
    *,
    keeps: bool = False,
) -> Probe:
    """Run a transform on no rows, and record the columns and tables that it reads.

    Args:
        transform: Transform of the job.
        schema: Schema of the data.
        tables: Records the tables that the transform reads, with their versions.
        outputs: Names of the outputs, if there are several.
        keeps: Whether the output keeps columns, so that the transform must keep the rows.

    Raises:
        JobError: the transform does not return a LazyFrame, or one for each of the outputs, or it
            may change which rows there are.
        InputError: it needs a column that the data lacks, or a table that cannot be read.
    """
    tables = tables or Tables(is_open=True)
    with tables.used():
        probed = _probe(transform, schema, outputs, keeps=keeps)
    if probed == UNKNOWN_PROBE and tables.problem is not None:
        raise InputError(
            f"{transform.name} reads a table that cannot be read: {tables.problem}",
            hint=tables.problem.hint,
        ) from tables.problem
    return probed


def _probe(
    transform: Transform, schema: pl.Schema, outputs: Collection[str], *, keeps: bool
) -> Probe:
    columns: set[str] = set()

    def no_rows(
        with_columns: list[str] | None, predicate: Any, n_rows: int | None, batch: int | None
    ) -> Any:
        names = list(schema) if with_columns is None else with_columns
        columns.update(names)
        yield pl.DataFrame(schema={name: schema[name] for name in names})

    try:
        given = register_io_source(no_rows, schema=schema, validate_schema=True)
        result = transform.call(given)
        problem = (
            wrong_outputs(transform.name, result, outputs)
            if outputs
            else ("" if isinstance(result, pl.LazyFrame) else not_a_frame(transform.name, result))
        )
        refused = row_problem(transform.name, given, result) if keeps and not problem else None
        if not problem and refused is None:
            frames = {name: result[name] for name in outputs} or {"": result}
            static = [None if columns else _static_schema(frame) for frame in frames.values()]
            collected = [frame.schema for frame in pl.collect_all(list(frames.values()))]
            return Probe(
                tuple(sorted(columns)),
                collected[0],
                is_static=collected == static,
                further=dict(list(zip(frames, collected, strict=True))[1:]),
            )
    except pl.exceptions.ColumnNotFoundError as error:
        missing = str(error).splitlines()[0]
        raise InputError(
            f"{transform.name} needs a column that the data lacks: {missing}",
            hint=f"the data has {', '.join(schema)}",
        ) from error
    except BaseException as error:
        if is_from_signal(error):
            raise
        # Some transforms fail on no rows only; mapping shows whether this one works.
        return UNKNOWN_PROBE
    if refused is not None:
        raise JobError(str(refused), hint=refused.hint)
    raise JobError(problem, hint="return the frame's query itself, without .collect()")


def _static_schema(result: pl.LazyFrame) -> pl.Schema | None:
    """Return the schema that a query has for any data; None if it depends on the data.

    Polars checks the types of what functions on single columns return, but not of functions on
    whole frames. (A transform that has read data already may build another query from other data;
    the caller must check that.)
    """
    query = result.explain(optimized=False)
    return None if any(word in query for word in _FRAME_FUNCTIONS) else result.collect_schema()


_FRAME_FUNCTIONS = ("OPAQUE_PYTHON", "MAP_GROUPS")
"""Words in Polars' query plans that stand for user functions on whole frames."""


@dataclass(frozen=True, slots=True)
class PlannedInput:
    """Plan of a job's input, not yet stored."""

    result: PlanResult
    transform: Transform
    probe: Probe
    tables: Tables
    """Tables that the job declares or that the transform was seen to read."""
    notes: tuple[str, ...] = ()
    """Notes for the user."""
    version: int | None = None
    """Number of the output's manifest whose files are read, if the job is in place."""


def plan_input(
    job: Job,
    settings: Settings,
    storage: Storage,
    previous: Plan | None = None,
    *,
    mapper: Any = None,
    keep: WindowFilter | None = None,
    in_place: InPlace | None = None,
    reader: StorageReader | None = None,
) -> PlannedInput:
    """Plan a job's input, or some windows of it. Writes nothing.

    Args:
        job: The job.
        settings: Settings of the planner and of transforms.
        storage: Where the input is.
        previous: Earlier plan, for `input.changed_only` and for footers that need not be read.
        mapper: Reads the footers of large inputs elsewhere (see `partitioning.plan_dataset`).
        keep: Selects the windows to plan; default all.
        in_place: Files to plan, if the job is in place; default those that have to be mapped.
        reader: Reads the input; one that has listed it does not list it again. Default: a new one.

    Raises:
        PlanningError: the input cannot be planned (missing, bad objects, differing schemas …).
        JobError, InputError, TransformNotAllowedError: the transform does not fit.
        UsageError: the input matches the output, or the job is in place and has nothing to do.
        QuarantineLimitError: more objects are bad than the job allows.
    """
    refuse_overlap(job)
    transform = load_transform(job.transform, job.params, settings.transforms)
    if job.then is not None:
        load_transform(job.then.function, job.then.params, settings.transforms)
    reader, tables = reader or StorageReader(storage), declared_tables(job)
    request = replace(plan_request(job, settings, None), keep=keep)
    if in_place is None and is_in_place(job):
        in_place = find_in_place(job, storage, job_fingerprint(job, settings.transforms))
        if in_place is not None and in_place.done_by:
            raise in_place.nothing_to_do()
    if in_place is not None:
        request = in_place.request(request)
    else:
        request = pinned_request(storage, job, request)
    choose = None
    if request.columns is None:
        choose = partial(_columns_read, transform, tables, tuple(job.outputs))
    result = plan_dataset(
        request,
        reader,
        previous=previous,
        mapper=mapper,
        choose_columns=choose,
    )
    refuse_many_quarantined(job, result.plan, {skipped.uri for skipped in result.plan.skipped})
    if in_place is not None:
        refuse_other_folders(job, in_place, result.plan)
    visible = result.plan.dtypes
    if job.input.columns is not None:
        visible = pl.Schema({name: visible[name] for name in job.input.columns})
    probed = probe(transform, visible, tables, job.outputs, keeps=job.output.keep is not None)
    probed = with_kept(job, result.plan, probed)
    _refuse_missing_columns(job, probed)
    for name in list(job.outputs)[1:]:
        _refuse_missing_columns(job.of_output(name), probed.of_output(name))
    refuse_impossible(job, settings, probed.schema if probed.is_static else None)
    notes = () if request.pinned is None else (f"reads {request.pinned.label}",)
    version = None if in_place is None else in_place.manifest.number
    return PlannedInput(result, transform, probed, tables, notes, version)


def with_kept(job: Job, plan: Plan, probed: Probe) -> Probe:
    """Add the columns that files keep of the input to the result of a probe.

    Raises:
        JobError: a column that is to be kept does not exist, or contradicts another.
    """
    try:
        kept = kept_of(job.output, plan.dtypes, virtual_columns(job, plan))
        if kept is None or probed.schema is None:
            return probed
        new = pl.Schema({n: t for n, t in probed.schema.items() if n not in plan.hive_columns})
        schema = result_schema(kept, plan.dtypes, new)
        return replace(probed, schema=schema, new_columns=tuple(new))
    except TransformError as error:
        raise JobError(str(error), hint=error.hint) from error


def _refuse_missing_columns(job: Job, probed: Probe) -> None:
    """Refuse an output that names columns which no result has."""
    # The columns after a reduce, and those that depend on data, are known when they are there.
    if job.reduce is None and probed.is_static and probed.schema is not None:
        problem = missing_column(job.output, probed.schema)
        if problem:
            raise JobError(problem, hint=f"change the output, or what {job.transform} returns")


def declared_tables(job: Job) -> Tables:
    """Look up the current versions of the tables that a job declares; planning may add others.

    Raises:
        InputError: a declared table does not exist.
    """
    tables = Tables(is_open=True)
    for uri in job.tables:
        try:
            tables.version(uri)
        except ObjectMissingError as error:
            raise InputError(f"there is no table {uri} (the job's `tables`)") from error
    return tables


def _columns_read(
    transform: Transform, tables: Tables, outputs: Collection[str], schema: pl.Schema
) -> tuple[str, ...] | None:
    """Return the columns that the transform reads; None if unknown."""
    return probe(transform, schema, tables, outputs).columns


@dataclass(frozen=True, slots=True)
class ResumeOptions:
    """Options for resuming a run."""

    accept_code: bool = False
    """Whether to resume even if the transform's code has changed."""
    replan: bool = False
    """Whether to make a new plan instead of resuming."""
    rebuild: bool = False
    """Whether to replace what runs of the job have published to an output in mode `error`."""
    take_over: bool = False
    """Whether to drive even if another driver seems alive."""
    run: str | None = None
    """Id of the run to resume; default the unfinished run of the job."""
    only_failed: bool = False
    """Whether to retry failed chunks only."""


def plan_run(
    job: Job, settings: Settings, storage: Storage, resume: ResumeOptions, mapper: Any = None
) -> PreparedRun:
    """Resume the unfinished run of a job, or plan and store a new one.

    Args:
        job: The job.
        settings: Settings of the planner and of transforms.
        storage: Where input and output are.
        resume: Options for resuming.
        mapper: Reads the footers of large inputs elsewhere (see `partitioning.plan_dataset`).

    Raises:
        ConflictError: the unfinished run was made by other code.
        And what `plan_input` and `prepare_output` raise.
    """
    if resume.run is None:
        refuse_overlap(job)
    refuse_nested_outputs(job)  # Links may have changed since the run was planned.
    code = job_fingerprint(job, settings.transforms)
    records = runs_of(storage, job.output.uri)
    accept = resume.accept_code
    if resume.run is not None:
        record = _find_record(records, resume.run)
        return _resume(record, code, settings, storage, accept_code=accept)
    is_same = appends_same_rows if job.output.mode == "append" else is_same_job
    related = runs_of_job(job, storage, records, is_same)
    same = runs_of_job(job, storage, related)
    published = [record for record in related if is_published(storage, record)]
    unfinished = unfinished_runs(same, [record for record in published if record in same])
    if published:
        unfinished = [record for record in unfinished if not _is_overtaken(storage, record)]
    if unfinished and not resume.replan:
        resumed = _resume(unfinished[-1], code, settings, storage, accept_code=accept)
        return _adopt_free_keys(job, resumed)
    ledgers, done = (
        tuple(Ledger(storage, record.output, record.run) for record in records)
        for records in (same, published)
    )
    rebuild = Rebuild(storage, settings, job, code, records)
    new_run = _NewRun(settings, storage, code, ledgers, done, mapper, resume, rebuild)
    planned = new_run.plan(job)
    # A run that has all objects already may be of another job.
    return planned if planned.ledger in done else _adopt_free_keys(job, planned)


def _adopt_free_keys(job: Job, planned: PreparedRun) -> PreparedRun:
    """Let a run widen the output's schema, and check its result, as the job says now."""
    if job.outputs:
        for output, ledger in zip(job.outputs.values(), planned.ledger.of_outputs(), strict=False):
            if output.schema_ == "widen" and not ledger.widens():
                ledger.allow_widening()
        return planned  # Several outputs have no checks.
    if job.output.schema_ == "widen" and not planned.ledger.widens():
        planned.ledger.allow_widening()
    if job.checks != planned.ledger.checks():
        planned.ledger.use_checks(job.checks)
    return planned


@dataclass(frozen=True, slots=True)
class _NewRun:
    """Plans the input as it is now. The same input, code and output give the same run."""

    settings: Settings
    storage: Storage
    code: str
    same: tuple[Ledger, ...]
    """Ledgers of the runs of the same job, oldest first."""
    published: tuple[Ledger, ...]
    """Ledgers of the published runs among these. If the job appends, also those of jobs whose rows
    it would append again, e.g. in another mode."""
    mapper: Any
    resume: ResumeOptions
    rebuild: Rebuild

    @property
    def previous(self) -> Ledger | None:
        """Ledger of the last run of the same job."""
        return self.same[-1] if self.same else None

    @property
    def _known(self) -> set[str]:
        """Ids of the runs of the same job."""
        return {ledger.run for ledger in self.same}

    def plan(self, job: Job) -> PreparedRun:
        again = self.resume.rebuild
        in_place = find_in_place(job, self.storage, self.code, again=again, settle=True)
        if in_place is not None and in_place.done_by:
            return self._done(in_place)
        mode = self.rebuild.mode(wanted=again)
        previous = self.previous
        if job.output.mode == "append" or job.input.changed_only:
            # Only what the output has counts: it is not appended again.
            present = self._present(job)
            previous = present[-1] if present else previous
            changes = job.input.model_copy(update={"changed_only": bool(present)})
            job = job.model_copy(update={"input": changes})
        before = _plan_of(previous) if previous else None
        with ThreadPoolExecutor(1) as pool:
            # Asked in parallel: the first request of its kind is slow.
            days = pool.submit(self.storage.abort_days, job.output.uri)
            planning = plan_input(
                job, self.settings, self.storage, before, mapper=self.mapper, in_place=in_place
            )
        result = planning.result
        if previous is not None and before is not None and not len(result.plan):
            unchanged = result.explain.objects_unchanged
            note = f"the output already has all {plural(unchanged, 'object')} of the input"
            notes = (note, *_replaced_tables_notes(previous.record(), planning.tables.versions))
            return PreparedRun(previous, before, self.code, False, notes)
        return self._store(job, planning, mode, days.result())

    def _present(self, job: Job) -> list[Ledger]:
        """Return the published runs whose objects need not be read again.

        The current version has them; others were rolled back. None are returned if it lacks objects
        that could not be read, and the job now reads objects in another way.
        """
        if not self.published:
            return []
        manifest = TableLog(self.storage, self.published[0].output).manifest()
        runs = {entry.run for entry in manifest.commits}
        lacking = {entry.run for entry in manifest.commits if entry.left_out}
        present = [ledger for ledger in self.published if ledger.run in runs]
        if any(e.run in lacking and not reads_alike(e.job(), job) for e in present):
            return []
        return present

    def _done(self, in_place: InPlace) -> PreparedRun:
        """Return the run that has made all files of an output that is its own input."""
        ledger = Ledger(self.storage, in_place.table_log.output, in_place.done_by)
        plan = _plan_of(ledger)
        nothing = in_place.nothing_to_do()
        if plan is None:
            raise nothing
        note = f"{nothing.message}; {nothing.hint}"
        return PreparedRun(ledger, plan, self.code, False, (note,), is_contained=True)

    def _store(
        self, job: Job, planning: PlannedInput, mode: str, abort_days: float | None
    ) -> PreparedRun:
        result, tables = planning.result, planning.tables.versions
        plan = result.plan
        code, same = self._code_of_run(job, plan, tables)
        if job.output.partition_by is None:  # Otherwise folders are those of the result.
            for output in job.all_outputs.values():
                refuse_long_keys(output.uri, plan)
        sees = run_id(plan, job, code, tables=tables, sees=False) not in self._known
        run = run_id(plan, job, code, tables=tables, sees=sees)
        skips = job.input.on_bad_object == "skip" and self._fails_at_bad_objects(job, run)
        if skips:
            run = run_id(plan, job, code, tables=tables, skips=True, sees=sees)
        is_new = run not in self._known
        manifest = self._prepare_output(job, planning.probe, plan, run, mode)
        if planning.version not in (None, manifest.number):
            raise ConflictError(
                f"version {manifest.number} of {job.output.uri} was published while the run was "
                f"planned, which reads version {planning.version}",
                hint="run the job again",
            )
        further = []
        for name in list(job.outputs)[1:]:
            own, probe = job.of_output(name), planning.probe.of_output(name)
            even = partial(_refuse_uneven, job, manifest, own, earlier=self.published)
            other = self._prepare_output(own, probe, plan, run, own.output.mode, compare=even)
            columns = tuple(probe.result_columns)
            further.append(FurtherOutput(own.output.uri, own.output.mode, other.number, columns))
        notes = (
            *planning.notes,
            *result.explain.warnings,
            *_check_lifecycle(job, plan, abort_days),
            *same,
        )
        ledger = Ledger.create(
            self.storage,
            job,
            plan,
            code,
            manifest.number,
            tables=tables,
            columns=tuple(planning.probe.result_columns),
            types=tuple(planning.probe.result_columns.values()),
            skips=skips,
            sees=sees,
            mode=mode,
            origin=origin_of(job, self.settings, result),
            further=further,
        )
        if not is_new:
            # The user submits the run again to the output as it is now: no conflict with that.
            numbers = (manifest.number, *(output.base for output in further))
            for each, number in zip(ledger.of_outputs(), numbers, strict=True):
                each.accept(number)
        return PreparedRun(
            ledger, plan, self.code, is_new, notes if is_new else (), self._last_speed()
        )

    def _prepare_output(
        self,
        job: Job,
        probe: Probe,
        plan: Plan,
        run: str,
        mode: str,
        *,
        compare: Callable[[Manifest], None] = lambda _: None,
    ) -> Manifest:
        """Check an output before its run is stored, and finish open claims of others.

        Args:
            job: The job, with this output.
            probe: Probe of its transform, with the schema of this output.
            plan: Plan of its input.
            run: Id of the run.
            mode: Mode of the run.
            compare: Compares the manifest of an output that is appended to with that of the first.

        Returns:
            The current manifest of the output.
        """
        table_log = TableLog(self.storage, job.output.uri)
        try:
            manifest = prepare_output(table_log, mode, run)
        except OutputNotEmptyError as error:
            raise self.rebuild.explain(error) from error
        _refuse_after_backfills(manifest, job)
        if job.output.partition_by is None:
            refuse_former_folders(table_log, mode, plan, [run])
        if job.output.mode == "append":
            compare(manifest)
            # A run that was published without some chunks, or whose driver died, is not noted as
            # published; what the manifest lists of it counts.
            refuse_appending_again(table_log, manifest, job, plan, run)
        refuse_losing_rows(job, plan)
        replacing = job.model_copy(update={"output": job.output.model_copy(update={"mode": mode})})
        footprints = planned_footprints(replacing, plan)
        refuse_planned_columns(table_log, manifest, job, probe, footprints)
        return manifest

    def _last_speed(self) -> float:
        last = None if self.previous is None else read_driver(self.storage, self.previous.prefix)
        return last.speed if last is not None and last.code == self.code else 0.0

    def _fails_at_bad_objects(self, job: Job, run: str) -> bool:
        """Whether there is a run of this id whose job fails at a bad object."""
        try:
            return Ledger(self.storage, job.output.uri, run).job().input.on_bad_object == "fail"
        except (StateError, JobError, ObjectMissingError):
            return False

    def _code_of_run(
        self, job: Job, plan: Plan, tables: tuple[TableVersion, ...]
    ) -> tuple[str, tuple[str, ...]]:
        """Choose the fingerprint that names the run, and notes for the user.

        If the same run exists under another fingerprint scheme and `accept_code` is set, use its
        fingerprint.

        Raises:
            ConflictError: that run has published, and the output's mode is error.
        """
        record = self.previous.record() if self.previous is not None else None
        if record is None or scheme_of(record.fingerprint) == scheme_of(self.code):
            return self.code, ()
        ids = {
            run_id(plan, job, record.fingerprint, tables=tables, sees=sees)
            for sees in (True, False)
        }
        if record.run not in ids:
            return self.code, ()
        if self.resume.accept_code:
            return record.fingerprint, ()
        difference = explain_code(record, self.code, job, self.settings)
        explanation = f"run {record.run} has mapped the same input, and {difference}"
        if job.output.mode == "error":
            raise ConflictError(
                explanation,
                hint="if the code has not changed in effect, resume that run: --accept-code",
            )
        return self.code, (
            f"{explanation}; the input is mapped again (--accept-code would resume that run)",
        )


def _refuse_uneven(
    job: Job, manifest: Manifest, further: Job, other: Manifest, earlier: Sequence[Ledger]
) -> None:
    """Raise UsageError if two outputs that are appended to have other runs of the job.

    What these runs have read is not read again, so its rows would be in one output only.

    Args:
        job: The job, with the first output.
        manifest: Current manifest of the first output.
        further: The job with another output.
        other: Current manifest of that output.
        earlier: Ledgers of published runs of the same job.
    """
    first, second = ({entry.run for entry in m.commits} for m in (manifest, other))
    uneven = [ledger.run for ledger in earlier if (ledger.run in first) != (ledger.run in second)]
    if uneven:
        has, lacks = further.output.uri, job.output.uri
        if uneven[0] in first:
            has, lacks = lacks, has
        raise UsageError(
            f"{has} has the rows of run {uneven[0]}, and {lacks} lacks them, so that appending "
            "would leave them with different rows",
            hint=f"roll {has} back too, or {lacks} forward: chunkmap history {lacks}",
        )


def _plan_of(ledger: Ledger) -> Plan | None:
    """Return the plan of an earlier run; None if it has expired."""
    try:
        return ledger.plan()
    except ObjectMissingError:
        return None


def refuse_planned_columns(
    table_log: TableLog, manifest: Manifest, job: Job, probe: Probe, planned: Sequence[Footprint]
) -> None:
    """Refuse a plan whose result would not fit the files that stay in the output.

    Checked only if the transform's columns do not depend on its data; otherwise at publish.

    Args:
        table_log: Log of the output.
        manifest: Current manifest of the output.
        job: The job.
        probe: Probe of its transform.
        planned: Footprints of what is published first (see `planned_footprints`).

    Raises:
        SchemaChangedError: names the columns and what to do.
        UsageError: the output cannot be the table that it is, or is to be.
    """
    in_other_folders = job.reduce is not None or job.output.partition_by is not None
    text = json.dumps(probe.result_columns if probe.is_static and job.reduce is None else {})
    additions = [Addition(files, stored_columns(text, min(files.folders))) for files in planned]
    refuse_tables(table_log, manifest, job, additions[0].columns if additions else {})
    if in_other_folders or not probe.is_static or not manifest.commits:
        return
    widens = job.output.schema_ == "widen"
    refuse_other_columns(table_log, manifest, additions, lambda: widens)


def planned_footprints(job: Job, plan: Plan, rule: str = "") -> list[Footprint]:
    """List where a plan's files will be and what they will replace, one footprint per window.

    Args:
        job: The job.
        plan: Plan of its input.
        rule: Rule of the windows (see `manifest.rule_of`); empty if published as a whole.
    """
    by_window: dict[str | None, list[str]] = {}
    for folder in folders_of(plan).str.strip_suffix("/").unique().sort():
        label = window_label(rule, folder) if rule else None
        by_window.setdefault(label, []).append(folder)
    return [_footprint(job.output.mode, rule, *pair) for pair in by_window.items()]


def _footprint(mode: str, rule: str, label: str | None, folders: list[str]) -> Footprint:
    entry = CommitEntry(
        name="", run="", mode=mode, files=1, rows=0, bytes=0, window=label, rule=rule
    )
    replaces = frozenset(folders) if mode == "overwrite-partitions" else frozenset[str]()
    return Footprint(entry, replaces, dict.fromkeys(folders, ()))


def _refuse_after_backfills(manifest: Manifest, job: Job) -> None:
    """Raise UsageError if appending the whole input would duplicate a backfill's rows."""
    if job.output.mode != "append":
        return
    windows = sum(entry.window is not None for entry in manifest.commits)
    if windows:
        raise UsageError(
            f"{job.output.uri} contains {plural(windows, 'window')} that backfills have "
            "published; a run "
            "that appends would duplicate their rows",
            hint="append what is missing: chunkmap backfill create JOB.yaml",
        )


def _replaced_tables_notes(record: RunRecord, now: tuple[TableVersion, ...]) -> tuple[str, ...]:
    """Make a note if tables were replaced since a run has read them."""
    then = {table.uri: table for table in record.tables or ()}
    replaced = [table.uri for table in now if then.get(table.uri, table) != table]
    if not replaced:
        return ()
    return (f"{', '.join(replaced)} was replaced since; rows appended before keep their values",)


def _check_lifecycle(job: Job, plan: Plan, days: float | None) -> tuple[str, ...]:
    """Check that the bucket's lifecycle rule for incomplete uploads leaves enough time for a run.

    Args:
        job: The job.
        plan: Plan of its input.
        days: Days after which the bucket aborts incomplete uploads; None if it never does.

    Returns:
        Notes for the user.

    Raises:
        UsageError: a single thread would take longer than that.
    """
    if days is None:
        return ()
    longest = plan.decoded_bytes / GUESSED_SPEED / 86400
    rule = (
        f"the bucket of {job.output.uri} aborts incomplete uploads after {days:g} "
        f"{'day' if days == 1 else 'days'}"
    )
    if longest > days:
        raise UsageError(
            f"{rule}, and this run may take {longest:.1f} days on one thread: staged outputs would "
            "be lost before they are published",
            hint="lengthen the lifecycle rule, or split the input into several jobs",
        )
    return (f"{rule}: a run that stays unpublished longer maps those chunks again",)


def _find_record(records: list[RunRecord], run: str) -> RunRecord:
    for record in records:
        if record.run == run:
            return record
    raise UsageError(f"there is no run {run}")


def runs_of_job(
    job: Job,
    storage: Storage,
    records: list[RunRecord],
    is_same: Callable[[Job, Job], bool] = is_same_job,
) -> list[RunRecord]:
    """List the runs of this job, oldest first, without those of its backfills.

    Args:
        job: The job.
        storage: Where the output is.
        records: Records of the output's runs, oldest first.
        is_same: Compares the job of a run with this one.
    """
    own = [record for record in records if record.backfill is None]

    def has_job(record: RunRecord) -> bool:
        return has_same_job(Ledger(storage, job.output.uri, record.run), job, is_same)

    return list(compress(own, map_concurrently(has_job, own)))


def unfinished_runs(same: list[RunRecord], published: list[RunRecord]) -> list[RunRecord]:
    """Select the runs of a job that may be resumed, oldest first.

    Those before one that is published were given up for it (`--replan`, `--rebuild`).
    """
    return same[same.index(published[-1]) + 1 :] if published else same


def _is_overtaken(storage: Storage, record: RunRecord) -> bool:
    """Whether another run has appended the objects of one, e.g. an older one that was resumed."""
    table_log = TableLog(storage, record.output)
    try:
        ledger = Ledger(storage, record.output, record.run)
        refuse_appended_since(table_log, table_log.manifest(), ledger)
    except ConflictError:
        return True
    return False


def is_published(storage: Storage, record: RunRecord) -> bool:
    """Whether a run is noted as published, with all its chunks."""
    return Ledger(storage, record.output, record.run).published() is not None


def _resume(
    record: RunRecord,
    code: str,
    settings: Settings,
    storage: Storage,
    *,
    accept_code: bool,
) -> PreparedRun:
    """Open a run that is planned, if its code, its tables and its output allow that.

    Args:
        record: Record of the run.
        code: Fingerprint of the code as it is now.
        settings: Settings of transforms.
        storage: Where input and output are.
        accept_code: Resume it even if the code has changed.
    """
    job = Ledger(storage, record.output, record.run).job()
    if record.fingerprint != code and not accept_code:
        raise ConflictError(
            f"run {record.run} of this job is unfinished, and "
            f"{explain_code(record, code, job, settings)}",
            hint="resume with the new code: --accept-code; or make a new plan: --replan",
        )
    replaced = replaced_tables(record.tables or ())
    if replaced:
        raise ConflictError(
            f"run {record.run} of this job is unfinished, and {replaced}, which the "
            "transform reads, was replaced since it was planned",
            hint="make a new plan with the new table: --replan; or restore the earlier version",
        )
    ledger = Ledger(storage, record.output, record.run)
    notes = [f"resuming run {record.run}: its plan of {plural(record.chunks, 'chunk')} is frozen"]
    plan = ledger.plan()
    for each in ledger.of_outputs():
        table_log, mode = TableLog(storage, each.output), each.record().mode
        manifest = prepare_output(table_log, mode, record.run)
        if is_in_place(job):
            refuse_outdated(table_log, record, plan, manifest)
        if job.output.partition_by is None:
            refuse_former_folders(table_log, mode, plan, [record.run])
        refuse_appended_since(table_log, manifest, each)
        refuse_windows_since(table_log, manifest, each)
    changes = None if is_in_place(job) else input_changes(storage, job, plan)
    if changes:
        notes.append(f"{changes}; --replan would plan them too")
    return PreparedRun(ledger, plan, code, False, tuple(notes))
