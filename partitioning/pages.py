"""What data pages say of themselves, held against what they store and what the footer says.

Files by parquet-cpp-arrow 10 have pages with nulls that say `num_nulls: 0`. Polars believes it,
and reads the values of neighbours; pyarrow looks at the levels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from partitioning.parquet_footer import ColumnChunk
from partitioning.thrift import (
    INTEGER,
    Struct,
    ThriftError,
    Values,
    Wanted,
    read_struct,
    read_varint,
)

_DATA_PAGE: Final = 0
_DATA_PAGE_V2: Final = 3
_HEADER: Final[dict[int, Wanted]] = {
    1: INTEGER,
    3: INTEGER,
    5: Struct({1: INTEGER}),
    8: Struct({1: INTEGER, 2: INTEGER, 5: INTEGER, 6: INTEGER}),
}
_FIRST_READ: Final = 256
_MOST_HEADER: Final = 1 << 20
"""Bytes of a page's header, at most: it may hold two values as statistics."""

_MOST_BELIEVED: Final = 1 << 20
"""Values of a column chunk, up to which its pages are not counted: decoders allocate as many."""

ReadBytes = Callable[[int, int], bytes]
"""Reads from an offset as many bytes, or fewer at the object's end."""


def denies_nulls(read: ReadBytes, column: ColumnChunk) -> bool:
    """Tell whether a page says that it has no nulls, and its levels do not bear it out.

    Reads no more than one header where pages are of version 1.

    Args:
        read: Reads the object.
        column: The column chunk.

    Raises:
        ThriftError: the pages are damaged.
    """
    if not column.values or not column.leaf.definition:
        return False
    at, end = column.start, column.start + column.compressed
    while at < end:
        header, size = _read_header(read, at, end)
        kind, length = header.get(1), header.get(3, -1)
        if length < 0:
            raise ThriftError(f"a page of {length} bytes")
        if kind == _DATA_PAGE:
            return False  # Writers do not mix versions.
        page = header.get(8)
        if kind == _DATA_PAGE_V2 and page is not None and page.get(2) == 0:
            start, levels = at + size + page.get(6, 0), page.get(5, 0)
            # Without levels there are no nulls, and what has none is one run.
            if levels and not _is_one_run(read(start, 16), page.get(1, 0), column.leaf.definition):
                return True
        at += size + length
    return False


def check_values(read: ReadBytes, column: ColumnChunk) -> None:
    """Check that the pages have as many values as the footer says, where those are many.

    Decoders allocate memory for what the footer says, and end the process where there is none.

    Args:
        read: Reads the object.
        column: The column chunk.

    Raises:
        ThriftError: the pages are damaged, or have other values.
    """
    if column.values <= _MOST_BELIEVED:
        return
    at, end = column.start, column.start + column.compressed
    found = 0
    while at < end and found < column.values:
        header, size = _read_header(read, at, end)
        length = header.get(3, -1)
        if length < 0:
            raise ThriftError(f"a page of {length} bytes")
        page: Values = header.get(5) or header.get(8) or {}
        found += max(page.get(1, 0), 0)
        at += size + length
    if found != column.values:
        raise ThriftError(f"the footer claims {column.values:,} values, the pages have {found:,}")


def _read_header(read: ReadBytes, at: int, end: int) -> tuple[Values, int]:
    """Return a page's header, and its bytes."""
    length = _FIRST_READ
    while True:
        data = read(at, min(length, end - at))
        try:
            return read_struct(data, 0, _HEADER)
        except (IndexError, ThriftError) as error:
            if length >= min(end - at, _MOST_HEADER):
                raise ThriftError(f"a page header does not parse: {error}") from None
            length *= 8


def _is_one_run(levels: bytes, values: int, definition: int) -> bool:
    """Tell whether levels begin with a run, as long as the page, of the level of a value."""
    try:
        head, at = read_varint(levels, 0)
        return not head & 1 and head >> 1 >= values and levels[at] == definition
    except (IndexError, ThriftError):
        return False
