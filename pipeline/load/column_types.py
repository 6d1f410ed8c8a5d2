"""Types of columns: how Polars, Arrow and a database spell them, and what converts losslessly."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl
import pyarrow as pa

from pipeline.table.delta.types import REFUSED_IN_NAMES, arrow_type, delta_type, type_problem

MAX_EXACT_DIGITS = 28
"""Maximum digits of decimals that are summed: the sum of a batch has 38 at most."""


class UnsupportedTypeError(Exception):
    """A type that a database has no counterpart for; the message says why."""


@dataclass(frozen=True, slots=True)
class SqlType:
    """The counterpart of a column's type in a database."""

    sql: str
    """Type as the database spells it."""
    arrow: pa.DataType
    """Type in which its values are sent."""
    is_json: bool = False
    """Whether values are sent as JSON text."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of an output, and its counterpart in a database."""

    name: str
    dtype: pl.DataType
    type: SqlType

    @property
    def is_summed(self) -> bool:
        """Whether its values have an exact sum that is cheap to compute."""
        kind = self.dtype
        if isinstance(kind, pl.Decimal):
            return kind.precision <= MAX_EXACT_DIGITS
        return kind.is_integer()


@dataclass(frozen=True)
class Dialect:
    """The types of a database."""

    name: str
    """Name for messages."""
    type_of: Callable[[pl.DataType], SqlType]
    """Returns the counterpart of a type; raises UnsupportedTypeError."""
    wider: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Other types of an existing column that hold all values of a type."""
    fold: Callable[[str], str] = lambda name: name
    """Returns a name as the database compares it."""
    max_name_bytes: int | None = None
    """Maximum length of names; longer ones would be cut."""
    refused_in_names: re.Pattern[str] | None = None
    """Characters that names cannot have."""

    def holds(self, wanted: str, existing: str) -> bool:
        """Whether a column of an existing type holds all values of a type."""
        if existing == wanted or existing in self.wider.get(wanted, ()):
            return True
        return _decimal_holds(wanted, existing)


_DECIMAL = re.compile(r"(?:numeric|decimal)\((\d+),\s*(-?\d+)\)", re.IGNORECASE)


def _decimal_holds(wanted: str, existing: str) -> bool:
    first, second = _DECIMAL.fullmatch(wanted), _DECIMAL.fullmatch(existing)
    if first is None:
        return False
    if second is None:
        return existing == "numeric"
    digits, scale = int(first[1]), int(first[2])
    other_digits, other_scale = int(second[1]), int(second[2])
    return other_scale >= scale and other_digits - other_scale >= digits - scale


# -- PostgreSQL -----------------------------------------------------------------------------------

_POSTGRES: dict[type[pl.DataType], tuple[str, pa.DataType]] = {
    pl.Boolean: ("boolean", pa.bool_()),
    pl.Int8: ("smallint", pa.int16()),
    pl.Int16: ("smallint", pa.int16()),
    pl.Int32: ("integer", pa.int32()),
    pl.Int64: ("bigint", pa.int64()),
    pl.UInt8: ("smallint", pa.int16()),
    pl.UInt16: ("integer", pa.int32()),
    pl.UInt32: ("bigint", pa.int64()),
    pl.UInt64: ("numeric(20,0)", pa.decimal128(20, 0)),
    pl.Float32: ("real", pa.float32()),
    pl.Float64: ("double precision", pa.float64()),
    pl.String: ("text", pa.large_string()),
    pl.Categorical: ("text", pa.large_string()),
    pl.Enum: ("text", pa.large_string()),
    pl.Binary: ("bytea", pa.large_binary()),
    pl.Date: ("date", pa.date32()),
    pl.Time: ("time without time zone", pa.time64("us")),
    pl.Duration: ("interval", pa.duration("us")),
}


def postgres_type(dtype: pl.DataType) -> SqlType:
    """Return PostgreSQL's type for a type of Polars.

    Raises:
        UnsupportedTypeError: There is none.
    """
    if isinstance(dtype, pl.Decimal):
        return SqlType(
            f"numeric({dtype.precision},{dtype.scale})",
            pa.decimal128(dtype.precision, dtype.scale),
        )
    if isinstance(dtype, pl.Datetime):
        if dtype.time_zone is None:
            return SqlType("timestamp without time zone", pa.timestamp("us"))
        return SqlType("timestamp with time zone", pa.timestamp("us", "UTC"))
    if dtype.is_nested():
        _check_json(dtype)
        return SqlType("jsonb", pa.json_(pa.large_string()), is_json=True)
    found = _POSTGRES.get(type(dtype))
    if found is None:
        raise _unsupported(dtype)
    return SqlType(*found)


def _check_json(dtype: pl.DataType) -> None:
    """Raise UnsupportedTypeError for what JSON cannot hold."""
    if isinstance(dtype, pl.Struct):
        for item in dtype.fields:
            _check_json(_instance(item.dtype))
    elif isinstance(dtype, pl.List | pl.Array):
        _check_json(_instance(dtype.inner))
    elif isinstance(dtype, pl.Binary | pl.Duration | pl.Object | pl.Null):
        raise UnsupportedTypeError(f"JSON has no counterpart of {dtype} inside of it")


# -- JSON -----------------------------------------------------------------------------------------

_NO_JSON = (pl.Binary, pl.Duration)


def json_type(dtype: pl.DataType) -> SqlType:
    """Return how a type of Polars is sent as JSON; nested values stay nested.

    Raises:
        UnsupportedTypeError: JSON has no counterpart.
    """
    if dtype.is_nested():
        _check_json(dtype)
        empty = pl.Series([], dtype=dtype).to_arrow(compat_level=pl.CompatLevel.oldest())
        return SqlType("JSON", empty.type)
    if isinstance(dtype, _NO_JSON):
        raise UnsupportedTypeError(f"JSON has no counterpart of {dtype}")
    if type(dtype) in _DUCKDB or isinstance(dtype, pl.Decimal):
        return SqlType("JSON", duckdb_type(dtype).arrow)
    if isinstance(dtype, pl.Datetime):
        return SqlType("JSON", pa.timestamp("us", "UTC" if dtype.time_zone else None))
    raise _unsupported(dtype)


# -- Delta ----------------------------------------------------------------------------------------

_DELTA_STORES: dict[type[pl.DataType], pl.DataType] = {
    pl.UInt8: pl.Int16(),
    pl.UInt16: pl.Int32(),
    pl.UInt32: pl.Int64(),
    pl.UInt64: pl.Decimal(20, 0),
    pl.Categorical: pl.String(),
    pl.Enum: pl.String(),
}
"""Types that hold all values of types that Delta lacks."""
_LARGE = {pa.string(): pa.large_string(), pa.binary(): pa.large_binary()}
"""Arrow types of texts and bytes as Polars has them, which need no copy."""


def delta_table_type(dtype: pl.DataType) -> SqlType:
    """Return the type of a Delta table for a type of Polars.

    Raises:
        UnsupportedTypeError: There is none.
    """
    stored = _DELTA_STORES.get(type(dtype), dtype)
    if isinstance(dtype, pl.List):
        inner = delta_table_type(_instance(dtype.inner))
        return SqlType(f"array<{inner.sql}>", pa.large_list(inner.arrow))
    if isinstance(dtype, pl.Struct):
        fields = [(item.name, delta_table_type(_instance(item.dtype))) for item in dtype.fields]
        if not fields:
            raise UnsupportedTypeError("a struct without fields")
        names = ",".join(f"{name}:{kind.sql}" for name, kind in fields)
        return SqlType(f"struct<{names}>", pa.struct([(n, kind.arrow) for n, kind in fields]))
    # Times of any unit and zone are sent; one that does not fit microseconds is an error then.
    if type_problem(stored) is not None and not isinstance(stored, pl.Datetime):
        raise _unsupported(dtype)
    kind = delta_type(stored)
    arrow = arrow_type(kind)
    assert isinstance(kind, str) and arrow is not None, "nested types were handled above"
    return SqlType(kind, _LARGE.get(arrow, arrow))


def spelled_delta_type(kind: str | Mapping[str, Any]) -> str:
    """Return a type of a Delta schema as `delta_table_type` spells it."""
    if isinstance(kind, str):
        return kind.replace(" ", "")
    if kind.get("type") == "array":
        return f"array<{spelled_delta_type(kind['elementType'])}>"
    if kind.get("type") == "struct":
        pairs = ((field["name"], spelled_delta_type(field["type"])) for field in kind["fields"])
        return f"struct<{','.join(f'{name}:{inner}' for name, inner in pairs)}>"
    return f"map<{spelled_delta_type(kind['keyType'])},{spelled_delta_type(kind['valueType'])}>"


# -- DuckDB ---------------------------------------------------------------------------------------

_DUCKDB: dict[type[pl.DataType], tuple[str, pa.DataType]] = {
    pl.Boolean: ("BOOLEAN", pa.bool_()),
    pl.Int8: ("TINYINT", pa.int8()),
    pl.Int16: ("SMALLINT", pa.int16()),
    pl.Int32: ("INTEGER", pa.int32()),
    pl.Int64: ("BIGINT", pa.int64()),
    pl.UInt8: ("UTINYINT", pa.uint8()),
    pl.UInt16: ("USMALLINT", pa.uint16()),
    pl.UInt32: ("UINTEGER", pa.uint32()),
    pl.UInt64: ("UBIGINT", pa.uint64()),
    pl.Float32: ("FLOAT", pa.float32()),
    pl.Float64: ("DOUBLE", pa.float64()),
    pl.String: ("VARCHAR", pa.large_string()),
    pl.Categorical: ("VARCHAR", pa.large_string()),
    pl.Enum: ("VARCHAR", pa.large_string()),
    pl.Binary: ("BLOB", pa.large_binary()),
    pl.Date: ("DATE", pa.date32()),
    pl.Time: ("TIME", pa.time64("us")),
    pl.Duration: ("INTERVAL", pa.duration("us")),
}


def duckdb_type(dtype: pl.DataType) -> SqlType:
    """Return DuckDB's type for a type of Polars.

    Raises:
        UnsupportedTypeError: There is none.
    """
    if isinstance(dtype, pl.Decimal):
        return SqlType(
            f"DECIMAL({dtype.precision},{dtype.scale})",
            pa.decimal128(dtype.precision, dtype.scale),
        )
    if isinstance(dtype, pl.Datetime):
        if dtype.time_zone is not None:
            return SqlType("TIMESTAMP WITH TIME ZONE", pa.timestamp("us", "UTC"))
        name = "TIMESTAMP_NS" if dtype.time_unit == "ns" else "TIMESTAMP"
        return SqlType(name, pa.timestamp("ns" if dtype.time_unit == "ns" else "us"))
    if isinstance(dtype, pl.List):
        inner = duckdb_type(_instance(dtype.inner))
        return SqlType(f"{inner.sql}[]", pa.large_list(inner.arrow))
    if isinstance(dtype, pl.Array):
        inner = duckdb_type(_instance(dtype.inner))
        return SqlType(f"{inner.sql}[{dtype.size}]", pa.list_(inner.arrow, dtype.size))
    if isinstance(dtype, pl.Struct):
        fields = [(item.name, duckdb_type(_instance(item.dtype))) for item in dtype.fields]
        if not fields:
            raise UnsupportedTypeError("a struct without fields")
        quoted = ", ".join('"' + n.replace('"', '""') + f'" {kind.sql}' for n, kind in fields)
        return SqlType(f"STRUCT({quoted})", pa.struct([(n, kind.arrow) for n, kind in fields]))
    found = _DUCKDB.get(type(dtype))
    if found is None:
        raise _unsupported(dtype)
    return SqlType(*found)


def _instance(dtype: object) -> pl.DataType:
    kind: pl.DataType = dtype if isinstance(dtype, pl.DataType) else dtype()  # type: ignore[operator]
    return kind


def _unsupported(dtype: pl.DataType) -> UnsupportedTypeError:
    if isinstance(dtype, pl.Null):
        return UnsupportedTypeError("it holds nulls only, so its type is unknown")
    return UnsupportedTypeError(f"there is no counterpart of {dtype}")


POSTGRES = Dialect(
    "PostgreSQL",
    postgres_type,
    wider={
        "smallint": ("integer", "bigint", "numeric"),
        "integer": ("bigint", "numeric", "double precision"),
        "bigint": ("numeric", "numeric(20,0)"),
        "real": ("double precision",),
        "text": ("character varying",),
        "jsonb": ("json",),
    },
    max_name_bytes=63,
)
JSON = Dialect("JSON", json_type)
DELTA = Dialect(
    "Delta",
    delta_table_type,
    wider={
        "byte": ("short", "integer", "long"),
        "short": ("integer", "long"),
        "integer": ("long", "double"),
        "float": ("double",),
    },
    fold=str.casefold,
    refused_in_names=REFUSED_IN_NAMES,
)
DUCKDB = Dialect(
    "DuckDB",
    duckdb_type,
    wider={
        "TINYINT": ("SMALLINT", "INTEGER", "BIGINT", "HUGEINT"),
        "SMALLINT": ("INTEGER", "BIGINT", "HUGEINT"),
        "INTEGER": ("BIGINT", "HUGEINT", "DOUBLE"),
        "BIGINT": ("HUGEINT",),
        "UTINYINT": ("SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "USMALLINT", "UINTEGER"),
        "USMALLINT": ("INTEGER", "BIGINT", "HUGEINT", "UINTEGER", "UBIGINT"),
        "UINTEGER": ("BIGINT", "HUGEINT", "UBIGINT"),
        "UBIGINT": ("HUGEINT",),
        "FLOAT": ("DOUBLE",),
    },
    fold=str.casefold,
)
