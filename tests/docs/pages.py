"""Markdown pages as things to execute: their fenced blocks, in order.

- `console`: each line that starts with `$ ` is a command; the lines below it are what it shows, in
  order, where `…` stands for anything and other lines may come between.
- `python title="a.py"`, `yaml title="job.yaml"`: a file, written before later commands run.
- `python` without a title: a program, run on its own.
- `text`, `mermaid`, `{toctree}`: neither.
"""

import re
from pathlib import Path
from typing import NamedTuple

LANGUAGES = {"console", "python", "yaml", "text", "mermaid", "{toctree}"}
_BLOCK = re.compile(
    r"^```(?P<language>\S*)(?: title=\"(?P<title>[^\"]+)\")?[^\n]*\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    """One fenced block of a page."""

    language: str
    title: str | None
    """The file that it is the content of, relative to the checkout."""
    text: str
    line: int
    """Where it begins in the page, counted from 1."""


class Command(NamedTuple):
    """One command of a console block, and the lines that the page says it shows."""

    line: str
    shows: tuple[str, ...]


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page's text."""
    return [
        Block(
            found["language"], found["title"], found["text"], page.count("\n", 0, found.start()) + 1
        )
        for found in _BLOCK.finditer(page)
    ]


def commands(block: Block) -> list[Command]:
    """The commands of a console block.

    Raises:
        ValueError: the block does not begin with a command.
    """
    found: list[Command] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            found.append(Command(line[2:], ()))
        elif found:
            found[-1] = found[-1]._replace(shows=(*found[-1].shows, line))
        elif line:
            raise ValueError(f"line {block.line}: a console block begins with `$ `: {line!r}")
    return found


def missing(shows: tuple[str, ...], output: str) -> str | None:
    """The first shown line that the output lacks, or None. Order counts, gaps do not."""
    rest = iter(output.splitlines())
    for line in shows:
        wanted = re.compile(".*".join(map(re.escape, line.strip().split("…"))))
        if not any(wanted.fullmatch(actual.strip()) for actual in rest):
            return line
    return None


def links(page: str) -> list[str]:
    """The targets of relative links and pictures, without their anchors."""
    targets = re.findall(r"\]\(([^)\s]+)\)", page)
    return [target.partition("#")[0] for target in targets if not re.match(r"\w+:|#", target)]


def read(path: Path) -> str:
    """A page's text."""
    return path.read_text("utf-8")
