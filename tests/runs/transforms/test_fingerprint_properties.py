"""Fingerprints of generated packages: exactly the edits of what is reached change them.

The oracle knows who refers to whom, because it made them; it never reads a line of source.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.examples import fewer
from tests.support.sources import Folder

MODULES = 3
FORMS = (
    "N{id} = ({value}, {uses})",
    "def N{id}(x):\n    return [x, {value}, {uses}]",
    "def N{id}(x, n=({value}, {uses})):\n    return x",
    "def N{id}(x):\n    def inner():\n        return lambda: ({value}, {uses})\n    return inner",
    "class N{id}:\n    n = ({value}, {uses})",
    "class N{id}:\n    @staticmethod\n    def method(x):\n        return x, {value}, {uses}",
    "N{id} = lambda x: (x, {value}, {uses})",
    "if {value}:\n    def N{id}(x):\n        return {uses},\nelse:\n    N{id} = None",
    "@functools.cache\ndef N{id}(x):\n    return {value}, {uses}",
    "@plain\nasync def N{id}(x):\n    return {value}, {uses}",
    "try:\n    N{id} = ({value}, {uses})\nexcept NameError:\n    N{id} = {value}",
    "def N{id}(x):\n    match x:\n        case [{value}, *_]:\n            return {uses},",
    "def N{id}(x):\n    return (y for y in ({value}, {uses}) if y)",
    "N{id}: object = ({value}, {uses})",
)
IMPORTS = (
    ("from .m{m} import N{id}", "N{id}"),
    ("from shop.m{m} import N{id} as A{id}", "A{id}"),
    ("from . import m{m} as z{m}", "z{m}.N{id}"),
    ("import shop.m{m}", "shop.m{m}.N{id}"),
    ("from .exports import N{id} as E{id}", "E{id}"),
    ("from . import exports", "exports.N{id}"),
)


@dataclass(frozen=True)
class Definition:
    id: int
    module: int
    form: str
    uses: tuple[tuple[int, int], ...]
    """Which other ones, and which of IMPORTS brings each."""


@st.composite
def programs(draw: st.DrawFn) -> list[Definition]:
    count = draw(st.integers(2, 12))
    return [
        Definition(
            number,
            draw(st.integers(0, MODULES - 1)),
            draw(st.sampled_from(FORMS)),
            tuple(
                (draw(st.integers(0, count - 1)), draw(st.integers(0, len(IMPORTS) - 1)))
                for _ in range(draw(st.integers(0, 2)))
            ),
        )
        for number in range(count)
    ]


def sources(program: list[Definition], values: dict[int, int], order: list[int]) -> dict[str, str]:
    """The program's modules, its definitions in an order."""
    heads = {f"m{number}": ["import functools"] for number in range(MODULES)}
    bodies: dict[str, list[str]] = {name: [] for name in heads}
    for node in (program[number] for number in order):
        name = f"m{node.module}"
        words = []
        for other, how in node.uses:
            module = program[other].module
            if module == node.module:
                words.append(f"N{other}")
                continue
            statement, word = IMPORTS[how]
            heads[name].append(statement.format(m=module, id=other))
            words.append(word.format(m=module, id=other))
        uses = ", ".join(words) or "0"
        bodies[name].append(node.form.format(id=node.id, value=values.get(node.id, 1), uses=uses))
    plain = "def plain(function):\n    return function"
    found = {
        name: "\n\n".join([*dict.fromkeys(heads[name]), plain, *bodies[name]]) + "\n"
        for name in heads
    }
    found["exports"] = (
        "\n".join(f"from .m{node.module} import N{node.id}" for node in program) + "\n"
    )
    return found


def reached(program: list[Definition]) -> set[int]:
    pending, found = [0], set[int]()
    while pending:
        number = pending.pop()
        if number not in found:
            found.add(number)
            pending += [other for other, _ in program[number].uses]
    return found


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="chunkmap-properties-"))
    before = list(sys.path)
    yield folder
    sys.path[:] = before
    shutil.rmtree(folder)


@settings(max_examples=fewer(60), deadline=None)
@given(program=programs(), data=st.data())
def test_exactly_what_is_reached_counts(
    place: Path, program: list[Definition], data: st.DataObject
) -> None:
    folder = Folder(place)
    natural = list(range(len(program)))
    name = f"shop.m{program[0].module}:N0"
    folder.write({"__init__": "", **sources(program, {}, natural)})
    before = folder.of(name=name)
    for edited in natural:
        folder.write(sources(program, {edited: 2}, natural))
        changed = folder.of(name=name) != before
        assert changed is (edited in reached(program)), f"N{edited} was edited"
    if all("if " not in node.form and "try" not in node.form for node in program):
        folder.write(sources(program, {}, data.draw(st.permutations(natural))))
        assert folder.of(name=name) == before, "only the order changed"
