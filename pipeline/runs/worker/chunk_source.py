"""Reading a chunk: pinned versions, only the columns that are asked for, as a LazyFrame.

Two ways to hold a version were compared. Polars' own S3 scan with a HEAD after it sees a
replacement only afterwards, and misses one that is put back. Conditional range requests (If-Match)
cannot mix versions, and cost nothing beyond the requests that are needed anyway. Hence the second.
"""

from __future__ import annotations

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
    is_odd_encoding,
    plain_arrow_schema,
)
from partitioning.footer_arrays import read_footer
from partitioning.page_index import PageIndex, is_indexed, parse_page_index
from partitioning.pages import check_values, denies_nulls
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
from pipeline.errors import ObjectChangedError, UnreadableObjectError, WrongPageIndexError
from pipeline.runs.worker.decoding import decode
from pipeline.runs.worker.page_checksums import verify_pages
from pipeline.runs.worker.page_parts import (
    DamagedPagesError,
    ShiftedPagesError,
    choose_pages,
    write_part,
)
from pipeline.runs.worker.sparse_file import SparseFile, coalesce
from pipeline.storage import Storage

WHOLE_BYTES = 512 << 10
"""Objects up to this size are read whole: one request instead of two."""
FRAGMENTS_AT_ONCE = 8
"""Small fragments of one chunk that are read at a time."""
STEP_BYTES = 32 << 20
"""Decoded bytes of row groups that are decoded together. Each step reads the footer again, which
for a hundred columns takes as long as decoding a small row group; more would only cost memory."""
_REASON = 500
"""Characters of a reason that are kept."""
SMALL_BYTES = 1 << 20
"""Decoded bytes up to which Polars' in-memory engine is the faster one."""

Engine = Literal["in-memory", "streaming"]


def engine_for(decoded_bytes: float) -> Engine:
    """Which of Polars' engines to collect with.

    The streaming engine keeps memory low and works on what fits into a core's cache; what is small
    needs neither, and is done in a quarter of the time.
    """
    return "in-memory" if decoded_bytes <= SMALL_BYTES else "streaming"


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How chunks are read."""

    columns: Sequence[str] | None = None
    """Columns that a transform may see; default all."""
    int96: Int96Unit = "us"
    """Unit of INT96 times."""
    object_column: str | None = None
    """A column of this name has the URI of each row's object."""
    verify_checksums: bool = False
    """Whether pages are held against their checksums."""
    skip_unreadable: bool = False
    """Whether a chunk goes on without objects that cannot be read."""


DEFAULTS = ReadOptions()


def by_name(names: Sequence[str]) -> pl.Expr:
    """Columns of just these names, in this order; `pl.col` takes some, such as `*`, as patterns."""
    return cs.by_name(*names)


@contextmanager
def naming(uri: str, columns: Sequence[str]) -> Iterator[None]:
    """Name the object, and the columns that are read, in an error of decoding.

    Raises:
        UnreadableObjectError: Polars raised, or panicked.
    """
    try:
        yield
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise UnreadableObjectError(uri, f"columns {', '.join(columns)}: {_line(error)}") from error


@dataclass(frozen=True, slots=True)
class _LocalFile:
    """Columns of row groups in a local file, with a footer of our own."""

    file: SparseFile
    groups: Sequence[RowGroup]
    numbers: Sequence[int]
    """Of the row groups, in the object."""
    first: int
    """Rows before the fragment's first."""

    @property
    def rows(self) -> int:
        return sum(group.rows for group in self.groups)


