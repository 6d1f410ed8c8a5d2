"""Find the types of records, and decide the columns of an ingest: pinned, widened, or refused.

Types are those of Polars. Null stands for fields without any value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl

from pipeline.errors import SchemaChangedError
from pipeline.ingest.store import Drift
from pipeline.printable import printable_line

Types = dict[str, pl.DataType]
"""Types by the name of the column, in order."""
Rule = Literal["pinned", "widen", "fail"]

_NULL, _INT, _FLOAT = pl.Null(), pl.Int64(), pl.Float64()
_SIMPLE: dict[type, pl.DataType] = {
    type(None): _NULL,
    bool: pl.Boolean(),
    int: _INT,
    float: _FLOAT,
    str: pl.String(),
}
MAX_SHOWN = 8
"""Maximum number of columns that a message names."""
MAX_DEPTH = 100
"""Maximum number of lists and objects within each other in a value."""


class ContradictionError(Exception):
    """Two values of a field have types that no type holds.

    Attributes:
        path: The field, such as `customer.id`.
        types: Both types.
    """

    def __init__(self, path: str, types: tuple[pl.DataType, pl.DataType]) -> None:
        super().__init__(path)
        self.path, self.types = path, types


def add_types(types: Types, records: Iterable[Mapping[str, Any]], declared: Iterable[str]) -> None:
    """Add the types of some records to those found before.

    Args:
        types: Types found before; changed in place.
        records: The records.
        declared: Columns whose types are known; their values are not looked at.

    Raises:
        ContradictionError: A field has values of different kinds, such as texts and numbers.
    """
    known = frozenset(declared)
    for record in records:
        for name, value in record.items():
            before = types.get(name)
            if name in known:
                types.setdefault(name, _NULL)
                continue
            simple = _SIMPLE.get(type(value))
            if simple is not None and (
                before is simple or (simple is _NULL and before is not None)
            ):
                continue
            try:
                found = type_of(value, name)
                types[name] = found if before is None else merge(before, found, name)
            except RecursionError:
                raise _unfit(name, "is nested too deeply") from None
            if before is None:
                _refuse_name(name, types[name])


def add_known_types(types: Types, more: Types) -> None:
    """Add types of other records, as `add_types` has found them, to those found before.

    Raises:
        ContradictionError: A field has values of different kinds.
    """
    for name, kind in more.items():
        before = types.get(name)
        types[name] = kind if before is None else merge(before, kind, name)


def _refuse_name(name: str, kind: pl.DataType) -> None:
    """Refuse names of fields that no file can hold: they are not valid Unicode."""
    try:
        f"{name}{kind}".encode()
    except UnicodeError:
        raise _unfit(name, "has a name that is no valid text") from None


def _unfit(name: str, problem: str) -> SchemaChangedError:
    shown = printable_line(name)[:100]
    return SchemaChangedError(
        f"field {shown!r} {problem}", hint="correct the records at their source"
    )


def type_of(value: Any, path: str, depth: int = 0) -> pl.DataType:
    """Return the type of a JSON value.

    Raises:
        ContradictionError: Items of a list have no common type.
        RecursionError: It is nested too deeply.
    """
    simple = _SIMPLE.get(type(value))
    if simple is not None:
        return simple
    if depth == MAX_DEPTH:
        raise RecursionError
    if isinstance(value, list):
        inner: pl.DataType = _NULL
        for item in value:
            inner = merge(inner, type_of(item, f"{path}[]", depth + 1), f"{path}[]")
        return pl.List(inner)
    assert isinstance(value, dict), "JSON has no other values"
    return pl.Struct(
        {name: type_of(item, f"{path}.{name}", depth + 1) for name, item in value.items()}
    )


def merge(first: pl.DataType, second: pl.DataType, path: str) -> pl.DataType:
    """Return the type that holds the values of both: of whole and other numbers, of other fields.

    Raises:
        ContradictionError: There is none.
    """
    if first == second or isinstance(second, pl.Null):
        return first
    if isinstance(first, pl.Null):
        return second
    if isinstance(first, pl.List) and isinstance(second, pl.List):
        return pl.List(merge(_inner(first), _inner(second), f"{path}[]"))
    if isinstance(first, pl.Struct) and isinstance(second, pl.Struct):
        fields = {field.name: _instance(field.dtype) for field in first.fields}
        for field in second.fields:
            kind = _instance(field.dtype)
            before = fields.get(field.name)
            inner = f"{path}.{field.name}"
            fields[field.name] = kind if before is None else merge(before, kind, inner)
        return pl.Struct(fields)
    if (
        first.is_numeric()
        and second.is_numeric()
        and not (first.is_decimal() or second.is_decimal())
    ):
        if first.is_integer() and second.is_integer():
            return first if _bits(first) >= _bits(second) else second
        return _FLOAT
    raise ContradictionError(path, (first, second))


def _bits(kind: pl.DataType) -> int:
    return int("".join(filter(str.isdigit, str(kind))) or 0)


def _inner(kind: pl.List) -> pl.DataType:
    return _instance(kind.inner)


def _instance(kind: Any) -> pl.DataType:
    dtype: pl.DataType = kind if isinstance(kind, pl.DataType) else kind()
    return dtype


def without_nulls(kind: pl.DataType) -> pl.DataType | None:
    """Return a type without the parts of which no value was seen; None if nothing is left."""
    if isinstance(kind, pl.Null):
        return None
    if isinstance(kind, pl.List):
        inner = without_nulls(_inner(kind))
        return None if inner is None else pl.List(inner)
    if isinstance(kind, pl.Struct):
        found = {field.name: without_nulls(_instance(field.dtype)) for field in kind.fields}
        fields = {name: inner for name, inner in found.items() if inner is not None}
        return pl.Struct(fields) if fields else None
    return kind


@dataclass(frozen=True, slots=True)
class Decision:
    """The columns of an ingest."""

    types: Types
    drift: Drift


def decide(found: Types, pinned: Types | None, declared: Types, rule: Rule) -> Decision:
    """Decide the columns of an ingest.

    Args:
        found: Types that its records have, as `add_types` finds them.
        pinned: Types of the output; None at first contact.
        declared: Types that the definition declares.
        rule: What happens to differences.

    Raises:
        SchemaChangedError: The rule is `fail` and there are differences, or types that no type
        holds.
    """
    seen = {name: without_nulls(kind) for name, kind in found.items() if name not in declared}
    values = {name: kind for name, kind in seen.items() if kind is not None}
    if pinned is None:
        empty = tuple(name for name, kind in seen.items() if kind is None)
        order = [name for name in found if name in declared or name in values]
        types = {name: declared.get(name) or values[name] for name in order}
        return Decision({**types, **declared}, Drift(empty=empty))
    wanted: Types = {name: declared.get(name, kind) for name, kind in pinned.items()}
    new = {name: declared.get(name) or values.get(name) for name in found if name not in pinned}
    added = {name: kind for name, kind in new.items() if kind is not None}
    widened = _widened(pinned, wanted, values, rule)
    drift = Drift(
        new={name: str(kind) for name, kind in added.items()},
        missing=tuple(name for name in pinned if name not in found) if found else (),
        changed={
            name: (str(pinned[name]), str(kind))
            for name, kind in _changes(pinned, wanted, values).items()
        },
        empty=tuple(name for name, kind in new.items() if kind is None),
    )
    if rule == "fail" and (drift.new or drift.missing or drift.changed):
        raise SchemaChangedError(
            f"records have other fields than the output (schema: fail): {drift_text(drift)}",
            hint="look at what has changed in the source; then set schema to pinned (the "
            "output keeps "
            "its columns) or widen, and give the command again, which asks for nothing again",
        )
    return Decision({**widened, **(added if rule == "widen" else {})}, drift)


def _changes(pinned: Types, wanted: Types, values: Types) -> Types:
    """Return the types that do not fit those of the output, by column."""
    changes: Types = {}
    for name, kind in wanted.items():
        if kind != pinned[name]:
            changes[name] = kind
        elif name in values and not fits(values[name], kind):
            changes[name] = values[name]
    return changes


def fits(found: pl.DataType, kind: pl.DataType) -> bool:
    """Whether values of a type that JSON has can be read as another type, if they are right."""
    if isinstance(found, pl.List) and isinstance(kind, pl.List):
        return fits(_inner(found), _inner(kind))
    if isinstance(found, pl.Struct) and isinstance(kind, pl.Struct):
        fields = {field.name: _instance(field.dtype) for field in kind.fields}
        return all(
            field.name in fields and fits(_instance(field.dtype), fields[field.name])
            for field in found.fields
        )
    if isinstance(found, pl.String):
        return isinstance(kind, pl.String) or kind.is_temporal() or kind.is_decimal()
    if found.is_integer():
        return kind.is_numeric()
    if found.is_float():
        return kind.is_float() or kind.is_decimal()
    return found == kind


def _widened(pinned: Types, wanted: Types, values: Types, rule: Rule) -> Types:
    """Return the output's types, wider where records need it and the rule allows it."""
    if rule != "widen":
        return wanted
    types = dict(wanted)
    for name, kind in values.items():
        if name in types and not fits(kind, types[name]):
            try:
                types[name] = merge(types[name], kind, name)
            except ContradictionError as error:
                raise contradiction(error, "the output and the records") from None
    return types


def contradiction(error: ContradictionError, where: str) -> SchemaChangedError:
    """Return the error for a field of two kinds."""
    first, second = error.types
    column = error.path.partition(".")[0].partition("[")[0]
    return SchemaChangedError(
        f"field {error.path!r} is {first} and {second} in {where}, and no type holds both",
        hint=f"declare its type, e.g. types: {{{column}: string}}, and give the command again, "
        "which "
        "asks for nothing again",
    )


def drift_text(drift: Drift) -> str:
    """Describe differences in a sentence; empty if there are none."""
    parts = [
        _part("new fields", [f"{name} ({kind})" for name, kind in drift.new.items()]),
        _part("fields that no record has", list(drift.missing)),
        _part("other types", [f"{n} ({old} / {new})" for n, (old, new) in drift.changed.items()]),
        _part("fields without any value", list(drift.empty)),
    ]
    return "; ".join(filter(None, parts))


def _part(title: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - MAX_SHOWN:,} more" if len(names) > MAX_SHOWN else ""
    return f"{title}: {', '.join(names[:MAX_SHOWN])}{more}"
