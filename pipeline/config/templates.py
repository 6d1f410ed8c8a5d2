"""Fill in the templates of a definition: `{{ date }}` in its texts.

Templates are in parsed values, never in the text of YAML, so that no value can change a file's
structure. A text that is one template alone becomes the value itself, with its type; in a longer
text, values are written as text. `{{ "{{" }}` writes two braces.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import date, timedelta
from typing import Any

from pipeline.config.expressions import ExpressionError, Facts, Kind, Value, kind_of, parse
from pipeline.config.yaml_file import Location, YamlFile
from pipeline.errors import UsageError

_TEMPLATE = re.compile(r"\{\{((?:\"[^\"]*\"|'[^']*'|[^\"'{}])*)\}\}")


def fill(file: YamlFile, values: Facts, error: type[UsageError]) -> YamlFile:
    """Fill in the templates of a file.

    Args:
        file: The file.
        values: Values of the names.
        error: Class of the error.

    Raises:
        UsageError: As the given class: a template is wrong; the message names file and line.
    """
    kinds = {name: kind_of(value) for name, value in values.items()}

    def filled(value: Any, at: Location) -> Any:
        if isinstance(value, dict):
            return {key: filled(item, (*at, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [filled(item, (*at, index)) for index, item in enumerate(value)]
        if not isinstance(value, str) or "{{" not in value:
            return value
        try:
            return fill_text(value, values, kinds)
        except ExpressionError as problem:
            raise error(f"{file.where(at)}: {value!r}: {problem}") from None

    return replace(file, data=filled(file.data, ()))


def fill_text(text: str, values: Facts, kinds: Mapping[str, Kind]) -> Value:
    """Fill in the templates of a text.

    Raises:
        ExpressionError: A template is wrong, or its value is a duration.
    """
    whole = _TEMPLATE.fullmatch(text)
    if whole:
        return _value(whole[1], values, kinds)
    if "{{" in _TEMPLATE.sub("", text):
        raise ExpressionError("a template is not closed: write {{ date }}")
    return _TEMPLATE.sub(lambda match: text_of(_value(match[1], values, kinds)), text)


def _value(text: str, values: Facts, kinds: Mapping[str, Kind]) -> Value:
    text = text.strip()
    if not text:
        raise ExpressionError("a template is empty: write {{ date }}")
    node = parse(text)
    if node.kind(kinds) == "duration":
        raise ExpressionError("a duration is no value: write {{ date + 1d }}")
    return node.value(values)


def text_of(value: Value) -> str:
    """Write a value as it stands in a text."""
    if isinstance(value, bool):
        return str(value).lower()
    assert not isinstance(value, timedelta), "templates have no durations"
    return value.isoformat() if isinstance(value, date) else str(value)
