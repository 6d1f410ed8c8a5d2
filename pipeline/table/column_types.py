"""Parse types as Polars spells them, and merge types in which nulls leave parts open."""

from __future__ import annotations

import ast
import math
import re
from functools import lru_cache
from typing import Any, Final

import polars as pl

_MAX_TYPE_LENGTH: Final = 64 << 10
"""Maximum length of a type in characters; an Enum may have many categories."""

_MAX_ARRAY_VALUES: Final = 1 << 20
"""Maximum number of values of an Array; each null takes the memory of all of them."""

_NULL: Final = re.compile(r"\bNull\b")

_PLAIN: Final = {
    str(kind): kind()
    for kind in (
        *(pl.Null, pl.Boolean, pl.String, pl.Binary, pl.Date, pl.Time, pl.Categorical),
        *(pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.Int128),
        *(pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64, pl.UInt128),
        *(pl.Float16, pl.Float32, pl.Float64),
    )
}

_CONSTRUCTORS: Final = {
    "Datetime": pl.Datetime,
    "Duration": pl.Duration,
    "Decimal": pl.Decimal,
    "Enum": pl.Enum,
    "List": pl.List,
    "Array": pl.Array,
    "Struct": pl.Struct,
}


def has_nulls(kind: str) -> bool:
    """Whether a type, as Polars spells it, is or contains the type Null."""
    return _NULL.search(kind) is not None


@lru_cache(4096)
def parse_dtype(text: str) -> pl.DataType | None:
    """Return the type that Polars spells like this; None if it is not recognised.

    The text comes from a worker and is untrusted: it is parsed, never evaluated.
    """
    if len(text) > _MAX_TYPE_LENGTH:
        return None
    try:
        return _dtype_of(ast.parse(text, mode="eval").body)
    except (*_UNREADABLE, pl.exceptions.PolarsError, pl.exceptions.PanicException):
        return None


_UNREADABLE = (SyntaxError, ValueError, TypeError, KeyError, RecursionError, MemoryError)


def _dtype_of(node: ast.expr) -> pl.DataType:
    if isinstance(node, ast.Name):
        return _PLAIN[node.id]
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        raise ValueError("not a type")
    named = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords}
    constructor: Any = _CONSTRUCTORS[node.func.id]
    if math.prod(named.get("shape", ())) > _MAX_ARRAY_VALUES:
        raise ValueError("its nulls would take too much memory")
    if node.func.id == "Struct":
        [fields] = node.args
        if not isinstance(fields, ast.Dict):
            raise ValueError("a struct without fields")
        pairs = zip(fields.keys, fields.values, strict=True)
        return pl.Struct({ast.literal_eval(key): _dtype_of(kind) for key, kind in pairs if key})
    dtype: pl.DataType = constructor(*map(_dtype_of, node.args), **named)
    return dtype


def merge_dtypes(first: pl.DataType, second: pl.DataType) -> pl.DataType | None:
    """Merge two types that differ only where one of them is Null; None if they differ otherwise."""
    if first == second or isinstance(second, pl.Null):
        return first
    if isinstance(first, pl.Null):
        return second
    if isinstance(first, pl.List) and isinstance(second, pl.List):
        inner = merge_dtypes(_inner(first), _inner(second))
        return None if inner is None else pl.List(inner)
    if isinstance(first, pl.Array) and isinstance(second, pl.Array) and first.shape == second.shape:
        inner = merge_dtypes(_base(first), _base(second))
        return None if inner is None else pl.Array(inner, first.shape)
    if isinstance(first, pl.Struct) and isinstance(second, pl.Struct):
        first_fields, second_fields = first.to_schema(), second.to_schema()
        if list(first_fields) != list(second_fields):
            return None
        both = {
            name: merge_dtypes(_instance(kind), _instance(second_fields[name]))
            for name, kind in first_fields.items()
        }
        fields = {name: kind for name, kind in both.items() if kind is not None}
        return pl.Struct(fields) if len(fields) == len(both) else None
    return None


def _instance(kind: Any) -> pl.DataType:
    dtype: pl.DataType = kind if isinstance(kind, pl.DataType) else kind()
    return dtype


def _inner(kind: pl.List) -> pl.DataType:
    return _instance(kind.inner)


def _base(kind: pl.Array) -> pl.DataType:
    inner: Any = kind
    while isinstance(inner, pl.Array):
        inner = inner.inner
    return _instance(inner)


def merge_types(first: str, second: str) -> str | None:
    """Merge two types as Polars spells them (see `merge_dtypes`)."""
    if first == second:
        return first
    if not (has_nulls(first) or has_nulls(second)):
        return None
    dtype, other = parse_dtype(first), parse_dtype(second)
    both = None if dtype is None or other is None else merge_dtypes(dtype, other)
    return None if both is None else str(both)
