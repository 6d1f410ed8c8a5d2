"""Read, transform, encode and stage one chunk. Plain functions, independent of Dask and Prefect."""

from __future__ import annotations

import json
import math
import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from itertools import chain
from typing import Any

import polars as pl

from partitioning import Chunk, Filter, Plan, Term, filter_expr
from pipeline.concurrency import single_flight
from pipeline.config.job import Job, Output
from pipeline.config.settings import Settings, own_settings
from pipeline.errors import CheckError, RowsRefusedError, StateError, TransformError
from pipeline.quality.figures import Figures, Wanted
from pipeline.quality.rows import FailingRows, RowSchema, free_name
from pipeline.report.humanize import plural
from pipeline.runs.ledger.check_files import checked_text, store_columns, store_rejected
from pipeline.runs.ledger.keys import output_uri
from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.ledger.records import Completion, RunRecord, digest_of
from pipeline.runs.ledger.segments import MAX_LINE, schema_line
from pipeline.runs.ledger.then import ThenLedger, open_ledger
from pipeline.runs.transforms.loading import (
    Transform,
    job_fingerprint,
    load_schema,
    load_transform,
)
from pipeline.runs.transforms.user_code import user_code
from pipeline.runs.worker.chunk_source import ChunkSource, ReadOptions, engine_for
from pipeline.runs.worker.encoding import (
    FileFormat,
    encodings_text,
    refuse_objects,
    write_parquet,
)
from pipeline.runs.worker.groups import GroupMap
from pipeline.runs.worker.keep import (
    Kept,
    KeptFile,
    Tail,
    batches_of,
    kept_file,
    kept_of,
    make_tail,
    refuse_other_rows,
    result_schema,
    stage_file,
    whole_frame,
)
from pipeline.runs.worker.key_columns import without_key_columns
from pipeline.runs.worker.memory import resident_bytes
from pipeline.runs.worker.null_types import fill_types
from pipeline.runs.worker.read_ahead import Overlap, ReadAhead
from pipeline.runs.worker.run_settings import received_settings
from pipeline.storage import Storage, Tables, own_storage, staged_area

_NO_TURN = nullcontext()
MAX_REASON = 500
"""Characters of the reason why a file was rewritten."""
_SHOWN = 60
"""Characters of a name or a type that an error shows."""


@dataclass(frozen=True, slots=True)
class FurtherLedger:
    """The ledger of an output after the first, where a run has several."""

    name: str
    """Name of the output in the job."""
    ledger: Ledger
    job: Job
    """The job with this output as `output`."""
    columns: tuple[str, ...]
    """Names of its files' columns, in the order that all of them have. Empty if unknown."""


@dataclass(frozen=True, slots=True)
class RunContext:
    """Everything needed to map chunks of one run; opened once per process."""

    storage: Storage
    settings: Settings
    ledger: Ledger
    record: RunRecord
    job: Job
    plan: Plan
    transform: Transform
    code: str
    """Fingerprint of all the job's code."""
    schema: pl.Schema
    """Schema of the dataset, as Polars reads it."""
    row_filter: pl.Expr | None
    tables: Tables
    """Tables that the transform may read, in the run's versions."""
    ahead: ReadAhead = field(default_factory=ReadAhead)
    """What this process has learnt about reading chunks of the run ahead."""
    uploads: Overlap = field(default_factory=Overlap)
    """What it has learnt about staging results."""
    row_schema: RowSchema | None = None
    """Rules for the rows of each chunk's result."""
    further: tuple[FurtherLedger, ...] = ()
    """The outputs after the first, if there are several."""
    kept: Kept | None = None
    """Columns of the input that files keep as they are; None: all are written."""


