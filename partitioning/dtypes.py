"""Determine the types as which columns of a Parquet file are read: those of `pl.scan_parquet`.

Polars scans an empty file of the same schema. If Polars cannot read a schema, or would read wrong
values, pyarrow decodes the column into a type that holds the stored values, and a note says so.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal
from zoneinfo import ZoneInfo

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from polars.exceptions import PanicException, PolarsError

from partitioning.parquet_footer import FIXED_LEN_BYTE_ARRAY, INT96, FileSchema, Leaf, empty_file

Int96Unit = Literal["us", "ns"]
"""Unit of times from INT96 columns; nanoseconds end in the year 2262."""

_INTERVAL: Final = 21
"""Converted type of an interval: month, day and millisecond in 12 bytes."""
_MAX_DIGITS: Final = 38
"""Maximum number of digits of Polars' decimals."""
_NEWER_TYPES: Final = {16: "VARIANT", 17: "GEOMETRY", 18: "GEOGRAPHY"}
_UTC: Final = frozenset({"UTC", "+00:00", "Etc/UTC", "GMT", "Z"})
_ARROW_ERRORS: Final = (pa.ArrowException, OSError, ValueError, TypeError, KeyError)


class UnreadableSchemaError(Exception):
    """No decoder has a type for a column."""


@dataclass(frozen=True, slots=True)
class FileTypes:
    """Types as which the columns of files of one schema are read."""

    schema: pl.Schema
    is_read_by_polars: bool
    """Whether Polars decodes columns; if not, pyarrow decodes all."""
    by_pyarrow: frozenset[str]
    """Columns that pyarrow decodes although Polars decodes the others."""
    notes: tuple[str, ...]
    """Notes for the plan on columns that are read as another type than stored."""


@lru_cache(maxsize=64)
def plain_arrow_schema(arrow_schema: bytes) -> bytes:
    """Remove the metadata from an Arrow schema in a footer.

    The metadata includes pandas' index, which differs between files of a dataset.
    """
    try:
        schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(arrow_schema)))
    except (*_ARROW_ERRORS, binascii.Error):
        return arrow_schema  # It has types that only Polars knows, or is damaged.
    if not schema.metadata:
        return arrow_schema
    return base64.b64encode(schema.remove_metadata().serialize().to_pybytes())


@lru_cache(maxsize=64)
def file_types(schema: FileSchema, arrow_schema: bytes | None, int96: Int96Unit) -> FileTypes:
    """Return the types as which the columns of a file are read.

    Args:
        schema: Schema in the footer.
        arrow_schema: Arrow schema in the footer.
        int96: Unit of INT96 times.

    Raises:
        UnreadableSchemaError: A column has no type.
    """
    found = _by_polars(schema, arrow_schema)
    by_arrow = found is None
    notes: list[str] = []
    types: dict[str, pl.DataType] = {}
    odd = _odd_columns(schema, found)
    arrow = _by_pyarrow(schema, arrow_schema, int96) if by_arrow or odd else None
    for name in schema.columns:
        if found is not None and name not in odd:
            types[name] = found[name]
            continue
        assert arrow is not None, "pyarrow decodes odd columns"
        kind = arrow.field(schema.columns.index(name)).type
        types[name], note = _stored_type(name, kind)
        notes += [note] if note else []
    notes += [
        f"column {leaf.path}: INT96 times, read as Datetime({int96}) (input.int96)"
        for leaf in schema.leaves
        if leaf.physical == INT96
    ]
    notes += [
        f"column {path}: {_NEWER_TYPES.get(number, 'an unknown type')}, read as it is stored"
        for path, number in schema.newer
    ]
    return FileTypes(pl.Schema(types), not by_arrow, frozenset(odd), tuple(notes))


def _by_polars(schema: FileSchema, arrow_schema: bytes | None) -> pl.Schema | None:
    """Return Polars' types, or None if it refuses the schema."""
    if schema.newer:
        return None
    if not _has_known_zones(arrow_schema):
        return None  # Polars would panic, and print a message.
    file = io.BytesIO(empty_file(schema, arrow_schema))
    try:
        found = pl.scan_parquet(file, glob=False, hive_partitioning=False).collect_schema()
    except (PolarsError, PanicException):
        return None
    return found if tuple(found) == schema.columns else None


