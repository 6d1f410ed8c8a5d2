"""Keep columns of an input file as their bytes are (`output.keep`).

Column chunks may lie anywhere in a Parquet file. So a file with new columns is the bytes of the old
one up to its footer, the new column chunks, and a new footer: kept columns are neither decoded nor
sent over the network.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final, NamedTuple

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from partitioning import Chunk, ObjectInfo
from partitioning.footer_columns import (
    FooterEdit,
    StoredFooter,
    compose_footer,
    why_not_composed,
)
from partitioning.parquet_footer import END, MAGIC, BadFooter
from pipeline.config.job import Output
from pipeline.config.job_checks import share_of
from pipeline.errors import TransformError
from pipeline.runs.transforms.user_code import user_code
from pipeline.runs.worker.chunk_source import ChunkSource, Engine, by_name
from pipeline.runs.worker.encoding import (
    DEFAULT_ROW_GROUP_ROWS,
    OLDEST,
    ColumnEncoding,
    FileFormat,
    leaf_types,
    refuse_objects,
    write_groups,
    write_parquet,
)
from pipeline.storage import Storage
from pipeline.storage.backend import ObjectStart, StagedObject
from pipeline.table.file_digests import digest_of_end

MAX_GROUP_ROWS: Final = 64 << 20
"""Rows of the largest row group that pyarrow writes."""
READ_BYTES: Final = 64 << 20
"""Bytes of an old file that are read at a time where the store cannot copy them."""
_KEEPS_ROWS: Final = ("π ", "simple π ", "WITH COLUMNS ", "ROW INDEX ", "hint.", "CACHE")
"""Starts of the steps of a query, in Polars' graph of it, that keep all rows at their places."""
_REVERSED: Final = 'col("__POLARS_INTERNAL_HEIGHT_COLUMN").reverse()'
"""What `LazyFrame.reverse` selects, besides the columns; the graph does not show it."""
_NO_COLUMNS: Final = "TABLE\\nπ */0"
"""What Polars plans for `select([])`, instead of the input."""
_LEFT_JOIN: Final = "JOIN LEFT\\n"
_STEP: Final = re.compile(r'  ("[0-9a-f-]+"|p\d+)\[label="(.*)"\]')
_EDGE: Final = re.compile(r'  ("[0-9a-f-]+"|p\d+) -> ("[0-9a-f-]+"|p\d+)')
_STEP_NAME: Final = re.compile(r"[A-Z_]+(?: [A-Z_]+)*\b")
_ORDERED: Final = ("left", "left_right")
"""Values of `maintain_order` that keep the order of a join's left side."""


class Kept(NamedTuple):
    """The columns that an output keeps of a dataset."""

    names: tuple[str, ...]
    """Their names in the dataset, in its order."""
    rename: Mapping[str, str]
    """New names of some of them, by the old one."""

    @property
    def targets(self) -> tuple[str, ...]:
        """Their names in the output."""
        return tuple(self.rename.get(name, name) for name in self.names)


def kept_of(output: Output, schema: pl.Schema, virtual: Collection[str]) -> Kept | None:
    """Return what an output keeps of a dataset; None if it keeps nothing as it is.

    Args:
        output: The output of a job.
        schema: Schema of the dataset.
        virtual: Its columns that are not in its files, such as those of Hive partitions.

    Raises:
        TransformError: a column that is to be kept or renamed is not in the files, or two columns
            would have one name.
    """
    if output.keep is None:
        return None
    stored = [name for name in schema if name not in virtual]
    names = stored if output.keep == "all" else output.keep
    for name in (*names, *output.rename):
        if name not in stored:
            reason = "is in the keys of the files" if name in schema else "is not in the input"
            raise TransformError(
                f"output.keep: the column {name!r} {reason}; files have {', '.join(stored)}"
            )
    kept = Kept(tuple(name for name in stored if name in names), dict(output.rename))
    for name, target in kept.rename.items():
        if target in virtual or kept.targets.count(target) > 1:
            raise TransformError(
                f"output.rename: {name!r} cannot be named {target!r}, which is another column"
            )
    return kept


