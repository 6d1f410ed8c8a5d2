"""Prune objects and row groups that cannot have a matching row.

A term *may* match (yes or unknown), or it cannot. It is unknown if statistics are missing or
unusable, or if they do not bound the values.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from typing import Any, Final

import pyarrow as pa

from partitioning.errors import FilterError
from partitioning.filters import NANOSECONDS, Bound, Filter, Native, Term, bind, is_binary, is_text
from partitioning.model import PartitionValue
from partitioning.parquet_footer import BYTE_ARRAY, INT32, INT64, WIDTHS, FileSchema, Leaf
from partitioning.thrift import Values
from partitioning.untrusted_statistics import writer_trust

_MIN_TRUNCATED: Final = 16
"""Bytes from which on a text maximum may be truncated: writers truncate at 16 (Iceberg), 64
(parquet-rs, parquet-java) or more bytes, and some old writers do not round the last byte up."""
_DATE: Final = 6
"""Number of Parquet's date, both as logical and as converted type."""
_TIMESTAMP: Final = 8
"""Field number of Parquet's logical type of timestamps."""
_DAY: Final = 86_400 * 10**9
"""Nanoseconds per day."""
_UNITS: Final = {1: 10**6, 2: 10**3, 3: 1}
"""Nanoseconds per unit, by field number."""

FindClaims = Callable[[Leaf], tuple[int, Values | None]]
"""Function that returns a column chunk's number of values and its statistics in the footer."""


@dataclass(frozen=True, slots=True)
class Stats:
    """Statistics of a column in a row group; None is unknown."""

    low: Native | None
    high: Native | None
    nulls: int | None
    values: int
    """Number of values, including nulls."""


def partition_native(value: PartitionValue) -> Native | None:
    """Return a partition value in its native form; None for null."""
    if isinstance(value, str):
        return value.encode()
    return (value - date(1970, 1, 1)).days if isinstance(value, date) else value


def matches(bound: Bound, value: Native | None) -> bool:
    """Whether a known value (None: null) matches."""
    if value is None or bound.op in ("is null", "is not null", "never"):
        return bound.op == ("is null" if value is None else "is not null")
    first: Any = bound.values[0]
    other: Any = value
    compare: dict[str, Callable[[], bool]] = {
        "==": lambda: other == first,
        "!=": lambda: other != first,
        "<": lambda: other < first,
        "<=": lambda: other <= first,
        ">": lambda: other > first,
        ">=": lambda: other >= first,
        "in": lambda: other in bound.values,
        "not in": lambda: other not in bound.values,
    }
    return compare[bound.op]()


def may_match(bound: Bound, stats: Stats) -> bool:
    """Whether a row group with these statistics may have a matching row."""
    if bound.op == "never" or stats.values == 0:
        return False
    if bound.op == "is null":
        return stats.nulls != 0
    if stats.nulls == stats.values:
        return False
    if bound.op == "is not null" or stats.low is None or stats.high is None:
        return True
    low: Any = stats.low
    high: Any = stats.high
    if low > high:
        return True
    if bound.op in ("!=", "not in"):
        return _may_differ(bound, low, high)
    values: tuple[Any, ...] = bound.values
    reach: dict[str, Callable[[], bool]] = {
        "==": lambda: low <= values[0] and _reaches(high, values[0]),
        "<": lambda: low < values[0],
        "<=": lambda: low <= values[0],
        ">": lambda: high > values[0] or (_is_truncated(high) and _reaches(high, values[0])),
        ">=": lambda: _reaches(high, values[0]),
        "in": lambda: any(low <= v and _reaches(high, v) for v in values),
    }
    return reach[bound.op]()


def _is_truncated(high: Any) -> bool:
    """Whether a maximum may be truncated."""
    return isinstance(high, bytes) and len(high) >= _MIN_TRUNCATED


def _reaches(high: Any, value: Any) -> bool:
    """Whether the true maximum may be the value or above."""
    return high >= value or (_is_truncated(high) and value.startswith(high))


def _may_differ(bound: Bound, low: Any, high: Any) -> bool:
    # Only a row group with a single value cannot differ. Statistics leave NaN out.
    return bound.floating or low != high or _is_truncated(high) or low not in bound.values


class PartitionFilter:
    """Decides filter terms by partition values."""

    def __init__(self, filters: Filter, types: dict[str, pa.DataType]) -> None:
        self._groups = [
            [bind(term, types[term.column]) for term in group if term.column in types]
            for group in filters
        ]

    def live(self, values: dict[str, PartitionValue]) -> tuple[int, ...]:
        """Return the groups of the filter that an object may match.

        Args:
            values: Hive values of the object; one that is left out may be any.
        """
        native = {name: partition_native(value) for name, value in values.items()}
        return tuple(
            index
            for index, group in enumerate(self._groups)
            if all(b.column not in native or matches(b, native[b.column]) for b in group)
        )


_OR_EQUAL: Final = {"<": "<=", ">": ">="}


def _bind(term: Term, kind: pa.DataType) -> Bound | None:
    """Return a term in native values of a file's type; None if they cannot be compared.

    For float16 and float32 the value is rounded to that type, but rows are compared in the type of
    the dataset, which may be wider: 0.1 in a file is above 0.1 in Float64. Rounding keeps the order
    but for equal values, so these may match.
    """
    try:
        bound = bind(term, kind)
    except FilterError:
        return None
    if pa.types.is_floating(kind) and kind.bit_width < 64:
        return replace(bound, op=_OR_EQUAL.get(bound.op, bound.op))
    return bound