def _odd_columns(schema: FileSchema, found: pl.Schema | None) -> set[str]:
    """Return columns that Polars would read wrongly, or not at all, although it knows the type."""
    odd = {leaf.column for leaf in schema.leaves if leaf.physical == INT96}
    odd |= {leaf.column for leaf in schema.leaves if leaf.converted == _INTERVAL}
    return odd | {
        name for name, dtype in (found or {}).items() if any(map(_is_too_wide, _within(dtype)))
    }


def _is_too_wide(dtype: pl.DataType) -> bool:
    return isinstance(dtype, pl.Decimal) and (dtype.precision or 0) > _MAX_DIGITS


def _within(dtype: pl.DataType) -> Iterable[pl.DataType]:
    """Yield a type and all types within it."""
    yield dtype
    for inner in _children(dtype):
        yield from _within(inner)


def _children(dtype: Any) -> list[Any]:
    if isinstance(dtype, pl.Struct):
        return [field.dtype for field in dtype.fields]
    if isinstance(dtype, pl.List | pl.Array):
        return [dtype.inner]
    if isinstance(dtype, pl.Map):
        return [dtype.key, dtype.value]
    return []


def _has_known_zones(arrow_schema: bytes | None) -> bool:
    """Whether Polars knows all time zones of an Arrow schema."""
    if arrow_schema is None:
        return True
    try:
        schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(arrow_schema)))
    except (*_ARROW_ERRORS, binascii.Error):
        return True  # It has types that only Polars knows, or is damaged; Polars decides.
    return all(_is_zone(kind.tz) for field in schema for kind in _arrow_within(field.type))


def _arrow_within(kind: pa.DataType) -> Iterable[Any]:
    """Yield the time types with a zone within a type."""
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        yield kind
    for at in range(kind.num_fields):
        yield from _arrow_within(kind.field(at).type)


def _is_zone(name: str) -> bool:
    if name in _UTC:
        return True
    try:
        ZoneInfo(name)
    except (ValueError, OSError, KeyError):
        return False
    return True


def _by_pyarrow(schema: FileSchema, arrow_schema: bytes | None, int96: Int96Unit) -> pa.Schema:
    file = pa.BufferReader(empty_file(schema, arrow_schema))
    try:
        opened = pq.ParquetFile(file, coerce_int96_timestamp_unit=int96)
        arrow: pa.Schema = opened.schema_arrow
    except _ARROW_ERRORS as error:
        raise UnreadableSchemaError(f"no reader has its types: {_line(error)}") from None
    if tuple(arrow.names) != schema.columns:
        raise UnreadableSchemaError("no reader has its columns")
    return arrow


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def _stored_type(name: str, kind: pa.DataType) -> tuple[pl.DataType, str | None]:
    """Return the type that holds pyarrow's values, and a note if it differs from pyarrow's."""
    plain = plain_type(kind)
    if plain is None:
        raise UnreadableSchemaError(f"column {name!r} has type {kind}, which Polars lacks")
    dtype = polars_type(plain)
    if plain == kind:
        return dtype, None
    return dtype, f"column {name}: {kind}, read as {dtype}; a value that does not fit is an error"


def plain_type(kind: pa.DataType) -> pa.DataType | None:
    """Return the nearest Arrow type that Polars supports, or None if no type is safe."""
    if isinstance(kind, pa.BaseExtensionType):
        return plain_type(kind.storage_type)
    if pa.types.is_timestamp(kind) and kind.tz is not None and not _is_zone(kind.tz):
        return pa.timestamp(kind.unit, "UTC")
    if pa.types.is_decimal(kind) and kind.precision > _MAX_DIGITS:
        return pa.decimal128(_MAX_DIGITS, kind.scale) if kind.scale <= _MAX_DIGITS else None
    if pa.types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if pa.types.is_union(kind) or pa.types.is_interval(kind):
        return None
    if not pa.types.is_nested(kind):
        return kind
    return _plain_nested(kind)


