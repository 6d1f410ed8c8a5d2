"""Thrift's compact protocol as a tree that is read, changed at one place, and written again.

It knows no Parquet, and checks nothing: it also writes what no reader should accept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from partitioning.thrift import read_list_header, read_varint, write_list_header, write_varint

TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)
INTEGERS: Final = (I16, I32, I64)
Steps = tuple[int, ...]
"""Steps from the root: a struct's field number, or a list's index."""


@dataclass(frozen=True, slots=True)
class Node:
    """One value: of a kind, with its children or its content."""

    kind: int
    value: Any
    """An int, bytes, or the pairs (field number or index, node) of a struct or list; structs and
    lists that are made up may be bytes, too."""
    element: int = 0
    """Kind of a list's elements."""
    claimed: int | None = None
    """Length that is written instead of the true one."""


def read_tree(data: bytes) -> Node:
    """Read a struct."""
    return _read(data, 0, STRUCT)[0]


def _read(data: bytes, at: int, kind: int) -> tuple[Node, int]:
    if kind in (TRUE, FALSE):
        return Node(kind, None), at
    if kind in INTEGERS:
        value, at = read_varint(data, at)
        return Node(kind, (value >> 1) ^ -(value & 1)), at
    if kind == BINARY:
        size, at = read_varint(data, at)
        return Node(kind, data[at : at + size]), at + size
    if kind in (LIST, SET):
        return _read_list(data, at, kind)
    if kind == STRUCT:
        return _read_struct(data, at)
    width = {BYTE: 1, DOUBLE: 8}[kind]
    return Node(kind, data[at : at + width]), at + width


def _read_list(data: bytes, at: int, kind: int) -> tuple[Node, int]:
    element, count, at = read_list_header(data, at)
    found: list[tuple[int, Node]] = []
    for index in range(count):
        if element in (TRUE, FALSE):
            node, at = Node(data[at], None), at + 1
        else:
            node, at = _read(data, at, element)
        found.append((index, node))
    return Node(kind, tuple(found), element), at


def _read_struct(data: bytes, at: int) -> tuple[Node, int]:
    found: list[tuple[int, Node]] = []
    number = 0
    while kind := data[at] & 15:
        head, at = data[at], at + 1
        if head >> 4:
            number += head >> 4
        else:
            value, at = read_varint(data, at)
            number = (value >> 1) ^ -(value & 1)
        node, at = _read(data, at, kind)
        found.append((number, node))
    return Node(STRUCT, tuple(found)), at + 1


def write_tree(node: Node) -> bytes:
    """Return a node as bytes."""
    if node.kind in (TRUE, FALSE):
        return b""
    if node.kind in INTEGERS:
        return write_varint((node.value << 1 ^ node.value >> 63) & (1 << 64) - 1)
    if node.kind == BINARY:
        return write_varint(_length(node)) + bytes(node.value)
    if node.kind != BINARY and isinstance(node.value, bytes):
        return bytes(node.value)
    if node.kind in (LIST, SET):
        parts = [
            bytes([one.kind]) if one.kind in (TRUE, FALSE) else write_tree(one)
            for _, one in node.value
        ]
        return write_list_header(node.element, _length(node)) + b"".join(parts)
    fields = (_field_header(number, one) + write_tree(one) for number, one in node.value)
    return b"".join(fields) + b"\0"


def _field_header(number: int, node: Node) -> bytes:
    # The long form, always: it needs no number before it.
    return bytes([node.kind]) + write_varint(number << 1)


def _length(node: Node) -> int:
    return len(node.value) if node.claimed is None else node.claimed


def children(node: Node) -> tuple[tuple[int, Node], ...]:
    """Return the children of a struct or list, else nothing."""
    return node.value if node.kind in (STRUCT, LIST, SET) else ()


def walk(node: Node, path: Steps = ()) -> Iterator[tuple[Steps, Node]]:
    """Yield all nodes below a node with their paths."""
    for step, process in children(node):
        yield (*path, step), process
        yield from walk(process, (*path, step))


def at(node: Node, path: Steps) -> Node:
    """Return the node at a path.

    Raises:
        KeyError: there is none.
    """
    for step in path:
        node = dict(children(node))[step]
    return node


def replaced(node: Node, path: Steps, new: Node | None) -> Node:
    """Return a tree with another node at a path, or without it."""
    first, *rest = path
    kept: list[tuple[int, Node]] = []
    for step, process in children(node):
        if step != first:
            kept.append((step, process))
        elif rest:
            kept.append((step, replaced(process, tuple(rest), new)))
        elif new is not None:
            kept.append((step, new))
    return replace(node, value=tuple(kept))


def footer_of(data: bytes) -> Node:
    """Return the footer of a Parquet file."""
    return read_tree(data[-8 - int.from_bytes(data[-8:-4], "little") : -8])


def with_footer(data: bytes, footer: Node | bytes) -> bytes:
    """Return a Parquet file with another footer."""
    new = footer if isinstance(footer, bytes) else write_tree(footer)
    body = data[: -8 - int.from_bytes(data[-8:-4], "little")]
    return body + new + len(new).to_bytes(4, "little") + b"PAR1"


def written_by(data: bytes, created_by: str) -> bytes:
    """Return a Parquet file that names another writer."""
    footer = footer_of(data)
    return with_footer(data, replaced(footer, (6,), Node(BINARY, created_by.encode())))
