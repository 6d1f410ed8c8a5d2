"""Read a chunk as a LazyFrame: pinned versions of objects, and only the columns that are used.

Objects are read with conditional range requests (If-Match), which cannot mix versions and need no
further requests. Polars' S3 scan followed by a HEAD would detect a replacement only afterwards, and
miss one that is put back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from threading import Lock
from typing import Any, Literal

import polars as pl
import polars.selectors as cs
import pyarrow as pa
from polars.io.plugins import register_io_source

from partitioning import Chunk, Fragment, ObjectInfo
from partitioning.dtypes import (
    FileTypes,
    Int96Unit,
    UnreadableSchemaError,
    file_types,
    plain_arrow_schema,
)
from partitioning.footer_arrays import read_footer
from partitioning.page_index import PageIndex, is_indexed, parse_page_index
from partitioning.parquet_footer import (
    END,
    MAGIC,
    BadFooter,
    ColumnChunk,
    Footer,
    FooterSelection,
    RowGroup,
    write_footer,
)
from partitioning.thrift import ThriftError
from partitioning.untrusted_statistics import writer_trust
from pipeline import metrics
from pipeline.errors import ObjectChangedError, UnreadableObjectError, WrongPageIndexError
from pipeline.runs.worker.decoding import OutOfRangeError, decode, is_odd
from pipeline.runs.worker.page_checksums import verify_pages
from pipeline.runs.worker.page_parts import (
    DamagedPagesError,
    ShiftedPagesError,
    choose_pages,
    write_part,
)
from pipeline.runs.worker.sparse_file import SparseFile, WholeFile, coalesce
from pipeline.storage import Storage

WHOLE_BYTES = 512 << 10
"""Maximum size of objects that are read whole, in one request instead of two."""
FRAGMENTS_AT_ONCE = 8
"""Number of small fragments of a chunk that are read at a time."""
STEP_BYTES = 16 << 20
"""Decoded bytes of the row groups that are decoded together. Each step parses the footer again,
which for a hundred columns takes as long as decoding a small row group; larger steps take more
memory and save nothing."""
MAX_REASON_CHARACTERS = 500
"""Maximum length of the reason why an object was left out."""
SMALL_BYTES = 1 << 20
"""Decoded bytes up to which Polars' in-memory engine is faster."""

_SCAN = pl.QueryOptFlags.none()
"""Optimizations of a query that selects columns and rows of a file: others only take time."""
_SCAN.projection_pushdown = _SCAN.slice_pushdown = True

Engine = Literal["in-memory", "streaming"]


def engine_for(decoded_bytes: float) -> Engine:
    """Choose Polars' engine for a frame of this size.

    The streaming engine keeps memory low and works in a core's cache. A small frame needs neither,
    and the in-memory engine takes a quarter of the time.
    """
    return "in-memory" if decoded_bytes <= SMALL_BYTES else "streaming"


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """Options for reading chunks."""

    columns: Sequence[str] | None = None
    """Columns that a transform may see; default all."""
    int96: Int96Unit = "us"
    """Unit of INT96 times."""
    object_column: str | None = None
    """Name of a column with the URI of each row's object; None for no such column."""
    verify_checksums: bool = False
    """Whether to check pages against their checksums."""
    skip_unreadable: bool = False
    """Whether to leave out objects that cannot be read."""


DEFAULTS = ReadOptions()


def by_name(names: Sequence[str]) -> pl.Expr:
    """Select columns by name, in this order; `pl.col` would take names such as `*` as patterns."""
    return cs.by_name(*names)


@contextmanager
def naming(uri: str, columns: Sequence[str]) -> Iterator[None]:
    """Name the object and the columns in an error of decoding.

    Raises:
        UnreadableObjectError: Polars raised, or panicked.
    """
    try:
        yield
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise UnreadableObjectError(uri, f"columns {', '.join(columns)}: {_line(error)}") from error