def result_schema(kept: Kept, schema: pl.Schema, new: pl.Schema) -> pl.Schema:
    """Return the columns of a file: those that are kept or replaced, in their order, then new ones.

    Args:
        kept: What is kept of the dataset.
        schema: Schema of the dataset.
        new: Columns that the transform returns.

    Raises:
        TransformError: a new column has the old or the new name of a renamed one, or a type that is
            not written, or nothing would be kept.
    """
    for old, target in kept.rename.items():
        if old in new or target in new:
            clash = old if old in new else target
            raise TransformError(
                f"the transform returns a column {clash!r}, and output.rename names {old!r} "
                f"{target!r}; return it under another name, or leave {old!r} out of output.keep"
            )
    replaced = [name for name in kept.names if name in new]
    if kept.names and len(replaced) == len(kept.names):
        raise TransformError(
            "the transform returns every kept column of the input, so that nothing would be kept "
            "as it is (output.keep); return only new or replaced columns: end it with "
            ".select(…) instead of .with_columns(…)"
        )
    _refuse_types(new)
    pairs = [(kept.rename.get(name, name), new.get(name, schema[name])) for name in kept.names]
    return pl.Schema({**dict(pairs), **{n: kind for n, kind in new.items() if n not in replaced}})


def _refuse_types(new: pl.Schema) -> None:
    """Raise TransformError if a new column has a type that pyarrow does not write."""
    refuse_objects(new)
    for name, kind in new.items():
        try:
            table = pl.DataFrame(schema={name: kind}).to_arrow(compat_level=OLDEST)
            pq.ParquetWriter(io.BytesIO(), table.schema).close()
        except (pa.ArrowException, pl.exceptions.PolarsError, pl.exceptions.PanicException):
            cast = "Int64" if kind.is_integer() else "String"
            raise TransformError(
                f"the new column {name!r} is {kind}, which cannot be written beside kept columns "
                "(output.keep)",
                hint=f"cast it to another type, such as pl.col({name!r}).cast(pl.{cast}), or leave "
                "output.keep out",
            ) from None


# -- one row for each row -----------------------------------------------------------------------


def refuse_other_rows(name: str, given: pl.LazyFrame, result: pl.LazyFrame) -> None:
    """Raise TransformError for a query that may drop, add or reorder rows (see `row_problem`)."""
    problem = row_problem(name, given, result)
    if problem is not None:
        raise problem


def row_problem(name: str, given: pl.LazyFrame, result: pl.LazyFrame) -> TransformError | None:
    """Say how a query may drop, add or reorder rows, as far as its plan shows; None if it may not.

    Args:
        name: Name of the transform.
        given: Its input, which is a scan or a frame.
        result: What it returned.
    """
    *steps, start = _steps(result)
    joins = False
    for step in steps:
        if step.startswith(_LEFT_JOIN):
            joins = True
        elif not step.startswith(_KEEPS_ROWS):
            shown = _STEP_NAME.match(step)
            return _other_rows(name, step[:20] if shown is None else shown[0])
    if _REVERSED in result.explain(optimized=False):
        return _other_rows(name, "REVERSE")
    scan = _scan_of(result)
    is_other = scan is not None and scan is not _scan_of(given)
    if is_other or start not in (*_steps(given)[-1:], _NO_COLUMNS):
        return TransformError(
            f"{name} returns rows of another frame than its input (of one that it collected, or "
            "the left side of a join); with output.keep, each row of the result belongs to the "
            "row of the input at its place",
            hint="begin the query with the input: lf.select(…), lf.join(other, on=…, how='left', "
            "maintain_order='left'); call Python in expressions (pl.col(…).map_batches)",
        )
    if joins and not _joins_keep_order(result):
        return TransformError(
            f"{name} joins without maintain_order='left', so that rows may come in any order; with "
            "output.keep, each row of the result belongs to the row of the input at its place",
            hint="lf.join(other, on=…, how='left', maintain_order='left')",
        )
    return None


def _other_rows(name: str, step: str) -> TransformError:
    return TransformError(
        f"{name} has the step {step} in its query, which may drop, add or reorder rows; with "
        "output.keep, each row of the result belongs to the row of the input at its place",
        hint="use expressions alone (over, replace_strict …) or a left join with "
        "maintain_order='left'; or leave output.keep out",
    )


def _steps(query: pl.LazyFrame) -> list[str]:
    """Return the steps of a query from its last one to its first, without right sides of joins.

    They come from Polars' graph of the query, where each step is a line, and line breaks of names
    and texts are escaped. `LazyFrame.explain` shows these as they are, so that a text can look like
    a step, or hide one.
    """
    graph = query.show_graph(optimized=False, raw_output=True, engine="in-memory", plan_stage="ir")
    labels: dict[str, str] = {}
    inputs: dict[str, str] = {}
    is_input: set[str] = set()
    for line in graph.split("\n"):
        if step := _STEP.fullmatch(line):
            labels[step[1]] = step[2]
        elif edge := _EDGE.fullmatch(line):
            inputs.setdefault(edge[2], edge[1])  # The left side of a join is the first.
            is_input.add(edge[1])
    at = next((node for node in labels if node not in is_input), None)
    steps = []
    while at is not None:
        steps.append(labels.pop(at, ""))
        at = inputs.get(at)
    return steps or [""]


