"""Which objects and row groups can hold a matching row: never says no when one might.

Three answers fold into two here: a term *may* match (yes or unknown) or it cannot. Unknown
comes from statistics that are missing, unusable or of a kind that does not bound the values.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from typing import Any, Final

import pyarrow as pa

from partitioning.filters import NANOSECONDS, Bound, Filter, Native, bind, is_binary, is_text
from partitioning.model import PartitionValue
from partitioning.parquet_footer import BYTE_ARRAY, WIDTHS, FileSchema, Leaf
from partitioning.thrift import Values
from partitioning.untrusted_statistics import writer_trust

_MAYBE_CUT: Final = 16
"""Bytes from which a text maximum may be a prefix of the true one: writers cut at 16 (Iceberg),
64 (parquet-rs, parquet-java) or more, and some old ones forget to round the last byte up."""
_TIMESTAMP: Final = 8
"""Number of Parquet's logical type of times."""
_UNITS: Final = {1: 10**6, 2: 10**3, 3: 1}
"""Nanoseconds of each of its units."""

FindClaims = Callable[[Leaf], tuple[int, Values | None]]
"""Returns a column chunk's number of values and its statistics, as a footer has them."""


@dataclass(frozen=True, slots=True)
class Stats:
    """What a footer says of one column in one row group; None is unknown."""

    low: Native | None
    high: Native | None
    nulls: int | None
    values: int
    """Nulls included."""


def partition_native(value: PartitionValue) -> Native | None:
    """Return a partition value as it compares, None for null."""
    if isinstance(value, str):
        return value.encode()
    return (value - date(1970, 1, 1)).days if isinstance(value, date) else value


def matches(bound: Bound, value: Native | None) -> bool:
    """Tell whether one known value (None: null) matches."""
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
    """Tell whether a row group with these statistics may hold a matching row."""
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
        ">": lambda: high > values[0] or (_cut(high) and _reaches(high, values[0])),
        ">=": lambda: _reaches(high, values[0]),
        "in": lambda: any(low <= v and _reaches(high, v) for v in values),
    }
    return reach[bound.op]()


def _cut(high: Any) -> bool:
    return isinstance(high, bytes) and len(high) >= _MAYBE_CUT


def _reaches(high: Any, value: Any) -> bool:
    """Tell whether the true maximum may be the value or above."""
    return high >= value or (_cut(high) and value.startswith(high))


def _may_differ(bound: Bound, low: Any, high: Any) -> bool:
    # Only a row group of one single value differs from nothing; NaN is in no statistics.
    return bound.floating or low != high or _cut(high) or low not in bound.values


class PartitionFilter:
    """The part of a filter that partition values decide."""

    def __init__(self, filters: Filter, types: dict[str, pa.DataType]) -> None:
        self._groups = [
            [bind(term, types[term.column]) for term in group if term.column in types]
            for group in filters
        ]

    def live(self, values: dict[str, PartitionValue]) -> tuple[int, ...]:
        """Return which groups of the filter an object with these values may still match."""
        native = {name: partition_native(value) for name, value in values.items()}
        return tuple(
            index
            for index, group in enumerate(self._groups)
            if all(matches(bound, native[bound.column]) for bound in group)
        )


