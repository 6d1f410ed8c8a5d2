"""Types of Delta tables: which columns a table can have, and how their values are spelled."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import date
from typing import Any, Final
from urllib.parse import unquote_to_bytes

import polars as pl
import pyarrow as pa

from partitioning.hive_paths import NULL_VALUE, raw_values
from pipeline.table.column_types import parse_dtype
from pipeline.table.columns import Columns

DeltaType = str | dict[str, Any]
"""A type as a Delta schema spells it: a name, or a nested type as JSON."""

_NAMES: Final[dict[type[pl.DataType], str]] = {
    pl.Int8: "byte",
    pl.Int16: "short",
    pl.Int32: "integer",
    pl.Int64: "long",
    pl.Float32: "float",
    pl.Float64: "double",
    pl.Boolean: "boolean",
    pl.String: "string",
    pl.Binary: "binary",
    pl.Date: "date",
}
_ADVICE: Final[dict[type[pl.DataType], str]] = {
    pl.UInt8: "cast it to int16",
    pl.UInt16: "cast it to int32",
    pl.UInt32: "cast it to int64",
    pl.UInt64: "cast it to int64, or to decimal(20, 0)",
    pl.Int128: "cast it to int64, or to decimal(38, 0)",
    pl.UInt128: "cast it to decimal(38, 0)",
    pl.Float16: "cast it to float32",
    pl.Time: "cast it to text, or to int64",
    pl.Duration: "cast it to int64",
    pl.Categorical: "cast it to text",
    pl.Enum: "cast it to text",
    pl.Array: "cast it to a list",
    pl.Null: "it is null in every row: cast it to a type",
}
"""What to do with a column whose type Delta does not have."""
HIVE_TYPES: Final = {
    "string": "string",
    "int8": "byte",
    "int16": "short",
    "int32": "integer",
    "int64": "long",
    "date": "date",
    "date32[day]": "date",
}
"""Delta types of partition columns by the planner's names, and by Arrow's."""
_INTEGERS: Final = {"byte": 8, "short": 16, "integer": 32, "long": 64}
_ARROW: Final = {
    **{name: pa.type_for_alias(f"int{bits}") for name, bits in _INTEGERS.items()},
    "float": pa.float32(),
    "double": pa.float64(),
    "boolean": pa.bool_(),
    "string": pa.string(),
    "binary": pa.binary(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us", "UTC"),
    "timestamp_ntz": pa.timestamp("us"),
}
REFUSED_IN_NAMES: Final = re.compile(r"[ ,;{}()\n\t=]")
"""Characters that Spark refuses in the names of a Delta table's columns."""


def column_problems(columns: Columns) -> list[str]:
    """Describe the columns that no Delta table can have, and what to do about each.

    Args:
        columns: Types by name, as Polars spells them.
    """
    problems = list(name_problems(list(columns)))
    for name, text in columns.items():
        kind = parse_dtype(text)
        reason = "its type is not known" if kind is None else type_problem(kind)
        if reason is not None:
            problems.append(f"column {name!r} is of type {text}, which Delta lacks: {reason}")
    return problems


def name_problems(names: Sequence[str]) -> Iterator[str]:
    """Yield the problems of the names of a table's columns."""
    seen: dict[str, str] = {}
    for name in names:
        if REFUSED_IN_NAMES.search(name):
            yield (
                f"column {name!r} has a character that Delta tables refuse in names (space, tab, "
                "line feed or one of ,;{}()=): rename it"
            )
        other = seen.setdefault(name.lower(), name)
        if other != name:
            yield f"columns {other!r} and {name!r} differ only in case, which Delta refuses"


def type_problem(kind: pl.DataType) -> str | None:
    """Return what to do with a column whose type Delta lacks; None if Delta has it."""
    if isinstance(kind, pl.Datetime):
        if kind.time_unit != "us":
            return "cast it to microseconds, e.g. .dt.cast_time_unit('us')"
        return None if kind.time_zone in (None, "UTC") else "convert it to UTC"
    if isinstance(kind, pl.List):
        return type_problem(_instance(kind.inner))
    if isinstance(kind, pl.Struct):
        problems = (type_problem(_instance(field.dtype)) for field in kind.fields)
        empty = None if kind.fields else "a struct without fields cannot be stored: drop it"
        return next((problem for problem in problems if problem), empty)
    advice = next((text for other, text in _ADVICE.items() if isinstance(kind, other)), None)
    if advice is not None or isinstance(kind, pl.Decimal) or type(kind) in _NAMES:
        return advice
    return "cast it to another type"


def delta_type(kind: pl.DataType) -> DeltaType:
    """Return the Delta type of a column (see `type_problem`)."""
    if isinstance(kind, pl.Datetime):
        return "timestamp_ntz" if kind.time_zone is None else "timestamp"
    if isinstance(kind, pl.Decimal):
        return f"decimal({kind.precision or 38},{kind.scale})"
    if isinstance(kind, pl.List):
        element = delta_type(_instance(kind.inner))
        return {"type": "array", "elementType": element, "containsNull": True}
    if isinstance(kind, pl.Struct):
        fields = [field_json(f.name, delta_type(_instance(f.dtype))) for f in kind.fields]
        return {"type": "struct", "fields": fields}
    return _NAMES[type(kind)]


def field_json(name: str, kind: DeltaType) -> dict[str, Any]:
    """Return a column of a Delta schema as JSON."""
    return {"name": name, "type": kind, "nullable": True, "metadata": {}}


def arrow_type(kind: DeltaType) -> pa.DataType | None:
    """Return the Arrow type of a plain Delta type; None for nested types."""
    if isinstance(kind, dict):
        return None
    decimal = re.fullmatch(r"decimal\((\d+),\s*(\d+)\)", kind)
    if decimal is not None:
        return pa.decimal128(int(decimal[1]), int(decimal[2]))
    return _ARROW.get(kind)


def partition_values(folder: str, types: Mapping[str, DeltaType]) -> dict[str, str | None]:
    """Return the partition values of a folder as Delta spells them; nulls are None.

    Args:
        folder: Hive folder of a file, below the output.
        types: Types of the table's partition columns, in their order.

    Raises:
        ValueError: The folder has other partition columns, or a value does not fit its type.
    """
    raws = dict(raw_values(folder))
    if list(raws) != list(types):
        has = "/".join(f"{name}=" for name in raws) or "no partition columns"
        wanted = "/".join(f"{name}=" for name in types) or "none"
        raise ValueError(f"folder {folder!r} has {has}, the table {wanted}")
    return {name: _value(name, raws[name], kind) for name, kind in types.items()}


def _value(name: str, raw: str, kind: DeltaType) -> str | None:
    if raw == NULL_VALUE:
        return None
    text = unquote_to_bytes(raw).decode()
    if not text:
        raise ValueError(f"partition column {name!r} has an empty text, which Delta takes as null")
    if kind in _INTEGERS:
        limit = 2 ** (_INTEGERS[str(kind)] - 1)
        if not re.fullmatch(r"-?[0-9]{1,19}", text) or not -limit <= int(text) < limit:
            raise ValueError(f"partition column {name!r} is of type {kind}, but has {text!r}")
        return str(int(text))
    if kind == "date" and not _is_date(text):
        raise ValueError(f"partition column {name!r} is of type date, but has {text!r}")
    return text


def _is_date(text: str) -> bool:
    # One day that no calendar has makes the whole table unreadable.
    with suppress(ValueError):
        return date.fromisoformat(text).isoformat() == text
    return False


def _instance(kind: Any) -> pl.DataType:
    dtype: pl.DataType = kind if isinstance(kind, pl.DataType) else kind()
    return dtype