@dataclass(frozen=True, slots=True)
class _LocalFile:
    """Columns of row groups in a local file, with a rewritten footer."""

    file: SparseFile | WholeFile
    groups: Sequence[RowGroup]
    numbers: Sequence[int]
    """Numbers of the row groups in the object."""
    first: int
    """Number of rows before the fragment's first row."""

    @property
    def rows(self) -> int:
        return sum(group.rows for group in self.groups)


class FragmentCopy:
    """The local copy of one fragment, fetched column by column.

    For a fragment that is part of a row group, only the pages with its rows are fetched of columns
    with an offset index, into separate files; other columns are fetched whole.
    """

    def __init__(
        self, storage: Storage, fragment: Fragment, options: ReadOptions = DEFAULTS
    ) -> None:
        self.partition = dict(fragment.partition)
        self.engine = engine_for(fragment.decoded_bytes)
        self.uri = fragment.uri
        self._storage = storage
        self._fragment = fragment
        self._options = options
        self._info = ObjectInfo(fragment.uri, fragment.etag, fragment.size)
        self._whole = fragment.size <= WHOLE_BYTES
        self._file: SparseFile | WholeFile
        self._file = WholeFile(memoryview(b"")) if self._whole else SparseFile(fragment.size)
        self._parts: list[SparseFile] = []
        self._fetched: dict[str, _LocalFile] = {}
        """Local file of each fetched column."""
        self._lock = Lock()
        self.bytes_read = 0
        try:
            start = 0 if self._whole else fragment.size - fragment.footer_size
            self._fetch([(start, fragment.size)], self._file)
            self._footer = self._parse()
            numbers, self._groups = self._groups_with_rows()
            first = 0 if fragment.part is None else fragment.part[0]
            self._local = _LocalFile(self._file, self._groups, numbers, first)
            self._types = self._file_types()
            self._rewrite_footer()
        except BaseException:
            self.close()
            raise

    def _fetch(self, spans: Sequence[tuple[int, int]], file: SparseFile | WholeFile) -> None:
        for (start, _), data in zip(
            spans, self._storage.get_ranges(self._info, spans), strict=True
        ):
            file.write(start, data)
            self.bytes_read += len(data)

    def _parse(self) -> Footer:
        """Parse the footer and compare it with the plan; the conditional read pins its version."""
        part = self._fragment
        start, length = part.size - part.footer_size, part.footer_size - END
        wanted = range(part.row_group_start, part.row_group_stop)
        # Of a small fragment they can save nothing, and take time.
        statistics = frozenset[str]() if part.decoded_bytes <= SMALL_BYTES else None
        selection = FooterSelection(statistics=statistics, encodings=True, groups=wanted)
        try:
            footer = read_footer(self._file.read(start, length), part.size, selection)
        except BadFooter as bad:
            raise UnreadableObjectError(part.uri, str(bad.args[1])) from None
        if footer.count < part.row_group_stop:
            raise ObjectChangedError(part.uri, part.etag, None)
        rows = sum(group.rows for group in footer.groups)
        is_planned = rows == part.rows if part.part is None else rows >= part.part[1]
        if not is_planned:
            raise ObjectChangedError(part.uri, part.etag, None)
        if footer.arrow_schema is None:
            return footer
        return replace(footer, arrow_schema=plain_arrow_schema(footer.arrow_schema))

    def _groups_with_rows(self) -> tuple[list[int], list[RowGroup]]:
        """Return the row groups that have rows, after their numbers in the object."""
        numbered = enumerate(self._footer.groups, self._fragment.row_group_start)
        pairs = [(number, group) for number, group in numbered if group.rows]
        return [number for number, _ in pairs], [group for _, group in pairs]

    def _file_types(self) -> FileTypes:
        try:
            return file_types(self._footer.schema, self._footer.arrow_schema, self._options.int96)
        except UnreadableSchemaError as error:
            raise UnreadableObjectError(self.uri, str(error)) from None

    def _rewrite_footer(self) -> None:
        """Write the checked footer, of these row groups only, to the end of the local file.

        Some footers crash decoders, and others are understood differently than by the planner.
        """
        footer = self._footer
        if not self._has_statistics():
            for group in self._groups:
                for chunk in group.columns:
                    chunk.statistics = None
        own = replace(footer, rows=self._local.rows, groups=self._groups)
        if self._file.read(0, len(MAGIC)) != MAGIC:
            self._file.write(0, memoryview(MAGIC))
        self._file.write(self._fragment.size, memoryview(write_footer(own)))

    def _has_statistics(self) -> bool:
        """Whether Polars may use statistics for predicates: only if their writer is trusted."""
        trust = writer_trust(self._footer.created_by)
        return trust.null_counts and trust.times

    @property
    def types(self) -> pl.Schema:
        """Types of the object's columns, as they are read."""
        return self._types.schema

    @property
    def odd_columns(self) -> frozenset[str]:
        """Columns whose types Polars does not read, or takes for others."""
        types = self._types
        return types.by_pyarrow if types.is_read_by_polars else frozenset(types.schema)

    @property
    def footer(self) -> bytes:
        """The object's own footer, without its length and the magic bytes."""
        fragment = self._fragment
        start = fragment.size - fragment.footer_size
        return bytes(self._file.read(start, fragment.footer_size - END))

    @property
    def columns(self) -> set[str]:
        """Top-level columns that the object has."""
        return set(self._footer.schema.columns)

    def fetch(self, columns: Iterable[str]) -> None:
        """Fetch columns of this fragment's row groups that are not fetched yet."""
        with self._lock:
            wanted = (set(columns) & self.columns) - self._fetched.keys()
            if not wanted:
                return
            if not self._whole and self._fragment.part is not None:
                wanted -= self._fetch_pages(wanted, self._fragment.part)
            if wanted and not self._whole:
                self._fetch(coalesce(self._spans(wanted)), self._file)
            self._add(wanted, self._local)

    def _add(self, columns: set[str], local: _LocalFile) -> None:
        if columns and self._options.verify_checksums:
            leaves = {leaf.index for leaf in self._footer.schema.leaves if leaf.column in columns}
            verify_pages(local.file.path, self.uri, local.numbers, leaves)
        self._fetched |= dict.fromkeys(columns, local)

    def _fetch_pages(self, columns: set[str], part: tuple[int, int]) -> set[str]:
        """Fetch only the pages with a part of the row group, of columns with an offset index.

        Returns:
            These columns.
        """
        group = self._groups[0]
        indexes = self._page_indexes(group, columns)
        indexed = {column.leaf.column for column, _ in indexes}
        if not indexed:
            return indexed
        pages = choose_pages(indexes, *part)
        target = SparseFile(0)
        self._parts.append(target)
        with SparseFile(self._fragment.size) as source:
            self._fetch(coalesce(pages.spans()), source)
            try:
                own = write_part(pages, source, self._footer, group, target)
            except DamagedPagesError as error:
                is_shifted = isinstance(error, ShiftedPagesError)
                kind = WrongPageIndexError if is_shifted else UnreadableObjectError
                number = self._fragment.row_group_start
                raise kind(self.uri, f"row group {number}, {error}") from None
        first = part[0] - pages.start
        self._add(indexed, _LocalFile(target, [own], self._local.numbers, first))
        return indexed

    def _page_indexes(
        self, group: RowGroup, columns: set[str]
    ) -> list[tuple[ColumnChunk, PageIndex]]:
        """Read the offset indexes of the columns that have valid ones in all their leaves."""
        wanted = [chunk for chunk in group.columns if chunk.leaf.column in columns]
        unindexed = {
            chunk.leaf.column
            for chunk in wanted
            if not is_indexed(chunk.leaf, chunk.codec, chunk.index_length)
        }
        wanted = [chunk for chunk in wanted if chunk.leaf.column not in unindexed]
        spans = [(chunk.index_start, chunk.index_start + chunk.index_length) for chunk in wanted]
        self._fetch(coalesce(spans), self._file)
        indexes = []
        for chunk in wanted:
            data = self._file.read(chunk.index_start, chunk.index_length)
            try:
                indexes.append((chunk, parse_page_index(data, chunk, group.rows)))
            except ThriftError:
                unindexed.add(chunk.leaf.column)
        return [(chunk, index) for chunk, index in indexes if chunk.leaf.column not in unindexed]

    def _spans(self, columns: set[str]) -> Iterator[tuple[int, int]]:
        for group in self._footer.groups:
            for chunk in group.columns:
                if chunk.values and chunk.leaf.column in columns:
                    yield chunk.start, chunk.start + chunk.compressed

    def frames(self, columns: Sequence[str]) -> Iterator[pl.LazyFrame]:
        """Yield lazy frames of some row groups each, with the columns that the object has.

        Raises:
            UnreadableObjectError: data that pyarrow decodes are damaged.
        """
        self.fetch(columns)
        files = {name: self._fetched[name] for name in columns if name in self._fetched}
        present = list(files)
        locals_ = {id(local): local for local in files.values()}.values()
        readers = [
            self._reader(local, [name for name in present if files[name] is local])
            for local in locals_
        ]
        for groups, first, rows in self._steps():
            frames = [frame for read in readers for frame in read(groups, first, rows)]
            if not frames:
                # A placeholder column keeps the number of rows.
                yield pl.LazyFrame().select(pl.int_range(rows, dtype=pl.UInt32).alias(""))
            elif len(frames) == 1:
                yield frames[0]
            else:
                yield pl.concat(frames, how="horizontal").select(by_name(present))

    def _reader(
        self, local: _LocalFile, columns: Sequence[str]
    ) -> Callable[[Sequence[int], int, int], Iterator[pl.LazyFrame]]:
        """Return a function that reads columns for a step (see `_steps`)."""
        by_pyarrow = self._by_pyarrow(local, columns)
        by_polars = [name for name in columns if name not in by_pyarrow]
        scan = pl.scan_parquet(local.file.scanned, glob=False, hive_partitioning=False)
        total = local.rows

        def read(groups: Sequence[int], first: int, rows: int) -> Iterator[pl.LazyFrame]:
            if by_polars:
                # Slice only if needed: Polars does not push predicates past a slice.
                part = scan if rows == total else scan.slice(local.first + first, rows)
                yield part.select(by_name(by_polars))
            if by_pyarrow:
                decoded = self._decode(local, groups, by_pyarrow)
                yield decoded.slice(local.first, rows).lazy()

        return read

    def _by_pyarrow(self, local: _LocalFile, columns: Sequence[str]) -> list[str]:
        """Return the columns that Polars refuses, or would read incorrectly.

        Raises:
            UnreadableObjectError: pages of a column are damaged.
        """
        odd = set(self._types.by_pyarrow if self._types.is_read_by_polars else columns)
        for group in local.groups:
            for chunk in group.columns:
                name = chunk.leaf.column
                if name in columns and self._is_odd(local, chunk, is_known=name in odd):
                    odd.add(name)
        return [name for name in columns if name in odd]

    def _is_odd(self, local: _LocalFile, chunk: ColumnChunk, *, is_known: bool) -> bool:
        try:
            return is_odd(local.file.read, chunk, is_known=is_known)
        except ThriftError as error:
            raise UnreadableObjectError(self.uri, str(error)) from None

    def _decode(
        self, local: _LocalFile, groups: Sequence[int], columns: Sequence[str]
    ) -> pl.DataFrame:
        first, last = local.numbers[groups[0]], local.numbers[groups[-1]]
        where = f"row groups {first} to {last}, columns {', '.join(columns)}"
        unit = self._options.int96
        try:
            frame = decode(local.file.path, self._footer.schema, groups, columns, unit)
        except OutOfRangeError as error:
            more = "; set input.int96 to us" if unit == "ns" else ""
            raise UnreadableObjectError(self.uri, f"{where}: {_line(error)}{more}") from None
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            raise UnreadableObjectError(self.uri, f"{where}: {_line(error)}") from None
        rows = sum(local.groups[group].rows for group in groups)
        if frame.height != rows:  # pyarrow accepts fewer rows.
            raise UnreadableObjectError(self.uri, f"{where}: {frame.height} rows instead of {rows}")
        return frame

    def _steps(self) -> Iterator[tuple[list[int], int, int]]:
        """Yield what is decoded together: row groups, first row (in the fragment) and row count.

        A step is several whole row groups (see STEP_BYTES), or the fragment's part of its only one.
        """
        fragment = self._fragment
        if fragment.part is not None:
            yield [0], 0, fragment.rows
            return
        most = STEP_BYTES * fragment.rows // max(fragment.decoded_bytes, 1)
        step: list[int] = []
        first = gathered = 0
        for number, group in enumerate(self._groups):
            if step and gathered + group.rows > most:
                yield step, first, gathered
                step, first, gathered = [], first + gathered, 0
            step.append(number)
            gathered += group.rows
        yield step, first, gathered

    def close(self) -> None:
        """Free the copy."""
        for file in (self._file, *self._parts):
            file.close()


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:500]


