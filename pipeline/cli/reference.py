"""Write the reference pages of docs/ from the code: commands, job and load file, settings."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from pipeline.cli.app import app
from pipeline.cli.help import examples_in
from pipeline.config.file_examples import FileExamples
from pipeline.config.ingest import Ingest
from pipeline.config.ingest_examples import INGEST_EXAMPLES, ingest_schema
from pipeline.config.job import Job
from pipeline.config.job_examples import JOB_EXAMPLES
from pipeline.config.job_schema import job_schema
from pipeline.config.load_examples import LOAD_EXAMPLES, load_schema
from pipeline.config.load_file import LoadFile
from pipeline.config.pipeline_examples import (
    PARAMETER_EXAMPLES,
    PIPELINE_EXAMPLES,
    STAGE_EXAMPLES,
    pipeline_schema,
)
from pipeline.config.pipeline_file import Parameter, PipelineFile, Stage
from pipeline.config.settings import Settings
from pipeline.config.units import format_size, parse_size

PAGES = (
    *("commands.md", "ingest.md", "ingest.schema.json"),
    *("job.md", "job.schema.json", "load.md", "load.schema.json"),
    *("pipeline.md", "pipeline.schema.json", "settings.md"),
)
_NOTE = "<!-- Written by `make reference` from the code. Change the docstrings there. -->"


def pages() -> dict[str, str]:
    """Render each page, by file name."""
    return {
        "commands.md": _page("Commands", _commands()),
        "ingest.md": _page("The file of an ingest", _ingest()),
        "ingest.schema.json": json.dumps(ingest_schema(), indent=1) + "\n",
        "job.md": _page("The job file", _job()),
        "load.md": _page("The load file", _load()),
        "load.schema.json": json.dumps(load_schema(), indent=1) + "\n",
        "job.schema.json": json.dumps(job_schema(), indent=1) + "\n",
        "pipeline.md": _page("The pipeline file", _pipeline()),
        "pipeline.schema.json": json.dumps(pipeline_schema(), indent=1) + "\n",
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


def _job() -> Iterator[str]:
    """Describe each key of the job file: meaning, values, default and an example."""
    yield from (_doc(Job.__module__), "")
    yield "Editors check and complete a job file, and show this page's texts, if it begins with"
    yield from ("", "```yaml", "# yaml-language-server: $schema=job.schema.json", "```", "")
    yield "and the schema is next to it: `chunkmap schema > job.schema.json`, or"
    yield "[the file in this repository](job.schema.json). `chunkmap init` does both."
    yield from ("", "## Keys at the top")
    yield from _keys(Job, "", JOB_EXAMPLES)


def _schema_note(schema: str, option: str = "") -> Iterator[str]:
    """Say how editors use the JSON Schema of a file."""
    yield "Editors check and complete it, if it begins with the line"
    yield from ("", "```yaml", f"# yaml-language-server: $schema={schema}", "```", "")
    yield f"and the schema is next to it: `chunkmap schema {option}> {schema}`, or"
    yield f"[the file in this repository]({schema})."


def _ingest() -> Iterator[str]:
    """Describe each key of the file of an ingest."""
    yield from (_doc(Ingest.__module__), "")
    yield from _schema_note("ingest.schema.json", "--ingest ")
    yield from ("", "## Keys at the top")
    yield from _keys(Ingest, "", INGEST_EXAMPLES)


def _load() -> Iterator[str]:
    """Describe each key of the load file."""
    yield from (_doc(LoadFile.__module__), "")
    yield from _schema_note("load.schema.json", "--load ")
    yield from ("", "## Keys at the top")
    yield from _keys(LoadFile, "", LOAD_EXAMPLES)


def _pipeline() -> Iterator[str]:
    """Describe each key of the pipeline file."""
    yield from (_doc(PipelineFile.__module__), "")
    yield from _schema_note("pipeline.schema.json", "--pipeline ")
    for title, model, examples in (
        ("Keys at the top", PipelineFile, PIPELINE_EXAMPLES),
        ("A stage: each item of `pipeline`", Stage, STAGE_EXAMPLES),
        ("A parameter: each value of `parameters`", Parameter, PARAMETER_EXAMPLES),
    ):
        yield from ("", f"## {title}")
        for name, field in model.model_fields.items():
            yield from _key(field.alias or name, field, examples)


def _keys(model: type[BaseModel], prefix: str, examples: FileExamples) -> Iterator[str]:
    sections = []
    for name, field in model.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        inner = None if _is_mapping(field.annotation) else _section(field.annotation)
        if inner is not None:
            sections.append((key, inner))
            continue
        yield from _key(key, field, examples)
    for key, inner in sections:
        yield from ("", f"## `{key}`", "", inspect.getdoc(inner) or "")
        yield from _keys(inner, f"{key}.", examples)


def _key(key: str, field: Any, examples: FileExamples) -> Iterator[str]:
    """Describe a key: meaning, values, default and an example."""
    yield from ("", f"### `{key}`", "", *(field.description or "").splitlines(), "")
    facts = [f"Values: {values}." if (values := _values(field.annotation)) else ""]
    facts.append("Required." if field.is_required() else "")
    default = _default(field)
    facts.append(f"Default: {default}." if default and not field.is_required() else "")
    if any(facts):
        yield from (" ".join(filter(None, facts)), "")
    yield from ("```yaml", *examples.lines(key), "```")


def _values(annotation: Any) -> str:
    """Format the values of a type that has few: of a Literal, or a bool."""
    if annotation is bool:
        return "`true`, `false`"
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    return ", ".join(filter(None, map(_values, get_args(annotation))))


def _model(model: type[BaseModel], prefix: str, intro: str) -> Iterator[str]:
    yield from (intro, "", "| key | values | default | meaning |", "| --- | --- | --- | --- |")
    yield from _rows(model, prefix)


def _rows(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        inner = _section(field.annotation)
        if inner is not None:
            yield f"| **`{key}`** | | | {_cell(inspect.getdoc(inner))} |"
            yield from _rows(inner, f"{key}.NAME." if _is_mapping(field.annotation) else f"{key}.")
            continue
        values = _values(field.annotation)
        yield f"| `{key}` | {values} | {_default(field)} | {_cell(field.description)} |"


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
    if value in (None, PydanticUndefined, (), {}, ""):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if any(getattr(check, "func", None) is parse_size for check in field.metadata):
        return f"`{format_size(value).replace(' ', '')}`"
    if isinstance(value, tuple):
        return ", ".join(f"`{item}`" for item in value)
    return f"`{value}`"


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


if __name__ == "__main__":
    write(Path("docs/reference"))