_UNKNOWN: Final = (AttributeError, TypeError, IndexError, ValueError, NotImplementedError)
"""What Polars raises where it does not show a step of a query."""


def _nodes(query: pl.LazyFrame) -> Iterator[Any]:
    """Yield the steps of an optimized query as Polars shows them, from its last one to its first.

    Of joins only the left side. A plan as text says less, and a plan with a scan of ours cannot be
    serialized.
    """
    nodes = query._ldf.visit()
    while True:
        yield nodes.view_current_node()
        inputs = nodes.get_inputs()
        if not inputs:
            return
        nodes.set_node(inputs[0])


def _joins_keep_order(result: pl.LazyFrame) -> bool:
    """Whether all joins of a query keep the order of their left sides; False if unknown."""
    try:
        joins = [node for node in _nodes(result) if type(node).__name__ == "Join"]
        return all(node.options[-1] in _ORDERED for node in joins)
    except _UNKNOWN:
        return False


def _scan_of(query: pl.LazyFrame) -> object:
    """Return the function that reads the input of a query; None if it has no such scan."""
    try:
        *_, first = _nodes(query)
        return first.options[0] if type(first).__name__ == "PythonScan" else None
    except _UNKNOWN:
        return None


def batches_of(
    name: str, query: pl.LazyFrame, rows: int, engine: Engine, *, at_once: bool
) -> Generator[pl.DataFrame, None, None]:
    """Collect the query of a transform, and yield its rows in order: at least one frame.

    The streaming engine yields them while it reads the input, as far as the query lets it, and
    waits while they are not taken. What needs all rows at once (such as a sum or a rank) sees all.

    Args:
        name: Name of the transform.
        query: What it returned.
        rows: Rows of the input.
        engine: Polars' engine.
        at_once: Whether to yield all rows in one frame.

    Raises:
        TransformError: the result has columns, and another number of rows; or it raised.
    """
    if at_once or engine == "in-memory":
        with user_code(name):
            frame = query.collect(engine=engine)
        refuse_other_count(name, frame, rows)
        yield frame
        return
    with user_code(name):
        batches = query.collect_batches(maintain_order=True, lazy=True, engine=engine)
    found, width = 0, -1
    while True:
        with user_code(name):
            batch = next(batches, None)
        if batch is None:
            break
        found, width = found + batch.height, batch.width
        if width and found > rows:
            raise _other_count(name, found, rows, "at least ")
        yield batch
    if width < 0:  # Without rows there may be no batch.
        with user_code(name):
            empty = pl.DataFrame(schema=query.collect_schema())
        yield empty
    elif width and found != rows:
        raise _other_count(name, found, rows)


def refuse_other_count(name: str, frame: pl.DataFrame, rows: int) -> None:
    """Raise TransformError if a result with columns has another number of rows than its input."""
    if frame.width and frame.height != rows:
        raise _other_count(name, frame.height, rows)


def _other_count(name: str, found: int, rows: int, least: str = "") -> TransformError:
    return TransformError(
        f"{name} returned {least}{found:,} rows for {rows:,} rows of the input; with "
        "output.keep, each row of the result belongs to the row of the input at its place",
        hint="a value alone is one row: lf.with_columns(x=pl.lit(1)).select('x')"
        if found == 1
        else "leave output.keep out, to write all columns of other rows",
    )


# -- files --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KeptFile:
    """A file of the input whose columns are kept as they are."""

    info: ObjectInfo
    footer: StoredFooter
    edit: FooterEdit

    @property
    def end(self) -> int:
        """Where the column chunks and indexes of the file end, and its footer begins."""
        return self.footer.start