class StatisticsFilter:
    """The part of a filter that row-group statistics decide, for one file schema."""

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

        Args:
            filters: the whole filter.
            partitions: Hive columns; their terms are decided elsewhere.
            types: what the file's columns come as.
            schema: the same as the footer has it.
            declared: columns that come as another type than the file's: any row may match.

        Raises:
            FilterError: a value does not compare with its column's type.
        """
        self._leaves = {
            leaf.column: leaf for leaf in schema.leaves if leaf.is_top and not leaf.is_repeated
        }
        self._kinds = {name: types.field(name).type for name in self._leaves}
        kinds = {name: types.field(name).type for name in types.names}
        self._groups = [
            [
                bind(term, kinds.get(term.column, pa.null()))
                for term in group
                if term.column not in partitions | declared
            ]
            for group in filters
        ]
        self._absent = {b.column for group in self._groups for b in group} - set(kinds)

    def keeps(self, rows: int, find: FindClaims, created_by: str, live: tuple[int, ...]) -> bool:
        """Tell whether a row group may hold a matching row.

        Args:
            rows: Its rows.
            find: Returns what the footer says of a column chunk in it.
            created_by: The file's writer.
            live: Groups of the filter that the partition values leave.
        """
        cache: dict[str, Stats] = {}

        def may(bound: Bound) -> bool:
            name = bound.column
            if name not in cache:
                cache[name] = self._stats(name, rows, find, created_by)
            return may_match(bound, cache[name])

        return any(all(map(may, self._groups[index])) for index in live)

    def _stats(self, name: str, rows: int, find: FindClaims, created_by: str) -> Stats:
        if name in self._absent:  # reads as null in every row
            return Stats(None, None, rows, rows)
        leaf = self._leaves.get(name)
        if leaf is None:
            return Stats(None, None, None, rows)
        return column_stats(leaf, *find(leaf), self._kinds[name], created_by)


def column_stats(
    leaf: Leaf, count: int, found: Values | None, kind: pa.DataType, created_by: str
) -> Stats:
    """Return the statistics of one column chunk that are to be believed.

    Args:
        leaf: The column.
        count: Values, nulls included.
        found: The statistics as the footer has them.
        kind: Arrow's type of what it comes as.
        created_by: The file's writer.
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
    # The fields of early files do not say how their values are ordered: signed, at any rate.
    low, high = found.get(6), found.get(5)
    if low is None and high is None and _is_signed(leaf, kind):
        low, high = found.get(2), found.get(1)
    return Stats(_native(low, leaf, kind), _native(high, leaf, kind), nulls, count)


def _is_signed(leaf: Leaf, kind: pa.DataType) -> bool:
    return leaf.physical < BYTE_ARRAY and not pa.types.is_unsigned_integer(kind)


def _native(raw: bytes | None, leaf: Leaf, kind: pa.DataType) -> Native | None:
    """Return a raw statistic as it compares; None when it bounds nothing that we trust."""
    if raw is None or len(raw) != WIDTHS.get(leaf.physical, leaf.length or len(raw)):
        return None
    if pa.types.is_boolean(kind):
        return bool(raw[0]) if leaf.physical == 0 else None
    if pa.types.is_floating(kind):
        return _float(raw, leaf)
    if is_text(kind) or is_binary(kind):
        return raw if leaf.physical >= BYTE_ARRAY else None
    if pa.types.is_decimal256(kind):
        return None  # Polars' integers of 128 bits have an order of their own in files.
    if leaf.physical >= BYTE_ARRAY:
        return int.from_bytes(raw, "big", signed=True) if pa.types.is_decimal(kind) else None
    if leaf.physical not in (1, 2):
        return None
    value = int.from_bytes(raw, "little", signed=not pa.types.is_unsigned_integer(kind))
    if pa.types.is_timestamp(kind):
        return value * _unit(leaf, kind)
    is_plain = pa.types.is_integer(kind) or pa.types.is_date32(kind) or pa.types.is_decimal(kind)
    return value if is_plain else None


def _float(raw: bytes, leaf: Leaf) -> float | None:
    form = {2: "<e", 4: "<f", 8: "<d"}.get(len(raw))
    if form is None or leaf.physical in (1, 2):
        return None
    value: float = struct.unpack(form, raw)[0]
    return None if math.isnan(value) else value


def _unit(leaf: Leaf, kind: pa.DataType) -> int:
    """Return the nanoseconds of a stored tick."""
    logical = (leaf.logical or {}).get(_TIMESTAMP, {}).get(2, {})
    for field, unit in _UNITS.items():
        if field in logical:
            return unit
    return {9: 10**6, 10: 10**3}.get(leaf.converted or 0) or NANOSECONDS[kind.unit]
