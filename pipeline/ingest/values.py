"""Turn values of Python into a frame, from dicts or rows of a database. No value is changed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import polars as pl

from pipeline.errors import SchemaChangedError
from pipeline.ingest.frames import frame_of
from pipeline.ingest.schema import ContradictionError, Types, merge, type_of

_KINDS: Final[tuple[tuple[type, str], ...]] = (
    (bool, "a boolean"),
    (int, "a whole number"),
    (float, "a number"),
    (str, "text"),
    (UUID, "text"),
    (datetime, "a time"),
    (date, "a date"),
    (time, "a time of day"),
    (Decimal, "a decimal"),
    (bytes, "bytes"),
    (bytearray, "bytes"),
    (Mapping, "a nested value"),
    (list, "a nested value"),
    (tuple, "a nested value"),
)
"""Names of kinds of values, by their types; a subclass comes before its base."""
_TYPES: Final[dict[str, pl.DataType]] = {
    "a boolean": pl.Boolean(),
    "a whole number": pl.Int64(),
    "a number": pl.Float64(),
    "text": pl.String(),
    "a date": pl.Date(),
    "a time of day": pl.Time(),
    "bytes": pl.Binary(),
}
MAX_DIGITS: Final = 38
"""Maximum number of digits of a decimal."""


def frame_of_records(
    records: Sequence[Mapping[str, Any]], declared: Types, where: str
) -> pl.DataFrame:
    """Return dicts as a frame; a key that is missing is null.

    Args:
        records: The dicts.
        declared: Types that the definition declares; such a column may mix kinds of values.
        where: Where they are from, for errors.

    Raises:
        SchemaChangedError: A value has no type, or a column has values of several kinds.
    """
    names = dict.fromkeys(name for record in records for name in record)
    for name in names:
        if not isinstance(name, str):
            raise SchemaChangedError(
                f"a key of a dict of {where} is {name!r}, which is no text",
                hint="name columns by texts",
            )
    columns = [(name, [record.get(name) for record in records]) for name in names]
    return frame_of_columns(columns, declared, where, len(records))


def frame_of_columns(
    columns: Iterable[tuple[str, Sequence[Any]]], declared: Types, where: str, height: int
) -> pl.DataFrame:
    """Return columns of values as a frame. Arguments and errors as for `frame_of_records`."""
    made = [_series(name, values, name in declared, where) for name, values in columns]
    return pl.DataFrame(made, height=height)


def _series(name: str, values: Sequence[Any], is_declared: bool, where: str) -> pl.Series:
    found = {type(value) for value in values}
    kinds = {_kind_of(kind, name, where) for kind in found if kind is not type(None)}
    if not kinds:
        return pl.Series(name, values, dtype=pl.Null)
    if kinds == {"a whole number", "a number"} and all(map(_is_exact, values)):
        return pl.Series(name, [None if v is None else float(v) for v in values], pl.Float64)
    if len(kinds) > 1 and not is_declared:
        one, other = sorted(kinds)[:2]
        raise _refused(name, where, f"has {one} and {other}")
    kind = kinds.pop() if len(kinds) == 1 else "values of several kinds"
    try:
        return _of_kind(name, values, kind, where)
    except (OverflowError, TypeError, ValueError, pl.exceptions.PolarsError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise _refused(name, where, f"has {kind} that no type holds: {lines[0]}") from None


def _kind_of(kind: type, name: str, where: str) -> str:
    known = next((text for base, text in _KINDS if issubclass(kind, base)), None)
    if known is None:
        raise _refused(name, where, f"has a value of type {kind.__name__}, which is not known")
    return known


def _refused(name: str, where: str, problem: str) -> SchemaChangedError:
    return SchemaChangedError(
        f"column {name!r} of {where} {problem}",
        hint=f"convert its values at the source, or declare its type, e.g. types: {{{name}: "
        "string}, and give the command again, which reads from the beginning",
    )


def _of_kind(name: str, values: Sequence[Any], kind: str, where: str) -> pl.Series:
    if kind == "values of several kinds":
        return pl.Series(name, [_text(value) for value in values], pl.String)
    if kind == "a nested value":
        return _nested(name, values, where)
    if kind == "a decimal":
        return _decimals(name, values)
    if kind == "a time":
        return _times(name, values)
    if kind == "a time of day" and any(v.tzinfo for v in values if v is not None):
        raise ValueError("it has a time zone")
    if kind == "text":
        values = [None if value is None else str(value) for value in values]
    if kind == "bytes":
        values = [None if value is None else bytes(value) for value in values]
    return pl.Series(name, values, dtype=_TYPES[kind], strict=True)


def _times(name: str, values: Sequence[Any]) -> pl.Series:
    zones = {value.tzinfo is None for value in values if value is not None}
    if len(zones) > 1:
        raise ValueError("some have a time zone, some have none")
    if any(getattr(value, "nanosecond", 0) for value in values):
        raise ValueError("it is finer than a microsecond")
    if zones == {True}:
        return pl.Series(name, values, dtype=pl.Datetime("us"), strict=True)
    moments = [None if v is None else v.astimezone(UTC).replace(tzinfo=None) for v in values]
    plain = pl.Series(name, moments, dtype=pl.Datetime("us"), strict=True)
    return plain.dt.replace_time_zone("UTC")


def _decimals(name: str, values: Sequence[Any]) -> pl.Series:
    scale, whole = 0, 1
    for value in values:
        if value is None:
            continue
        if not value.is_finite():
            raise ValueError(str(value))
        _, digits, exponent = value.as_tuple()
        scale = max(scale, -exponent)
        whole = max(whole, len(digits) + exponent)
    if scale + whole > MAX_DIGITS:
        raise ValueError(f"it has more than {MAX_DIGITS} digits")
    return pl.Series(name, values, dtype=pl.Decimal(MAX_DIGITS, scale), strict=True)


def _nested(name: str, values: Sequence[Any], where: str) -> pl.Series:
    kind: pl.DataType = pl.Null()
    try:
        plain = [None if value is None else _plain(value) for value in values]
        for value in plain:
            kind = merge(kind, type_of(value, name), name)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ContradictionError as error:
        first, second = error.types
        raise ValueError(f"{error.path} is {first} and {second}") from None
    return frame_of([{name: v} for v in plain], {name: kind}, frozenset(), where).to_series()


def _plain(value: Any) -> Any:
    """Return a nested value as JSON has it."""
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise ValueError("a key of it is no text")
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise ValueError(f"{type(value).__name__} in it")


def _is_exact(value: Any) -> bool:
    """Whether a value is the same as a float."""
    return not isinstance(value, int) or abs(value) <= 1 << 53


def _text(value: Any) -> str | None:
    """Return a value of any kind as text that is read as the same value."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(_plain(value), ensure_ascii=False)
    if isinstance(value, bytes | bytearray):
        return value.decode()
    return str(value)
