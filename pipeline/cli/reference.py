"""Write the reference pages of docs/ from the code: commands, job file, settings."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from pipeline.cli.app import app
from pipeline.cli.help import examples_in
from pipeline.config.job import Job
from pipeline.config.settings import Settings

PAGES = ("commands.md", "job.md", "settings.md")
_NOTE = "<!-- Written by `make reference` from the code. Change the docstrings there. -->"


def pages() -> dict[str, str]:
    """Render each page, by file name."""
    return {
        "commands.md": _page("Commands", _commands()),
        "job.md": _page("The job file", _model(Job, "", _doc(Job.__module__))),
        "settings.md": _page("Settings", _model(Settings, "", _doc(Settings.__module__))),
    }


def write(folder: Path) -> None:
    """Write the pages."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text, encoding="utf-8")


def _page(title: str, lines: Iterator[str]) -> str:
    return "\n".join([f"# {title}", "", _NOTE, "", *lines]).rstrip() + "\n"


def _doc(module: str) -> str:
    import sys

    text = inspect.cleandoc(sys.modules[module].__doc__ or "")
    # Fence indented examples, so that they are rendered as code.
    out: list[str] = []
    inside = False
    for line in text.splitlines():
        if line.startswith("    ") and not inside:
            out.append("```text")
            inside = True
        elif inside and line and not line.startswith("    "):
            if not out[-1]:
                out.pop()
            out += ["```", ""]
            inside = False
        out.append(line.removeprefix("    ") if inside else line)
    return "\n".join([*out, "```"] if inside else out)


def _commands() -> Iterator[str]:
    group: Any = typer.main.get_command(app)
    yield group.help or ""
    yield from ("", group.epilog or "", *_options(group))
    for name, command in _flat(group, ""):
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        usage = " ".join(["chunkmap", name, *(p.metavar or p.name.upper() for p in arguments)])
        yield from ("", f"## {name}", "", (command.help or "").strip(), "", f"`{usage}`")
        yield from _options(command)
        lines = examples_in(command.epilog)
        if lines:
            yield from ("", "```text", *(f"$ {line}" for line in lines), "```")


def _options(command: Any) -> Iterator[str]:
    options = [p for p in command.params if p.param_type_name == "option" and p.help]
    if options:
        yield from ("", "| option | meaning |", "| --- | --- |")
    for option in options:
        spelled = ", ".join(f"`{flag}`" for flag in option.opts)
        value = f" `{option.metavar}`" if option.metavar else ""
        yield f"| {spelled}{value} | {option.help} |"


def _flat(group: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _flat(command, f"{prefix}{name} ")
        elif not command.hidden:
            yield prefix + name, command


def _model(model: type[BaseModel], prefix: str, intro: str) -> Iterator[str]:
    yield from (intro, "", "| key | default | meaning |", "| --- | --- | --- |")
    yield from _rows(model, prefix)


def _rows(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        inner = _section(field.annotation)
        if inner is not None:
            yield f"| **`{key}`** | | {_cell(inspect.getdoc(inner))} |"
            yield from _rows(inner, f"{key}.NAME." if _is_mapping(field.annotation) else f"{key}.")
            continue
        yield f"| `{key}` | {_default(field)} | {_cell(field.description)} |"


def _section(annotation: Any) -> type[BaseModel] | None:
    options = [annotation, *getattr(annotation, "__args__", ())]
    models = [kind for kind in options if inspect.isclass(kind) and issubclass(kind, BaseModel)]
    return models[0] if models else None


def _is_mapping(annotation: Any) -> bool:
    return getattr(annotation, "__origin__", None) is dict


def _default(field: Any) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value in (None, PydanticUndefined, (), {}):
        return ""
    if isinstance(value, tuple):
        return ", ".join(f"`{item}`" for item in value)
    return f"`{value}`"


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


if __name__ == "__main__":
    write(Path("docs/reference"))
