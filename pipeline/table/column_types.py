"""Types of columns as Polars spells them: parse them, and merge types that nulls leave open."""

from __future__ import annotations

import ast
import math
import re
from functools import lru_cache
from typing import Any, Final

import polars as pl

_MOST_TYPE: Final = 64 << 10
"""Characters of one type: an Enum may have many categories."""

_MOST_WIDTH: Final = 1 << 20
"""Values of an Array: each null is to hold so many."""

_NULL: Final = re.compile(r"\bNull\b")

_PLAIN: Final = {
    str(kind): kind()
    for kind in (
        *(pl.Null, pl.Boolean, pl.String, pl.Binary, pl.Date, pl.Time, pl.Categorical),
        *(pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.Int128),
        *(pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64, pl.Float32, pl.Float64),
    )
}

_MADE: Final = {
    "Datetime": pl.Datetime,
    "Duration": pl.Duration,
    "Decimal": pl.Decimal,
    "Enum": pl.Enum,
    "List": pl.List,
    "Array": pl.Array,
    "Struct": pl.Struct,
}


def has_nulls(kind: str) -> bool:
    """Whether a type, as Polars spells it, may be that of nothing but nulls, or hold such a one."""
    return _NULL.search(kind) is not None


@lru_cache(4096)
def parse_dtype(text: str) -> pl.DataType | None:
    """Return the type that Polars spells so; None if it is none that can be told.

    The text is what a worker wrote: it is taken apart, never run.
    """
    if len(text) > _MOST_TYPE:
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
        raise ValueError("it is no type")
    named = {str(one.arg): ast.literal_eval(one.value) for one in node.keywords}
    made: Any = _MADE[node.func.id]
    if math.prod(named.get("shape", ())) > _MOST_WIDTH:
        raise ValueError("nulls of it would take too much memory")
    if node.func.id == "Struct":
        [fields] = node.args
        if not isinstance(fields, ast.Dict):
            raise ValueError("a struct has fields")
        pairs = zip(fields.keys, fields.values, strict=True)
        return pl.Struct({ast.literal_eval(key): _dtype_of(kind) for key, kind in pairs if key})
    found: pl.DataType = made(*map(_dtype_of, node.args), **named)
    return found


def merged_type(one: pl.DataType, other: pl.DataType) -> pl.DataType | None:
    """The type of both, where what the one leaves open the other says; None if they differ."""
    if one == other or isinstance(other, pl.Null):
        return one
    if isinstance(one, pl.Null):
        return other
    if isinstance(one, pl.List) and isinstance(other, pl.List):
        inner = merged_type(_inner(one), _inner(other))
        return None if inner is None else pl.List(inner)
    if isinstance(one, pl.Array) and isinstance(other, pl.Array) and one.shape == other.shape:
        inner = merged_type(_base(one), _base(other))
        return None if inner is None else pl.Array(inner, one.shape)
    if isinstance(one, pl.Struct) and isinstance(other, pl.Struct):
        ours, theirs = one.to_schema(), other.to_schema()
        if list(ours) != list(theirs):
            return None
        both = {
            name: merged_type(_instance(kind), _instance(theirs[name]))
            for name, kind in ours.items()
        }
        fields = {name: kind for name, kind in both.items() if kind is not None}
        return pl.Struct(fields) if len(fields) == len(both) else None
    return None


def _instance(kind: Any) -> pl.DataType:
    found: pl.DataType = kind if isinstance(kind, pl.DataType) else kind()
    return found


def _inner(kind: pl.List) -> pl.DataType:
    return _instance(kind.inner)


def _base(kind: pl.Array) -> pl.DataType:
    inner: Any = kind
    while isinstance(inner, pl.Array):
        inner = inner.inner
    return _instance(inner)


def merged(one: str, other: str) -> str | None:
    """As `merged_type`, of types as Polars spells them."""
    if one == other:
        return one
    if not (has_nulls(one) or has_nulls(other)):
        return None
    ours, theirs = parse_dtype(one), parse_dtype(other)
    both = None if ours is None or theirs is None else merged_type(ours, theirs)
    return None if both is None else str(both)
