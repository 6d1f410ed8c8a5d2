"""Find one schema for many objects, or explain how their schemas differ."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import polars as pl

from partitioning.dtypes import can_be_cast, can_become, wider_type
from partitioning.errors import ColumnError, SchemaMismatchError

_MAX_SHOWN: Final = 20

Rule = Literal["identical", "union", "first"]


@dataclass(frozen=True, slots=True)
class Variant:
    """A distinct schema of a dataset."""

    schema: pl.Schema
    count: int
    """Number of objects with this schema."""
    examples: tuple[str, ...]
    """URIs of up to two of these objects."""


def resolve(
    variants: Sequence[Variant], rule: Rule, declared: Mapping[str, pl.DataType] | None = None
) -> pl.Schema:
    """Return the dataset's schema, in the column order of the first variant.

    The order of columns does not matter, since they are read by name.

    Args:
        variants: Distinct schemas, in the order in which they first appear.
        rule: `identical`, `union` or `first`, as in `PlanRequest.schema`.
        declared: Types to read columns as, regardless of the files.

    Raises:
        ColumnError: No object has a declared column.
        SchemaMismatchError: Columns differ; the message names them, their types, and two objects
            of each type.
    """
    if declared:
        variants = _apply_declared(variants, declared)
    first = variants[0].schema
    if len(variants) == 1:
        return first
    types: dict[str, pl.DataType] = dict(first)
    conflicts: set[str] = set()
    for variant in variants[1:]:
        for name, dtype in variant.schema.items():
            known = types.get(name)
            if known is None and rule != "first":
                types[name] = dtype
            elif known is not None and known != dtype:
                agreed = _agree(known, dtype, rule)
                types[name] = agreed or known
                if agreed is None:
                    conflicts.add(name)
    if rule == "identical":
        conflicts |= {name for name in types if any(name not in v.schema for v in variants)}
    if conflicts:
        raise SchemaMismatchError(_explain(variants, conflicts, list(types), rule))
    return pl.Schema(types)


def _apply_declared(
    variants: Sequence[Variant], declared: Mapping[str, pl.DataType]
) -> list[Variant]:
    """Return the variants with the declared types."""
    names = list(dict.fromkeys(name for variant in variants for name in variant.schema))
    check_columns(list(declared), names)
    for name, wanted in declared.items():
        for variant in variants:
            dtype = variant.schema.get(name, wanted)
            if not can_be_cast(dtype, wanted):
                raise SchemaMismatchError(
                    f"column {name} is declared as {wanted} (input.types), but {dtype} cannot be "
                    f"cast to it without loss: in {', '.join(variant.examples)}"
                )
    return [
        replace(v, schema=pl.Schema({n: declared.get(n, t) for n, t in v.schema.items()}))
        for v in variants
    ]


def _agree(known: pl.DataType, dtype: pl.DataType, rule: Rule) -> pl.DataType | None:
    """Return the common type of two types of a column by a rule; None if there is none."""
    if rule == "union":
        return wider_type(known, dtype)
    if rule == "first" and can_become(dtype, known):
        return known
    return None


def _explain(variants: Sequence[Variant], conflicts: set[str], order: list[str], rule: str) -> str:
    lines: list[str] = []
    for name in (n for n in order if n in conflicts):
        trees = [dict(_paths(name, v.schema[name])) if name in v.schema else {} for v in variants]
        paths = list(dict.fromkeys(path for tree in trees for path in tree))
        reported: list[str] = []
        for path in paths:
            kinds = [tree.get(path) for tree in trees]
            below = any(path.startswith((r + ".", r + "[")) for r in reported)
            if len(set(kinds)) > 1 and not below:
                reported.append(path)
                lines.append(f"{path}: {_kinds(variants, kinds)}")
    if len(lines) > _MAX_SHOWN:
        lines[_MAX_SHOWN:] = [f"… and {len(lines) - _MAX_SHOWN} more columns"]
    head = f"the objects' columns differ (schema: {rule}):"
    return "\n  ".join([head, *lines])


def _kinds(variants: Sequence[Variant], kinds: list[str | None]) -> str:
    texts = []
    for kind in dict.fromkeys(kinds):
        having = [v for v, k in zip(variants, kinds, strict=True) if k == kind]
        count = sum(v.count for v in having)
        examples = [uri for v in having for uri in v.examples][:2]
        texts.append(f"{kind or 'absent'} in {count} ({', '.join(examples)})")
    return "; ".join(texts)


def _paths(path: str, dtype: Any) -> Iterator[tuple[str, str]]:
    """Yield (path, type) of a column and its nested fields; containers have only their kind."""
    if isinstance(dtype, pl.Struct):
        yield path, "Struct"
        for field in dtype.fields:
            yield from _paths(f"{path}.{field.name}", field.dtype)
    elif isinstance(dtype, pl.Map):
        yield path, "Map"
        yield from _paths(f"{path}[key]", dtype.key)
        yield from _paths(f"{path}[value]", dtype.value)
    elif isinstance(dtype, pl.Array):
        yield path, f"Array of {dtype.size}"
        yield from _paths(f"{path}[]", dtype.inner)
    elif isinstance(dtype, pl.List):
        yield path, "List"
        yield from _paths(f"{path}[]", dtype.inner)
    else:
        yield path, str(dtype)


def check_columns(columns: Sequence[str], names: Sequence[str]) -> None:
    """Raise ColumnError for a column that does not exist, naming the most similar column."""
    for column in columns:
        if column not in names:
            near = difflib.get_close_matches(column, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"columns: {', '.join(names)}"
            raise ColumnError(f"the dataset has no column {column!r}; {hint}")
