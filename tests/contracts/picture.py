"""`python -m tests.contracts.picture`: draw the rooms of docs/architecture.md from the contracts.

Boxes and their order are those of the contracts "rooms" and "runs" in pyproject.toml, arrows the
imports between them; an arrow that follows from others is left out.
"""

from __future__ import annotations

import re
import tomllib
from functools import cache

import grimp

from tests.contracts.source import ROOT

PAGE = ROOT / "docs" / "architecture.md"
_PICTURE = re.compile(r"(?<=<!-- rooms -->\n)```mermaid\n.*?```\n", re.DOTALL)


def rooms() -> list[list[str]]:
    """The rooms of each level, top first."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]
    layers = {
        contract["id"]: contract["layers"]
        for contract in contracts["contracts"]
        if "layers" in contract
    }
    levels = []
    for layer in layers["rooms"]:
        inner = layers["runs"] if layer == "pipeline.runs" else [layer]
        levels += [re.split(r" *[|:] *", level) for level in inner]
    return levels


def picture() -> str:
    """The picture, as a Mermaid flow chart."""
    lines = ["```mermaid", "flowchart TD"]
    for level in rooms():
        lines.append("    " + " ~~~ ".join(f"{_box(room)}" for room in _named(level)))
    arrows = _arrows([room for level in rooms() for room in _named(level)])
    lines += [f"    {_id(above)} --> {_id(below)}" for above, below in _reduced(arrows)]
    return "\n".join([*lines, "```", ""])


def shown() -> str:
    """The picture that is on the page."""
    found = _PICTURE.search(PAGE.read_text("utf-8"))
    return found[0] if found else ""


def _named(level: list[str]) -> list[str]:
    """The rooms of a level; the single files at the bottom of pipeline are one, the ground."""
    single = [room for room in level if (ROOT / f"{room.replace('.', '/')}.py").is_file()]
    return [room for room in level if room not in single] + (["ground"] if single else [])


def _id(room: str) -> str:
    return room.replace(".", "_")


def _box(room: str) -> str:
    title = "errors, logs, metrics, …" if room == "ground" else room.removeprefix("pipeline.")
    return f'{_id(room)}["{title.replace(".", "/")}"]'


@cache
def _imports() -> list[tuple[str, str]]:
    graph = grimp.build_graph("chunkmap", "partitioning", "pipeline", "benchmarks", cache_dir=None)
    return [
        (module, target)
        for module in sorted(graph.modules)
        for target in sorted(graph.find_modules_directly_imported_by(module))
    ]


def _arrows(known: list[str]) -> set[tuple[str, str]]:
    found = {(_room_of(module, known), _room_of(target, known)) for module, target in _imports()}
    return {(above, below) for above, below in found if above and below and above != below}


def _room_of(module: str, known: list[str]) -> str:
    """The room of a module; empty for packages that only offer names, such as `pipeline` itself."""
    inside = [room for room in known if f"{module}.".startswith(f"{room}.")]
    is_file = (ROOT / f"{module.replace('.', '/')}.py").is_file()
    return max(inside, key=len, default="ground" if is_file else "")


def _reduced(arrows: set[tuple[str, str]]) -> list[tuple[str, str]]:
    """The arrows that do not follow from others."""

    def reaches(start: str, end: str) -> bool:
        return any(below == end or reaches(below, end) for above, below in arrows if above == start)

    return sorted(
        (above, below)
        for above, below in arrows
        if not any(a == above and b != below and reaches(b, below) for a, b in arrows)
    )


if __name__ == "__main__":
    PAGE.write_text(_PICTURE.sub(lambda _: picture(), PAGE.read_text("utf-8")), "utf-8")
