"""From a job to a run: probe the transform, plan the input, store the plan or resume one."""

from __future__ import annotations

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
from partitioning.listing import list_objects
from pipeline.catalog import Catalog
from pipeline.errors import ConflictError, InputError, JobError
from pipeline.job import Job
from pipeline.ledger import Ledger, run_id, runs_of
from pipeline.process import filter_of
from pipeline.publish import prepare_output
from pipeline.reading import polars_schema
from pipeline.records import RunRecord
from pipeline.settings import Settings
from pipeline.storage import Storage, StorageReader, parse
from pipeline.transforms import Transform, fingerprint_of, resolve


@dataclass(frozen=True, slots=True)
class Planned:
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


def request_of(job: Job, settings: Settings, size_columns: tuple[str, ...] | None) -> PlanRequest:
    """What the planner is asked for."""
    limits, chunks, source = settings.planner, job.chunks, job.input
    return PlanRequest(
        uri=tuple(_normal(uri) for uri in source.uri),
        columns=source.columns,
        size_columns=size_columns,
        filter=filter_of(job),
        include=source.include,
        exclude=source.exclude,
        schema=source.schema_,
        on_bad_object=source.on_bad_object,
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


def _normal(uri: str) -> str:
    return uri if "://" in uri else parse(uri).uri


def probe(transform: Transform, schema: pl.Schema) -> Probe:
    """Run a transform on no rows, and watch what it asks for.

    Raises:
        JobError: it does not return a LazyFrame.
        InputError: it needs a column that the data lacks.
    """
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
            return Probe(columns_read(result, asked), result.collect().schema)
    except pl.exceptions.ColumnNotFoundError as error:
        missing = str(error).splitlines()[0]
        raise InputError(
            f"{transform.name} needs a column that the data lacks: {missing}",
            hint=f"the data has {', '.join(schema)}",
        ) from error
    except Exception:
        # Some transforms cannot cope with no rows; the chunks will show what is wrong.
        return Probe(None, None)
    kind = type(result).__name__
    raise JobError(f"{transform.name} returned {kind}, not a LazyFrame")


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


def plan_input(
    job: Job,
    settings: Settings,
    storage: Storage,
    previous: Plan | None = None,
    mapper: Any = None,
) -> PlannedInput:
    """Plan a job's input; nothing is written.

    Raises:
        PlanningError: the input cannot be planned (missing, bad objects, differing schemas …).
        JobError, InputError, TransformNotAllowedError: the transform does not fit.
    """
    transform = resolve(job.transform, job.params, settings.transforms)
    reader = StorageReader(storage)
    request = request_of(job, settings, None)
    if job.input.columns is None:
        schema = _sample_schema(request, reader)
        columns = probe(transform, polars_schema(schema)).columns if schema else None
        request = replace(request, size_columns=columns)
    result = plan_dataset(request, reader, previous=previous, mapper=mapper)
    visible = polars_schema(result.plan.schema)
    if job.input.columns is not None:
        visible = pl.Schema({name: visible[name] for name in job.input.columns})
    return PlannedInput(result, transform, probe(transform, visible))


def _sample_schema(request: PlanRequest, reader: StorageReader) -> Any:
    """The schema of one readable object: enough to ask a transform which columns it reads."""
    uris = sorted(info.uri for info in list_objects(request, reader).objects)
    for uri in uris[:3]:
        alone = replace(request, uri=uri, filter=(), include=("**",), exclude=())
        with suppress(PlanningError):
            return plan_dataset(alone, reader).plan.schema
    return None


@dataclass(frozen=True, slots=True)
class Resume:
    """What a user allows when a run is taken up again."""

    accept_code: bool = False
    """Go on although the transform's code has changed."""
    replan: bool = False
    """Plan anew instead of going on with the frozen plan."""


def plan_run(job: Job, settings: Settings, storage: Storage, resume: Resume) -> Planned:
    """Find the run that a job means: an unfinished one of the same job, or a new one.

    Raises:
        ConflictError: the unfinished run was made by other code.
        And what `plan_input` and `prepare_output` raise.
    """
    code = fingerprint_of(job.transform, job.params, settings.transforms)
    records = runs_of(storage, job.output.uri)
    unfinished = [one for one in _same_job(job, storage, records) if not _published(storage, one)]
    if unfinished and not resume.replan:
        return _resumed(unfinished[-1], code, storage, resume)
    previous = Ledger(storage, job.output.uri, records[-1].run).plan() if records else None
    planned = plan_input(job, settings, storage, previous)
    plan = planned.result.plan
    run = run_id(plan, job, code)
    manifest = prepare_output(Catalog(storage, job.output.uri), job.output.mode, run)
    ledger = Ledger.create(storage, job, plan, code, manifest.number)
    is_new = run not in {one.run for one in records}
    return Planned(ledger, plan, code, is_new, planned.result.explain.warnings if is_new else ())


def _same_job(job: Job, storage: Storage, records: list[RunRecord]) -> list[RunRecord]:
    """The runs of just this job file, oldest first."""
    text = job.to_yaml()
    ledgers = [(one, Ledger(storage, job.output.uri, one.run)) for one in records]
    return [one for one, ledger in ledgers if ledger.job().to_yaml() == text]


def _published(storage: Storage, record: RunRecord) -> bool:
    return Ledger(storage, record.output, record.run).published() is not None


def _resumed(record: RunRecord, code: str, storage: Storage, resume: Resume) -> Planned:
    if record.fingerprint != code and not resume.accept_code:
        raise ConflictError(
            f"run {record.run} of this job is unfinished, and {record.transform} has changed since "
            f"(fingerprint {record.fingerprint}, now {code})",
            hint="go on with the new code: --accept-code; or begin anew: --replan",
        )
    ledger = Ledger(storage, record.output, record.run)
    prepare_output(Catalog(storage, record.output), record.mode, record.run)
    note = f"resuming run {record.run}: its plan of {record.chunks} chunks is frozen"
    return Planned(ledger, ledger.plan(), code, False, (note,))
