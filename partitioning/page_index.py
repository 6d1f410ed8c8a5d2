"""A column chunk's offset index: where each of its pages lies, and with which row it begins.

An index is a hint that most readers never look at. One that does not parse, or contradicts its
column chunk, is as good as none; that its pages bear it out is checked when they are read.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import Final

from partitioning.parquet_footer import ColumnChunk, Leaf
from partitioning.thrift import (
    INTEGER,
    LISTS,
    STRUCT,
    Hook,
    ThriftError,
    Wanted,
    read_list_header,
    read_struct,
    skip,
)

_MOST_BYTES: Final = 4 << 20
"""Of an index: half a million pages."""
_LOCATION: Final[dict[int, Wanted]] = {1: INTEGER, 2: INTEGER, 3: INTEGER}
_LZ4_HADOOP: Final = 5


def is_indexed(leaf: Leaf, codec: int, length: int) -> bool:
    """Tell whether a column chunk may be read by its pages.

    Not where nothing here can look into the pages of a list, because Hadoop frames LZ4 in its way.

    Args:
        leaf: Its column.
        codec: Its codec.
        length: Bytes of its offset index.
    """
    return 0 < length <= _MOST_BYTES and not (leaf.is_repeated and codec == _LZ4_HADOOP)


@dataclass(frozen=True, slots=True)
class PageIndex:
    """The data pages of one column chunk, in their order."""

    offsets: tuple[int, ...]
    lengths: tuple[int, ...]
    """Bytes, headers included."""
    rows: tuple[int, ...]
    """The row of the row group that each begins with, and the row group's rows at the end."""

    def covering(self, start: int, stop: int) -> tuple[int, int]:
        """Return the half-open range of pages that hold some rows."""
        return bisect_right(self.rows, start) - 1, bisect_left(self.rows, stop)


def parse_page_index(data: bytes, column: ColumnChunk, rows: int) -> PageIndex:
    """Parse an offset index, and hold it against its column chunk.

    Args:
        data: The index.
        column: The column chunk.
        rows: Of the row group.

    Raises:
        ThriftError: it does not parse, or contradicts the column chunk.
    """
    locations: list[tuple[int, int, int]] = []

    def read_locations(data: bytes, at: int, kind: int) -> int:
        if kind not in LISTS or locations:
            return skip(data, at, kind)
        element, count, at = read_list_header(data, at)
        if count and element != STRUCT:
            raise ThriftError("its pages are no structs")
        before = (column.start, 0, 0)
        for _ in range(count):
            found, at = read_struct(data, at, _LOCATION)
            page = found.get(1, -1), found.get(2, -1), found.get(3, -1)
            if page[0] < before[0] + before[1] or page[1] <= 0 or not before[2] <= page[2] <= rows:
                raise ThriftError(f"page {len(locations)} does not follow the one before")
            locations.append(page)
            before = page
        return at

    try:
        read_struct(data, 0, {1: Hook(read_locations)})
    except IndexError:
        raise ThriftError("it ends too early") from None
    if not locations or locations[0][2] != 0:
        raise ThriftError("it does not begin with the first row")
    if locations[0][0] != column.data_start:
        raise ThriftError("it does not begin with the column's first data page")
    if locations[-1][0] + locations[-1][1] > column.start + column.compressed:
        raise ThriftError("its pages end behind their column")
    offsets, lengths, first = zip(*locations, strict=True)
    return PageIndex(offsets, lengths, (*first, rows))