class FragmentCopy:
    """The local copy of one fragment, filled column by column.

    Of a fragment that is part of a row group, columns with an offset index are brought as the pages
    that hold its rows, into files of their own; others as a whole.
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
        self._file = SparseFile(fragment.size)
        self._parts: list[SparseFile] = []
        self._held: dict[str, _LocalFile] = {}
        """Where columns are that have been brought here."""
        self._lock = Lock()
        self.bytes_read = 0
        self._whole = fragment.size <= WHOLE_BYTES
        try:
            start = 0 if self._whole else fragment.size - fragment.footer_size
            self._fetch([(start, fragment.size)], self._file)
            self._footer = self._parse()
            numbers, self._groups = self._with_rows()
            first = 0 if fragment.part is None else fragment.part[0]
            self._local = _LocalFile(self._file, self._groups, numbers, first)
            self._types = self._ask_types()
            self._write_own_footer()
        except BaseException:
            self.close()
            raise

    def _fetch(self, spans: Sequence[tuple[int, int]], file: SparseFile) -> None:
        for (start, _), data in zip(
            spans, self._storage.get_ranges(self._info, spans), strict=True
        ):
            file.write(start, data)
            self.bytes_read += len(data)

    def _parse(self) -> Footer:
        """The footer, held against the plan: the conditional read vouches for its version."""
        part = self._fragment
        start, length = part.size - part.footer_size, part.footer_size - END
        wanted = range(part.row_group_start, part.row_group_stop)
        selection = FooterSelection(statistics=None, encodings=True, groups=wanted)
        try:
            footer = read_footer(self._file.read(start, length), part.size, selection)
        except BadFooter as bad:
            raise UnreadableObjectError(part.uri, str(bad.args[1])) from None
        if footer.count < part.row_group_stop:
            raise ObjectChangedError(part.uri, part.etag, None)
        found = sum(group.rows for group in footer.groups)
        is_planned = found == part.rows if part.part is None else found >= part.part[1]
        if not is_planned:
            raise ObjectChangedError(part.uri, part.etag, None)
        if footer.arrow_schema is None:
            return footer
        return replace(footer, arrow_schema=plain_arrow_schema(footer.arrow_schema))

    def _with_rows(self) -> tuple[list[int], list[RowGroup]]:
        """Row groups that have rows, and their numbers in the object."""
        numbered = enumerate(self._footer.groups, self._fragment.row_group_start)
        found = [(number, group) for number, group in numbered if group.rows]
        return [number for number, _ in found], [group for _, group in found]

    def _ask_types(self) -> FileTypes:
        try:
            return file_types(self._footer.schema, self._footer.arrow_schema, self._options.int96)
        except UnreadableSchemaError as error:
            raise UnreadableObjectError(self.uri, str(error)) from None

    def _write_own_footer(self) -> None:
        """Put a footer of our own behind the object: that of these row groups, as it was checked.

        Decoders end the process on some footers, and take others for something else than the
        planner did.
        """
        footer = self._footer
        if not self._has_statistics():
            for group in self._groups:
                for chunk in group.columns:
                    chunk.statistics = None
        own = replace(footer, rows=self._local.rows, groups=self._groups)
        self._file.write(0, memoryview(MAGIC))
        self._file.write(self._fragment.size, memoryview(write_footer(own)))

    def _has_statistics(self) -> bool:
        """Whether Polars is to try a transform's predicates on statistics: not if they may lie."""
        trust = writer_trust(self._footer.created_by)
        return trust.null_counts and trust.times

    @property
    def columns(self) -> set[str]:
        """Top-level columns that the object has."""
        return set(self._footer.schema.columns)

    def fetch(self, columns: Iterable[str]) -> None:
        """Bring columns of this fragment's row groups here, unless they are."""
        with self._lock:
            wanted = (set(columns) & self.columns) - self._held.keys()
            if not wanted:
                return
            if not self._whole and self._fragment.part is not None:
                wanted -= self._fetch_pages(wanted, self._fragment.part)
            if wanted and not self._whole:
                self._fetch(coalesce(self._spans(wanted)), self._file)
            self._hold(wanted, self._local)

    def _hold(self, columns: set[str], local: _LocalFile) -> None:
        if columns and self._options.verify_checksums:
            leaves = {leaf.index for leaf in self._footer.schema.leaves if leaf.column in columns}
            verify_pages(local.file.path, self.uri, local.numbers, leaves)
        self._held |= dict.fromkeys(columns, local)

    def _fetch_pages(self, columns: set[str], part: tuple[int, int]) -> set[str]:
        """Bring the pages here that hold a part of the row group, of columns where they are known.

        Returns:
            These columns.
        """
        group = self._groups[0]
        indexes = self._page_indexes(group, columns)
        found = {column.leaf.column for column, _ in indexes}
        if not found:
            return found
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
        self._hold(found, _LocalFile(target, [own], self._local.numbers, first))
        return found

    def _page_indexes(
        self, group: RowGroup, columns: set[str]
    ) -> list[tuple[ColumnChunk, PageIndex]]:
        """The offset indexes of columns that have good ones, throughout."""
        wanted = [chunk for chunk in group.columns if chunk.leaf.column in columns]
        lacking = {
            chunk.leaf.column
            for chunk in wanted
            if not is_indexed(chunk.leaf, chunk.codec, chunk.index_length)
        }
        wanted = [chunk for chunk in wanted if chunk.leaf.column not in lacking]
        spans = [(chunk.index_start, chunk.index_start + chunk.index_length) for chunk in wanted]
        self._fetch(coalesce(spans), self._file)
        found = []
        for chunk in wanted:
            data = self._file.read(chunk.index_start, chunk.index_length)
            try:
                found.append((chunk, parse_page_index(data, chunk, group.rows)))
            except ThriftError:
                lacking.add(chunk.leaf.column)
        return [(chunk, index) for chunk, index in found if chunk.leaf.column not in lacking]

    def _spans(self, columns: set[str]) -> Iterator[tuple[int, int]]:
        for group in self._footer.groups:
            for chunk in group.columns:
                if chunk.values and chunk.leaf.column in columns:
                    yield chunk.start, chunk.start + chunk.compressed

    def frames(self, columns: Sequence[str]) -> Iterator[pl.LazyFrame]:
        """Lazy frames of some row groups each, with those of the columns that the object has.

        Raises:
            UnreadableObjectError: what pyarrow decodes is damaged.
        """
        self.fetch(columns)
        held = {name: self._held[name] for name in columns if name in self._held}
        present = list(held)
        locals_ = {id(local): local for local in held.values()}.values()
        readers = [
            self._reader(local, [name for name in present if held[name] is local])
            for local in locals_
        ]
        for groups, first, rows in self._steps():
            frames = [frame for read in readers for frame in read(groups, first, rows)]
            if not frames:
                # A frame of one stand-in column still carries the number of rows.
                yield pl.LazyFrame().select(pl.int_range(rows, dtype=pl.UInt32).alias(""))
            elif len(frames) == 1:
                yield frames[0]
            else:
                yield pl.concat(frames, how="horizontal").select(by_name(present))

    def _reader(
        self, local: _LocalFile, columns: Sequence[str]
    ) -> Callable[[Sequence[int], int, int], Iterator[pl.LazyFrame]]:
        """Return what gives frames of columns for a step: see `_steps`."""
        by_pyarrow = self._by_pyarrow(local, columns)
        by_polars = [name for name in columns if name not in by_pyarrow]
        scan = pl.scan_parquet(local.file.path, glob=False, hive_partitioning=False)
        total = local.rows

        def read(groups: Sequence[int], first: int, rows: int) -> Iterator[pl.LazyFrame]:
            if by_polars:
                # Polars takes no predicate past a slice, and so would decode what it could skip.
                part = scan if rows == total else scan.slice(local.first + first, rows)
                yield part.select(by_name(by_polars))
            if by_pyarrow:
                decoded = self._decode(local, groups, by_pyarrow)
                yield decoded.slice(local.first, rows).lazy()

        return read

    def _by_pyarrow(self, local: _LocalFile, columns: Sequence[str]) -> list[str]:
        """Columns that Polars refuses, or would read wrongly.

        Raises:
            UnreadableObjectError: the pages of one are damaged.
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
            check_values(local.file.read, chunk)
        except ThriftError as error:
            raise UnreadableObjectError(
                self.uri, f"column {chunk.leaf.path}, byte {chunk.start:,}: {error}"
            ) from None
        if is_known or is_odd_encoding(chunk.leaf, chunk.encodings):
            return True
        try:
            return denies_nulls(local.file.read, chunk)
        except ThriftError:
            return False  # Polars will say what is wrong with it, if anything is.

    def _decode(
        self, local: _LocalFile, groups: Sequence[int], columns: Sequence[str]
    ) -> pl.DataFrame:
        first, last = local.numbers[groups[0]], local.numbers[groups[-1]]
        where = f"row groups {first} to {last}, columns {', '.join(columns)}"
        try:
            unit = self._options.int96
            found = decode(local.file.path, self._footer.schema, groups, columns, unit)
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            raise UnreadableObjectError(self.uri, f"{where}: {_line(error)}") from None
        rows = sum(local.groups[group].rows for group in groups)
        if found.height != rows:  # pyarrow is content with fewer.
            raise UnreadableObjectError(self.uri, f"{where}: {found.height} rows instead of {rows}")
        return found

    def _steps(self) -> Iterator[tuple[list[int], int, int]]:
        """What is decoded together: row groups, first row and rows, counted from the fragment's.

        As many whole row groups as are worth it, or the fragment's part of its only one.
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
    """Open fragments, several at a time; when one cannot be opened, none stays open."""
    copy = partial(FragmentCopy, storage, options=options)
    if len(fragments) == 1:
        return [copy(fragments[0])]
    with ThreadPoolExecutor(FRAGMENTS_AT_ONCE) as pool:
        opening = [pool.submit(copy, fragment) for fragment in fragments]
    errors = [error for one in opening if (error := one.exception()) is not None]
    if errors:
        for one in opening:
            if one.exception() is None:
                one.result().close()
        raise errors[0]
    return [one.result() for one in opening]