@single_flight(2)
def open_run(run_uri: str, fingerprint: str, sent: str = "") -> RunContext:
    """Open a run's context from storage and this process's settings.

    Args:
        run_uri: `<output>.chunkmap/runs/<run>/`, or that of a plan of pieces below it.
        fingerprint: Fingerprint of the driver's code.
        sent: Settings of the run (see `sent_settings`).

    Raises:
        TransformError: this worker has other code.
    """
    settings, storage = received_settings(own_settings(), sent), own_storage()
    ledger = open_ledger(storage, run_uri)
    job, plan = ledger.job(), ledger.plan()
    transform = transform_of(ledger, job, settings)
    code = job_fingerprint(ledger.whole_job(), settings.transforms)
    if code != fingerprint:
        raise TransformError(
            f"this worker's {ledger.whole_job().transform} has fingerprint {code}, the driver's "
            f"{fingerprint}",
            hint="deploy the driver's version of the code to the workers; differences on each "
            "worker: chunkmap cluster doctor --job JOB.yaml",
        )
    record = ledger.record()
    if record.plan != plan.id:
        raise StateError(
            ledger.prefix + "plan.arrow", f"it is plan {plan.id}, but the run has {record.plan}"
        )
    ledger.know(plan, job)
    further = []
    for name, other in list(zip(job.outputs, ledger.of_outputs(), strict=False))[1:]:
        other.know(plan, job.of_output(name))
        further.append(FurtherLedger(name, other, other.job(), other.record().columns))
    return RunContext(
        storage=storage,
        settings=settings,
        ledger=ledger,
        record=record,
        job=job,
        plan=plan,
        transform=transform,
        code=code,
        schema=plan.dtypes,
        row_filter=filter_polars(filter_of(job), plan),
        tables=Tables(record.tables),
        row_schema=row_schema_of(job, settings),
        further=tuple(further),
        kept=kept_of(job.output, plan.dtypes, virtual_columns(job, plan)),
    )


def virtual_columns(job: Job, plan: Plan) -> frozenset[str]:
    """Return the columns of a job's input that are not in its files."""
    named = job.input.object_column
    return frozenset((*plan.hive_columns, *([named] if named is not None else ())))


def transform_of(ledger: Ledger, job: Job, settings: Settings) -> Transform:
    """Load what maps a chunk of a run, or the groups of a piece of its reduced result."""
    transform = load_transform(job.transform, job.params, settings.transforms)
    if not isinstance(ledger, ThenLedger):
        return transform
    return replace(transform, call=GroupMap(transform.name, transform.call, ledger.by))


def row_schema_of(job: Job, settings: Settings) -> RowSchema | None:
    """Load the schema of a job's rows, if it has one."""
    rows = job.checks.rows
    return None if rows is None else load_schema(rows.schema_, settings.transforms)


def filter_of(job: Job) -> Filter:
    """Convert the job's filter to the planner's terms."""
    return tuple(tuple(Term(*term) for term in group) for group in job.input.filter or ())


def filter_polars(terms: Filter, plan: Plan) -> pl.Expr | None:
    """Convert filter terms to an expression over the plan's schema."""
    return filter_expr(terms, plan.schema) if terms else None


def read_options(job: Job) -> ReadOptions:
    """Return the options for reading a job's input."""
    source = job.input
    return ReadOptions(
        columns=source.columns,
        int96=source.int96,
        object_column=source.object_column,
        verify_checksums=source.verify_checksums,
        skip_unreadable=source.on_bad_object != "fail",
    )


def open_chunk(context: RunContext, chunk: Chunk) -> ChunkSource:
    """Open a chunk for reading."""
    return ChunkSource(
        context.storage,
        chunk,
        context.schema,
        context.row_filter,
        options=read_options(context.job),
    )


def query_of(transform: Transform, frame: pl.LazyFrame, *, keeps: bool = False) -> pl.LazyFrame:
    """Call a transform with a frame, and return its query.

    Args:
        transform: Transform of the job.
        frame: Its input.
        keeps: Whether the result must have the rows of the input (see `refuse_other_rows`).

    Raises:
        TransformError: the transform raised, or did not return a LazyFrame, or its query may drop,
            add or reorder rows.
    """
    with user_code(transform.name):
        result = transform.call(frame)
        if not isinstance(result, pl.LazyFrame):
            raise TransformError(not_a_frame(transform.name, result))
        if keeps:
            refuse_other_rows(transform.name, frame, result)
        return result


