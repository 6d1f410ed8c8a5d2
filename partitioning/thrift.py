"""Read Thrift's compact protocol from untrusted bytes.

Footers come from any writer, and may be damaged or hostile. Parsers in C++ abort the process on
some of them; this parser raises `ThriftError` for any bytes. Depth, lengths and counts are checked
against the available bytes before anything is allocated.

The format: https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

TRUE: Final = 1
FALSE: Final = 2
BYTE: Final = 3
INTEGERS: Final = frozenset((4, 5, 6))
"""Kinds of integers of 16, 32 and 64 bits, which are all zigzag varints."""
DOUBLE: Final = 7
BINARY: Final = 8
LIST: Final = 9
LISTS: Final = frozenset((LIST, 10))
"""Lists and sets."""
MAP: Final = 11
STRUCT: Final = 12
UUID: Final = 13

_MAX_DEPTH: Final = 32
"""Maximum depth of nested structs and lists; Parquet needs seven."""
_VARINT_BITS: Final = 70


class ThriftError(ValueError):
    """The bytes are not valid Thrift."""


@dataclass(frozen=True, slots=True)
class Integer:
    """Read a field if it is an integer."""


@dataclass(frozen=True, slots=True)
class Bytes:
    """Read a field if it is bytes or text."""


@dataclass(frozen=True, slots=True)
class Many:
    """Read a field if it is a list of such values."""

    of: Wanted


@dataclass(frozen=True, slots=True)
class Hook:
    """Read a field with a function of data, start and kind that returns the end."""

    read: Callable[[bytes, int, int], int]


@dataclass(frozen=True, slots=True)
class Struct:
    """Read a field if it is a struct; its other fields are skipped."""

    fields: Mapping[int, Wanted]


Wanted = Integer | Bytes | Many | Struct | Hook
Values = dict[int, Any]
"""Wanted fields of a struct that are present, by number."""

INTEGER: Final = Integer()
BYTES: Final = Bytes()


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Return an unsigned integer, and its end."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > _VARINT_BITS:
            raise ThriftError("an integer of more than 64 bits")


def read_list_header(data: bytes, at: int) -> tuple[int, int, int]:
    """Return the kind of a list's elements, their number, and the start of the first."""
    head = data[at]
    count, at = head >> 4, at + 1
    if count == 15:
        count, at = read_varint(data, at)
    if count > len(data) - at:  # Each takes at least one byte.
        raise ThriftError(f"a list of {count:,} elements in {len(data) - at:,} bytes")
    return head & 15, count, at


def read_struct(  # noqa: PLR0912 -- one function, because a call would cost a fifth of the time
    data: bytes, at: int, fields: Mapping[int, Wanted], depth: int = 0, number: int = 0
) -> tuple[Values, int]:
    """Return the wanted fields of a struct, and its end.

    As in Thrift's own readers, a field of an unexpected kind counts as absent.

    Args:
        data: The bytes.
        at: Start of the struct, or of one of its fields.
        fields: The wanted fields.
        depth: Depth of nesting.
        number: Number of the field before the first; 0 if there is none.

    Raises:
        ThriftError: It is damaged.
        IndexError: It is truncated.
    """
    if depth > _MAX_DEPTH:
        raise ThriftError(f"more than {_MAX_DEPTH} levels of structs")
    found: Values = {}
    wanted = fields.get
    while True:
        head = data[at]
        at += 1
        kind = head & 15
        if not kind:
            return found, at
        if head >> 4:
            number += head >> 4
        else:
            value, at = read_varint(data, at)
            number = (value >> 1) ^ -(value & 1)
        want = wanted(number)
        if 4 <= kind <= 6:  # First and inlined: nine in ten fields are such, mostly of one byte.
            value = data[at]
            at += 1
            if value > 127:
                value, at = read_varint(data, at - 1)
            if want is INTEGER:
                found[number] = (value >> 1) ^ -(value & 1)
        elif kind <= FALSE:
            continue  # A boolean is stored in the header, and never wanted.
        elif want is None:
            if kind == STRUCT:
                at = _skip_struct(data, at, depth + 1)
            elif kind in LISTS:
                at = _skip_elements(data, at, kind, depth + 1)
            else:
                at = skip(data, at, kind, depth)
        else:
            value, at = _read_value(data, at, kind, want, depth)
            if value is not None:
                found[number] = value


