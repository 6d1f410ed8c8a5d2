r"""Match usual footers with a regular expression, which runs in C.

`parse_footer` reads Thrift field by field in Python, which takes ten times as long as a parser in
C++; but such parsers abort the process on some footers. The regular expression is fast and safe. It
matches a column chunk with the fields that writers write, in their order. It accepts fewer footers
than Thrift, with the same meaning as in `parse_footer`, which a test checks. Footers that it does
not match are left to `parse_footer`, which reads them or gives the reason why not.

In Thrift's compact protocol a field begins with a byte: the difference of its number to that of the
previous field (upper half), and its kind (lower half: 1 and 2 booleans, 4 to 6 integers, 8 bytes, 9
a list, 12 a struct). A list begins with the number of its elements (upper half) and their kind
(lower half).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Final

from partitioning.parquet_footer import (
    CODECS,
    LZO,
    Contradiction,
    FileSchema,
    index_range,
    parse_end,
    parse_schema,
)
from partitioning.thrift import (
    INTEGER,
    LIST,
    STRUCT,
    Many,
    Struct,
    ThriftError,
    Wanted,
    read_list_header,
    read_struct,
    skip,
    write_list_header,
)

_VARINT: Final = rb"[\x80-\xff]{0,9}+[\x00-\x7f]"
_NUMBER: Final = rb"[\x80-\xff]{0,6}+[\x00-\x7f]"
"""Pattern of a varint of at most 49 bits: sums of checked numbers fit 64 bits."""


def _many(pattern: bytes) -> bytes:
    """Return the pattern of any number of repetitions, matched in one way.

    Atomic groups, not possessive quantifiers: before 3.11.5, Python matches those of patterns that
    backtrack where it must not (python/cpython#106052).
    """
    return b"(?>(?:" + pattern + b")*)"


def _maybe(pattern: bytes) -> bytes:
    """Return the pattern of what may be absent, matched in one way (see `_many`)."""
    return b"(?>(?:" + pattern + b")?)"


_INTEGERS: Final = _many(rb"[\x14-\x16\x24-\x26\x34-\x36\x44-\x46]" + _VARINT)
"""Pattern of integer fields that are skipped, e.g. offsets of indexes."""


def _byte(value: int) -> bytes:
    return rb"\x%02x" % value


def _any_of(parts: Iterable[bytes]) -> bytes:
    return b"(?:" + b"|".join(parts) + b")"


def _list(kind: int, element: bytes, most: int) -> bytes:
    """Return the pattern of a list of at most 14 elements."""
    return _any_of(
        _byte(count << 4 | kind) + b"(?:%s){%d}" % (element, count) for count in range(most + 1)
    )


def _bytes_pattern() -> bytes:
    """Return the pattern of a length and up to 255 bytes; lengths of numbers are tried first."""
    usual = [rb"\x08.{8}", rb"\x04.{4}"]
    # The lookahead on the first byte saves trying half of the alternatives.
    short = [_byte(size) + b".{%d}" % size for size in range(128)]
    halves = [
        rb"(?=[\x00-\x1f])" + _any_of(short[:32]),
        rb"(?=[\x20-\x7f])" + _any_of(short[32:]),
    ]
    long = [_byte(size) + rb"\x01.{%d}" % size for size in range(128, 256)]
    return _any_of([*usual, *halves, rb"(?=[\x80-\xff])" + _any_of(long)])


def _chunk_pattern(*, statistics: bool) -> bytes:
    """Return the pattern of a column chunk.

    No part of it can match in more than a few ways, so that time is linear in the footer's size.
    """
    three = (rb"\x15" + _VARINT) * 3 + rb"\x00"
    # The usual case, two entries of single bytes, is tried first, which saves a tenth of the time.
    small = (rb"\x15[\x00-\x7f]" * 3 + rb"\x00") * 2
    encoding_stats = _any_of([_byte(2 << 4 | STRUCT) + small, _list(STRUCT, three, 8)])
    histogram = _list(6, _VARINT, 14)
    size_statistics = (
        rb"[\x1c\x2c\x3c\x4c]" + _maybe(rb"\x16" + _VARINT) + _maybe(rb"[\x19\x29]" + histogram)
        + _maybe(rb"[\x19\x29\x39]" + histogram) + rb"\x00"
    )  # fmt: skip
    any_bounds = (
        _many(_any_of([
            rb"[\x18\x28\x38\x48\x58\x68]" + _bytes_pattern(),
            rb"[\x16\x26\x36\x46]" + _VARINT,
            rb"[\x11\x12\x21\x22]",
        ]))
        + rb"\x00"
    )  # fmt: skip
    # Bounds of numbers, as Arrow writes them, are tried first.
    number = rb"(?:\x08.{8}|\x04.{4})"
    number_bounds = b"".join((
        rb"\x18", number, rb"\x18", number, rb"\x16", _VARINT,
        rb"\x28", number, rb"\x18", number, rb"\x11\x11\x00",
    ))  # fmt: skip
    bounds = _any_of([number_bounds, any_bounds])
    behind = _INTEGERS + _maybe(size_statistics) + _INTEGERS
    return b"".join((
        # 2: offset of the metadata. 3: the metadata, with 1: type, 2: encodings, 3: path, 4: codec.
        rb"\x26", _VARINT, rb"\x1c(?>(?P<kind>\x15.\x19[^\x19]*+\x19.+?\x15[\x00-\x10])(?=\x16))",
        # 5: values, 6: bytes uncompressed, 7: compressed, 9: offset of data pages.
        rb"(?P<numbers>\x16", _NUMBER, rb"\x16", _NUMBER, rb"\x16", _NUMBER, rb"\x26", _NUMBER,
        # 11: offset of the dictionary.
        rb")", _maybe(rb"(?P<dictionary>\x26" + _NUMBER + b")"),
        # 12: statistics, 13: page encodings, 14 to 16: Bloom filter, histograms. The first field is
        # identified by the difference to the number of the previous field.
        _maybe(b"".join((
            rb"(?(dictionary)\x1c|\x3c)(", b"?P<statistics>" if statistics else b"?:", bounds, b")",
            _maybe(rb"\x19" + encoding_stats), behind,
            rb"|(?(dictionary)\x29|\x49)", encoding_stats, behind,
        ))), rb"\x00",
        # 4 to 7: page indexes.
        b"(?P<index>", _INTEGERS, rb")\x00",
    ))  # fmt: skip


_SORTING: Final = _list(STRUCT, rb"\x15" + _VARINT + rb"[\x11\x12][\x11\x12]\x00", 8)
_GROUP_END: Final = b"".join((
    # 2: bytes of the row group, 3: its rows, 4: its sorting, 5 to 7: its location.
    rb"(?P<rows>\x16", _NUMBER, rb"\x16", _NUMBER, rb")", _maybe(rb"\x19" + _SORTING), _INTEGERS,
    # The header of the next row group's list of columns.
    rb"\x00", _maybe(rb"(?P<next>\x19(?:\xfc" + _VARINT + rb"|[\x0c-\xec]))"),
))  # fmt: skip
_BEGIN: Final = re.compile(rb"\x15" + _VARINT + rb"\x19", re.DOTALL)
"""Pattern of the version, before the schema, which is a list."""
_GROUPS_BEGIN: Final = re.compile(rb"\x16(" + _NUMBER + rb")\x19")
"""Pattern of the number of rows, before the row groups, which are a list."""

_MIN_CHUNK_BYTES: Final = 52
"""Minimum average bytes per column chunk, so that matching takes less memory than ten footers.
Writers need more, except without statistics and with names of one letter."""

Tokens = tuple[bytes, ...]


@cache
def _pattern(*, statistics: bool) -> Callable[[bytes, int], list[Tokens]]:
    """Return a function that finds all column chunks in order, and finally the rest.

    The last column chunk of a row group includes the end of the row group. Since the rest is one
    match, nothing is matched after a part that does not match.
    """
    chunk = _chunk_pattern(statistics=statistics)
    return re.compile(chunk + _maybe(_GROUP_END) + b"|(?P<rest>.+)", re.DOTALL).findall


@dataclass(slots=True)
class UsualFooter:
    """A matched footer, whose numbers are not decoded and checked yet."""

    schema: FileSchema
    rows: bytes
    """Varint of the file's number of rows."""
    count: int
    """Number of row groups."""
    created_by: str
    arrow_schema: bytes | None
    kinds: tuple[bytes, ...]
    """Fields 1 to 4 of each column chunk's metadata; see `codec_and_encodings`."""
    types: bytes
    """Physical type of each column chunk; 255 if it is invalid, or the codec is not supported."""
    numbers: bytes
    """Varints of each column chunk: four pairs of field header and value."""
    has_dictionary: bytes
    """1 or 0 for each column chunk."""
    dictionaries: bytes
    """Varints of column chunks with a dictionary: field header and offset."""
    group_rows: bytes
    """Varints of each row group: two pairs of field header and value."""
    statistics: tuple[bytes, ...]
    """Statistics structs of each column chunk, empty if it has none; no structs unless selected."""
    indexes: tuple[bytes, ...]
    """Fields 4 to 7 of each column chunk; see `offset_index`."""


@dataclass(frozen=True, slots=True)
class _Head:
    """The beginning of footers of one schema."""

    data: bytes
    schema: FileSchema
    columns: bytes
    """Header of a row group's list of columns."""


class FooterMatcher:
    """Matches footers, and caches recent schemas."""

    _MAX_HEADS = 8

    def __init__(self, *, statistics: bool) -> None:
        self._statistics = statistics
        self._heads: list[_Head] = []

    def match(self, data: bytes) -> UsualFooter | None:
        """Match a footer; return None if it is unusual.

        Args:
            data: The footer alone, without its length and the magic bytes.
        """
        try:
            head = self._head(data)
            return None if head is None else self._match(head, data)
        except (ThriftError, IndexError, UnicodeDecodeError, Contradiction):
            return None  # `parse_footer` gives the reason.

    def _head(self, data: bytes) -> _Head | None:
        for head in self._heads:
            # No value is a prefix of another value, so the next byte begins another field.
            if data.startswith(head.data):
                return head
        begin = _BEGIN.match(data)
        if begin is None:
            return None
        end = skip(data, begin.end(), LIST)
        schema = parse_schema(data[begin.end() : end])
        columns = b"\x19" + write_list_header(STRUCT, len(schema.leaves))
        head = _Head(data[:end], schema, columns)
        self._heads = [head, *self._heads[: self._MAX_HEADS - 1]]
        return head

    def _match(self, head: _Head, data: bytes) -> UsualFooter | None:
        leaves = len(head.schema.leaves)
        begin = _GROUPS_BEGIN.match(data, len(head.data))
        if begin is None or not leaves:
            return None
        kind, count, at = read_list_header(data, begin.end())
        if not count or kind != STRUCT or not data.startswith(head.columns, at):
            return None
        if len(data) < count * leaves * _MIN_CHUNK_BYTES:
            return None
        tokens = _pattern(statistics=self._statistics)(data, at + len(head.columns))
        if len(tokens) != count * leaves + 1:
            return None
        rest = tokens.pop()[-1]
        if not rest:
            return None
        fields = zip(*tokens, strict=True)
        kinds, numbers, dictionaries, *statistics, indexes, rows, following, _ = fields
        # The field after the last row group may look like the next row group's list of columns.
        rest = following[-1] + rest
        # Row groups end after their last column chunk, and nowhere else.
        ends = rows[leaves - 1 :: leaves]
        if not all(ends) or rows.count(b"") != len(rows) - count:
            return None
        if any(header != head.columns for header in following[leaves - 1 : -1 : leaves]):
            return None
        created_by, arrow_schema = parse_end(rest)
        return UsualFooter(
            head.schema,
            begin[1],
            count,
            created_by,
            arrow_schema,
            kinds,
            bytes(map(_physical_type, kinds)),
            b"".join(numbers),
            bytes(map(bool, dictionaries)),
            b"".join(dictionaries),
            b"".join(ends),
            statistics[0] if statistics else (),
            indexes,
        )


_NO_TYPE: Final = 255
_META: Final[dict[int, Wanted]] = {
    **dict.fromkeys((1, 4, 5, 6, 7, 9, 11), INTEGER), 12: Struct({}),
}  # fmt: skip
"""Fields that `parse_footer` uses."""


@lru_cache(maxsize=20_000)
def _physical_type(kind: bytes) -> int:
    """Return the physical type of a column chunk from its fields 1 to 4.

    They are equal for a column in most row groups. The pattern guesses the end of the path, so they
    are parsed here, and a field 5 must fit after them.
    """
    data = kind + b"\x16\x00\x00"
    try:
        found, end = read_struct(data, 0, _META)
    except (ThriftError, IndexError):
        return _NO_TYPE
    physical, codec = found.get(1, -1), found.get(4, -1)
    is_whole = end == len(data) and found == {1: physical, 4: codec, 5: 0}
    is_known = codec != LZO and 0 <= codec < CODECS and 0 <= physical < _NO_TYPE
    return physical if is_whole and is_known else _NO_TYPE


@lru_cache(maxsize=20_000)
def codec_and_encodings(kind: bytes) -> tuple[int, list[int]]:
    """Return codec and encodings from fields 1 to 4 of a checked column chunk."""
    found, _ = read_struct(kind + b"\x00", 0, {2: Many(INTEGER), 4: INTEGER})
    return found[4], found.get(2, [])


def offset_index(index: bytes, end: int) -> tuple[int, int]:
    """Return offset and length of a column chunk's offset index; see `index_range`.

    Args:
        index: Fields 4 to 7 of the column chunk.
        end: Offset of the footer.
    """
    # Field numbers are relative to the previous field, which is 3.
    found, _ = read_struct(b"\x35\x00" + index + b"\x00", 0, {4: INTEGER, 5: INTEGER})
    return index_range(found, end)