def apply(
    transform: Transform, frame: pl.LazyFrame, size: float = math.inf, *, keeps: bool = False
) -> pl.DataFrame:
    """Run a transform on a frame.

    Args:
        transform: Transform of the job.
        frame: Its input.
        size: Decoded bytes of the input, if known.
        keeps: As of `query_of`.

    Raises:
        TransformError: as `query_of`, or the query raised.
        ChunkmapError: the frame could not be read.
    """
    query = query_of(transform, frame, keeps=keeps)
    with user_code(transform.name):
        return query.collect(engine=engine_for(size))


def not_a_frame(transform: str, result: object) -> str:
    """Say that a transform returned something else than a LazyFrame."""
    more = "; for several outputs, name them in the job (outputs)"
    return f"{transform} returned {type(result).__name__}, not a LazyFrame" + (
        more if isinstance(result, dict) else ""
    )


def apply_all(
    transform: Transform, frame: pl.LazyFrame, names: Collection[str], size: float = math.inf
) -> dict[str, pl.DataFrame]:
    """Run a transform of several outputs on a frame; the input is read once for all of them.

    Args:
        transform: Transform of the job.
        frame: Its input.
        names: Names of the outputs.
        size: Decoded bytes of the input, if known.

    Raises:
        TransformError: the transform raised, or did not return a LazyFrame for each output.
        ChunkmapError: the frame could not be read.
    """
    with user_code(transform.name):
        result = transform.call(frame)
        problem = wrong_outputs(transform.name, result, names)
        if problem:
            raise TransformError(problem)
        frames = pl.collect_all([result[name] for name in names], engine=engine_for(size))
    return dict(zip(names, frames, strict=True))


def results_of(
    transform: Transform, frame: pl.LazyFrame, job: Job, size: float = math.inf
) -> dict[str, pl.DataFrame]:
    """Run a job's transform on a frame; return its result for each output, by name.

    Raises as `apply` and `apply_all`.
    """
    if job.outputs:
        return apply_all(transform, frame, job.outputs, size)
    keeps = job.output.keep is not None
    return {name: apply(transform, frame, size, keeps=keeps) for name in job.all_outputs}


def wrong_outputs(transform: str, result: object, names: Collection[str]) -> str:
    """Say why a result is not a LazyFrame for each of these outputs; empty if it is."""
    wanted = f"a dict with a LazyFrame for each of its outputs ({', '.join(names)})"
    if not isinstance(result, dict):
        return f"{transform} returned {type(result).__name__}, not {wanted}"
    if set(result) != set(names):
        keys = ", ".join(map(str, result)) or "none"
        return f"{transform} returned a dict with the keys {keys}, not {wanted}"
    odd = next((n for n in names if not isinstance(result[n], pl.LazyFrame)), None)
    if odd is None:
        return ""
    return f"{transform} returned {type(result[odd]).__name__} for {odd}, not a LazyFrame"


def encode(frame: pl.DataFrame, job: Job) -> tuple[memoryview, str]:
    """Encode a frame as the bytes of a Parquet file.

    Returns:
        The file, and its columns by encoding (see `Completion.encodings`).
    """
    with user_code(job.transform, "returned a frame that cannot be written:"):
        data, chosen = write_parquet(frame, FileFormat.of(job.output))
        return data, encodings_text(chosen)


def encode_tail(
    file: KeptFile, frames: Iterable[pl.DataFrame], schema: pl.Schema, job: Job
) -> Tail:
    """Encode new columns as they come, and make what follows the bytes of the old file.

    Args:
        file: The old file.
        frames: New columns of its rows, in order.
        schema: Schema of the frames.
        job: The job.
    """
    with user_code(job.transform, "returned a frame that cannot be written:"):
        return make_tail(file, frames, schema, FileFormat.of(job.output))