def _plain_nested(kind: pa.DataType) -> pa.DataType | None:
    inner = [plain_type(kind.field(at).type) for at in range(kind.num_fields)]
    if any(child is None for child in inner):
        return None
    if pa.types.is_struct(kind):
        return pa.struct([kind.field(at).with_type(child) for at, child in enumerate(inner)])
    if pa.types.is_map(kind):
        pair = inner[0]
        assert pair is not None, "types without a plain type are refused above"
        return pa.map_(pair.field(0).type, pair.field(1).type)
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(kind.value_field.with_type(inner[0]), kind.list_size)
    return pa.large_list(kind.value_field.with_type(inner[0]))


def polars_type(kind: pa.DataType) -> pl.DataType:
    """Return the Polars type of an Arrow type that Polars supports."""
    table = pa.table({"column": pa.array([], kind)})
    return pl.DataFrame(pl.from_arrow(table)).schema["column"]


def is_odd_encoding(leaf: Leaf, encodings: Iterable[int]) -> bool:
    """Whether a column chunk has an encoding that only pyarrow supports."""
    return leaf.physical == FIXED_LEN_BYTE_ARRAY and any(n in (7, 9) for n in encodings)


# -- Arrow types, for filters and stored plans -----------------------------------------------


INT128: Final = pa.decimal256(39, 0)
"""Arrow type that stands for Polars' 128-bit integers, which Arrow lacks."""
UINT128: Final = pa.decimal256(40, 0)


def arrow_schema_of(schema: pl.Schema) -> pa.Schema:
    """Return a schema in Arrow types, without metadata; types that Arrow lacks are approximated."""
    return pa.schema([pa.field(name, arrow_type(dtype)) for name, dtype in schema.items()])


def arrow_type(dtype: Any) -> pa.DataType:
    """Return the Arrow type that stands for a Polars type in filters."""
    if isinstance(dtype, pl.Extension):
        return arrow_type(dtype.ext_storage())
    if isinstance(dtype, pl.Struct):
        return pa.struct([pa.field(f.name, arrow_type(f.dtype)) for f in dtype.fields])
    if isinstance(dtype, pl.Array):
        return pa.list_(pa.field("element", arrow_type(dtype.inner)), dtype.size)
    if isinstance(dtype, pl.List):
        return pa.list_(pa.field("element", arrow_type(dtype.inner)))
    if isinstance(dtype, pl.Map):
        return pa.map_(arrow_type(dtype.key), arrow_type(dtype.value))
    if isinstance(dtype, pl.Categorical | pl.Enum):
        return pa.dictionary(pa.int32(), pa.string())
    return _leaf_type(dtype)


@lru_cache(maxsize=256)
def _leaf_type(dtype: Any) -> pa.DataType:
    kind = _LEAVES.get(type(dtype))
    return kind if kind is not None else pl.Series([], dtype=dtype).to_arrow().type


_LEAVES: Final[dict[type[pl.DataType], pa.DataType]] = {
    pl.String: pa.string(),
    pl.Binary: pa.binary(),
    pl.Int128: INT128,
    pl.UInt128: UINT128,
}


# -- stored schemas ----------------------------------------------------------------------------


_NOTES: Final = "chunkmap.notes"


def pack_schema(schema: pl.Schema, notes: Iterable[str] = ()) -> bytes:
    """Return a schema and notes as the bytes of an empty Parquet file; equal for equal input."""
    file = io.BytesIO()
    columns = [_empty_column(dtype).alias(name) for name, dtype in schema.items()]
    pl.DataFrame(columns).write_parquet(
        file,
        compression="uncompressed",
        statistics=False,
        metadata={_NOTES: json.dumps(list(notes))},
    )
    return file.getvalue()


@lru_cache(maxsize=256)
def _empty_column(dtype: Any) -> pl.Series:
    return pl.Series([], dtype=dtype)


@lru_cache(maxsize=64)
def unpack_schema(data: bytes) -> tuple[pl.Schema, tuple[str, ...]]:
    """Return the schema and the notes from `pack_schema`."""
    file = io.BytesIO(data)
    schema = pl.scan_parquet(file, glob=False, hive_partitioning=False).collect_schema()
    return schema, tuple(json.loads(pl.read_parquet_metadata(io.BytesIO(data))[_NOTES]))


