"""Compare columns of outputs by name and type, and widen them without loss.

Types are compared as Polars spells them. The order of columns does not matter, because files are
read by name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from partitioning.hive_paths import raw_values

Columns = dict[str, str]
"""Types by name, in order."""

_WIDENING = (
    ("Int8", "Int16", "Int32", "Int64"),
    ("UInt8", "UInt16", "UInt32", "UInt64"),
    ("Float32", "Float64"),
)
"""Groups of types; each type holds all values of the types before it."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A column that differs between an output and a result."""

    name: str
    old: str | None
    """Type in the output; None if the output lacks the column."""
    new: str | None
    """Type in the result; None if the result lacks the column."""

    @property
    def is_safe(self) -> bool:
        """Whether the output can be widened: a new column, or types one of which is wider."""
        if self.old is None or self.new is None:
            return self.old is None
        return wider_type(self.old, self.new) is not None

    def __str__(self) -> str:
        return f"{self.name}: {self.old or 'absent'} / {self.new or 'absent'}"


def wider_type(first: str, second: str) -> str | None:
    """Return the type that holds all values of both types; None if neither does."""
    if second in {first, "Null"}:
        return first
    if first == "Null":
        return second
    for types in _WIDENING:
        if first in types and second in types:
            return max(first, second, key=types.index)
    return None


def differences(old: Mapping[str, str], new: Mapping[str, str]) -> list[Difference]:
    """Return the columns that differ, in the order of the columns."""
    return [
        Difference(name, old.get(name), new.get(name))
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    ]


def widen(old: Mapping[str, str], new: Mapping[str, str]) -> Columns | None:
    """Return columns that hold the values of both; None if some types are incompatible."""
    columns = dict(old)
    for name, kind in new.items():
        both = wider_type(columns.get(name, kind), kind)
        if both is None:
            return None
        columns[name] = both
    return columns


def stored_columns(text: str, folder: str = "") -> Columns:
    """Return the columns of a file, from the columns of the frame as JSON.

    Args:
        text: JSON object of types by name; empty if unknown.
        folder: Folder of the file in its output. Its Hive columns are not in the file.
    """
    columns: Columns = json.loads(text) if text else {}
    in_key = {name for name, _ in raw_values(folder)}
    return {name: kind for name, kind in columns.items() if name not in in_key}


def digest_columns(columns: Mapping[str, str]) -> str:
    """Return a digest that does not depend on the order; empty for no columns."""
    if not columns:
        return ""
    return hashlib.sha256(json.dumps(dict(columns), sort_keys=True).encode()).hexdigest()[:16]