def arrange(frame: pl.DataFrame, job: Job) -> pl.DataFrame:
    """Put the rows of a result in the order of its files (`output.sort_by`).

    Raises:
        TransformError: the result lacks columns that the output names, or they have no order.
    """
    problem = missing_column(job.output, frame.columns)
    if problem:
        raise TransformError(problem)
    if not job.output.sort_by:
        return frame
    with user_code(job.transform, "returned columns that cannot be sorted (output.sort_by):"):
        return sorted_rows(frame, job.output.sort_by)


def sorted_rows(frame: pl.DataFrame, names: Sequence[str]) -> pl.DataFrame:
    """Sort rows by those of some columns that a frame has; equal rows keep their order."""
    # By position: a name such as `*` or `^k$` would be taken as a pattern.
    keys = [pl.nth(frame.columns.index(name)) for name in names if name in frame.columns]
    return frame.sort(keys, maintain_order=True) if keys else frame


def missing_column(output: Output, columns: Collection[str]) -> str:
    """Name a column that an output's settings name and a result lacks; empty if there is none."""
    for key in ("partition_by", "sort_by", "dictionary"):
        for name in getattr(output, key) or ():
            if name not in columns:
                near = get_close_matches(name, columns, 1)
                return (
                    f"output.{key} names the column {name!r}, which the result lacks; "
                    + (f"did you mean {near[0]!r}? " if near else "")
                    + f"it has {', '.join(columns) or 'no columns'}"
                )
    return ""


@dataclass(frozen=True, slots=True)
class FurtherResult:
    """The result of a chunk for an output after the first."""

    output: FurtherLedger
    frame: pl.DataFrame
    frame_schema: str
    """Schema of the frame, as JSON."""
    filled: tuple[str, ...] = ()
    """Names of cast all-null columns (see `Completion.filled`)."""


@dataclass(frozen=True, slots=True)
class ComputedChunk:
    """A chunk that is computed, but not staged."""

    chunk: Chunk
    frame: pl.DataFrame
    frame_schema: str
    """Schema of the frame, as JSON."""
    rows_in: int
    bytes_in: int
    started: float
    read_seconds: float
    compute_seconds: float
    left_out: tuple[str, ...] = ()
    """URI and reason of each object that could not be read (see `Completion.left_out`)."""
    filled: tuple[str, ...] = ()
    """Names of cast all-null columns (see `Completion.filled`)."""
    encode_seconds: float = 0.0
    memory: int = 0
    """Resident bytes of this process after the transform."""
    failing: FailingRows | None = None
    """Rows that break rules of the job's schema; None: it has none."""
    rejected: pl.DataFrame | None = None
    """These rows, if they are in quarantine instead of the frame."""
    further: tuple[FurtherResult, ...] = ()
    """Results for the outputs after the first."""
    file: KeptFile | None = None
    """File whose columns are kept; None: the frame is the whole file."""
    tail: Tail | None = None
    """New columns of a file whose columns are kept, encoded; the frame has none."""
    rewritten: str = ""
    """Why a file of which columns are to be kept is rewritten."""
    measured: pl.DataFrame | None = None
    """Columns that checks look into, if they are not those of the frame."""


def in_order(frame: pl.DataFrame, names: Sequence[str]) -> pl.DataFrame:
    """Put a frame's columns in this order, if it has exactly these columns."""
    if frame.columns == list(names) or set(frame.columns) != set(names):
        return frame
    return frame[list(names)]


def schema_text(frame: pl.DataFrame) -> str:
    """Format a frame's schema as JSON (see `types_text`)."""
    return types_text(frame.schema)


def types_text(schema: pl.Schema) -> str:
    """Format the schema of a result as JSON.

    Raises:
        TransformError: a column has Python objects, or the ledger cannot hold the schema.
    """
    refuse_objects(schema)
    columns = {name: str(kind) for name, kind in schema.items()}
    text = json.dumps(columns)
    size = len(schema_line(text))
    if size < MAX_LINE:
        return text
    sizes = {name: len(name) + len(kind) for name, kind in columns.items()}
    name = max(sizes, key=lambda name: sizes[name])
    raise TransformError(
        f"the schema of the result has {size:,} bytes, more than the {MAX_LINE:,} that the ledger "
        f"can hold; its largest column is {name[:_SHOWN]!r}, whose name and type have "
        f"{sizes[name]:,} characters ({columns[name][:_SHOWN]})",
        hint="return fewer columns, or cast an Enum of many categories to String",
    )