class StatisticsFilter:
    """Decides filter terms by the statistics of row groups, for a file schema."""

    def __init__(
        self,
        filters: Filter,
        partitions: frozenset[str],
        types: pa.Schema,
        schema: FileSchema,
        *,
        declared: frozenset[str] = frozenset(),
    ) -> None:
        """Bind the terms.

        A term that does not fit the file's type prunes nothing: whether it fits the type of the
        dataset, and whether the file does, is known only when all files are.

        Args:
            filters: The whole filter.
            partitions: Hive columns, whose terms are decided elsewhere.
            types: Types that the file's columns are read as.
            schema: Schema in the footer.
            declared: Columns that are read as another type than the file's; any row may match.
        """
        self._leaves = {
            leaf.column: leaf for leaf in schema.leaves if leaf.is_top and not leaf.is_repeated
        }
        self._kinds = {name: types.field(name).type for name in self._leaves}
        kinds = {name: types.field(name).type for name in types.names}
        self._groups = [
            [
                bound
                for term in group
                if term.column not in partitions | declared
                if (bound := _bind(term, kinds.get(term.column, pa.null()))) is not None
            ]
            for group in filters
        ]
        self._absent = {b.column for group in self._groups for b in group} - set(kinds)

    def keeps(self, rows: int, find: FindClaims, created_by: str, live: tuple[int, ...]) -> bool:
        """Whether a row group may have a matching row.

        Args:
            rows: Number of its rows.
            find: Returns the statistics of a column chunk in it.
            created_by: Writer of the file.
            live: Groups of the filter that may match by partition values.
        """
        cache: dict[str, Stats] = {}

        def may(bound: Bound) -> bool:
            name = bound.column
            if name not in cache:
                cache[name] = self._stats(name, rows, find, created_by)
            return may_match(bound, cache[name])

        return any(all(map(may, self._groups[index])) for index in live)

    def _stats(self, name: str, rows: int, find: FindClaims, created_by: str) -> Stats:
        if name in self._absent:  # It is null in every row.
            return Stats(None, None, rows, rows)
        leaf = self._leaves.get(name)
        if leaf is None:
            return Stats(None, None, None, rows)
        return column_stats(leaf, *find(leaf), self._kinds[name], created_by)


def column_stats(
    leaf: Leaf, count: int, found: Values | None, kind: pa.DataType, created_by: str
) -> Stats:
    """Return the trustworthy statistics of a column chunk.

    Args:
        leaf: The column.
        count: Number of values, including nulls.
        found: Statistics in the footer.
        kind: Arrow type that the column is read as.
        created_by: Writer of the file.
    """
    if found is None:
        return Stats(None, None, None, count)
    trust = writer_trust(created_by)
    nulls = found.get(3)
    if nulls is None or not 0 <= nulls <= count or not trust.null_counts:
        nulls = None
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not trust.bounds_of(leaf, kind):
        return Stats(None, None, nulls, count)
    # The deprecated fields are valid for signed order only.
    low, high = found.get(6), found.get(5)
    if low is None and high is None and _is_signed(leaf, kind):
        low, high = found.get(2), found.get(1)
    return Stats(_native(low, leaf, kind), _native(high, leaf, kind), nulls, count)


def _is_signed(leaf: Leaf, kind: pa.DataType) -> bool:
    return leaf.physical < BYTE_ARRAY and not pa.types.is_unsigned_integer(kind)


def _native(raw: bytes | None, leaf: Leaf, kind: pa.DataType) -> Native | None:
    """Return a raw statistic in its native form; None if it is not a reliable bound."""
    if raw is None or len(raw) != WIDTHS.get(leaf.physical, leaf.length or len(raw)):
        return None
    if pa.types.is_boolean(kind):
        return bool(raw[0]) if leaf.physical == 0 else None
    if pa.types.is_floating(kind):
        return _float(raw, leaf)
    if is_text(kind) or is_binary(kind):
        return raw if leaf.physical >= BYTE_ARRAY else None
    if pa.types.is_decimal256(kind):
        return None  # Polars' 128-bit integers are ordered differently in files.
    if leaf.physical >= BYTE_ARRAY:
        return int.from_bytes(raw, "big", signed=True) if pa.types.is_decimal(kind) else None
    if leaf.physical not in (INT32, INT64):
        return None
    value = int.from_bytes(raw, "little", signed=not pa.types.is_unsigned_integer(kind))
    if pa.types.is_timestamp(kind):
        unit = _unit(leaf, kind)
        return None if unit is None else value * unit
    is_plain = pa.types.is_integer(kind) or pa.types.is_date32(kind) or pa.types.is_decimal(kind)
    return value if is_plain else None


def _float(raw: bytes, leaf: Leaf) -> float | None:
    form = {2: "<e", 4: "<f", 8: "<d"}.get(len(raw))
    if form is None or leaf.physical in (INT32, INT64):
        return None
    value: float = struct.unpack(form, raw)[0]
    return None if math.isnan(value) else value


def _unit(leaf: Leaf, kind: pa.DataType) -> int | None:
    """Return the nanoseconds per unit of a stored time; None if it is unknown."""
    logical = leaf.logical or {}
    if leaf.physical == INT32:
        # Arrow's date64, whose milliseconds are stored as days.
        return _DAY if _DATE in logical or leaf.converted == _DATE else None
    logical = logical.get(_TIMESTAMP, {}).get(2, {})
    for field, unit in _UNITS.items():
        if field in logical:
            return unit
    return {9: 10**6, 10: 10**3}.get(leaf.converted or 0) or NANOSECONDS[kind.unit]
