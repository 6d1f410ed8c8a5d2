"""Check the headers of data pages against the levels in the pages and against the footer.

Files by parquet-cpp-arrow 10 have pages with nulls but `num_nulls: 0` in the header. Polars trusts
it and reads wrong values; pyarrow uses the levels.
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
_MAX_HEADER_BYTES: Final = 1 << 20
"""Maximum size of a page header, which may have two values as statistics."""

_MAX_UNCHECKED_VALUES: Final = 1 << 20
"""Number of values of a column chunk up to which its pages are not counted."""

ReadBytes = Callable[[int, int], bytes]
"""Function that reads some bytes from an offset, or fewer at the end of the object."""


def denies_nulls(read: ReadBytes, column: ColumnChunk) -> bool:
    """Whether the header of a page wrongly says that the page has no nulls.

    For pages of version 1 it reads only one header.

    Args:
        read: Reads the object.
        column: The column chunk.

    Raises:
        ThriftError: The pages are damaged.
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
            # Without levels there are no nulls, and levels without nulls are one run.
            if levels and not _is_one_run(read(start, 16), page.get(1, 0), column.leaf.definition):
                return True
        at += size + length
    return False


def check_values(read: ReadBytes, column: ColumnChunk) -> None:
    """Check a large number of values in the footer against the pages.

    Decoders allocate memory for this number, and abort the process if there is not enough.

    Args:
        read: Reads the object.
        column: The column chunk.

    Raises:
        ThriftError: The pages are damaged, or have another number of values.
    """
    if column.values <= _MAX_UNCHECKED_VALUES:
        return
    at, end = column.start, column.start + column.compressed
    count = 0
    while at < end and count < column.values:
        header, size = _read_header(read, at, end)
        length = header.get(3, -1)
        if length < 0:
            raise ThriftError(f"a page of {length} bytes")
        page: Values = header.get(5) or header.get(8) or {}
        count += max(page.get(1, 0), 0)
        at += size + length
    if count != column.values:
        raise ThriftError(f"the footer claims {column.values:,} values, the pages have {count:,}")


def _read_header(read: ReadBytes, at: int, end: int) -> tuple[Values, int]:
    """Return a page header, and its size in bytes."""
    length = _FIRST_READ
    while True:
        data = read(at, min(length, end - at))
        try:
            return read_struct(data, 0, _HEADER)
        except (IndexError, ThriftError) as error:
            if length >= min(end - at, _MAX_HEADER_BYTES):
                raise ThriftError(f"a page header cannot be parsed: {error}") from None
            length *= 8


def _is_one_run(levels: bytes, values: int, definition: int) -> bool:
    """Whether levels are a single run of the level of a value, as long as the page."""
    try:
        head, at = read_varint(levels, 0)
        return not head & 1 and head >> 1 >= values and levels[at] == definition
    except (IndexError, ThriftError):
        return False
