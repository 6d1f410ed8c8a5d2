"""`python -m docs.api_reference`: write docs/reference/api.md from the docstrings of chunkmap."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chunkmap

PAGE = Path(__file__).resolve().parent / "reference" / "api.md"
_NOTE = "<!-- Written by `make reference` from the code. Change the docstrings there. -->"
_SECTIONS = ("Args:", "Returns:", "Raises:")


def page() -> str:
    """Render the page."""
    lines = ["# Python API", "", _NOTE, "", "How to use it: [Python API](../api.md).", ""]
    for name in chunkmap.__all__:
        value = getattr(chunkmap, name)
        if inspect.ismodule(value):
            lines += [f"## chunkmap.{name}", "", *_text(inspect.getdoc(value) or "")]
            lines += [", ".join(f"`{error}`" for error in value.__all__), ""]
        elif inspect.isclass(value):
            lines += [f"## {name}", "", *_text(inspect.getdoc(value) or ""), *_members(value)]
        else:
            lines += [f"## {name}", "", *_signature(f"chunkmap.{name}", value)]
            lines += _text(inspect.getdoc(value) or "")
    return "\n".join(lines).rstrip() + "\n"


def _members(kind: type) -> Iterator[str]:
    for name, value in vars(kind).items():
        if name.startswith("_"):
            continue
        function = value.__func__ if isinstance(value, classmethod) else value
        if isinstance(value, property):
            text = _text(inspect.getdoc(value) or "")
            yield from (f"### {kind.__name__}.{name}", "", *text)
        elif inspect.isfunction(function):
            yield from (f"### {kind.__name__}.{name}", "", *_signature(name, function))
            yield from _text(inspect.getdoc(function) or "")


def _signature(name: str, function: Any) -> list[str]:
    parameters = [
        parameter.replace(annotation=_plain(parameter.annotation))
        for parameter in inspect.signature(function).parameters.values()
        if parameter.name not in ("self", "cls")
    ]
    shown = ",\n".join(f"    {parameter}" for parameter in _with_star(parameters))
    inner = f"\n{shown},\n" if parameters else ""
    return ["```text", f"{name}({inner})", "```", ""]


def _with_star(parameters: list[inspect.Parameter]) -> Iterator[str]:
    has_star = False
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY and not has_star:
            has_star = True
            yield "*"
        yield str(parameter).replace("'", "")


def _plain(annotation: Any) -> Any:
    return annotation if annotation is inspect.Parameter.empty else str(annotation)


def _text(doc: str) -> list[str]:
    """Turn a docstring into Markdown: its sections become lists."""
    lines: list[str] = []
    in_section = False
    for line in doc.splitlines():
        if line in _SECTIONS:
            in_section = True
            lines += [f"**{line[:-1]}**", ""]
        elif in_section and (item := re.match(r" {4}(\*{0,2}\w+(?:, \w+)*): (.*)", line)):
            lines.append(f"- `{item[1]}`: {item[2]}")
        elif in_section and line.strip():
            lines.append(
                f"  {line.strip()}" if lines[-1].startswith(("- ", "  ")) else line.strip()
            )
        elif line.startswith("    "):
            lines += (
                ["", line] if lines and lines[-1] and not lines[-1].startswith("    ") else [line]
            )
        else:
            lines.append(line)
    return [*lines, ""]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
