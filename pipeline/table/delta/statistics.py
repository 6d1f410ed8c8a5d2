"""Statistics of a table's files, from the footers of the files themselves."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, timedelta
from typing import Any, Final

import pyarrow as pa

from partitioning import ObjectInfo, TailRequest
from partitioning.footers import footer_length
from partitioning.parquet_footer import (
    END,
    BadFooter,
    Footer,
    FooterSelection,
    Leaf,
    parse_footer,
)
from partitioning.pruning import Stats, column_stats
from partitioning.reader import Reader
from pipeline.table.delta.types import DeltaType, arrow_type

MAX_COLUMNS: Final = 32
"""Number of columns, from the first, that have statistics: Delta's own default."""
MAX_TEXT: Final = 32
"""Number of characters after which a text bound is cut, as Spark does."""
_FIRST_READ: Final = 64 << 10
_FOOTER_LIMIT: Final = 64 << 20
_CONCURRENCY: Final = 32
_EXACT_DIGITS: Final = 10**15
"""Decimals of fewer digits are the same number after a reader has made a float of them."""
_EPOCH: Final = date(1970, 1, 1)
_LAST_CHARACTER: Final = "\U0010ffff"


def read_statistics(
    reader: Reader, files: Sequence[ObjectInfo], types: Mapping[str, DeltaType]
) -> dict[str, str]:
    """Read the footers of files; return their statistics as Delta stores them, by URI.

    Files whose footer cannot be read are left out: a table may lack statistics.

    Args:
        reader: The store.
        files: The files.
        types: Types of the table's columns, without partition columns.
    """
    found: dict[str, str] = {}
    requests = [TailRequest(info, min(info.size, _FIRST_READ)) for info in files]
    for _ in range(2):
        larger: list[TailRequest] = []
        for tail in reader.read_tails(requests, _CONCURRENCY):
            size = tail.object.size
            try:
                if tail.data is None:
                    continue
                need = footer_length(tail.data, size, _FOOTER_LIMIT) + END
                if need > len(tail.data):
                    larger.append(TailRequest(tail.object, need))
                    continue
                columns = frozenset(list(types)[:MAX_COLUMNS])
                selection = FooterSelection(columns, columns)
                footer = parse_footer(tail.data[-need:-END], size, selection)
            except BadFooter:
                continue
            found[tail.object.uri] = statistics_of(footer, types)
        requests = larger
    return found


def row_count(rows: int) -> str:
    """Return the statistics of a file of which only the number of rows is known."""
    return json.dumps({"numRecords": rows})


def statistics_of(footer: Footer, types: Mapping[str, DeltaType]) -> str:
    """Return the statistics of a file as Delta stores them, from its footer."""
    low: dict[str, Any] = {}
    high: dict[str, Any] = {}
    nulls: dict[str, int] = {}
    wanted = set(list(types)[:MAX_COLUMNS])
    for leaf in footer.schema.leaves:
        if leaf.column not in wanted or not leaf.is_top or leaf.is_repeated:
            continue
        kind = arrow_type(types[leaf.column])
        if kind is None:
            continue
        groups = list(_groups(footer, leaf, kind))
        counts = [stats.nulls for stats in groups]
        known = [count for count in counts if count is not None]
        if len(known) == len(counts):
            nulls[leaf.column] = sum(known)
        with_values = [s for s in groups if s.nulls is None or s.nulls < s.values]
        lows = [stats.low for stats in with_values if stats.low is not None]
        highs = [stats.high for stats in with_values if stats.high is not None]
        if not with_values or len(lows) < len(with_values) or len(highs) < len(with_values):
            continue
        bounds = _bound(min(lows), kind, is_high=False), _bound(max(highs), kind, is_high=True)
        if None not in bounds:
            low[leaf.column], high[leaf.column] = bounds
    return json.dumps(
        {"numRecords": footer.rows, "minValues": low, "maxValues": high, "nullCount": nulls},
        ensure_ascii=False,
    )


def _groups(footer: Footer, leaf: Leaf, kind: pa.DataType) -> Iterator[Stats]:
    for group in footer.groups:
        if group.rows:
            yield column_stats(leaf, *group.claims(leaf), kind, footer.created_by)


def _bound(value: Any, kind: pa.DataType, *, is_high: bool) -> Any:
    """Return a bound as Delta spells it; None if Delta's readers could not rely on it."""
    if pa.types.is_integer(kind):
        return value
    if pa.types.is_date(kind):
        return _day(value)
    if pa.types.is_timestamp(kind):
        return _timestamp(value, kind)
    if pa.types.is_decimal(kind):
        return _decimal(value, kind)
    if pa.types.is_string(kind):
        return _text(value, is_high=is_high)
    # Statistics leave NaN out, which readers take as the largest number; booleans and bytes do not
    # help to skip files.
    return None


def _day(days: int) -> str | None:
    try:
        return (_EPOCH + timedelta(days=days)).isoformat()
    except OverflowError:  # Outside the years 1 to 9999.
        return None


def _timestamp(nanoseconds: int, kind: pa.DataType) -> str | None:
    seconds, rest = divmod(nanoseconds // 1000, 1_000_000)
    days, seconds = divmod(seconds, 86_400)
    day = _day(days)
    if day is None:
        return None
    hour, minute = divmod(seconds // 60, 60)
    text = f"{day}T{hour:02}:{minute:02}:{seconds % 60:02}.{rest:06}"
    return text if kind.tz is None else f"{text}Z"


def _decimal(unscaled: int, kind: pa.DataType) -> float | int | None:
    if abs(unscaled) >= _EXACT_DIGITS:
        return None
    return unscaled / 10**kind.scale if kind.scale else unscaled


def _text(raw: bytes, *, is_high: bool) -> str | None:
    # A maximum may be cut, by the writer of the file or here; the last character bounds the rest.
    text = raw.decode(errors="ignore")
    cut = text[:MAX_TEXT]
    is_whole = len(raw) < 16 and cut.encode() == raw
    if not is_high:
        return cut
    return cut if is_whole else cut + _LAST_CHARACTER
