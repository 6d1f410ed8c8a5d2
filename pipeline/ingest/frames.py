"""Turn JSON records into a frame of decided types. A value that does not fit is an error."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, time
from decimal import Decimal, InvalidOperation
from typing import Any, NoReturn
from zoneinfo import ZoneInfo

import polars as pl

from pipeline.errors import SchemaChangedError
from pipeline.ingest.paging import kind_of
from pipeline.ingest.schema import Types
from pipeline.printable import printable_line

MAX_SHOWN = 60
"""Maximum number of characters of a value that an error shows."""
_FINER = re.compile(r"\.\d{6}\d*[1-9]")
_Convert = Callable[[Any], Any]


class MisfitError(ValueError):
    """A value does not fit its type. The message says what it is instead."""


def needs_exact_numbers(types: Types, texts: frozenset[str]) -> bool:
    """Whether numbers must be parsed as decimals: as floats they would not be exact.

    Args:
        types: Types of the columns.
        texts: Columns declared as string, which may have numbers.
    """
    return bool(texts) or any("Decimal" in str(kind) for kind in types.values())


def parse_records(body: bytes, *, exact: bool) -> Any:
    """Parse the body of a page that has been parsed before."""
    return json.loads(body, parse_float=Decimal if exact else None)


def frame_of(
    records: Sequence[Mapping[str, Any]], types: Types, texts: frozenset[str], where: str
) -> pl.DataFrame:
    """Return records as a frame.

    Args:
        records: The records.
        types: Types of the columns, in order.
        texts: Columns declared as string, in which values that are no texts become their JSON.
        where: Where the records are from, for errors.

    Raises:
        SchemaChangedError: A value does not fit its type; the message names field and record.
    """
    columns = []
    for name, kind in types.items():
        convert = _any_text if name in texts else converter(kind)
        values = []
        for number, record in enumerate(records, 1):
            value = record.get(name)
            try:
                values.append(None if value is None else convert(value))
            except (MisfitError, ArithmeticError) as error:
                found = str(error) if isinstance(error, MisfitError) else "a value out of range"
                raise misfit(name, kind, f"record {number} of {where}", found) from None
        columns.append(_series(name, kind, values, where))
    return pl.DataFrame(columns, height=len(records))


def _series(name: str, kind: pl.DataType, values: list[Any], where: str) -> pl.Series:
    try:
        if isinstance(kind, pl.Datetime) and kind.time_zone:
            plain = pl.Series(name, values, dtype=pl.Datetime(kind.time_unit), strict=True)
            return plain.dt.replace_time_zone("UTC").dt.convert_time_zone(kind.time_zone)
        return pl.Series(name, values, dtype=kind, strict=True)
    except (
        pl.exceptions.PolarsError,
        TypeError,
        ArithmeticError,
        UnicodeError,
        ValueError,
    ) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise misfit(name, kind, where, lines[0]) from None


def misfit(name: str, kind: pl.DataType, where: str, found: str) -> SchemaChangedError:
    """Return the error for a value that does not fit its type.

    Args:
        name: Name of the field.
        kind: Its type.
        where: Record that has the value.
        found: What it is instead.
    """
    return SchemaChangedError(
        f"field {name!r} is {kind}, but {where} has {found}",
        hint=f"declare a type that holds it, e.g. types: {{{name}: string}}, and give the command "
        "again, which asks for nothing again; the output's type changes only with schema: widen",
    )


def converter(kind: pl.DataType) -> _Convert:
    """Return a function that turns a JSON value, not null, into one of a type."""
    if isinstance(kind, pl.List):
        return _list_of(kind)
    if isinstance(kind, pl.Struct):
        return _struct_of(kind)
    if kind.is_integer():
        return _whole
    if kind.is_float():
        return _float
    if isinstance(kind, pl.Decimal):
        return _decimal_of(kind)
    if isinstance(kind, pl.Datetime):
        return _datetime_of(kind)
    simple: dict[Any, _Convert] = {
        pl.Boolean: _boolean,
        pl.String: _text,
        pl.Date: _date,
        pl.Time: _time,
    }
    return simple.get(type(kind), _unreadable)


def _list_of(kind: pl.List) -> _Convert:
    inner: Any = kind.inner
    convert = converter(inner if isinstance(inner, pl.DataType) else inner())

    def convert_list(value: Any) -> list[Any]:
        if not isinstance(value, list):
            _refuse(value)
        return [None if item is None else convert(item) for item in value]

    return convert_list


def _struct_of(kind: pl.Struct) -> _Convert:
    kinds: dict[str, Any] = {field.name: field.dtype for field in kind.fields}
    converts = {
        name: converter(inner if isinstance(inner, pl.DataType) else inner())
        for name, inner in kinds.items()
    }

    def convert_struct(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            _refuse(value)
        return {
            name: None if value.get(name) is None else convert(value[name])
            for name, convert in converts.items()
        }

    return convert_struct


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal) or value % 1:
        _refuse(value)
    return int(value)


def _float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        _refuse(value)
    number = float(value)
    if not math.isfinite(number) or (isinstance(value, int) and int(number) != value):
        _refuse(value, ", which a float does not hold")
    return number


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        _refuse(value)
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        _refuse(value)
    return value


def _any_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Decimal):
        return str(value)
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_number)


def _number(value: Any) -> Any:
    """Encode a number that was parsed exactly."""
    assert isinstance(value, Decimal), "JSON has no other values"
    return float(value)


def _date(value: Any) -> date:
    try:
        return date.fromisoformat(value)
    except (ValueError, TypeError):
        _refuse(value, "; a date is written 2024-03-01")


def _time(value: Any) -> time:
    try:
        found = time.fromisoformat(value)
    except (ValueError, TypeError):
        _refuse(value, "; a time is written 12:30:00")
    if found.tzinfo is not None or _FINER.search(value):
        _refuse(value, ", which has an offset or is finer than microseconds")
    return found


def _decimal_of(kind: pl.Decimal) -> _Convert:
    precision, scale = kind.precision or 38, kind.scale

    def convert(value: Any) -> Decimal:
        if isinstance(value, bool) or not isinstance(value, str | int | Decimal):
            _refuse(value)
        try:
            number = Decimal(value.strip() if isinstance(value, str) else value)
        except InvalidOperation:
            _refuse(value)
        if not number.is_finite():
            _refuse(value)
        # Not normalize(), which rounds to 28 digits.
        _, digits, exponent = number.as_tuple()
        assert isinstance(exponent, int), "finite numbers have one"
        while len(digits) > 1 and digits[-1] == 0:
            digits, exponent = digits[:-1], exponent + 1
        exponent = exponent if number else 0
        if -exponent > scale or len(digits) + exponent > precision - scale:
            _refuse(value)
        return number

    return convert


def _datetime_of(kind: pl.Datetime) -> _Convert:
    zone = ZoneInfo(kind.time_zone) if kind.time_zone else None

    def convert(value: Any) -> datetime:
        try:
            moment = datetime.fromisoformat(value)
        except (ValueError, TypeError):
            _refuse(value, "; a time is written 2024-03-01T12:30:00Z")
        if _FINER.search(value):
            _refuse(value, ", which is finer than microseconds")
        if kind.time_unit == "ms" and moment.microsecond % 1000:
            _refuse(value, ", which is finer than milliseconds")
        if zone is None:
            if moment.tzinfo is not None:
                _refuse(value, ", which has an offset: declare datetime[us, UTC]")
            return moment
        # Without an offset, it is in the time zone of the column.
        moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=zone)
        return moment.astimezone(UTC).replace(tzinfo=None)

    return convert


def _unreadable(value: Any) -> NoReturn:
    _refuse(value)


def _refuse(value: Any, more: str = "") -> NoReturn:
    text = value if isinstance(value, str) else ""
    shown = printable_line(text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…")
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        shown = str(value)[:MAX_SHOWN]
    raise MisfitError(kind_of(value) + (f" ({shown})" if shown else "") + more)
