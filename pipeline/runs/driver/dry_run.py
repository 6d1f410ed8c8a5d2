"""Holding an output against its manifest, and a transform against its own promises."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from partitioning import Chunk
from partitioning.explain import left_out_for_names
from pipeline.config.job import Job
from pipeline.config.settings import Settings
from pipeline.errors import (
    EngineUnavailableError,
    InputError,
    JobError,
    ObjectMissingError,
    StateError,
    TransientStorageError,
    UsageError,
)
from pipeline.runs.driver.plan import PlannedInput, plan_input
from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.transforms.loading import resolve
from pipeline.runs.transforms.user_code import user_code
from pipeline.runs.worker.chunk import apply, filter_of, filter_polars, read_options
from pipeline.runs.worker.chunk_source import ChunkSource
from pipeline.runs.worker.key_columns import without_key_columns
from pipeline.runs.worker.reduce import combine_problem
from pipeline.storage import Storage
from pipeline.table.evidence import find_evidence
from pipeline.table.log import Catalog
from pipeline.table.manifest import Manifest

READERS = 8
"""Files read at a time."""


@contextmanager
def reaching(settings: Settings) -> Iterator[None]:
    """Around the first words with S3: when nobody answers, it is the address that is wrong.

    Raises:
        EngineUnavailableError: S3 does not answer, however often it was tried.
    """
    try:
        yield
    except TransientStorageError as error:
        where = settings.s3.endpoint_url or "Amazon's address"
        others = ", or where s3.buckets says" if settings.s3.buckets else ""
        raise EngineUnavailableError(
            f"S3 does not answer at {where} (s3.endpoint_url{others}): {error}",
            hint="is it up, and is the address right? `chunkmap config` says where it comes from",
        ) from error


def preflight(job: Job, settings: Settings, storage: Storage) -> None:
    """Refuse what is cheap to refuse, before anything is started for a job. Writes nothing.

    Raises:
        JobError, TransformNotAllowedError: the transform is not there or may not be used.
        EngineUnavailableError, BucketMissingError, AccessDeniedError: the output's state cannot
            be read.
    """
    resolve(job.transform, job.params, settings.transforms)
    with reaching(settings):
        Catalog(storage, job.output.uri).head()


@dataclass(frozen=True, slots=True)
class Verification:
    """What reading an output again showed."""

    output: str
    manifest: int
    files: int
    rows: int
    bytes: int
    left_out: int
    """Objects that could not be read, and are left out."""
    quarantine: tuple[str, ...]
    """Where the records of objects in quarantine are."""
    missing_chunks: int
    """Planned chunks that the manifest says are left out, or that are in windows of its runs that
    are not published yet."""
    problems: tuple[str, ...]
    """One sentence each; empty when all is well."""
    notes: tuple[str, ...] = ()
    """Entries that were refused in the ledgers of the manifest's runs; they do not affect the
    output."""


def verify_output(storage: Storage, output: str) -> Verification:
    """Read every file of the current manifest: size, rows, checksum; and nothing else is there.

    Raises:
        UsageError: nothing was ever published there.
    """
    catalog = Catalog(storage, output)
    head, etag = catalog.head()
    if etag is None:
        raise UsageError(f"{output} has no manifest: chunkmap has published nothing there")
    manifest = catalog.manifest(head.current)
    files = catalog.snapshot(manifest)
    problems = list(_strangers(catalog, files))
    if head.publishing is not None:
        named = " ".join(head.publishing.commits) or f"rollback to {head.publishing.rollback}"
        problems.append(f"{named} is being published, or was interrupted")
    left, said = _windows(catalog, manifest)
    problems += said
    evidence = find_evidence(catalog, manifest)
    with ThreadPoolExecutor(READERS) as pool:
        rows = files.select("key", "rows", "bytes", "sha256").iter_rows()
        problems += [p for p in pool.map(partial(_problem, catalog), rows) if p]
    return Verification(
        output=catalog.output,
        manifest=manifest.number,
        files=files.height,
        rows=int(files["rows"].sum()),
        bytes=int(files["bytes"].sum()),
        left_out=sum(entry.left_out for entry in manifest.commits),
        quarantine=tuple(sorted(evidence.values())),
        missing_chunks=left + sum(e.missing for e in manifest.commits if e.window is None),
        problems=tuple(problems),
        notes=_refused(catalog, manifest),
    )


def _refused(catalog: Catalog, manifest: Manifest) -> tuple[str, ...]:
    """What the ledgers of a manifest's runs hold that does not count."""

    def notes(run: str) -> list[str]:
        try:
            found = Ledger(catalog.storage, catalog.output, run).read().problems
        except (StateError, ObjectMissingError, JobError) as error:
            found = (f"its ledger cannot be read: {error}",)
        return [f"run {run}: {sentence}" for sentence in found]

    runs = list(dict.fromkeys(entry.run for entry in manifest.commits))
    with ThreadPoolExecutor(READERS) as pool:
        return tuple(sentence for some in pool.map(notes, runs) for sentence in some)


def _windows(catalog: Catalog, manifest: Manifest) -> tuple[int, list[str]]:
    """Planned chunks of runs with windows that no commit has, and what is wrong with that.

    Counted over all manifests: what was replaced since has been published all the same.
    """
    runs = dict.fromkeys(entry.run for entry in manifest.commits if entry.window is not None)
    published = Counter({run: 0 for run in runs})
    for entry in catalog.entries():
        if entry.run in runs:
            published[entry.run] += entry.files
    left, problems = 0, []
    for run, count in published.items():
        ledger = Ledger(catalog.storage, catalog.output, run)
        chunks = ledger.record().chunks
        left += chunks - count
        if count > chunks or (count < chunks and ledger.published() is not None):
            problems.append(
                f"run {run} is noted as published, with {chunks} planned chunks, but its commits "
                f"have {count}"
            )
    return left, problems