def compute(
    context: RunContext,
    chunk: Chunk,
    source: ChunkSource,
    read_seconds: float,
    types: Mapping[str, Mapping[str, pl.DataType]] | None = None,
) -> ComputedChunk:
    """Transform a chunk, and cast all-null columns of the results to types.

    Args:
        context: Context of the run.
        chunk: The chunk.
        source: Where it is read from.
        read_seconds: Seconds in which it was read ahead.
        types: Types of columns by the name of the output; that of the first is empty.
    """
    started = time.time()
    clock = time.perf_counter()
    types = types or {}
    with context.tables.used():
        if context.kept is not None:
            result = keep_columns(context, context.kept, chunk, source, types.get("", {}))
        else:
            result = _transform(context, chunk, source, types)
    seconds = time.perf_counter() - clock
    waited = min(source.waited_seconds, seconds)
    rejected = result.rejected
    return ComputedChunk(
        chunk=chunk,
        frame=result.frame,
        frame_schema=types_text(result.schema),
        rows_in=chunk.rows - source.rows_left_out - source.rows_filtered,
        bytes_in=source.bytes_read,
        started=started - read_seconds,
        read_seconds=read_seconds + waited,
        compute_seconds=seconds - waited,
        left_out=source.left_out,
        filled=result.filled,
        encode_seconds=result.encode_seconds,
        memory=resident_bytes(),
        failing=result.failing,
        rejected=None
        if rejected is None
        else rejected.with_columns(pl.lit(chunk.id).alias(free_name("chunkmap_chunk", rejected))),
        further=result.further,
        file=result.file,
        tail=result.tail,
        rewritten=result.rewritten,
        measured=result.measured,
    )


@dataclass(frozen=True, slots=True)
class _Result:
    """The result of a chunk; fields as of `ComputedChunk`."""

    frame: pl.DataFrame
    schema: pl.Schema
    """Schema of the file, without the columns in its key, or of the frame."""
    filled: tuple[str, ...] = ()
    failing: FailingRows | None = None
    rejected: pl.DataFrame | None = None
    further: tuple[FurtherResult, ...] = ()
    file: KeptFile | None = None
    tail: Tail | None = None
    encode_seconds: float = 0.0
    rewritten: str = ""
    measured: pl.DataFrame | None = None


def _transform(
    context: RunContext,
    chunk: Chunk,
    source: ChunkSource,
    types: Mapping[str, Mapping[str, pl.DataType]],
) -> _Result:
    """Transform a chunk, cast all-null columns, and check rows."""
    frames = results_of(context.transform, source.scan(), context.job, chunk.decoded_bytes)
    frame = next(iter(frames.values()))
    frame, filled = fill_types(in_order(frame, context.record.columns), types.get("", {}))
    further = []
    for output in context.further:
        other = in_order(frames[output.name], output.columns)
        other, others_filled = fill_types(other, types.get(output.name, {}))
        further.append(FurtherResult(output, other, schema_text(other), others_filled))
    frame, failing, rejected = check_rows(context, frame)
    return _Result(frame, frame.schema, filled, failing, rejected, tuple(further))


