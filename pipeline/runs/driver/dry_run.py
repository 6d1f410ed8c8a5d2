"""Run a transform on one small chunk, and check that its result does not depend on chunking."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
    arrange,
    filter_of,
    filter_polars,
    read_options,
    results_of,
    virtual_columns,
)
from pipeline.runs.worker.chunk_source import ChunkSource
from pipeline.runs.worker.groups import GroupMap, group_sizes, groups_of, in_groups
from pipeline.runs.worker.keep import Comparison, compare_ways, kept_of, refuse_other_count
from pipeline.runs.worker.key_columns import without_key_columns
from pipeline.runs.worker.reduce import call_and_collect
from pipeline.runs.worker.stage_slices import by_folder
from pipeline.storage import Storage


@dataclass(frozen=True, slots=True)
class GroupTrial:
    """Result of the function `then` on one group of one small chunk's reduced result."""

    key: str
    """Values of the group."""
    groups: int
    """Groups of that reduced result."""
    rows_in: int
    rows_out: int
    schema_out: pl.Schema
    head: pl.DataFrame
    """The first rows of the result."""


@dataclass(frozen=True, slots=True)
class Trial:
    """Result of a transform on one small chunk."""

    chunk: Chunk
    columns_read: tuple[str, ...]
    schema_in: pl.Schema
    schema_out: pl.Schema
    rows_in: int
    rows_out: int
    """Number of rows of the result; of several outputs, of all of them."""
    head: pl.DataFrame
    """The first rows of the result."""
    rows_out_halves: int
    code: str
    """Fingerprint of the transform."""
    definitions: int
    """Number of definitions of allowed modules that the fingerprint covers."""
    notes: tuple[str, ...]
    """Notes on what the fingerprint cannot cover, and on objects left out because of their name."""
    tables: dict[str, str]
    """Versions of the tables that the transform reads, by URI."""
    differs: str | None
    """How the result of the halves differs from that of the whole, or, with a reduce, how
    `combine` depends on the grouping of chunks; None if it does not."""
    group: GroupTrial | None = None
    """Result of `then` on the first group; None without one."""
    further: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    """The first rows of the results for the outputs after the first, by name."""
    ways: Comparison | None = None
    """The file with kept columns, compared with a rewritten one; None if nothing is kept."""


def try_transform(job: Job, settings: Settings, storage: Storage, rows: int) -> Trial:
    """Run a job's transform on its smallest chunk, whole and cut in two. Writes nothing.

    A transform that groups, sorts or drops duplicates works within a chunk, so its result depends
    on where chunks are cut. Then the halves differ from the whole.

    Args:
        job: The job.
        settings: Settings of the planner and of transforms.
        storage: Where the input is.
        rows: Number of result rows to return.

    Raises:
        PartitionColumnError: the result could not be written below its partition.
        TransformError: a function failed, or the reduced result lacks columns of the groups.
    """
    planned = plan_input(job, settings, storage)
    chunk, explain = _smallest(planned), planned.result.explain
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
            results = results_of(planned.transform, source.scan(), job)
            for name, frame in results.items() if job.reduce is None else ():
                own = job.of_output(name) if job.outputs else job
                by_folder(arrange(frame, own), chunk, own, planned.result.plan.dtypes)
            columns = tuple(sorted(planned.probe.columns or source.columns_read))
            ways = _compare_ways(job, storage, planned, chunk, results)
        finally:
            source.close()
        middle = whole.height // 2
        halves = [
            results_of(planned.transform, half.lazy(), job)
            for half in (whole[:middle], whole[middle:])
        ]
        first, *others = results
        return Trial(
            chunk=chunk,
            columns_read=columns,
            schema_in=whole.schema,
            schema_out=results[first].schema,
            rows_in=whole.height,
            rows_out=sum(frame.height for frame in results.values()),
            head=results[first].head(rows),
            rows_out_halves=sum(frame.height for half in halves for frame in half.values()),
            code=planned.transform.fingerprint,
            definitions=planned.transform.definitions,
            notes=(
                *planned.transform.notes,
                *left_out_for_names(explain.objects_unnamed, explain.unnamed_example),
            ),
            tables={table.uri: table.label for table in planned.tables.versions},
            differs=_differences(results, halves)
            if job.reduce is None
            else _reduce_problem(job.reduce.combine, planned, settings, whole),
            group=_try_group(job, settings, results[first], rows),
            further={name: results[name].head(rows) for name in others},
            ways=ways,
        )