@lru_cache(maxsize=8)
def polars_schema_of(schema: pa.Schema) -> pl.Schema:
    """Return an Arrow schema as Polars reads it from Parquet."""
    file = io.BytesIO()
    pq.write_table(schema.empty_table(), file)
    file.seek(0)
    return pl.scan_parquet(file, glob=False, hive_partitioning=False).collect_schema()


# -- types of several files --------------------------------------------------------------------


def wider_type(left: Any, right: Any) -> pl.DataType | None:
    """Return the narrowest type that holds all values of two types, or None if there is none.

    It follows Iceberg (https://iceberg.apache.org/spec/#schema-evolution) and Polars' supertypes,
    but never loses precision: integers do not become floats.
    """
    if left == right:
        return left  # type: ignore[no-any-return]
    for first, second in ((left, right), (right, left)):
        if first == pl.Null:
            return second  # type: ignore[no-any-return]
        for rule in _RULES:
            found = rule(first, second)
            if found is not None:
                return found
    return None


def _wider_number(left: Any, right: Any) -> pl.DataType | None:
    if left.is_float() and right.is_float():
        return max((left, right), key=lambda dtype: _FLOATS.index(type(dtype)))  # type: ignore[no-any-return]
    if not (left.is_integer() and right.is_integer()):
        return None
    low = min(_reach(left)[0], _reach(right)[0])
    high = max(_reach(left)[1], _reach(right)[1])
    fits = (dtype for dtype in _INTEGERS if _reach(dtype)[0] <= low and high <= _reach(dtype)[1])
    return next(fits, None)


_FLOATS: Final = [pl.Float16, pl.Float32, pl.Float64]
_INTEGERS: Final[tuple[Any, ...]] = (
    pl.Int8(), pl.UInt8(), pl.Int16(), pl.UInt16(), pl.Int32(), pl.UInt32(), pl.Int64(),
    pl.UInt64(), pl.Int128(), pl.UInt128(),
)  # fmt: skip


def _reach(dtype: Any) -> tuple[int, int]:
    """Return the minimum and maximum of an integer type."""
    bits = int(str(dtype).lstrip("UInt"))
    return (
        (0, 2**bits - 1)
        if dtype.is_unsigned_integer()
        else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    )


def _wider_decimal(left: Any, right: Any) -> pl.DataType | None:
    if not (isinstance(left, pl.Decimal) and isinstance(right, pl.Decimal)):
        return None
    scale = max(left.scale, right.scale)
    whole = max((d.precision or _MAX_DIGITS) - d.scale for d in (left, right))
    return pl.Decimal(whole + scale, scale) if whole + scale <= _MAX_DIGITS else None


def _wider_time(left: Any, right: Any) -> pl.DataType | None:
    units = ["ms", "us", "ns"]
    if isinstance(left, pl.Duration) and isinstance(right, pl.Duration):
        return pl.Duration(max(left.time_unit, right.time_unit, key=units.index))
    if not (isinstance(left, pl.Datetime) and isinstance(right, pl.Datetime)):
        return None
    zones = {"UTC" if d.time_zone in _UTC else d.time_zone for d in (left, right)}
    if len(zones) > 1:
        return None
    return pl.Datetime(max(left.time_unit, right.time_unit, key=units.index), zones.pop())


def _wider_text(left: Any, right: Any) -> pl.DataType | None:
    kinds = (pl.String, pl.Categorical, pl.Enum)
    return pl.String() if isinstance(left, kinds) and isinstance(right, kinds) else None


def _wider_list(left: Any, right: Any) -> pl.DataType | None:
    lists = (pl.List, pl.Array)
    if not (isinstance(left, lists) and isinstance(right, lists)):
        return None
    inner = wider_type(left.inner, right.inner)
    if inner is None:
        return None
    if isinstance(left, pl.Array) and isinstance(right, pl.Array) and left.size == right.size:
        return pl.Array(inner, left.size)
    return pl.List(inner)


def _wider_map(left: Any, right: Any) -> pl.DataType | None:
    if not (isinstance(left, pl.Map) and isinstance(right, pl.Map)):
        return None
    key, value = wider_type(left.key, right.key), wider_type(left.value, right.value)
    return None if key is None or value is None else pl.Map(key, value)


