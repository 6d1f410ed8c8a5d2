"""Compute hours, days and months of a time zone, as instants in UTC.

Instants are compared and subtracted in UTC only: Python compares two datetimes of the same zone by
their wall time, which is wrong when clocks go back.
"""

from __future__ import annotations

import re
from calendar import monthrange
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

SPANS: Final = ("year", "month", "day", "hour")
"""Units of time, from coarse to fine."""
_HOUR: Final = timedelta(hours=1)
_DAY: Final = timedelta(days=1)
_SECOND: Final = timedelta(seconds=1)
_FIRST: Final = datetime.min.replace(tzinfo=UTC)
_LAST: Final = datetime.max.replace(tzinfo=UTC)
"""First and last instant of the calendar."""
_TEXT: Final = re.compile(
    r"(?P<year>\d{4})"
    r"(?:(?P<dash>-?)(?P<month>\d{2})"
    r"(?:(?P=dash)(?P<day>\d{2})"
    r"(?:[T _-]?(?P<hour>\d{2})"
    r"(?::?(?P<minute>\d{2})(?::?(?P<second>\d{2})(?:[.,]\d{1,9})?)?)?"
    r"\s?(?P<zone>Z|[+-]\d{2}(?::?\d{2})?)?"
    r")?)?)?",
    re.ASCII | re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class ParsedDate:
    """A date or time as it was written."""

    wall: datetime
    """Wall time of its beginning."""
    resolution: str
    """Unit in which it was written: year, month, day, or hour (or finer)."""
    offset: timedelta | None
    """Offset from UTC, if one was written."""

    def begin(self, zone: ZoneInfo, span: str) -> datetime:
        """Return the first instant, in UTC.

        Of a day, month or year that reaches beyond the calendar (years 1 to 9999), it is an instant
        within the calendar.

        Args:
            zone: Time zone of a time without an offset.
            span: Unit of time whose beginning is needed.

        Raises:
            OverflowError: The hour is outside the calendar.
        """
        if self.offset is not None:
            return (self.wall - self.offset).replace(tzinfo=UTC)
        return (instant if span == "hour" else _nearest)(self.wall, zone)


def refine(coarse: ParsedDate, number: int) -> ParsedDate | None:
    """Return the month of a year, the day of a month or the hour of a day by its number.

    None if it does not exist, or if there is no finer unit.
    """
    finer = SPANS[SPANS.index(coarse.resolution) + 1 :][:1]
    if not finer:
        return None
    try:
        wall = coarse.wall.replace(**{finer[0]: number})  # type: ignore[arg-type]
    except ValueError:
        return None
    return ParsedDate(wall, finer[0], coarse.offset)


def parse_date(text: str) -> ParsedDate | None:
    """Parse a date or time in the usual spellings; return None for other texts.

    `2024`, `2024-02`, `202402`, `2024-02-29`, `20240229`, `2024-02-29T05`, `2024-02-29-05`,
    `2024022905`, `2024-02-29 05:30:00`, with `Z` or an offset after the time.
    """
    match = _TEXT.fullmatch(text.strip())
    if match is None:
        return None
    numbers = [match[name] for name in ("year", "month", "day", "hour", "minute", "second")]
    resolution = SPANS[min(sum(number is not None for number in numbers), len(SPANS)) - 1]
    year, month, day, hour, minute, second = (int(number or 0) for number in numbers)
    try:
        wall = datetime(
            year,
            1 if numbers[1] is None else month,
            1 if numbers[2] is None else day,
            hour,
            minute,
            second,
        )
        offset = _offset(match["zone"])
        wall - (offset or timedelta())  # Raises OverflowError outside the calendar.
    except (ValueError, OverflowError):
        return None
    return ParsedDate(wall, resolution, offset)


def _offset(text: str | None) -> timedelta | None:
    if text is None or text in "Zz":
        return None if text is None else timedelta()
    digits = text[1:].replace(":", "").ljust(4, "0")
    size = timedelta(hours=int(digits[:2]), minutes=int(digits[2:]))
    if size >= _DAY:
        raise ValueError(f"an offset of {text}")
    return -size if text[0] == "-" else size


def instant(wall: datetime, zone: ZoneInfo) -> datetime:
    """Return the instant of a wall time: the first of two; for a skipped time, the clock change.

    Raises:
        OverflowError: It is outside the calendar (years 1 to 9999, in UTC).
    """
    moment = wall.replace(tzinfo=zone, fold=0).astimezone(UTC)
    if _wall(moment, zone) == wall:
        return moment
    # A skipped time: fold 1 uses the offset after the change, which gives an earlier instant.
    return _change(wall.replace(tzinfo=zone, fold=1).astimezone(UTC), moment, zone)


def _nearest(wall: datetime, zone: ZoneInfo) -> datetime:
    """Return the instant of a wall time; outside the calendar, its first or last instant."""
    try:
        return instant(wall, zone)
    except OverflowError:
        return _FIRST if wall.year == 1 else _LAST


def _wall(moment: datetime, zone: ZoneInfo) -> datetime:
    """Return the wall time of an instant; raises OverflowError outside the calendar."""
    return moment.astimezone(zone).replace(tzinfo=None, fold=0)


def _change(before: datetime, after: datetime, zone: ZoneInfo) -> datetime:
    """Return the instant of the clock change between two instants (UTC), to the second."""
    offset = after.astimezone(zone).utcoffset()
    low, high = before.replace(microsecond=0), after.replace(microsecond=0)
    while high - low > _SECOND:
        middle = low + (high - low) // 2 // _SECOND * _SECOND
        if middle.astimezone(zone).utcoffset() == offset:
            high = middle
        else:
            low = middle
    return high


def floor(moment: datetime, span: str, zone: ZoneInfo) -> datetime:
    """Return the beginning (UTC) of an instant's hour, day, month or year.

    Raises:
        OverflowError: The instant, or its hour, is outside the calendar of the zone.
    """
    if span == "hour":
        return _floor_hour(moment, zone)
    begin = _nearest(_begin(_wall(moment, zone), span), zone)
    # If clocks go back over midnight, the repeated end of the previous day is part of the new day.
    while (following := after(begin, span, zone)) <= moment and following < _LAST:
        begin = following
    return begin


def _floor_hour(moment: datetime, zone: ZoneInfo) -> datetime:
    wall = _wall(moment, zone)
    into = wall - wall.replace(minute=0, second=0, microsecond=0)
    begin = moment - into
    if _wall(begin, zone) == wall - into:
        return begin
    # Clocks changed within the hour (e.g. by half an hour on Lord Howe Island).
    if _begin(_wall(begin, zone), "hour") == wall - into:
        return _floor_hour(begin, zone)
    return _change(begin, moment, zone)


def after(begin: datetime, span: str, zone: ZoneInfo) -> datetime:
    """Return the end of the hour, day, month or year that begins at an instant.

    The last one ends with the calendar.
    """
    try:
        if span == "hour":
            return next(
                moment
                for hours in range(1, 4)
                if (moment := _floor_hour(begin + hours * _HOUR, zone)) > begin
            )
        wall = _begin(_wall(begin, zone), span)
        while (moment := _nearest(wall := _following(wall, span), zone)) <= begin:
            pass  # A day that a zone skipped when it crossed the date line.
        return moment
    except OverflowError:
        return _LAST


def subtract(end: datetime, unit: str, count: int, zone: ZoneInfo) -> datetime:
    """Subtract hours, or calendar days or months, from an instant.

    Raises:
        OverflowError: The result is before the year 1.
    """
    if unit == "hour":
        return end - count * _HOUR
    wall = _wall(end, zone)
    if unit == "day":
        return instant(wall - count * _DAY, zone)
    year, month = divmod(wall.year * 12 + wall.month - 1 - count, 12)
    if year < 1:
        raise OverflowError(f"{count} months before {end}")
    day = min(wall.day, monthrange(year, month + 1)[1])
    return instant(wall.replace(year=year, month=month + 1, day=day), zone)


def label_of(begin: datetime, span: str, zone: ZoneInfo) -> str:
    """Return the label of the hour, day or month that begins at an instant."""
    text = _wall(begin, zone).isoformat()[: {"month": 7, "day": 10, "hour": 13}[span]]
    if span != "hour" or not begin.astimezone(zone).fold:
        return text
    return text + begin.astimezone(zone).strftime("%z")


def _begin(wall: datetime, span: str) -> datetime:
    zeros = {"minute": 0, "second": 0, "microsecond": 0}
    more = {"hour": 0, "day": 1, "month": 1}
    finer = {"hour": (), "day": ("hour",), "month": ("hour", "day")}
    names = finer.get(span, ("hour", "day", "month"))
    return wall.replace(**zeros, **{name: more[name] for name in names})  # type: ignore[arg-type]


def _following(wall: datetime, span: str) -> datetime:
    if span == "day":
        return wall + _DAY
    months = 12 if span == "year" else 1
    year, month = divmod(wall.year * 12 + wall.month - 1 + months, 12)
    if year > datetime.max.year:
        raise OverflowError(f"the {span} after {wall}")
    return wall.replace(year=year, month=month + 1)
