"""Validate a YAML file by a model, with errors that name the file and the line."""

from __future__ import annotations

import sys
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pipeline.config.yaml_file import YamlFile, explain_error
from pipeline.errors import UsageError

M = TypeVar("M", bound=BaseModel)


def validate(file: YamlFile, model: type[M], error: type[UsageError]) -> M:
    """Return a file as a model.

    Raises:
        UsageError: As the given class: a key is unknown, missing or mistyped. All problems are in
            one message, in the order of the file's lines.
    """
    try:
        return model.model_validate(file.data)
    except ValidationError as problems:
        raise _error(file, problems, model, error) from None


def _error(
    file: YamlFile, problems: ValidationError, model: type[BaseModel], error: type[UsageError]
) -> UsageError:
    errors = []
    for detail in problems.errors():
        location = tuple(detail["loc"])
        is_missing = detail["type"] == "missing"
        detail["loc"] = location = _written(file.data, location, is_missing=is_missing)
        text, hint = explain_error(detail, model)
        errors.append((file.line(location) or sys.maxsize, f"{file.where(location)}: {text}", hint))
    errors.sort(key=lambda found: found[0])
    hints = [hint for _, _, hint in errors if hint]
    return error("\n".join(text for _, text, _ in errors), "\n".join(hints) or None)


def _written(
    data: Any, location: tuple[str | int, ...], *, is_missing: bool
) -> tuple[str | int, ...]:
    """Return a location without the kinds of checks, which Pydantic puts between its parts."""
    kept: list[str | int] = []
    for depth, part in enumerate(location, 1):
        is_key = is_missing and depth == len(location)
        if isinstance(data, dict) and part not in data and not is_key:
            continue
        kept.append(part)
        if isinstance(data, dict):
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
    return tuple(kept)
