"""Turn JSON records into a frame of decided types. A value that does not fit is an error."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, time
from decimal import Decimal, InvalidOperation
from struct import pack, unpack
from typing import Any, NoReturn
from zoneinfo import ZoneInfo

import polars as pl

from pipeline.errors import SchemaChangedError
from pipeline.ingest.paging import kind_of
from pipeline.ingest.schema import Types
from pipeline.printable import printable_line

MAX_SHOWN = 60
"""Maximum number of characters of a value that an error shows."""
EXACT_FLOATS = 2**53
"""Below it, floats hold every whole number."""
_FINER = re.compile(r"[.,]\d{6}\d*[1-9]")
_FIRST_NS, _LAST_NS = datetime(1677, 9, 23), datetime(2262, 4, 10)
"""Days between which every time has nanoseconds of 64 bits, in each time zone."""
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,9})?", re.ASCII)
_Convert = Callable[[Any], Any]


class TwiceError(ValueError):
    """An object has a key twice: one of the values would be lost."""


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
    """Parse JSON.

    Raises:
        ValueError: It is none.
        TwiceError: An object has a key twice.
    """
    return json.loads(body, parse_float=Decimal if exact else None, object_pairs_hook=unique_pairs)


def unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs of an object.

    Raises:
        TwiceError: It has a key twice.
    """
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise TwiceError(f"an object has the key {printable_line(twice)[:MAX_SHOWN]!r} twice")
    return found


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
            except (MisfitError, ArithmeticError, RecursionError) as error:
                found = problem_of(error)
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


def problem_of(error: Exception) -> str:
    """Return what a value is that could not be converted."""
    if isinstance(error, RecursionError):
        return "a value that is nested too deeply"
    return str(error) if isinstance(error, MisfitError) else "a value out of range"


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
        return _whole_of(kind)
    if kind.is_float():
        return _single if isinstance(kind, pl.Float32) else _float
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


def _whole_of(kind: pl.DataType) -> _Convert:
    bits = int("".join(filter(str.isdigit, str(kind))))
    is_signed = kind.is_signed_integer()
    least = -(2 ** (bits - 1)) if is_signed else 0
    most = 2 ** (bits - is_signed) - 1

    def convert(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int | float | Decimal) or value % 1:
            _refuse(value)
        if isinstance(value, float) and abs(value) >= EXACT_FLOATS:
            _refuse(value, ", of which a float has lost digits")
        if not least <= value <= most:  # Polars makes it null, inside of a struct.
            _refuse(value, f", which does not fit into {bits} bits")
        return int(value)

    return convert


def _float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        _refuse(value)
    number = float(value)
    if not math.isfinite(number) or (isinstance(value, int) and int(number) != value):
        _refuse(value, ", which a float does not hold")
    return number


def _single(value: Any) -> float:
    """Return a number of 32 bits: fractions are rounded, whole numbers are not."""
    number = _float(value)
    try:
        [rounded] = unpack("<f", pack("<f", number))
    except OverflowError:
        _refuse(value, ", which a float of 32 bits does not hold")
    if isinstance(value, int) and rounded != value:
        _refuse(value, ", which a float of 32 bits does not hold")
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
    return _json_of(value)


def _json_of(value: Any) -> str:
    """Encode a JSON value, with numbers as they were written."""
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, list):
        return f"[{','.join(map(_json_of, value))}]"
    if isinstance(value, dict):
        pairs = (f"{json.dumps(k, ensure_ascii=False)}:{_json_of(v)}" for k, v in value.items())
        return f"{{{','.join(pairs)}}}"
    if isinstance(value, float) and not math.isfinite(value):
        _refuse(value, ", which JSON does not have")
    return json.dumps(value, ensure_ascii=False)


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
            if isinstance(value, str):
                value = value.strip()
                if not _NUMBER.fullmatch(value):
                    _refuse(value)
            number = Decimal(value)
        except InvalidOperation:
            _refuse(value)
        if not number:  # Its exponent may be any.
            return Decimal(0)
        # Not normalize(), which rounds to 28 digits.
        _, digits, exponent = number.as_tuple()
        assert isinstance(exponent, int), "finite numbers have one"
        zeros = next(at for at, digit in enumerate(reversed(digits)) if digit)
        if -exponent - zeros > scale or len(digits) + exponent > precision - scale:
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
        if kind.time_unit == "ns" and not _FIRST_NS <= moment.replace(tzinfo=None) <= _LAST_NS:
            _refuse(value, ", which nanoseconds do not reach")
        if kind.time_unit == "ms" and moment.microsecond % 1000:
            _refuse(value, ", which is finer than milliseconds")
        if zone is None:
            if moment.tzinfo is not None:
                _refuse(value, ", which has an offset: declare datetime[us, UTC]")
            return moment
        # Without an offset, it is in the time zone of the column.
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=zone)
            if moment.utcoffset() != moment.replace(fold=1).utcoffset():
                _refuse(value, f", which {zone} does not have, or has twice: it needs an offset")
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