def keep_columns(
    context: RunContext,
    kept: Kept,
    chunk: Chunk,
    source: ChunkSource,
    types: Mapping[str, pl.DataType],
) -> _Result:
    """Transform a chunk whose file keeps columns, and encode the new ones as they come.

    Checks of the whole result, and a file that is rewritten, need all of them at once.

    Raises:
        TransformError: the result does not have the rows of the input.
    """
    transform, job = context.transform, context.job
    query = query_of(transform, source.scan(), keeps=True)
    wanted = Wanted.of(job.checks)
    engine, at_once = engine_for(chunk.decoded_bytes), bool(wanted.identity())
    batches = batches_of(transform.name, query, chunk.rows, engine, at_once=at_once)
    computing = 0.0
    filled: tuple[str, ...] = ()

    def shaped() -> Iterator[pl.DataFrame]:
        nonlocal computing, filled
        clock = time.perf_counter()
        for batch in batches:
            new, filled = fill_types(batch, types)
            new = without_key_columns(new, chunk, context.schema)
            computing += time.perf_counter() - clock
            yield new
            clock = time.perf_counter()

    with closing(batches):
        rest = shaped()
        new = next(rest)
        frames = chain((new,), rest)
        problem = missing_column(job.output, new.columns)
        if problem:
            raise TransformError(problem)
        schema = result_schema(kept, context.schema, new.schema)
        file = kept_file(source, chunk, kept, new.schema, job.output.max_garbage)
        if isinstance(file, str):
            whole = whole_frame(source, kept, pl.concat(frames) if new.width else new)
            return _Result(whole, schema, filled, rewritten=file)
        measured = whole_frame(source, kept, new, wanted.columns) if at_once else None
        clock, computing = time.perf_counter(), 0.0
        tail = encode_tail(file, frames, new.schema, job)
        encoding = time.perf_counter() - clock - computing
        return _Result(
            pl.DataFrame(height=chunk.rows),
            schema,
            filled,
            file=file,
            tail=tail,
            encode_seconds=encoding,
            measured=measured,
        )


def check_rows(
    context: RunContext, frame: pl.DataFrame
) -> tuple[pl.DataFrame, FailingRows | None, pl.DataFrame | None]:
    """Check the rows of a chunk's result.

    Returns:
        The rows to publish, what was found (None without a schema), and the rows to keep in
        quarantine.

    Raises:
        RowsRefusedError: rows break rules, and the schema blocks.
        CheckError: the frame does not fit the schema.
    """
    rows, schema = context.job.checks.rows, context.row_schema
    if rows is None or schema is None:
        return frame, None, None
    with user_code(schema.name):
        split = schema.split(schema.typed(frame))
    found = split.found
    if not found.count or rows.severity == "warn":
        return schema.typed(frame), found, None
    if rows.severity == "quarantine":
        return split.passing, found, split.failing
    raise RowsRefusedError(
        f"{plural(found.count, 'row')} of {frame.height:,} break rules of {schema.name} "
        f"(checks.rows): {found.text}; e.g. {found.examples[0]}",
        hint="fix the data or the transform; or set checks.rows.severity to quarantine or warn, "
        "and run the job with --replan",
    )


def stage(
    context: RunContext,
    mapped: ComputedChunk,
    batch: str,
    worker: str,
    turn: AbstractContextManager[object] = _NO_TURN,
    *,
    attempt: str = "",
    to: FurtherLedger | None = None,
) -> Completion:
    """Encode and stage a computed chunk; return its completion.

    Args:
        context: Context of the run.
        mapped: The chunk.
        batch: Name of its batch.
        worker: Name of the worker.
        turn: Held while the result is encoded, so that a batch encodes one at a time.
        attempt: Id of the attempt; default a new one.
        to: Another output than the first.
    """
    job, ledger = (to.job, to.ledger) if to is not None else (context.job, context.ledger)
    with turn:
        clock = time.perf_counter()
        if mapped.tail is not None:
            data, encodings = mapped.tail.data, encodings_text(mapped.tail.encodings)
        else:
            frame = arrange(mapped.frame, job)
            data, encodings = encode(without_key_columns(frame, mapped.chunk, context.schema), job)
        encoding, clock = time.perf_counter() - clock, time.perf_counter()
    attempt = attempt or uuid.uuid4().hex
    measured = mapped.frame if mapped.measured is None else mapped.measured
    checked = check_figures(context, measured, attempt, mapped.failing)
    keep_rejected(context, mapped, attempt)
    uri = output_uri(ledger.output, context.record.run, mapped.chunk, attempt)
    result = stage_file(
        context.storage,
        mapped.file,
        data,
        uri=uri,
        attempt=attempt,
        area=staged_area(ledger.output),
    )
    seconds = time.perf_counter() - clock
    return completion_of(
        context,
        mapped,
        batch=batch,
        worker=worker,
        attempt=attempt,
        encoding_seconds=encoding,
        stage_seconds=seconds,
        bytes_out=result.staged.size,
        uri=uri,
        upload=result.staged.upload,
        parts=result.staged.parts,
        sha256=result.sha256,
        copied=result.copied,
        encodings=encodings,
        checked=checked,
    )


