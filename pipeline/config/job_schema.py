"""The JSON Schema of the job file, which editors check and complete against.

An editor with a YAML language server uses it where a job begins with a line such as
`# yaml-language-server: $schema=job.schema.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import BaseModel

from pipeline.config.job import Job
from pipeline.config.job_examples import EXAMPLES
from pipeline.config.yaml_loader import Loader

DIALECT = "https://json-schema.org/draft/2020-12/schema"
TITLE = "chunkmap job"


def job_schema() -> dict[str, Any]:
    """Return the schema of job files."""
    return schema_of(Job, TITLE, EXAMPLES)


def schema_of(model: type[BaseModel], title: str, examples: Mapping[str, str]) -> dict[str, Any]:
    """Return a schema: keys, types, values, defaults, and what the reference says of each.

    Args:
        model: Model of the file.
        title: Title of the schema.
        examples: YAML text of an example, by dotted key.
    """
    schema = _plain(model.model_json_schema(by_alias=True))
    for key, text in examples.items():
        section, _, name = key.rpartition(".")
        _section(schema, section)["properties"][name]["examples"] = [_json(text)]
    return {"$schema": DIALECT, "title": title, **schema}


def _section(schema: dict[str, Any], name: str) -> dict[str, Any]:
    section = schema
    for part in filter(None, name.split(".")):
        field = section["properties"][part]
        # A list or mapping of sections is described by that of its items.
        patterns = field.get("patternProperties", {})
        field = field.get("items") or next(iter(patterns.values()), field)
        reference = field.get("$ref") or next(
            option["$ref"] for option in field["anyOf"] if "$ref" in option
        )
        section = schema["$defs"][reference.rpartition("/")[2]]
    return section


def _json(text: str) -> Any:
    """Return an example as JSON has it: dates as text."""
    return yaml.load(text, _TextDates)


class _TextDates(Loader):
    """Loader that reads dates as text."""


_TextDates.yaml_implicit_resolvers = {
    first: [(tag, rule) for tag, rule in rules if not tag.endswith(":timestamp")]
    for first, rules in Loader.yaml_implicit_resolvers.items()
}


def _plain(value: Any, *, are_keys: bool = False) -> Any:
    """Drop Pydantic's titles, which repeat the keys, and the line breaks of docstrings."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    out = {}
    for key, item in value.items():
        if key == "title" and not are_keys:
            continue
        if key == "description" and isinstance(item, str):
            out[key] = " ".join(item.split())
        else:
            out[key] = _plain(item, are_keys=key in ("properties", "$defs") and not are_keys)
    return out
