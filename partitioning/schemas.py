"""One schema for many objects: compared, united, or explained where it cannot be."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from partitioning.errors import ColumnError, SchemaMismatchError

_SHOWN: Final = 20


@dataclass(frozen=True, slots=True)
class Variant:
    """One distinct schema of a dataset."""

    schema: pa.Schema
    count: int
    """Objects that have it."""
    examples: tuple[str, ...]
    """Up to two of them."""


def normalise(schema: pa.Schema) -> pa.Schema:
    """Drop what does not matter to a reader: metadata, nullability, the width of offsets."""
    return pa.schema([pa.field(f.name, _type(f.type)) for f in schema])


def _type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_dictionary(kind):
        return pa.dictionary(pa.int32(), _type(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(f.name, _type(f.type)) for f in kind])
    if pa.types.is_map(kind):
        return pa.map_(_type(kind.key_type), _type(kind.item_type))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(pa.field("element", _type(kind.value_type)), kind.list_size)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(pa.field("element", _type(kind.value_type)))
    return kind


def resolve(variants: Sequence[Variant], rule: str) -> pa.Schema:
    """Return the dataset's schema.

    The order of columns does not matter: they are read by name. The first variant's order
    is kept.

    Args:
        variants: distinct normalised schemas, in the order in which they first appear.
        rule: `identical`, `union` or `first`, as in `PlanRequest.schema`.

    Raises:
        SchemaMismatchError: naming each differing column, its types, and two objects of each.
    """
    first = variants[0].schema
    if len(variants) == 1:
        return first
    fields: dict[str, pa.Field] = {}
    conflicts: set[str] = set()
    for variant in variants:
        for field in variant.schema:
            known = fields.setdefault(field.name, field)
            if known.type == field.type:
                continue
            if rule == "union" and pa.types.is_null(known.type):
                fields[field.name] = field
            elif rule == "identical" or not _ignorable(field, known, rule, first):
                conflicts.add(field.name)
    if rule == "identical":
        conflicts |= {name for name in fields if any(name not in v.schema.names for v in variants)}
    if conflicts:
        raise SchemaMismatchError(_explain(variants, conflicts, list(fields), rule))
    return first if rule in ("identical", "first") else pa.schema(list(fields.values()))


def _ignorable(field: pa.Field, known: pa.Field, rule: str, first: pa.Schema) -> bool:
    # `first` ignores columns that the first object lacks, so their types may differ too.
    return pa.types.is_null(field.type) or (rule == "first" and known.name not in first.names)


def _explain(variants: Sequence[Variant], conflicts: set[str], order: list[str], rule: str) -> str:
    lines: list[str] = []
    for name in (n for n in order if n in conflicts):
        trees = [dict(_paths(v.schema.field(name))) if name in v.schema.names else {}
                 for v in variants]  # fmt: skip
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


def _paths(field: pa.Field, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (path, type) of a field and all below it; a container's type is its sort only."""
    path, kind = prefix + field.name, field.type
    if pa.types.is_struct(kind):
        yield path, "struct"
        for child in kind:
            yield from _paths(child, path + ".")
    elif pa.types.is_map(kind):
        yield path, "map"
        yield from _paths(pa.field("[key]", kind.key_type), path)
        yield from _paths(pa.field("[value]", kind.item_type), path)
    elif pa.types.is_fixed_size_list(kind):
        yield path, f"list of {kind.list_size}"
        yield from _paths(pa.field("[]", kind.value_type), path)
    elif pa.types.is_list(kind):
        yield path, "list"
        yield from _paths(pa.field("[]", kind.value_type), path)
    else:
        yield path, str(kind)


def check_columns(columns: Sequence[str], names: Sequence[str]) -> None:
    """Raise ColumnError, naming the nearest column, unless all columns exist."""
    for column in columns:
        if column not in names:
            near = difflib.get_close_matches(column, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"columns: {', '.join(names)}"
            raise ColumnError(f"the dataset has no column {column!r}; {hint}")
