"""Read YAML files of settings and jobs, with errors that name the line.

Plain words follow the rules of YAML 1.2: `yes`, `no`, `on` and `off` are text (they are column
values more often than switches), `1e6` is a number and `12:30` is text.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic_core import ErrorDetails

from pipeline.config.yaml_loader import MAX_BYTES, Dumper, Loader
from pipeline.errors import UsageError
from pipeline.masking import MASK, is_secret_name, mask_text

Location = tuple[str | int, ...]
STANDARD_INPUT = Path("-")
"""Path that stands for standard input."""


@dataclass(frozen=True, slots=True)
class YamlFile:
    """A parsed file.

    Attributes:
        name: Name of the file in messages.
        data: The document; an empty file is an empty mapping.
        lines: Line of each key and list item, by its path from the top. Lines count from 1.
        changed: Source of each value that did not come from the file (see `change_yaml`).
    """

    name: str
    data: dict[str, Any]
    lines: dict[Location, int]
    changed: Mapping[Location, str] = field(default_factory=dict)

    def line(self, location: Location) -> int | None:
        """Return the line of the nearest key at or above a location; None if there is none."""
        above = (location[:depth] for depth in range(len(location), 0, -1))
        return next((self.lines[path] for path in above if path in self.lines), None)

    def where(self, location: Location) -> str:
        """Return `file:line` of the nearest key at or above a location, or its other source."""
        for depth in range(len(location), 0, -1):
            if location[:depth] in self.changed:
                return self.changed[location[:depth]]
        line = self.line(location)
        return self.name if line is None else f"{self.name}:{line}"


def read_yaml(path: Path, error: type[UsageError]) -> YamlFile:
    """Read a file that holds one mapping; `-` is standard input.

    Raises:
        UsageError: As the given subclass: the file cannot be read, is not YAML, is not a mapping,
            names a key twice, or exceeds the limits of `pipeline.config.yaml_loader`.
    """
    name = "standard input" if path == STANDARD_INPUT else str(path)
    try:
        with sys.stdin.buffer if path == STANDARD_INPUT else path.open("rb") as file:
            # Limited, since it may be a data file, or a device without an end.
            content = file.read(MAX_BYTES + 1)
        text = "" if len(content) > MAX_BYTES else content.decode("utf-8")
    except FileNotFoundError:
        raise error(f"{path} does not exist") from None
    except IsADirectoryError:
        raise error(f"{path} is a folder, not a file") from None
    except (OSError, UnicodeDecodeError) as problem:
        raise error(f"{path} cannot be read: {problem}") from None
    if len(content) > MAX_BYTES:
        raise _too_large(content, name, error)
    return parse_yaml(text, name, error)


def change_yaml(
    file: YamlFile, changes: Sequence[str], option: str, error: type[UsageError]
) -> YamlFile:
    """Set or replace values of a file.

    Args:
        file: The file.
        changes: Changes such as `params.rate=1.1`; the value is YAML.
        option: Option that they are from, for messages.
        error: Class of the error.

    Raises:
        UsageError: As the given subclass: a change is not `key=value`, its value is not YAML, or
            it names a key in something that is no mapping. Or a part of the value would be lost.
    """
    values = {}
    for change in changes:
        key, equals, text = change.partition("=")
        at = tuple(key.strip().split("."))
        if not equals or not all(at):
            raise error(f"{option} {change} is not KEY=VALUE", hint=f"{option} params.rate=1.1")
        source = f"{option} {key.strip()}"
        values[at] = (parse_value(text, source, error), source)
    return set_values(file, values, error)


def set_values(
    file: YamlFile, values: Mapping[tuple[str, ...], tuple[Any, str]], error: type[UsageError]
) -> YamlFile:
    """Set or replace values of a file.

    Args:
        file: The file.
        values: Value and its source, for messages, by location.
        error: Class of the error.

    Raises:
        UsageError: As the given subclass: a location is inside of something that is no mapping.
    """
    data = copy.deepcopy(file.data) if values else file.data
    changed = dict(file.changed)
    for at, (value, source) in values.items():
        inside = data
        for depth, name in enumerate(at[:-1], 1):
            if inside.get(name) is None:
                inside[name] = {}
            inside = inside[name]
            if not isinstance(inside, dict):
                raise error(f"{source}: `{dotted(at[:depth])}` is {_kind(inside)}, not a mapping")
        inside[at[-1]] = value
        changed[at] = source
    return replace(file, data=data, changed=changed)


def _too_large(content: bytes, name: str, error: type[UsageError]) -> UsageError:
    line = content[:MAX_BYTES].count(b"\n") + 1
    return error(
        f"{name}:{line}: larger than {MAX_BYTES:,} bytes",
        hint="store data in separate objects, and name their URIs",
    )


def parse_yaml(text: str, name: str, error: type[UsageError]) -> YamlFile:
    """Parse the text of a file that holds one mapping; `name` is for messages.

    Raises:
        UsageError: As in `read_yaml`.
    """
    content = text.encode("utf-8", "surrogatepass")
    if len(content) > MAX_BYTES:
        raise _too_large(content, name, error)
    try:
        loader = Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return YamlFile(name, {}, {})
            lines: dict[Location, int] = {}
            _note_lines(node, (), lines, name, error)
            data = loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark or problem.context_mark
        at = f":{mark.line + 1}" if mark else ""
        raise error(f"{name}{at}: not YAML: {problem.problem or problem.context}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as problem:
        raise error(f"{name}: not YAML: {problem}") from None
    if not isinstance(data, dict):
        raise error(f"{name}: expected `key: value` lines at the top, found {_kind(data)}")
    return YamlFile(name, data, lines)


def parse_value(text: str, name: str, error: type[UsageError]) -> Any:
    """Parse a value that stands alone, in an option or a variable; `name` is for messages.

    Raises:
        UsageError: As the given subclass: it is not YAML, or YAML leaves out a part of it: a
            comment such as in `#fff`, which would be null, or a further line.
    """
    line = f"value: {text}"
    value = parse_yaml(line, name, error).data["value"]
    loader = Loader(line)
    try:
        node = loader.get_single_node()
    finally:
        loader.dispose()
    assert isinstance(node, yaml.MappingNode), "it was parsed as one"
    left_out = line[node.value[0][1].end_mark.index :].strip()
    if left_out:
        what = "`#` begins a comment" if left_out.startswith("#") else "the value ends before that"
        shown = MASK if is_secret_name(name) else _shown(left_out)
        raise error(
            f"{name}: YAML leaves out {shown}: {what}",
            hint="quote the text for YAML, too, as in --set 'params.colour=\"#fff\"'",
        )
    return value


def nearest(word: str, known: list[str]) -> str | None:
    """Return the known word that a mistyped word most likely means, if any."""
    matches = get_close_matches(word.lower(), known, n=1, cutoff=0.6)
    return matches[0] if matches else None


def explain_error(detail: ErrorDetails, model: type[BaseModel]) -> tuple[str, str | None]:
    """Describe a validation error in a sentence; return it, and a hint if there is one."""
    location: Location = tuple(detail["loc"])
    key, kind = dotted(location), detail["type"]
    if kind == "extra_forbidden":
        return _explain_unknown(location, model)
    if kind == "missing":
        return f"`{key}` is missing", None
    message = mask_text(detail["msg"].removeprefix("Value error, "))
    if kind == "value_error":
        return (f"`{key}`: {message}" if key else message), None
    message = message.replace("String should match", "text that matches")
    wanted = _WANTED.get(kind) or message.removeprefix("Input should be ").rstrip(".")
    shown = MASK if is_secret_name(key) else _shown(detail["input"])
    return f"`{key}`: expected {wanted}, found {shown}", None


# Descriptions of Pydantic's error types whose messages are for programmers.
_WANTED = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dict_type": "a mapping (`key: value`)",
    "float_parsing": "a number",
    "float_type": "a number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "model_attributes_type": "a mapping (`key: value`)",
    "model_type": "a mapping (`key: value`)",
    "path_type": "a path",
    "string_type": "text",
    "string_too_long": "a shorter text",
    "string_too_short": "text that is not empty",
    "tuple_type": "a list",
    "too_short": "at least one item",
}


def _explain_unknown(location: Location, model: type[BaseModel]) -> tuple[str, str | None]:
    what = f"unknown key `{dotted(location)}`"
    word, known = str(location[-1]), known_keys(model, location[:-1])
    match = nearest(word, known)
    if match:
        return f"{what}; did you mean `{match}`?", None
    # The right key in the wrong place, such as `target` next to `chunks` rather than in it.
    elsewhere = {
        inner: f"{section}.{inner}"
        for section in known_keys(model, ())
        for inner in known_keys(model, (section,))
    }
    match = nearest(word, list(elsewhere))
    if match:
        return f"{what}; did you mean `{elsewhere[match]}`?", None
    return what, "known keys: " + ", ".join(known)


def dotted(location: Location) -> str:
    """Return `input.columns[2]` for `("input", "columns", 2)`."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def known_keys(model: type[BaseModel], location: Location) -> list[str]:
    """Return the keys that a model has at a location, as they are written in files."""
    for part in location:
        if isinstance(part, int):
            continue
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        field = fields.get(str(part))
        inner = _model_in(field.annotation) if field else None
        if inner is None:
            return []
        model = inner
    return [field.alias or name for name, field in model.model_fields.items()]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _shown(value: Any) -> str:
    if isinstance(value, dict | list | tuple):
        return _kind(value)
    text = mask_text(str(value) if isinstance(value, date) else repr(value))
    return text if len(text) <= 60 else text[:57] + "..."


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    return _shown(value)


def _note_lines(
    node: yaml.Node, at: Location, lines: dict[Location, int], name: str, error: type[UsageError]
) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            path = (*at, str(key.value))
            line = key.start_mark.line + 1
            if path in lines:
                raise error(f"{name}:{line}: `{dotted(path)}` is given twice (line {lines[path]})")
            lines[path] = line
            _note_lines(value, path, lines, name, error)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*at, index)] = item.start_mark.line + 1
            _note_lines(item, (*at, index), lines, name, error)


def dump_yaml(data: dict[str, Any]) -> str:
    """Return the YAML text of a mapping in its order; `parse_yaml` reads an equal mapping."""
    return yaml.dump(data, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100)