def stage_further(
    context: RunContext,
    mapped: ComputedChunk,
    done: Completion,
    turn: AbstractContextManager[object] = _NO_TURN,
) -> list[Completion]:
    """Stage a chunk's results for the outputs after the first; return their completions.

    Args:
        context: Context of the run.
        mapped: The chunk.
        done: Completion for the first output, whose attempt the others share.
        turn: As of `stage`.
    """
    completions = []
    for result in mapped.further:
        own = replace(
            mapped, frame=result.frame, frame_schema=result.frame_schema, filled=result.filled
        )
        attempt, to = done.attempt, result.output
        completions.append(
            stage(context, own, done.batch, done.worker, turn, attempt=attempt, to=to)
        )
    return completions


def keep_rejected(context: RunContext, mapped: ComputedChunk, attempt: str) -> None:
    """Store the rows of a chunk that are in quarantine, before its completion names them."""
    if mapped.rejected is not None:
        ledger = context.ledger
        store_rejected(context.storage, ledger.state, ledger.run, attempt, mapped.rejected)


def check_figures(
    context: RunContext, frame: pl.DataFrame, attempt: str, failing: FailingRows | None = None
) -> str:
    """Measure what the job's checks need of a result, and store the columns that they look into.

    Returns:
        The figures, as the completion of the attempt holds them; empty if nothing is needed.

    Raises:
        CheckError: the result lacks a column that the checks name, or it is of another type.
    """
    wanted = Wanted.of(context.job.checks)
    if not wanted.identity():
        return "" if failing is None else checked_text(Figures(frame.height), failing=failing)
    problem = wanted.problem(frame.schema)
    if problem:
        raise CheckError(problem, hint="fix the job's checks.run, or the transform")
    kept = None
    if wanted.keeps:
        prefix = context.ledger.run_prefix
        kept = store_columns(context.storage, prefix, attempt, frame, wanted.kept)
    return checked_text(wanted.measure(frame), kept, failing)


def completion_of(
    context: RunContext,
    mapped: ComputedChunk,
    *,
    stage_seconds: float,
    encoding_seconds: float = 0.0,
    **where: Any,
) -> Completion:
    """Make the completion of a computed chunk; `where` holds the fields of its staged output.

    Args:
        context: Context of the run.
        mapped: The chunk.
        stage_seconds: Seconds in staging its result.
        encoding_seconds: Seconds in encoding it, unless the chunk counts them already.
        where: Fields of its staged output.
    """
    compute_seconds = mapped.compute_seconds + encoding_seconds
    return Completion(
        chunk=mapped.chunk.id,
        index=mapped.chunk.index,
        started=mapped.started,
        seconds=mapped.read_seconds + compute_seconds + stage_seconds,
        read_seconds=mapped.read_seconds,
        compute_seconds=compute_seconds,
        stage_seconds=stage_seconds,
        rows_in=mapped.rows_in,
        rows_out=mapped.frame.height,
        bytes_in=mapped.bytes_in,
        code=context.code,
        schema=digest_of(mapped.frame_schema),
        left_out=mapped.left_out,
        filled=mapped.filled,
        encode_seconds=mapped.encode_seconds + encoding_seconds,
        rewritten=mapped.rewritten[:MAX_REASON],
        memory=mapped.memory,
        **where,
    )
