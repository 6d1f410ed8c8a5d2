"""Try a transform on one small chunk, and hold it to its promises."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from partitioning import Chunk
from partitioning.explain import left_out_for_names
from pipeline.config.job import Job
from pipeline.config.settings import Settings
from pipeline.errors import (
    InputError,
    UsageError,
)
from pipeline.runs.driver.plan import PlannedInput, plan_input
from pipeline.runs.transforms.loading import load_transform
from pipeline.runs.transforms.user_code import user_code
from pipeline.runs.worker.chunk import (
    apply,
    filter_of,
    filter_polars,
    read_options,
)
from pipeline.runs.worker.chunk_source import ChunkSource
from pipeline.runs.worker.key_columns import without_key_columns
from pipeline.runs.worker.reduce import call_and_collect
from pipeline.storage import Storage


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
    return combine_problem(combine, load_transform(combine, {}, settings.transforms).call, partials)


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


def combine_problem(
    name: str, call: Callable[..., Any], partials: Sequence[pl.DataFrame]
) -> str | None:
    """How a `combine` breaks its promise on three partials, in a sentence; None if it keeps it.

    It must not matter in which groups partials are combined: combine([a, b, c]) must equal
    combine([combine([a, b]), c]) and combine([a, combine([b, c])]), but for the order of rows and
    the last digits of floating-point sums.

    Raises:
        TransformError: it raised, or did not return a LazyFrame.
    """
    a, b, c = partials

    def join(*frames: pl.DataFrame) -> pl.DataFrame:
        return call_and_collect(name, call, [frame.lazy() for frame in frames])

    whole = join(a, b, c)
    if whole.schema != a.schema:
        return f"{name} changes the columns from {dict(a.schema)} to {dict(whole.schema)}"
    for other in (join(join(a, b), c), join(a, join(b, c))):
        if not _alike(whole, other):
            return f"{name} is not associative: its result depends on how chunks are grouped"
    return None


def _alike(one: pl.DataFrame, other: pl.DataFrame) -> bool:
    from polars.testing import assert_frame_equal

    try:
        assert_frame_equal(one, other, check_row_order=False, rel_tol=1e-9)
    except AssertionError:
        return False
    return True
