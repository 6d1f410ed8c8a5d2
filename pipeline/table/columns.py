"""Columns of outputs by name and type: what differs, and what may be widened without a loss.

Types are compared as Polars spells them. The order of columns is no difference: files are read by
name.
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
"""Types of which each holds all values of those before it."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A column that an output and a result do not have alike."""

    name: str
    held: str | None
    """Its type in the output; None if it is not there."""
    new: str | None
    """Its type in the result; None if it is not there."""

    @property
    def is_safe(self) -> bool:
        """Whether the output can be widened by it: a new column, or types one of which is wider."""
        if self.held is None or self.new is None:
            return self.held is None
        return wider(self.held, self.new) is not None

    def __str__(self) -> str:
        return f"{self.name}: {self.held or 'absent'} / {self.new or 'absent'}"


def wider(one: str, other: str) -> str | None:
    """The one of two types that holds all values of both; None if neither does."""
    if other in {one, "Null"}:
        return one
    if one == "Null":
        return other
    for types in _WIDENING:
        if one in types and other in types:
            return max(one, other, key=types.index)
    return None


def differences(held: Mapping[str, str], new: Mapping[str, str]) -> list[Difference]:
    """What differs, in the order of the columns."""
    return [
        Difference(name, held.get(name), new.get(name))
        for name in {**held, **new}
        if held.get(name) != new.get(name)
    ]


def widened(held: Mapping[str, str], new: Mapping[str, str]) -> Columns | None:
    """The columns that hold both; None where some type holds not both."""
    found = dict(held)
    for name, kind in new.items():
        both = wider(found.get(name, kind), kind)
        if both is None:
            return None
        found[name] = both
    return found


def stored_columns(text: str, folder: str = "") -> Columns:
    """The columns of a file, from those of the frame as JSON.

    Args:
        text: A JSON object of types by name; empty: nothing is known.
        folder: Of the file in its output: Hive columns are there, and not in the file.
    """
    columns: Columns = json.loads(text) if text else {}
    in_key = {name for name, _ in raw_values(folder)}
    return {name: kind for name, kind in columns.items() if name not in in_key}


def digest_columns(columns: Mapping[str, str]) -> str:
    """A digest that does not depend on the order; empty if nothing is known."""
    if not columns:
        return ""
    return hashlib.sha256(json.dumps(dict(columns), sort_keys=True).encode()).hexdigest()[:16]
