"""One schema for many objects: compared, united, or explained where it cannot be."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import polars as pl

from partitioning.dtypes import can_be_cast, can_become, wider_type
from partitioning.errors import ColumnError, SchemaMismatchError

_SHOWN: Final = 20


Rule = Literal["identical", "union", "first"]


@dataclass(frozen=True, slots=True)
class Variant:
    """One distinct schema of a dataset."""

    schema: pl.Schema
    count: int
    """Objects that have it."""
    examples: tuple[str, ...]
    """Up to two of them."""


def resolve(
    variants: Sequence[Variant], rule: Rule, declared: Mapping[str, pl.DataType] | None = None
) -> pl.Schema:
    """Return the dataset's schema.

    The order of columns does not matter: they are read by name. The first variant's order
    is kept.

    Args:
        variants: distinct schemas, in the order in which they first appear.
        rule: `identical`, `union` or `first`, as in `PlanRequest.schema`.
        declared: types that columns come as, whatever they are in the files.

    Raises:
        ColumnError: no object has a column that is declared.
        SchemaMismatchError: naming each differing column, its types, and two objects of each.
    """
    if declared:
        variants = _declared(variants, declared)
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


def _declared(variants: Sequence[Variant], declared: Mapping[str, pl.DataType]) -> list[Variant]:
    """Return the variants with the declared types in place of their own."""
    names = list(dict.fromkeys(name for variant in variants for name in variant.schema))
    check_columns(list(declared), names)
    for name, wanted in declared.items():
        for variant in variants:
            dtype = variant.schema.get(name, wanted)
            if not can_be_cast(dtype, wanted):
                raise SchemaMismatchError(
                    f"column {name} is declared as {wanted} (input.types), and {dtype} cannot be "
                    f"cast to it without a loss: in {', '.join(variant.examples)}"
                )
    return [
        replace(v, schema=pl.Schema({n: declared.get(n, t) for n, t in v.schema.items()}))
        for v in variants
    ]


def _agree(known: pl.DataType, dtype: pl.DataType, rule: Rule) -> pl.DataType | None:
    """Return the type that two types of one column come as, or None if a rule has none."""
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
    if len(lines) > _SHOWN:
        lines[_SHOWN:] = [f"… and {len(lines) - _SHOWN} more columns"]
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
    """Yield (path, type) of a column and all below it; a container's type is its sort only."""
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
    """Raise ColumnError, naming the nearest column, unless all columns exist."""
    for column in columns:
        if column not in names:
            near = difflib.get_close_matches(column, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"columns: {', '.join(names)}"
            raise ColumnError(f"the dataset has no column {column!r}; {hint}")