def kept_file(
    source: ChunkSource, chunk: Chunk, kept: Kept, new: pl.Schema, max_garbage: str
) -> KeptFile | str:
    """Return the file whose columns can be kept, or the reason why it must be rewritten.

    Args:
        source: The chunk, opened.
        chunk: A chunk that is a whole object.
        kept: What is kept.
        new: Columns that the transform returned.
        max_garbage: Maximum share of the file that nothing may refer to, such as `20%`.
    """
    fragment = chunk.fragments[0]
    raw, types, odd = source.footer_of_object()
    for name in kept.names:
        if name not in types:
            return f"it has no column {name!r}, which other files have"
        if name not in new and types[name] != source.schema[name]:
            return f"its column {name!r} is {types[name]}, in other files {source.schema[name]}"
        if name not in new and name in odd:
            return f"its column {name!r} has a type that readers take for different ones"
    edit = FooterEdit(
        keep=tuple(name for name in kept.names if name not in new),
        rename=kept.rename,
    )
    try:
        footer = StoredFooter.read(raw, fragment.size)
        leaves = chain.from_iterable(map(leaf_types, new.values()))
        has_dates = any(leaf in (pl.Date, pl.Datetime) for leaf in leaves)
        reason = why_not_composed(footer, edit, tuple(new), has_dates=has_dates)
    except BadFooter as bad:
        return str(bad.args[1])
    if reason:
        return reason
    if footer.parsed.rows != chunk.rows:
        return f"its footer has {footer.parsed.rows:,} rows, and {chunk.rows:,} were planned"
    most = max(footer.rows, default=0)
    if most > MAX_GROUP_ROWS:
        return f"it has a row group of {most:,} rows, more than {MAX_GROUP_ROWS:,}"
    garbage = footer.unreferenced_bytes(edit)
    if garbage > share_of(max_garbage) * fragment.size:
        share = garbage / fragment.size
        return f"{share:.0%} of it would be dropped or replaced columns (output.max_garbage)"
    return KeptFile(ObjectInfo(fragment.uri, fragment.etag, fragment.size), footer, edit)


def whole_frame(
    source: ChunkSource, kept: Kept, new: pl.DataFrame, only: Collection[str] | None = None
) -> pl.DataFrame:
    """Decode kept columns, and return them with new ones, in the order of the file.

    Args:
        source: The chunk.
        kept: What is kept.
        new: The new columns.
        only: Names of columns in the file that are wanted; default all.
    """
    wanted = [
        (name, target)
        for name, target in zip(kept.names, kept.targets, strict=True)
        if only is None or target in only
    ]
    names = [name for name, _ in wanted if name not in new.columns]
    frame = source.scan().select(by_name(names)).collect(engine="streaming")
    columns = [
        (new if name in new.columns else frame)[name].alias(target) for name, target in wanted
    ]
    others = [name for name in new.columns if name not in kept.names]
    return pl.DataFrame(columns + [new[n] for n in others if only is None or n in only])


@dataclass(frozen=True, slots=True)
class Tail:
    """What follows the bytes of the old file."""

    data: memoryview
    """New column chunks, the new footer, its length and the magic bytes."""
    encodings: dict[str, ColumnEncoding]


def make_tail(
    file: KeptFile, frames: Iterable[pl.DataFrame], schema: pl.Schema, how: FileFormat
) -> Tail:
    """Encode new columns in the row groups of the old file, and make the footer of both.

    One row group is in memory at a time, besides what is encoded.

    Args:
        file: The old file.
        frames: New columns of its rows, in their order.
        schema: Schema of the frames.
        how: How columns are written.

    Raises:
        BadFooter: the two footers do not fit.
    """
    sink, footer = io.BytesIO(), None
    encodings: dict[str, ColumnEncoding] = {}
    if schema:
        sink, encodings = _encode(frames, schema, file.footer.rows, how)
        with sink.getbuffer() as encoded:
            length = int.from_bytes(encoded[-END:-4], "little")
            footer = StoredFooter.read(bytes(encoded[-END - length : -END]), len(encoded))
        sink.truncate(footer.start)
    else:
        sink.write(MAGIC)
    made = compose_footer(file.footer, footer, file.end - len(MAGIC), file.edit)
    sink.seek(0, io.SEEK_END)
    sink.writelines((made, len(made).to_bytes(4, "little"), MAGIC))
    return Tail(sink.getbuffer()[len(MAGIC) :], encodings)


def _encode(
    frames: Iterable[pl.DataFrame],
    schema: pl.Schema,
    rows: Sequence[int],
    how: FileFormat,
) -> tuple[io.BytesIO, dict[str, ColumnEncoding]]:
    """Write frames in row groups of these numbers of rows; returns as `write_groups` does.

    Encodings are chosen for the first DEFAULT_ROW_GROUP_ROWS rows, in whole row groups.
    """
    groups = _row_groups(frames, rows)
    first: list[pl.DataFrame] = []
    count = 0
    while count < DEFAULT_ROW_GROUP_ROWS and (group := next(groups, None)) is not None:
        first.append(group)
        count += group.height
    chosen = how.choose(pl.concat(first)) if first else {}
    freed = (first.pop(0) for _ in range(len(first)))
    return write_groups(chain(freed, groups), schema, how, chosen)


