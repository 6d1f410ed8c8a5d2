"""Parse the offset index of a column chunk: location and first row of each page.

Most readers never use the index. An index that cannot be parsed, or contradicts its column chunk,
is ignored. Its pages are checked against it when they are read.
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

_MAX_BYTES: Final = 4 << 20
"""Maximum size of an index, enough for half a million pages."""
_LOCATION: Final[dict[int, Wanted]] = {1: INTEGER, 2: INTEGER, 3: INTEGER}
_LZ4_HADOOP: Final = 5


def is_indexed(leaf: Leaf, codec: int, length: int) -> bool:
    """Whether a column chunk can be read by its pages.

    Lists with Hadoop's framing of LZ4 cannot, since their pages cannot be decompressed here.

    Args:
        leaf: Its column.
        codec: Its codec.
        length: Bytes of its offset index.
    """
    return 0 < length <= _MAX_BYTES and not (leaf.is_repeated and codec == _LZ4_HADOOP)


@dataclass(frozen=True, slots=True)
class PageIndex:
    """The data pages of a column chunk, in their order."""

    offsets: tuple[int, ...]
    lengths: tuple[int, ...]
    """Bytes of each page, including its header."""
    rows: tuple[int, ...]
    """First row of each page in the row group, and finally the number of rows of the row group."""

    def covering(self, start: int, stop: int) -> tuple[int, int]:
        """Return the half-open range of pages that contain some rows."""
        return bisect_right(self.rows, start) - 1, bisect_left(self.rows, stop)


def parse_page_index(data: bytes, column: ColumnChunk, rows: int) -> PageIndex:
    """Parse an offset index, and check it against its column chunk.

    Args:
        data: The index.
        column: The column chunk.
        rows: Number of rows of the row group.

    Raises:
        ThriftError: It cannot be parsed, or contradicts the column chunk.
    """
    locations: list[tuple[int, int, int]] = []

    def read_locations(data: bytes, at: int, kind: int) -> int:
        if kind not in LISTS or locations:
            return skip(data, at, kind)
        element, count, at = read_list_header(data, at)
        if count and element != STRUCT:
            raise ThriftError("its pages are not structs")
        before = (column.start, 0, 0)
        for _ in range(count):
            found, at = read_struct(data, at, _LOCATION)
            page = found.get(1, -1), found.get(2, -1), found.get(3, -1)
            if page[0] < before[0] + before[1] or page[1] <= 0 or not before[2] <= page[2] <= rows:
                raise ThriftError(f"page {len(locations)} does not follow the previous page")
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
        raise ThriftError("its pages end after their column chunk")
    offsets, lengths, first = zip(*locations, strict=True)
    return PageIndex(offsets, lengths, (*first, rows))
