"""Write a part of a row group as a local file of only the pages that contain its rows.

The pages of each column follow its dictionary, with empty pages where other columns' pages begin
earlier or end later (see `partitioning.page_rows`). So the file may have a few more rows than
wanted, and its reader must slice it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from partitioning.page_index import PageIndex
from partitioning.page_rows import (
    OtherRowsError,
    PageFigures,
    check_dictionary,
    check_page,
    empty_page,
)
from partitioning.parquet_footer import MAGIC, ColumnChunk, Footer, RowGroup, write_footer
from partitioning.thrift import ThriftError
from pipeline.runs.worker.sparse_file import SparseFile


class DamagedPagesError(ValueError):
    """Pages do not match their index."""


class ShiftedPagesError(DamagedPagesError):
    """Pages have other numbers of rows than in their index."""


@dataclass(frozen=True, slots=True)
class _Cut:
    """The wanted pages of one column chunk: [first, last) of its index."""

    column: ColumnChunk
    index: PageIndex
    first: int
    last: int

    @property
    def rows(self) -> tuple[int, int]:
        """Half-open range of the pages' rows."""
        return self.index.rows[self.first], self.index.rows[self.last]

    @property
    def dictionary(self) -> tuple[int, int]:
        """Byte range before the first data page."""
        return self.column.start, self.index.offsets[0]

    def pages(self) -> Iterator[tuple[int, int, int]]:
        """Yield offset, bytes and rows of each page."""
        for at in range(self.first, self.last):
            rows = self.index.rows[at + 1] - self.index.rows[at]
            yield self.index.offsets[at], self.index.lengths[at], rows


@dataclass(frozen=True, slots=True)
class PartPages:
    """The pages of some columns that contain a part of a row group: rows [start, stop)."""

    cuts: tuple[_Cut, ...]
    start: int
    stop: int

    def spans(self) -> Iterator[tuple[int, int]]:
        """Yield half-open ranges of the object's bytes."""
        for cut in self.cuts:
            yield cut.dictionary
            last = cut.last - 1
            yield cut.index.offsets[cut.first], cut.index.offsets[last] + cut.index.lengths[last]


def choose_pages(
    columns: Iterable[tuple[ColumnChunk, PageIndex]], start: int, stop: int
) -> PartPages:
    """Choose the pages of column chunks that contain the rows [start, stop)."""
    cuts = tuple(_Cut(column, index, *index.covering(start, stop)) for column, index in columns)
    low = min(cut.rows[0] for cut in cuts)
    return PartPages(cuts, low, max(cut.rows[1] for cut in cuts))


def write_part(
    part: PartPages, source: SparseFile, footer: Footer, group: RowGroup, target: SparseFile
) -> RowGroup:
    """Write pages into another file, and return its row group.

    Args:
        part: The pages.
        source: Bytes of the pages, at their offsets in the object.
        footer: Footer of the object.
        group: Row group of the pages.
        target: An empty file.

    Raises:
        ShiftedPagesError: a page has another number of rows than in its index.
        DamagedPagesError: a page does not match its index.
    """
    target.write(0, memoryview(MAGIC))
    end, rows = len(MAGIC), part.stop - part.start
    written: dict[int, ColumnChunk] = {}
    for cut in part.cuts:
        writer = _ColumnWriter(cut.column, target, end)
        _write_pages(cut, source, writer, (part.start, part.stop))
        written[cut.column.leaf.index] = writer.column()
        end = writer.end
    columns = [written.get(c.leaf.index) or _absent_column(c, rows) for c in group.columns]
    own = RowGroup(rows, columns)
    target.write(end, memoryview(write_footer(replace(footer, rows=rows, groups=[own]))))
    return own


def _absent_column(column: ColumnChunk, rows: int) -> ColumnChunk:
    """Return the footer entry of a column that the file lacks, with no offsets outside of it."""
    at = len(MAGIC)
    return replace(
        column, start=at, data_start=at, compressed=0, uncompressed=0, values=rows,
        has_dictionary=False, statistics=None,
    )  # fmt: skip


class _ColumnWriter:
    """Writes one column chunk, page by page."""

    def __init__(self, column: ColumnChunk, target: SparseFile, start: int) -> None:
        self._column, self._target = column, target
        self._start = self._data_start = self.end = start
        self._uncompressed = self._values = 0

    def add_dictionary(self, page: bytes, uncompressed: int) -> None:
        self._add(page, uncompressed)
        self._data_start = self.end

    def add_page(self, page: bytes, figures: PageFigures) -> None:
        self._add(page, figures.uncompressed)
        self._values += figures.values

    def add_empty(self, rows: int, *, is_dictionary: bool) -> None:
        if rows:
            page = empty_page(self._column.leaf, rows, is_dictionary=is_dictionary)
            self.add_page(page, PageFigures(rows, len(page), is_dictionary))

    def _add(self, page: bytes, uncompressed: int) -> None:
        self._target.write(self.end, memoryview(page))
        self.end += len(page)
        self._uncompressed += uncompressed

    def column(self) -> ColumnChunk:
        """Return the column's footer entry, without statistics: those are of all rows."""
        return replace(
            self._column,
            start=self._start,
            data_start=self._data_start,
            compressed=self.end - self._start,
            uncompressed=self._uncompressed,
            values=self._values,
            has_dictionary=self._data_start > self._start,
            statistics=None,
        )


def _write_pages(
    cut: _Cut, source: SparseFile, writer: _ColumnWriter, rows: tuple[int, int]
) -> None:
    start, stop = cut.dictionary
    if stop > start:
        page = source.read(start, stop - start)
        with _naming(cut, start):
            uncompressed = check_dictionary(page)
        writer.add_dictionary(page, uncompressed)
    first, last = cut.rows
    is_dictionary: bool | None = None
    for offset, length, count in cut.pages():
        page = source.read(offset, length)
        with _naming(cut, offset):
            figures = check_page(page, cut.column, count)
        if is_dictionary is None:
            writer.add_empty(first - rows[0], is_dictionary=figures.is_dictionary)
        is_dictionary = figures.is_dictionary
        writer.add_page(page, figures)
    writer.add_empty(rows[1] - last, is_dictionary=bool(is_dictionary))


@contextmanager
def _naming(cut: _Cut, offset: int) -> Iterator[None]:
    try:
        yield
    except ThriftError as error:
        kind = ShiftedPagesError if isinstance(error, OtherRowsError) else DamagedPagesError
        raise kind(f"column {cut.column.leaf.path}, page at byte {offset:,}: {error}") from None
