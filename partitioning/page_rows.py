"""Single pages: checked to be what an index says of them, and made up where rows are missing.

The pages of different columns begin with different rows, and a row group has as many rows of each.
So the pages of some columns that hold a range of rows become a row group if empty pages fill up
what one column has less than another: those rows are cut off again once they are decoded.
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
    """A page has other rows than its index says."""


@dataclass(frozen=True, slots=True)
class PageFigures:
    """What a data page counts in its column chunk."""

    values: int
    """Nulls included."""
    uncompressed: int
    """Bytes, the header's included."""
    is_dictionary: bool
    """Whether its values are numbers of a dictionary's."""


def check_page(data: bytes, column: ColumnChunk, rows: int) -> PageFigures:
    """Check that a data page is whole, and has as many rows as its index says.

    Args:
        data: The page.
        column: Its column chunk.
        rows: That it should have.

    Raises:
        OtherRowsError: it has other rows.
        ThriftError: it is damaged.
    """
    header, size = _header(data)
    kind, one, two = header.get(1), header.get(5), header.get(8)
    uncompressed = header.get(2, -1)
    if not 0 <= uncompressed <= max(column.uncompressed, 0):
        raise ThriftError(f"claims {uncompressed:,} bytes of {column.uncompressed:,}")
    page: Values | None = one if kind == _DATA_PAGE else two if kind == _DATA_PAGE_V2 else None
    if page is None:
        raise ThriftError("it is no data page")
    values = page.get(1, -1)
    if kind == _DATA_PAGE_V2 and page.get(3) != rows:
        raise OtherRowsError(f"it has {page.get(3)} rows, its index says {rows}")
    found = values
    if column.leaf.repetition:
        levels = _levels(data[size:], column, header)
        found = _begun_rows(levels, values, column.leaf.repetition.bit_length())
    if found != rows:
        raise OtherRowsError(f"it has {found} rows, its index says {rows}")
    encoding = page.get(2 if kind == _DATA_PAGE else 4, -1)
    return PageFigures(values, size + uncompressed, encoding in _DICTIONARY_ENCODINGS)


def check_dictionary(data: bytes) -> int:
    """Check that what lies before the data pages is one dictionary; return its bytes uncompressed.

    Raises:
        ThriftError: it is not.
    """
    header, size = _header(data)
    if header.get(1) != _DICTIONARY_PAGE:
        raise ThriftError("what lies before its first data page is no dictionary")
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
    """Return a page's repetition levels: a value of level 0 begins a row."""
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


def _begun_rows(levels: bytes, values: int, width: int) -> int:
    """Return how many rows begin in a page, which must begin with one.

    Levels are runs, and packed numbers: Parquet's RLE and bit-packing hybrid.
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
    """Return a data page of rows without values: null or empty, or any value where none may be.

    It is of version 2 whatever its neighbours are, for that need not be compressed as they are.

    Args:
        leaf: The column.
        rows: Of the page.
        is_dictionary: Whether its neighbours hold numbers of a dictionary's values.
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
