"""Changes of one field of a footer, each made from a random generator alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Final

from tests.fuzz.thrift_tree import (
    BINARY,
    DOUBLE,
    FALSE,
    I64,
    INTEGERS,
    LIST,
    SET,
    STRUCT,
    TRUE,
    Node,
    Steps,
    at,
    children,
    replaced,
    walk,
    write_tree,
)

LIMITS: Final = (2**31 - 1, -(2**31), 2**63 - 1, -(2**63), 2**32, 255)
CLAIMS: Final = (2**31, 2**31 - 1, 2**32 - 1, 2**63, 10**6)
DEPTHS: Final = (20, 60, 1000, 100_000)


@dataclass(frozen=True, slots=True)
class Change:
    """One change, and the footer that came of it."""

    what: str
    """Where and what: for people."""
    footer: bytes
    column: str | None
    """The top-level column whose column chunk it is in."""


def change_footer(footer: Node, random: Random) -> Change:
    """Change one field of a footer."""
    shapes: dict[tuple[int, ...], list[tuple[Steps, Node]]] = {}
    for path, node in walk(footer):
        shapes.setdefault(_shape(footer, path), []).append((path, node))
    # Every kind of field as often as every other, however many columns have it.
    path, node = random.choice(shapes[random.choice(sorted(shapes))])
    name, change = random.choice(_changes(node))
    new = change(node, random)
    where = ".".join(map(str, path))
    data = write_tree(footer if new is node else replaced(footer, path, new))
    if name == "cut":
        data = data[: random.randrange(len(data))]
    detail = "" if new is None or new.kind not in INTEGERS else f" {node.value} -> {new.value}"
    return Change(f"field {where}: {name}{detail}", data, _column(footer, path))


def _shape(footer: Node, path: Steps) -> tuple[int, ...]:
    """Return a path without the indexes into lists."""
    found = []
    for step in path:
        if footer.kind == STRUCT:
            found.append(step)
        footer = dict(children(footer))[step]
    return tuple(found)


def _column(footer: Node, path: Steps) -> str | None:
    if len(path) < 4 or path[0] != 4 or path[2] != 1:
        return None
    try:
        return str(at(footer, (*path[:4], 3, 3, 0)).value, "utf-8")
    except KeyError:
        return None


_Changes = list[tuple[str, Callable[[Node, Random], Node | None]]]


def _changes(node: Node) -> _Changes:
    found: _Changes = [
        ("dropped", lambda node, random: None),
        ("another kind", _other_kind),
        ("nested deep", _nested),
        ("cut", lambda node, random: node),
    ]
    if node.kind in INTEGERS:
        return [*found, *_NUMBERS]
    if node.kind in (TRUE, FALSE):
        return [*found, ("negated", lambda node, random: replace(node, kind=3 - node.kind))]
    if node.kind == BINARY:
        return [*found, *_BYTES]
    if node.kind in (LIST, SET):
        return [*found, *_LISTS]
    if node.kind == STRUCT:
        return [*found, ("emptied", lambda node, random: replace(node, value=()))]
    return found


def _set(value: int) -> Callable[[Node, Random], Node]:
    return lambda node, random: replace(node, value=value)


_NUMBERS: Final[_Changes] = [
    ("zero", _set(0)),
    ("one", _set(1)),
    ("minus one", _set(-1)),
    ("more", lambda node, random: replace(node, value=node.value + 1)),
    ("less", lambda node, random: replace(node, value=node.value - 1)),
    ("small", lambda node, random: replace(node, value=random.randrange(2, 40))),
    ("limit", lambda node, random: replace(node, value=random.choice(LIMITS))),
    ("bit", lambda node, random: replace(node, value=node.value ^ 1 << random.randrange(40))),
]
_BYTES: Final[_Changes] = [
    ("emptied", lambda node, random: replace(node, value=b"")),
    ("shorter", lambda node, random: replace(node, value=node.value[:-1])),
    ("longer", lambda node, random: replace(node, value=node.value + b"\xff")),
    ("noise", lambda node, random: replace(node, value=random.randbytes(len(node.value)))),
    ("claims more", lambda node, random: replace(node, claimed=random.choice(CLAIMS))),
]
_LISTS: Final[_Changes] = [
    ("emptied", lambda node, random: replace(node, value=())),
    ("element dropped", lambda node, random: _elements(node, random, 0)),
    ("element repeated", lambda node, random: _elements(node, random, 2)),
    ("element many times", lambda node, random: _elements(node, random, 1000)),
    ("claims more", lambda node, random: replace(node, claimed=random.choice(CLAIMS))),
    ("claims one more", lambda node, random: replace(node, claimed=len(node.value) + 1)),
]


def _elements(node: Node, random: Random, times: int) -> Node:
    if not node.value:
        return node
    index = random.randrange(len(node.value))
    found = list(node.value)
    found[index : index + 1] = [found[index]] * times
    return replace(node, value=tuple(found))


def _other_kind(node: Node, random: Random) -> Node:
    others = [
        Node(I64, random.choice((0, 1, 7))), Node(BINARY, b"text"), Node(TRUE, None),
        Node(DOUBLE, b"\0" * 8), Node(STRUCT, ()), Node(LIST, (), I64),
        Node(LIST, ((0, Node(BINARY, b"x")),), BINARY),
    ]  # fmt: skip
    return random.choice([other for other in others if other.kind != node.kind])


def _nested(node: Node, random: Random) -> Node:
    """Nest structs, or lists: as bytes, because trees of that depth are none of Python's."""
    depth = random.choice(DEPTHS)
    if random.random() < 0.5:
        return Node(STRUCT, b"\x1c" * depth + b"\0" * (depth + 1))
    return Node(LIST, b"\x19" * depth + b"\x10")