def _read_value(data: bytes, at: int, kind: int, want: Wanted, depth: int) -> tuple[Any, int]:
    """Return a wanted value, or None if it has another kind, and its end."""
    if kind == BINARY and want is BYTES:
        size, at = read_varint(data, at)
        end = at + size
        if end > len(data):
            raise ThriftError(f"{size:,} bytes, of which only {len(data) - at:,} exist")
        return data[at:end], end
    if kind == STRUCT and isinstance(want, Struct):
        return read_struct(data, at, want.fields, depth + 1)
    if kind in LISTS and isinstance(want, Many):
        return _read_list(data, at, want.of, depth + 1)
    if isinstance(want, Hook):
        return None, want.read(data, at, kind)
    return None, skip(data, at, kind, depth)


def _read_list(data: bytes, at: int, want: Wanted, depth: int) -> tuple[list[Any], int]:
    kind, count, at = read_list_header(data, at)
    found = []
    for _ in range(count):
        if kind in INTEGERS:
            value, at = read_varint(data, at)
            if want is INTEGER:
                found.append((value >> 1) ^ -(value & 1))
        elif kind in (TRUE, FALSE):
            at += 1
        else:
            value, at = _read_value(data, at, kind, want, depth)
            if value is not None:
                found.append(value)
    return found, at


def skip(data: bytes, at: int, kind: int, depth: int = 0) -> int:
    """Skip a value; return its end.

    Raises:
        ThriftError: It is damaged.
        IndexError: It is truncated.
    """
    if kind in INTEGERS:
        while data[at] > 127:
            at += 1
        return at + 1
    if kind == BINARY:
        size, at = read_varint(data, at)
        at += size
        if at > len(data):
            raise ThriftError("bytes beyond the end")
        return at
    if kind in (TRUE, FALSE):
        return at
    if kind == STRUCT:
        return _skip_struct(data, at, depth + 1)
    if kind in LISTS or kind == MAP:
        return _skip_elements(data, at, kind, depth + 1)
    if kind in _FIXED:
        return at + _FIXED[kind]
    raise ThriftError(f"a value of the unknown kind {kind}")


_FIXED: Final = {BYTE: 1, DOUBLE: 8, UUID: 16}


def _skip_struct(data: bytes, at: int, depth: int) -> int:
    # Two thirds of a footer are skipped, so the usual kinds are inlined.
    if depth > _MAX_DEPTH:
        raise ThriftError(f"more than {_MAX_DEPTH} levels of structs")
    while True:
        head = data[at]
        at += 1
        kind = head & 15
        if not kind:
            return at
        if head < 16:
            _, at = read_varint(data, at)
        if kind < 4:
            at += kind == BYTE
        elif kind < 7:
            while data[at] > 127:
                at += 1
            at += 1
        elif kind == BINARY and data[at] < 128:
            at += data[at] + 1
        else:
            at = skip(data, at, kind, depth)


def _skip_elements(data: bytes, at: int, kind: int, depth: int) -> int:
    if depth > _MAX_DEPTH:
        raise ThriftError(f"more than {_MAX_DEPTH} levels of lists")
    if kind == MAP:
        count, at = read_varint(data, at)
        if not count:
            return at
        if count > len(data) - at:
            raise ThriftError(f"a map of {count:,} entries in {len(data) - at:,} bytes")
        kinds: tuple[int, ...] = (data[at] >> 4, data[at] & 15)
        at += 1
    else:
        element, count, at = read_list_header(data, at)
        if element == STRUCT:
            for _ in range(count):
                at = _skip_struct(data, at, depth)
            return at
        if element in INTEGERS:
            for _ in range(count):
                while data[at] > 127:
                    at += 1
                at += 1
            return at
        kinds = (element,)
    for _ in range(count):
        for element_kind in kinds:
            # A boolean takes a byte in a list, and none in a struct.
            is_boolean = element_kind in (TRUE, FALSE)
            at = at + 1 if is_boolean else skip(data, at, element_kind, depth)
    return at


def write_varint(value: int) -> bytes:
    """Return an unsigned integer as bytes."""
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    found.append(value)
    return bytes(found)


def write_list_header(kind: int, count: int) -> bytes:
    """Return the header of a list."""
    if count < 15:
        return bytes([count << 4 | kind])
    return bytes([0xF0 | kind]) + write_varint(count)