def _compare_ways(
    job: Job,
    storage: Storage,
    planned: PlannedInput,
    chunk: Chunk,
    results: Mapping[str, pl.DataFrame],
) -> Comparison | None:
    """Make the file of an object that keeps columns in both ways, if the job keeps any.

    Raises:
        TransformError: the result does not have the rows of the object.
    """
    plan = planned.result.plan
    kept = kept_of(job.output, plan.dtypes, virtual_columns(job, plan))
    if kept is None:
        return None
    [frame] = results.values()
    refuse_other_count(planned.transform.name, frame, chunk.rows)
    frame = without_key_columns(frame, chunk, plan.dtypes)
    # Opened again, to count what the transform alone reads.
    source = ChunkSource(storage, chunk, plan.dtypes, options=read_options(job))
    try:
        source.prefetch(planned.probe.columns or ())
        return compare_ways(storage, source, chunk, kept, frame, to=job.output)
    finally:
        source.close()


def _try_group(
    job: Job, settings: Settings, partial_result: pl.DataFrame, rows: int
) -> GroupTrial | None:
    """Reduce the result of one chunk, and call `then` with its first group."""
    if job.then is None or job.reduce is None:
        return None
    names = (job.reduce.combine, job.reduce.finalize)
    combine, finalize = (
        None if name is None else load_transform(name, {}, settings.transforms) for name in names
    )
    assert combine is not None, "a reduce has a function that combines"
    reduced = call_and_collect(combine.name, combine.call, [partial_result.lazy()])
    if finalize is not None:
        reduced = call_and_collect(finalize.name, finalize.call, reduced.lazy())
    grouped = in_groups(reduced, job.then.by)
    key, group = next(groups_of(grouped, job.then.by), ("", reduced.head(0)))
    if group.is_empty():
        return None
    function = load_transform(job.then.function, job.then.params, settings.transforms)
    result = GroupMap(function.name, function.call, job.then.by)(group.lazy()).collect()
    return GroupTrial(
        key=key,
        groups=len(group_sizes(grouped, job.then.by)),
        rows_in=group.height,
        rows_out=result.height,
        schema_out=result.schema,
        head=result.head(rows),
    )


def _differences(
    results: Mapping[str, pl.DataFrame], halves: Sequence[Mapping[str, pl.DataFrame]]
) -> str | None:
    """Describe how the results of the halves differ from those of the whole, if they do."""
    for name, whole in results.items():
        difference = _difference(whole, [half[name] for half in halves])
        if difference is not None:
            return difference if len(results) == 1 else f"output {name}: {difference}"
    return None


def _reduce_problem(
    combine: str, planned: PlannedInput, settings: Settings, whole: pl.DataFrame
) -> str | None:
    """Check that the job's `combine` is associative, on the partials of three pieces."""
    third = max(1, whole.height // 3)
    cuts = (whole[:third], whole[third : 2 * third], whole[2 * third :])
    partials = [apply(planned.transform, cut.lazy()) for cut in cuts]
    return combine_problem(combine, load_transform(combine, {}, settings.transforms).call, partials)


def _smallest(planned: PlannedInput) -> Chunk:
    """Return one fragment of the smallest chunk, which is quick to read."""
    plan = planned.result.plan
    if not len(plan):
        raise UsageError("the filter leaves no chunk to test", hint="widen input.filter")
    sizes = plan.chunk_table["decoded_bytes"].to_pylist()
    chunk = plan.chunk(sizes.index(min(sizes)))
    return replace(chunk, fragments=chunk.fragments[:1])


def _difference(whole: pl.DataFrame, halves: list[pl.DataFrame]) -> str | None:
    schemas = {str(half.schema) for half in halves} - {str(whole.schema)}
    if schemas:
        return f"the halves have another schema: {schemas.pop()}"
    joined = pl.concat(halves)
    if joined.height != whole.height:
        return f"the whole gives {whole.height} rows, the halves {joined.height}"
    if joined.equals(whole):
        return None
    if _digest(joined) == _digest(whole):
        return "the halves give the same rows in another order"
    return "the halves give other values"


def _digest(frame: pl.DataFrame) -> list[str]:
    """Sort the rows as text, which works for any types."""
    return sorted(str(row) for row in frame.iter_rows())


def combine_problem(
    name: str, call: Callable[..., Any], partials: Sequence[pl.DataFrame]
) -> str | None:
    """Describe why a `combine` is not associative on three partials; None if it is.

    combine([a, b, c]) must equal combine([combine([a, b]), c]) and combine([a, combine([b, c])]),
    except for the order of rows and the last digits of floating-point sums.

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
        if not _are_equal(whole, other):
            return f"{name} is not associative: its result depends on how chunks are grouped"
    return None


def _are_equal(left: pl.DataFrame, right: pl.DataFrame) -> bool:
    from polars.testing import assert_frame_equal

    try:
        assert_frame_equal(left, right, check_row_order=False, rel_tol=1e-9)
    except AssertionError:
        return False
    return True