class ChunkSource:
    """One chunk, opened for reading."""

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
        self._schema = schema
        self._visible = pl.Schema({n: schema[n] for n in options.columns or schema})
        self._filter = row_filter
        self._filter_columns = (
            set(row_filter.meta.root_names()) if row_filter is not None else set()
        )
        # With chunks that cross partitions these names have a value for each fragment.
        self._given = {name for name, _ in chunk.fragments[0].partition}
        if options.object_column is not None:
            self._given.add(options.object_column)
        self._copies: list[FragmentCopy] | None = None
        self._lock = Lock()
        self._filtered: dict[tuple[int, int], int] = {}
        self.columns_read: set[str] = set()

    @property
    def bytes_read(self) -> int:
        """Bytes that came over the network so far."""
        return sum(copy.bytes_read for copy in self._copies or ())

    @property
    def rows_filtered(self) -> int:
        """Rows that the job's own filter took away, so far as they were read."""
        return sum(self._filtered.values())

    @property
    def left_out(self) -> tuple[str, ...]:
        """Objects that could not be read, each with the reason behind a tab."""
        return tuple(f"{uri}\t{reason[:_REASON]}" for uri, reason in self._unreadable.items())

    @property
    def rows_left_out(self) -> int:
        """Rows of these objects."""
        return sum(f.rows for f in self._chunk.fragments if f.uri in self._unreadable)

    def leave_out(self, error: UnreadableObjectError) -> bool:
        """Go on without an object that cannot be read; whether that is allowed.

        What has been read of the chunk does not count: it is to be scanned again.
        """
        if isinstance(error, WrongPageIndexError):
            return False
        known = error.uri in {fragment.uri for fragment in self._chunk.fragments}
        if not self._options.skip_unreadable or not known or error.uri in self._unreadable:
            return False
        self._unreadable[error.uri] = error.reason
        self._filtered.clear()
        return True

    def prefetch(self, columns: Iterable[str]) -> None:
        """Open all fragments and bring the columns here, several fragments at a time."""
        wanted = {*columns, *self._filter_columns} - self._given
        copies = self._opened()
        if not copies:
            return
        if len(copies) == 1:
            copies[0].fetch(wanted)
            return
        with ThreadPoolExecutor(FRAGMENTS_AT_ONCE) as pool:
            list(pool.map(lambda copy: copy.fetch(wanted), copies))

    def _opened(self) -> list[FragmentCopy]:
        with self._lock:
            if self._copies is None:
                readable = [f for f in self._chunk.fragments if f.uri not in self._unreadable]
                self._copies = _open_all(self._storage, readable, self._options)
            return [copy for copy in self._copies if copy.uri not in self._unreadable]

    def scan(self) -> pl.LazyFrame:
        """The chunk as a LazyFrame; it is read when it is collected, as often as it is."""
        # Not `is_pure`: the same plan over another chunk must never be taken for this one.
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
        stored = [name for name in wanted if name not in self._given]
        self.prefetch(stored)
        left = n_rows
        for number, copy in enumerate(self._opened()):
            for step, lazy in enumerate(copy.frames(stored)):
                shaped = self._shaped(lazy, list(wanted), self._given_by(copy))
                engine = copy.engine
                if self._filter is not None:
                    # What is in memory by now is not streamed once more.
                    with naming(copy.uri, stored):
                        kept = self._kept(shaped, engine, (number, step))
                    shaped, engine = kept.lazy(), "in-memory"
                if not names:
                    shaped, engine = self._counted(shaped, engine).lazy(), "in-memory"
                elif shaped.collect_schema().names() != names:
                    shaped = shaped.select(by_name(names))
                if left is not None:
                    with naming(copy.uri, stored):
                        first = shaped.head(left).collect(engine=engine)
                    left, shaped, engine = left - first.height, first.lazy(), "in-memory"
                yield self._collected(shaped, predicate, engine, (copy.uri, stored))
                if left == 0:
                    return

    @staticmethod
    def _counted(shaped: pl.LazyFrame, engine: Engine) -> pl.DataFrame:
        """A frame without columns that has as many rows: what asks for none may still count."""
        return pl.DataFrame(height=shaped.select(pl.len()).collect(engine=engine).item())

    @staticmethod
    def _collected(
        shaped: pl.LazyFrame,
        predicate: pl.Expr | None,
        engine: Engine,
        where: tuple[str, Sequence[str]],
    ) -> pl.DataFrame:
        """Collect, and tell what the object is to blame for from what the transform is."""
        if predicate is None:
            with naming(*where):
                return shaped.collect(engine=engine)
        try:
            return shaped.filter(predicate).collect(engine=engine)
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
            with naming(*where):
                shaped.collect(engine=engine)
            raise  # Without the transform's own predicate it can be read.

    def _given_by(self, copy: FragmentCopy) -> dict[str, Any]:
        """Values of columns that the object does not hold: of its folders, and its own URI."""
        if self._options.object_column is None:
            return copy.partition
        return {**copy.partition, self._options.object_column: copy.uri}

    def _kept(self, shaped: pl.LazyFrame, engine: Engine, step: tuple[int, int]) -> pl.DataFrame:
        """What the job's own filter leaves; how many rows it takes away is counted."""
        assert self._filter is not None, "only a job with a filter takes rows away"
        frame = shaped.collect(engine=engine)
        kept = frame.filter(self._filter)
        self._filtered[step] = frame.height - kept.height
        return kept

    def _shaped(
        self, lazy: pl.LazyFrame, names: list[str], partition: Mapping[str, Any]
    ) -> pl.LazyFrame:
        """Columns in order, of the dataset's types; Hive values and missing columns filled in."""
        have = lazy.collect_schema()
        changed: list[pl.Expr] = []
        for name in names:
            dtype: Any = self._schema[name]
            if name in partition:
                changed.append(pl.lit(partition[name], dtype=dtype).alias(name))
            elif name not in have:
                changed.append(pl.lit(None, dtype=dtype).alias(name))
            elif have[name] != dtype:
                changed.append(by_name([name]).cast(dtype))
        if not names:
            return lazy  # To select nothing would lose the number of rows.
        # `with_columns` first: literals alone would make a frame of one row.
        return (lazy.with_columns(changed) if changed else lazy).select(by_name(names))

    def close(self) -> None:
        """Free all copies."""
        with self._lock:
            for copy in self._copies or ():
                copy.close()
            self._copies = []
