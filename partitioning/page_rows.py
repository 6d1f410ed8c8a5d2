"""Check single pages against an index, and make empty pages for missing rows.

The pages of different columns begin with different rows, but all columns of a row group have the
same number of rows. To make a row group of the pages that contain a range of rows, empty pages fill
the columns up; the additional rows are cut off after decoding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa

from partitioning.parquet_footer import (
    BYTE_ARRAY,
    FIXED_LEN_BYTE_ARRAY,
    INT96,
    WIDTHS,
    ColumnChunk,
    Leaf,
)
from partitioning.thrift import (
    INTEGER,
    Struct,
    ThriftError,
    Values,
    Wanted,
    read_struct,
    read_varint,
    write_varint,
)

_DATA_PAGE: Final = 0
_DICTIONARY_PAGE: Final = 2
_DATA_PAGE_V2: Final = 3
_BOOLEAN: Final = 0
_PLAIN: Final = 0
_RLE: Final = 3
_DICTIONARY_ENCODINGS: Final = frozenset((2, 8))
_RLE_DICTIONARY: Final = 8
_HEADER: Final[dict[int, Wanted]] = {
    1: INTEGER, 2: INTEGER, 3: INTEGER,
    5: Struct({1: INTEGER, 2: INTEGER, 4: INTEGER}),
    8: Struct({1: INTEGER, 3: INTEGER, 4: INTEGER, 5: INTEGER, 6: INTEGER}),
}  # fmt: skip
_CODECS: Final = {1: "snappy", 2: "gzip", 4: "brotli", 6: "zstd", 7: "lz4_raw"}
_WIDTHS: Final = {**WIDTHS, INT96: 12}


class OtherRowsError(ThriftError):
    """The rows of a page differ from its index."""


@dataclass(frozen=True, slots=True)
class PageFigures:
    """Figures of a data page for its column chunk."""

    values: int
    """Number of values, including nulls."""
    uncompressed: int
    """Uncompressed bytes, including the header."""
    is_dictionary: bool
    """Whether its values are indexes into a dictionary."""


def check_page(data: bytes, column: ColumnChunk, rows: int) -> PageFigures:
    """Check that a data page is complete, and has the number of rows in its index.

    Args:
        data: The page.
        column: Its column chunk.
        rows: Expected number of rows.

    Raises:
        OtherRowsError: It has other rows.
        ThriftError: It is damaged.
    """
    header, size = _header(data)
    kind, version_1, version_2 = header.get(1), header.get(5), header.get(8)
    uncompressed = header.get(2, -1)
    if not 0 <= uncompressed <= max(column.uncompressed, 0):
        raise ThriftError(f"claims {uncompressed:,} bytes of {column.uncompressed:,}")
    pages = {_DATA_PAGE: version_1, _DATA_PAGE_V2: version_2}
    page: Values | None = pages.get(-1 if kind is None else kind)
    if page is None:
        raise ThriftError("it is not a data page")
    values = page.get(1, -1)
    if kind == _DATA_PAGE_V2 and page.get(3) != rows:
        raise OtherRowsError(f"it has {page.get(3)} rows, its index says {rows}")
    count = values
    if column.leaf.repetition:
        levels = _levels(data[size:], column, header)
        count = _count_rows(levels, values, column.leaf.repetition.bit_length())
    if count != rows:
        raise OtherRowsError(f"it has {count} rows, its index says {rows}")
    encoding = page.get(2 if kind == _DATA_PAGE else 4, -1)
    return PageFigures(values, size + uncompressed, encoding in _DICTIONARY_ENCODINGS)


def check_dictionary(data: bytes) -> int:
    """Check that the part before the data pages is a dictionary; return its uncompressed bytes.

    Raises:
        ThriftError: It is not.
    """
    header, size = _header(data)
    if header.get(1) != _DICTIONARY_PAGE:
        raise ThriftError("the part before its first data page is not a dictionary")
    return size + int(max(header.get(2, 0), 0))


def _header(data: bytes) -> tuple[Values, int]:
    try:
        header, size = read_struct(data, 0, _HEADER)
    except IndexError:
        raise ThriftError("its header ends too early") from None
    if size + header.get(3, -1) != len(data):
        raise ThriftError(
            f"it has {size + header.get(3, -1):,} bytes, its index says {len(data):,}"
        )
    return header, size


def _levels(body: bytes, column: ColumnChunk, header: Values) -> bytes:
    """Return the repetition levels of a page; a value of level 0 begins a row."""
    if header[1] == _DATA_PAGE_V2:
        return body[: max(header[8].get(6, 0), 0)]
    if header[5].get(4) != _RLE:
        raise ThriftError("its levels are not run lengths")
    if column.codec:
        try:
            codec = pa.Codec(_CODECS[column.codec])
            body = codec.decompress(body, decompressed_size=header[2], asbytes=True)
        except (KeyError, pa.ArrowException, OSError, ValueError) as error:
            raise ThriftError(f"it cannot be decompressed: {error}") from None
    length = int.from_bytes(body[:4], "little")
    if length > len(body) - 4:
        raise ThriftError("its levels end too early")
    return body[4 : 4 + length]


def _count_rows(levels: bytes, values: int, width: int) -> int:
    """Return the number of rows that begin in a page, which must begin with a row.

    Levels are runs and packed numbers: Parquet's hybrid of RLE and bit-packing.
    """
    at = found = done = 0
    try:
        while done < values:
            head, at = read_varint(levels, at)
            if head & 1:
                size = (head >> 1) * width
                bits = np.frombuffer(levels[at : at + size], np.uint8)
                at += size
                unpacked = np.unpackbits(bits, bitorder="little")
                numbers = unpacked[: len(unpacked) // width * width].reshape(-1, width)
                begins: list[bool] = (numbers[: values - done].max(axis=1) == 0).tolist()
                is_first, count, begun = begins[0], len(begins), sum(begins)
            else:
                level = int.from_bytes(levels[at : at + (width + 7) // 8], "little")
                at += (width + 7) // 8
                count = min(head >> 1, values - done)
                is_first, begun = level == 0, count if level == 0 else 0
                if not count:
                    raise ThriftError("a run of no levels")
            if not done and not is_first:
                raise OtherRowsError("it does not begin with a row, as its index says")
            found, done = found + begun, done + count
    except IndexError:
        raise ThriftError("its levels end too early") from None
    return found


def empty_page(leaf: Leaf, rows: int, *, is_dictionary: bool) -> bytes:
    """Return a data page of null or empty rows, or of arbitrary values if the column has no nulls.

    It has version 2, even next to pages of version 1, because then it need not be compressed.

    Args:
        leaf: The column.
        rows: Number of rows.
        is_dictionary: Whether the pages next to it have indexes into a dictionary.
    """
    encoding = _RLE_DICTIONARY if is_dictionary else _PLAIN
    run = write_varint(rows << 1)
    repetition = run + b"\x00" if leaf.repetition else b""
    definition = run + b"\x00" if leaf.definition else b""
    if leaf.definition:
        values = b"\x00" if is_dictionary else b""
    else:
        values = b"\x01" + run + b"\x00" if is_dictionary else _any_values(leaf, rows)
    body = repetition + definition + values
    nulls = rows if leaf.definition else 0
    numbers = (rows, nulls, rows, encoding, len(definition), len(repetition))
    size = b"\x15" + _zigzag(len(body))
    header = b"".join(
        # Fields 1 to 3, then field 8 with its fields 1 to 6 and, in field 7, "not compressed".
        (b"\x15", _zigzag(_DATA_PAGE_V2), size, size, b"\x5c",
         *(b"\x15" + _zigzag(number) for number in numbers), b"\x12\x00\x00")
    )  # fmt: skip
    return header + body


def _any_values(leaf: Leaf, count: int) -> bytes:
    if leaf.physical == _BOOLEAN:
        return bytes(-(-count // 8))
    if leaf.physical == BYTE_ARRAY:
        return b"\x01\x00\x00\x00\x00" * count  # One byte each: a decimal must have some.
    width = leaf.length if leaf.physical == FIXED_LEN_BYTE_ARRAY else _WIDTHS[leaf.physical]
    return bytes(width * count)


def _zigzag(value: int) -> bytes:
    return write_varint(value << 1)