def _row_groups(frames: Iterable[pl.DataFrame], counts: Sequence[int]) -> Iterator[pl.DataFrame]:
    """Regroup frames into row groups of these numbers of rows, which they have in sum."""
    source = iter(frames)
    held = next(source)
    for count in counts:
        parts, rows = [held], held.height
        while rows < count:
            parts.append(next(source))
            rows += parts[-1].height
        whole = pl.concat(parts) if len(parts) > 1 else held
        yield whole[:count].rechunk()
        held = whole[count:]
    for _ in source:  # Whether there are more rows is known at the end.
        pass


@dataclass(frozen=True, slots=True)
class StagedFile:
    """A staged file that starts with the bytes of another."""

    staged: StagedObject
    copied: int
    """Bytes that were copied where the old file is, without being read here."""
    sha256: str
    """Digest of the file, or of its end (see `digest_of_end`)."""


def stage_file(
    storage: Storage, file: KeptFile | None, tail: memoryview, *, uri: str, attempt: str, area: str
) -> StagedFile:
    """Stage a file of the old file's bytes and a tail, or of the tail alone.

    A small file, or one at another service, is put together here.

    Raises:
        ObjectChangedError: the old file is another version now.
    """
    if file is None:
        sha256 = hashlib.sha256(tail).hexdigest()
        return StagedFile(storage.stage(uri, tail, attempt, area, sha256), 0, sha256)
    if storage.can_extend(file.info.uri, uri, file.end):
        start = ObjectStart(file.info, file.end)
        staged = storage.extend(start, tail, uri, attempt, area)
        return StagedFile(staged, file.end, digest_of_end(tail, file.end))
    data = memoryview(bytearray(file.end + len(tail)))
    for at in range(0, file.end, READ_BYTES):  # Not all of it twice in memory.
        [part] = storage.get_ranges(file.info, [(at, min(at + READ_BYTES, file.end))])
        data[at : at + len(part)] = part
    data[file.end :] = tail
    sha256 = hashlib.sha256(data).hexdigest()
    return StagedFile(storage.stage(uri, data, attempt, area, sha256), 0, sha256)


# -- both ways ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Comparison:
    """A file made of kept bytes, compared with the same file rewritten."""

    kept: int
    """Number of kept columns."""
    read: int
    """Bytes of the old file that the transform needs."""
    copied: int
    """Bytes of the old file that stay as they are."""
    added: int
    """Bytes of the new columns and the new footer."""
    rewritten: int
    """Bytes of the rewritten file."""
    reason: str
    """Why the file would be rewritten; empty if its columns can be kept."""
    differs: str | None
    """How the two differ; None if they have the same columns, types and values."""


def compare_ways(
    storage: Storage,
    source: ChunkSource,
    chunk: Chunk,
    kept: Kept,
    new: pl.DataFrame,
    *,
    to: Output,
) -> Comparison:
    """Make the file of one object in both ways, here, and compare every value. Stores nothing.

    Args:
        storage: Where the object is.
        source: The chunk, opened.
        chunk: A chunk that is a whole object.
        kept: What is kept of the dataset.
        new: Result of the transform.
        to: The output.
    """
    read, how = source.bytes_read, FileFormat.of(to)
    whole = whole_frame(source, kept, new)
    rewritten = len(write_parquet(whole, how)[0])
    file = kept_file(source, chunk, kept, new.schema, to.max_garbage)
    if isinstance(file, str):
        return Comparison(len(kept.names), read, 0, 0, rewritten, file, None)
    tail = make_tail(file, [new], new.schema, how).data
    [start] = storage.get_ranges(file.info, [(0, file.end)])
    made = pl.read_parquet(io.BytesIO(b"".join((start, tail))), hive_partitioning=False)
    return Comparison(
        kept=len(file.edit.keep),
        read=read,
        copied=file.end,
        added=len(tail),
        rewritten=rewritten,
        reason="",
        differs=_difference(made, whole),
    )


def _difference(made: pl.DataFrame, whole: pl.DataFrame) -> str | None:
    if made.columns != whole.columns:
        return f"columns {', '.join(made.columns)} instead of {', '.join(whole.columns)}"
    for name, kind in whole.schema.items():
        column = made[name]
        if column.dtype != kind:
            return f"column {name!r} is {column.dtype} instead of {kind}"
        if not column.equals(whole[name], null_equal=True):
            return f"column {name!r} has other values"
    return None