def _open_all(
    storage: Storage, fragments: Sequence[Fragment], options: ReadOptions
) -> list[FragmentCopy]:
    """Open fragments, several at a time; if one fails, close the others."""
    copy = partial(FragmentCopy, storage, options=options)
    if len(fragments) == 1:
        return [copy(fragments[0])]
    counted = metrics.counted_here(copy)
    with ThreadPoolExecutor(FRAGMENTS_AT_ONCE) as pool:
        opening = [pool.submit(counted, fragment) for fragment in fragments]
    errors = [error for future in opening if (error := future.exception()) is not None]
    if errors:
        for future in opening:
            if future.exception() is None:
                future.result().close()
        raise errors[0]
    return [future.result() for future in opening]


class ChunkSource:
    """Reads one chunk."""

    def __init__(
        self,
        storage: Storage,
        chunk: Chunk,
        schema: pl.Schema,
        row_filter: pl.Expr | None = None,
        *,
        options: ReadOptions = DEFAULTS,
    ) -> None:
        self._options = options
        self._unreadable: dict[str, str] = {}
        self._storage = storage
        self._chunk = chunk
        self.schema = schema
        """Schema of the dataset, as Polars reads it."""
        names = options.columns
        self._visible = pl.Schema({name: schema[name] for name in names}) if names else schema
        self._filter = row_filter
        self._filter_columns = (
            set(row_filter.meta.root_names()) if row_filter is not None else set()
        )
        # Columns that are not in the objects; their values differ between fragments.
        self._virtual = {name for name, _ in chunk.fragments[0].partition}
        if options.object_column is not None:
            self._virtual.add(options.object_column)
        self._copies: list[FragmentCopy] | None = None
        self._lock = Lock()
        self._filtered: dict[tuple[int, int], int] = {}
        self.columns_read: set[str] = set()
        self.waited_seconds = 0.0
        """Seconds in which a scan waited for bytes; scans at the same time both count."""
        self._tally = metrics.current_tally()

    def footer_of_object(self) -> tuple[bytes, pl.Schema, frozenset[str]]:
        """Return the footer of a chunk's only object, and the types of its columns as read.

        Returns:
            Also the columns whose types Polars would take for others.
        """
        # Row groups without rows part an object into several fragments.
        copy = self._opened()[0]
        return copy.footer, copy.types, copy.odd_columns

    @property
    def bytes_read(self) -> int:
        """Number of bytes read over the network so far."""
        return sum(copy.bytes_read for copy in self._copies or ())

    @property
    def rows_filtered(self) -> int:
        """Number of rows that the job's filter has removed so far."""
        return sum(self._filtered.values())

    @property
    def left_out(self) -> tuple[str, ...]:
        """URI and reason, separated by a tab, of each object that could not be read."""
        return tuple(
            f"{uri}\t{reason[:MAX_REASON_CHARACTERS]}" for uri, reason in self._unreadable.items()
        )

    @property
    def rows_left_out(self) -> int:
        """Number of rows in objects that could not be read."""
        return sum(f.rows for f in self._chunk.fragments if f.uri in self._unreadable)

    def leave_out(self, error: UnreadableObjectError) -> bool:
        """Leave out an object that cannot be read; return whether that is allowed.

        The chunk must then be scanned again from its start.
        """
        if isinstance(error, WrongPageIndexError):
            return False
        is_own = error.uri in {fragment.uri for fragment in self._chunk.fragments}
        if not self._options.skip_unreadable or not is_own or error.uri in self._unreadable:
            return False
        self._unreadable[error.uri] = error.reason
        self._filtered.clear()
        return True

    def prefetch(self, columns: Iterable[str]) -> None:
        """Open all fragments and fetch columns, several fragments at a time."""
        wanted = {*columns, *self._filter_columns} - self._virtual
        # Polars scans in threads of its own.
        with metrics.counting(self._tally):
            copies = self._opened()
            if len(copies) == 1:
                copies[0].fetch(wanted)
            elif copies:
                fetch = metrics.counted_here(lambda copy: copy.fetch(wanted))
                with ThreadPoolExecutor(FRAGMENTS_AT_ONCE) as pool:
                    list(pool.map(fetch, copies))

    def _opened(self) -> list[FragmentCopy]:
        with self._lock:
            if self._copies is None:
                readable = [f for f in self._chunk.fragments if f.uri not in self._unreadable]
                self._copies = _open_all(self._storage, readable, self._options)
            return [copy for copy in self._copies if copy.uri not in self._unreadable]

    def scan(self) -> pl.LazyFrame:
        """Return the chunk as a LazyFrame, which is read whenever it is collected."""
        # Not `is_pure`: equal plans over different chunks must not share results.
        return register_io_source(self._frames, schema=self._visible, validate_schema=True)

    def _frames(
        self,
        with_columns: list[str] | None,
        predicate: pl.Expr | None,
        n_rows: int | None,
        batch_size: int | None,
    ) -> Iterator[pl.DataFrame]:
        names = list(self._visible) if with_columns is None else with_columns
        wanted = dict.fromkeys([*names, *sorted(self._filter_columns)])
        self.columns_read |= set(wanted)
        stored = [name for name in wanted if name not in self._virtual]
        clock = time.perf_counter()
        self.prefetch(stored)
        self.waited_seconds += time.perf_counter() - clock
        left = n_rows
        is_plain = self._filter is None and predicate is None and left is None
        for number, copy in enumerate(self._opened()):
            for step, lazy in enumerate(copy.frames(stored)):
                if is_plain and copy.engine == "in-memory" and self._has_types(copy, stored):
                    with naming(copy.uri, stored):
                        yield self._shaped(lazy, names, self._virtual_values(copy))
                    continue
                shaped = self._shape(lazy, list(wanted), copy.types, self._virtual_values(copy))
                engine = copy.engine
                if self._filter is not None:
                    # The filtered frame is in memory, so streaming has no use from here on.
                    with naming(copy.uri, stored):
                        kept = self._apply_filter(shaped, engine, (number, step))
                    shaped, engine = kept.lazy(), "in-memory"
                if not names:
                    shaped, engine = self._without_columns(shaped, engine).lazy(), "in-memory"
                elif list(wanted) != names:
                    shaped = shaped.select(by_name(names))
                if left is not None:
                    with naming(copy.uri, stored):
                        first = shaped.head(left).collect(engine=engine)
                    left, shaped, engine = left - first.height, first.lazy(), "in-memory"
                yield self._collect(shaped, predicate, engine, (copy.uri, stored))
                if left == 0:
                    return

    def _has_types(self, copy: FragmentCopy, stored: Sequence[str]) -> bool:
        """Whether an object has some of these columns, and all that it has in the right types."""
        present = [name for name in stored if name in copy.types]
        return bool(present) and all(copy.types[name] == self.schema[name] for name in present)

    def _shaped(
        self, lazy: pl.LazyFrame, names: Sequence[str], partition: Mapping[str, Any]
    ) -> pl.DataFrame:
        """Collect a small frame in the shape that `_shape` gives it, but for casts.

        A plan of these steps takes Polars as long as decoding the frame. Casts are left to plans,
        because those of columns that are in memory know fewer types.
        """
        frame = lazy.collect(engine="in-memory", optimizations=_SCAN)
        have = set(frame.columns) - partition.keys()
        columns = []
        for name in names:
            if name in have:
                columns.append(frame.get_column(name))
            else:
                value = pl.Series(name, [partition.get(name)], dtype=self.schema[name])
                columns.append(value.new_from_index(0, frame.height))
        return pl.DataFrame(columns)

    @staticmethod
    def _without_columns(shaped: pl.LazyFrame, engine: Engine) -> pl.DataFrame:
        """Return a frame without columns that has the same number of rows."""
        return pl.DataFrame(height=shaped.select(pl.len()).collect(engine=engine).item())

    @staticmethod
    def _collect(
        shaped: pl.LazyFrame,
        predicate: pl.Expr | None,
        engine: Engine,
        where: tuple[str, Sequence[str]],
    ) -> pl.DataFrame:
        """Collect; tell errors of the object from errors of the transform's predicate."""
        if predicate is None:
            with naming(*where):
                return shaped.collect(engine=engine)
        try:
            return shaped.filter(predicate).collect(engine=engine)
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
            with naming(*where):
                shaped.collect(engine=engine)
            raise  # It can be read without the transform's predicate.

    def _virtual_values(self, copy: FragmentCopy) -> dict[str, Any]:
        """Return the values of columns that are not in the object: Hive values, and its URI."""
        if self._options.object_column is None:
            return copy.partition
        return {**copy.partition, self._options.object_column: copy.uri}

    def _apply_filter(
        self, shaped: pl.LazyFrame, engine: Engine, step: tuple[int, int]
    ) -> pl.DataFrame:
        """Apply the job's filter, and count the rows that it removes."""
        assert self._filter is not None, "only called for a job with a filter"
        frame = shaped.collect(engine=engine)
        kept = frame.filter(self._filter)
        self._filtered[step] = frame.height - kept.height
        return kept

    def _shape(
        self,
        lazy: pl.LazyFrame,
        names: list[str],
        have: Mapping[str, pl.DataType],
        partition: Mapping[str, Any],
    ) -> pl.LazyFrame:
        """Order columns, cast them to the dataset's types, add Hive values and missing columns.

        Args:
            lazy: Columns of the object.
            names: Columns of the result.
            have: Types of the object's columns. To ask Polars for them would parse the footer.
            partition: Values of columns that the object does not have.
        """
        changed: list[pl.Expr] = []
        for name in names:
            dtype: Any = self.schema[name]
            if name in partition:
                changed.append(pl.lit(partition[name], dtype=dtype).alias(name))
            elif name not in have:
                changed.append(pl.lit(None, dtype=dtype).alias(name))
            elif have[name] != dtype:
                changed.append(by_name([name]).cast(dtype))
        if not names:
            return lazy  # Selecting no column would lose the number of rows.
        # `with_columns` first: selecting only literals would return one row.
        return (lazy.with_columns(changed) if changed else lazy).select(by_name(names))

    def close(self) -> None:
        """Free all copies."""
        with self._lock:
            for copy in self._copies or ():
                copy.close()
            self._copies = []
