"""Which objects and row groups can hold a matching row: never says no when one might.

Three answers fold into two here: a term *may* match (yes or unknown) or it cannot. Unknown
comes from statistics that are missing, unusable or of a kind that does not bound the values.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from typing import Any, Final

import pyarrow as pa

from partitioning.filters import NANOSECONDS, Bound, Filter, Native, bind, is_binary, is_text
from partitioning.model import PartitionValue

_MAYBE_CUT: Final = 16
"""Bytes from which a text maximum may be a prefix of the true one: writers cut at 16 (Iceberg),
64 (parquet-rs, parquet-java) or more, and some old ones forget to round the last byte up."""
_UNITS: Final = {"milliseconds": 10**6, "microseconds": 10**3, "nanoseconds": 1}


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
        self, filters: Filter, partitions: frozenset[str], schema: pa.Schema, leaves: dict[str, int]
    ) -> None:
        """Bind the terms.

        Args:
            filters: the whole filter.
            partitions: Hive columns; their terms are decided elsewhere.
            schema: the file's own Arrow schema.
            leaves: the Parquet leaf of each top-level column that is not nested.

        Raises:
            FilterError: a value does not compare with its column's type.
        """
        self._leaves = leaves
        self._kinds = {name: schema.field(name).type for name in leaves}
        self._groups = []
        for group in filters:
            own = [t for t in group if t.column not in partitions]
            self._groups.append(
                [
                    bind(t, schema.field(t.column).type if t.column in schema.names else pa.null())
                    for t in own
                ]
            )
        self._absent = {
            b.column for group in self._groups for b in group if b.column not in schema.names
        }

    def keeps(self, group: Any, schema: Any, live: tuple[int, ...]) -> bool:
        """Tell whether a row group (pyarrow's metadata of it) may hold a matching row."""
        cache: dict[str, Stats] = {}
        for index in live:
            if all(self._may(bound, group, schema, cache) for bound in self._groups[index]):
                return True
        return False

    def _may(self, bound: Bound, group: Any, schema: Any, cache: dict[str, Stats]) -> bool:
        name = bound.column
        if name not in cache:
            if name in self._absent:  # reads as null in every row
                cache[name] = Stats(None, None, group.num_rows, group.num_rows)
            elif name in self._leaves:
                leaf = self._leaves[name]
                cache[name] = column_stats(
                    group.column(leaf), schema.column(leaf), self._kinds[name]
                )
            else:
                cache[name] = Stats(None, None, None, group.num_rows)
        return may_match(bound, cache[name])


def column_stats(column: Any, leaf: Any, kind: pa.DataType) -> Stats:
    """Return the usable statistics of one column chunk (pyarrow's metadata of it)."""
    count = column.num_values
    try:
        found = column.statistics
    except (pa.ArrowException, OSError, ValueError):
        found = None
    if found is None:
        return Stats(None, None, None, count)
    nulls = found.null_count if found.has_null_count and 0 <= found.null_count <= count else None
    if not found.has_min_max:
        return Stats(None, None, nulls, count)
    try:
        low = _native(found.min_raw, leaf, kind)
        high = _native(found.max_raw, leaf, kind)
    except (pa.ArrowException, ValueError, TypeError, struct.error):
        low = high = None
    return Stats(low, high, nulls, count)


def _native(raw: Any, leaf: Any, kind: pa.DataType) -> Native | None:
    """Return a raw statistic as it compares; None when it bounds nothing that we trust."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_boolean(kind):
        return bool(raw)
    if pa.types.is_floating(kind):
        value: float = struct.unpack("<e", raw)[0] if isinstance(raw, bytes) else float(raw)
        return None if math.isnan(value) else value
    if is_text(kind) or is_binary(kind):
        return bytes(raw)
    if pa.types.is_decimal(kind):
        return int.from_bytes(raw, "big", signed=True) if isinstance(raw, bytes) else int(raw)
    if leaf.physical_type == "INT96" or not isinstance(raw, int):
        return None
    if pa.types.is_unsigned_integer(kind):
        # pyarrow gives the physical, signed value.
        return raw % 2**kind.bit_width if kind.bit_width == 64 else raw % 2**32
    if pa.types.is_timestamp(kind):
        return raw * _unit(leaf, kind)
    return raw if pa.types.is_integer(kind) or pa.types.is_date32(kind) else None


def _unit(leaf: Any, kind: pa.DataType) -> int:
    """Return the nanoseconds of a stored tick: files hold `s` columns in milliseconds."""
    unit = json.loads(leaf.logical_type.to_json()).get("timeUnit", "")
    return _UNITS.get(unit) or NANOSECONDS[kind.unit]