def _wider_struct(left: Any, right: Any) -> pl.DataType | None:
    if not (isinstance(left, pl.Struct) and isinstance(right, pl.Struct)):
        return None
    fields = {field.name: field.dtype for field in left.fields}
    for field in right.fields:
        wider = wider_type(fields.get(field.name, pl.Null()), field.dtype)
        if wider is None:
            return None
        fields[field.name] = wider
    return pl.Struct(fields)


_RULES: Final[tuple[Callable[[Any, Any], pl.DataType | None], ...]] = (
    _wider_number, _wider_decimal, _wider_time, _wider_text, _wider_list, _wider_map,
    _wider_struct,
)  # fmt: skip


_SIMPLE: Final[dict[str, pl.DataType]] = {
    **{str(dtype).lower(): dtype for dtype in _INTEGERS},
    "float32": pl.Float32(),
    "float64": pl.Float64(),
    "boolean": pl.Boolean(),
    "string": pl.String(),
    "categorical": pl.Categorical(),
    "binary": pl.Binary(),
    "date": pl.Date(),
    "time": pl.Time(),
}
_TYPE: Final = re.compile(r"(datetime|duration|decimal|list)\[(.+)\]")


def parse_type(text: str) -> pl.DataType:
    """Return the type of a name such as `int64`, `datetime[us, UTC]` or `decimal[38, 2]`.

    Raises:
        ValueError: There is no such type.
    """
    plain = _SIMPLE.get(text.strip().lower())
    if plain is not None:
        return plain
    found = _TYPE.fullmatch(text.strip())
    if found is not None:
        kind, inside = found.groups()
        if kind == "list":
            return pl.List(parse_type(inside))
        parts = [part.strip() for part in inside.split(",")]
        with suppress(ValueError, TypeError, PolarsError):
            return _parametric(kind, parts)
    known = ", ".join([*_SIMPLE, "datetime[us]", "datetime[us, UTC]", "duration[us]"])
    raise ValueError(f"{text!r} is not a type; use one of {known}, decimal[38, 2] and list[…]")


def _parametric(kind: str, parts: list[str]) -> pl.DataType:
    if kind == "decimal":
        precision, scale = map(int, parts)
        if 0 <= scale <= precision <= _MAX_DIGITS and precision:
            return pl.Decimal(precision, scale)
    elif parts[0] in ("ms", "us", "ns") and len(parts) <= (2 if kind == "datetime" else 1):
        unit: Any = parts[0]
        if kind == "duration":
            return pl.Duration(unit)
        if len(parts) == 1 or _is_zone(parts[1]):
            return pl.Datetime(unit, parts[1] if len(parts) == 2 else None)
    raise ValueError(kind)


def can_be_cast(dtype: Any, wanted: Any) -> bool:
    """Whether a column can be declared to have a type; a value that does not fit is an error.

    In addition to `can_become`, integers can be read from text, and become text or decimals. Casts
    that round or guess a format are left to the transform.
    """
    if can_become(dtype, wanted):
        return True
    if dtype == pl.String:
        return bool(wanted.is_integer())
    return bool(dtype.is_integer() and (isinstance(wanted, pl.Decimal) or wanted == pl.String))


def can_become(dtype: Any, wanted: Any) -> bool:
    """Whether values can be cast to a type such that each either fits or is an error."""
    if wider_type(dtype, wanted) == wanted or (dtype.is_integer() and wanted.is_integer()):
        return True
    if isinstance(wanted, pl.Categorical | pl.Enum):
        return isinstance(dtype, pl.String | pl.Categorical | pl.Enum)
    if isinstance(dtype, pl.Struct) and isinstance(wanted, pl.Struct):
        have = {field.name: field.dtype for field in dtype.fields}
        return all(f.name not in have or can_become(have[f.name], f.dtype) for f in wanted.fields)
    if isinstance(dtype, pl.List | pl.Array) and isinstance(wanted, pl.List | pl.Array):
        fits = isinstance(wanted, pl.List) or _size(dtype) == wanted.size
        return fits and can_become(dtype.inner, wanted.inner)
    if isinstance(dtype, pl.Map) and isinstance(wanted, pl.Map):
        return can_become(dtype.key, wanted.key) and can_become(dtype.value, wanted.value)
    return False


def _size(dtype: pl.List | pl.Array) -> int | None:
    return dtype.size if isinstance(dtype, pl.Array) else None
