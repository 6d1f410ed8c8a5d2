"""Examples of the keys of a file that users write, for reference pages and JSON Schemas."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class FileExamples:
    """An example per key, by dotted key, as the YAML text of its value."""

    texts: Mapping[str, str]
    base: tuple[str, ...]
    """Keys that each file needs."""
    needs: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Other keys that a key needs, with their values."""
    instead: Mapping[str, Collection[str]] = field(default_factory=dict)
    """Keys of the base that a file with another key does not have."""
    whole: str = ""
    """Key whose example is the smallest file."""

    def values(self, key: str) -> dict[str, str]:
        """Return the keys and YAML values of a file that shows a key; all are needed for it."""
        names = (name for name in self.base if name not in self.instead.get(key, ()))
        base = {name: self.texts[name] for name in names}
        return base | dict(self.needs.get(key, {})) | {key: self.texts[key]}

    def lines(self, key: str) -> list[str]:
        """Return the lines of YAML that set a key to its example, with what it needs beside it."""
        if key == self.whole:
            lines = [
                f"{name.replace('.', ': {')}: {text}" for name, text in self.values(key).items()
            ]
            return [line + "}" * line.count(": {") for line in lines]
        values = {**self.needs.get(key, {}), key: self.texts[key]}
        return _lines(nested(values) if "." in key else {key: self.texts[key]})


def _lines(values: dict[str, Any], indent: str = "") -> list[str]:
    """Write nested texts of YAML as a file has them."""
    lines = []
    for name, value in values.items():
        if isinstance(value, dict):
            lines += [f"{indent}{name}:", *_lines(value, f"{indent}  ")]
        else:
            lines.append(f"{indent}{name}: {value}")
    return lines


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nest a mapping of dotted keys."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        *above, last = key.split(".")
        inside = out
        for name in above:
            inside = inside.setdefault(name, {})
        inside[last] = value
    return out