def _strangers(catalog: Catalog, files: pl.DataFrame) -> Iterator[str]:
    named = set(files["key"].to_list())
    for info in catalog.storage.objects(catalog.output):
        key = info.uri.removeprefix(catalog.output)
        if key not in named:
            yield f"{info.uri} is in the output, but no manifest names it"


def _problem(catalog: Catalog, file: tuple[str, int, int, str]) -> str | None:
    key, rows, size, sha256 = file
    uri = catalog.output + key
    try:
        data = catalog.storage.get(uri).data
    except ObjectMissingError:
        return f"{uri} is missing"
    if len(data) != size:
        return f"{uri} has {len(data)} bytes, the manifest says {size}"
    if hashlib.sha256(data).hexdigest() != sha256:
        return f"{uri} has another checksum than the manifest says"
    found = pq.read_metadata(pa.BufferReader(data)).num_rows
    return None if found == rows else f"{uri} has {found} rows, the manifest says {rows}"


@dataclass(frozen=True, slots=True)
class Trial:
    """What a transform does to one small chunk."""

    chunk: Chunk
    columns_read: tuple[str, ...]
    schema_in: pl.Schema
    schema_out: pl.Schema
    rows_in: int
    rows_out: int
    head: pl.DataFrame
    """The first rows of the result."""
    rows_out_halves: int
    code: str
    """Fingerprint of the transform."""
    definitions: int
    """Definitions of allowed modules that the fingerprint covers."""
    notes: tuple[str, ...]
    """What the fingerprint could not tell, what it covers instead, and what of the input is left
    out for its name."""
    """What the fingerprint could not tell, and what it covers instead."""
    tables: dict[str, str]
    """Tables that it reads: URI to version."""
    differs: str | None
    """How the result of the halves differs from that of the whole, or, with a reduce, how its
    `combine` depends on the grouping of chunks; None if all is well."""


def try_transform(job: Job, settings: Settings, storage: Storage, rows: int) -> Trial:
    """Run a job's transform on its smallest chunk, whole and cut in two. Writes nothing.

    A transform that groups, sorts or drops duplicates works within a chunk, so its result depends
    on where chunks are cut: halves that differ from the whole show it.

    Raises:
        PartitionColumnError: the result could not be written below its partition.
    """
    planned = plan_input(job, settings, storage)
    chunk, found = _smallest(planned), planned.result.explain
    source = ChunkSource(
        storage,
        chunk,
        planned.result.plan.dtypes,
        filter_polars(filter_of(job), planned.result.plan),
        options=read_options(job),
    )
    with planned.tables.used():
        try:
            with user_code(chunk.fragments[0].uri, "cannot be read:", InputError):
                whole = source.scan().collect()
            result = apply(planned.transform, source.scan())
            if job.reduce is None:
                without_key_columns(result, chunk, planned.result.plan.dtypes)
            columns = tuple(sorted(planned.probe.columns or source.columns_read))
        finally:
            source.close()
        middle = whole.height // 2
        halves = [
            apply(planned.transform, half.lazy()) for half in (whole[:middle], whole[middle:])
        ]
        return Trial(
            chunk=chunk,
            columns_read=columns,
            schema_in=whole.schema,
            schema_out=result.schema,
            rows_in=whole.height,
            rows_out=result.height,
            head=result.head(rows),
            rows_out_halves=sum(half.height for half in halves),
            code=planned.transform.fingerprint,
            definitions=planned.transform.definitions,
            notes=(
                *planned.transform.notes,
                *left_out_for_names(found.objects_unnamed, found.unnamed_example),
            ),
            tables={one.uri: one.label for one in planned.tables.versions},
            differs=_difference(result, halves)
            if job.reduce is None
            else _reduce_problem(job.reduce.combine, planned, settings, whole),
        )


def _reduce_problem(
    combine: str, planned: PlannedInput, settings: Settings, whole: pl.DataFrame
) -> str | None:
    """Whether the job's `combine` is associative, tried on the partials of three pieces."""
    third = max(1, whole.height // 3)
    cuts = (whole[:third], whole[third : 2 * third], whole[2 * third :])
    partials = [apply(planned.transform, cut.lazy()) for cut in cuts]
    return combine_problem(combine, resolve(combine, {}, settings.transforms).call, partials)


def _smallest(planned: PlannedInput) -> Chunk:
    """One row group of the smallest chunk: enough to see, quick to read."""
    plan = planned.result.plan
    if not len(plan):
        raise UsageError("the filter leaves no chunk to try")
    sizes = plan.chunk_table["decoded_bytes"].to_pylist()
    chunk = plan.chunk(sizes.index(min(sizes)))
    return replace(chunk, fragments=chunk.fragments[:1])


def _difference(whole: pl.DataFrame, halves: list[pl.DataFrame]) -> str | None:
    schemas = {str(half.schema) for half in halves} - {str(whole.schema)}
    if schemas:
        return f"the halves have another schema: {schemas.pop()}"
    joined = pl.concat(halves)
    if joined.height != whole.height:
        return f"whole it gives {whole.height} rows, cut in two {joined.height}"
    if joined.equals(whole):
        return None
    if _digest(joined) == _digest(whole):
        return "cut in two it gives the same rows in another order"
    return "cut in two it gives other values"


def _digest(frame: pl.DataFrame) -> list[str]:
    """The rows in an order of their own, comparable whatever their types."""
    return sorted(str(row) for row in frame.iter_rows())
