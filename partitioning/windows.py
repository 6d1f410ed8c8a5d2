"""Cut Hive columns into windows: half-open ranges of values, by one column or a multi-column date.

A time window is a calendar hour, day or month of a time zone, so that a day has 23 or 25 hours when
clocks change. Windows of a grain tile time: each instant is in exactly one window.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from functools import cache, lru_cache
from hashlib import sha256
from typing import Final, Literal, get_args
from urllib.parse import quote, unquote
from zoneinfo import ZoneInfo

from partitioning.calendar import (
    SPANS,
    ParsedDate,
    after,
    floor,
    label_of,
    parse_date,
    refine,
    subtract,
)
from partitioning.errors import WindowError
from partitioning.hive_paths import NULL_VALUE

Grain = Literal["hour", "day", "month", "value"]
GRAINS: Final[tuple[str, ...]] = get_args(Grain)
_NUMBER: Final = re.compile(r"\d{1,2}", re.ASCII)
_SPAN: Final = re.compile(r"(\d+)\s*(h|d|w|mo|m)", re.ASCII)
_MAX_LABEL_BYTES: Final = 150
"""Maximum length of a value's label; S3 servers refuse segments of a key above 255 bytes."""
_MAX_WINDOWS: Final = 1_000_000
"""Maximum number of windows of a range; more is a typing error."""


@dataclass(frozen=True, slots=True, order=True)
class Window:
    """A half-open range [start, end) of partition values. Windows sort in time order."""

    start: datetime | str
    """Start in UTC, for time grains; the decoded value, for the grain `value`."""
    end: datetime | None
    """First instant after the window, in UTC; None for the grain `value`."""
    label: str
    """Label: unique, in time order, safe in object keys and without a dot: `2024-02`,
    `2024-02-29`, `2024-02-29T05`. When clocks go back, the label of the second hour has its offset:
    `2024-10-27T02+0100`. Values are percent-encoded."""


@dataclass(frozen=True, slots=True)
class Windowing:
    """Rule by which the values of a column are cut into windows.

    Raises:
        WindowError: The grain, the time zone or the combination of columns is invalid.
    """

    column: str
    """Name of a Hive column."""
    grain: Grain
    """Length of a window; finer values are grouped (days by month), coarser values do not fit."""
    timezone: str = "UTC"
    """IANA name of the time zone of hours, days and months, and of values without an offset."""
    further: tuple[str, ...] = ()
    """Names of Hive columns with the finer parts of the date, each the number of a month, day or
    hour: (month, day) after a column of years, (hour,) after a column of days."""

    def __post_init__(self) -> None:
        if self.grain not in GRAINS:
            raise WindowError(f"{self.grain!r} is not a grain; use one of {', '.join(GRAINS)}")
        if self.further and self.grain == "value":
            raise WindowError(f"columns {self.title} make up a date, so the grain cannot be value")
        if len(set(self.columns)) < len(self.columns) or len(self.columns) > len(SPANS):
            raise WindowError(
                f"columns {self.title} are not a date: name those of year, month, day and hour, "
                "from coarse to fine"
            )
        _zone(self.timezone)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of all columns, from coarse to fine."""
        return (self.column, *self.further)

    @property
    def title(self) -> str:
        """Names of the columns, for messages."""
        return ", ".join(self.columns)

    def window_of_raws(self, raws: Mapping[str, str]) -> Window | None:
        """Return the window of an object from the raw Hive values of its folders.

        None if a column is null or missing: such an object is in no hour, day or month.

        Raises:
            WindowError: The values do not fit the grain.
        """
        values = [raws.get(name, NULL_VALUE) for name in self.columns]
        if self.grain == "value":
            return self.window_of(values[0])
        if NULL_VALUE in values:
            return None
        if not self.further:
            return self.window_of(values[0])
        date = self._parse_date(unquote(values[0]))
        for name, value in zip(self.further, map(unquote, values[1:]), strict=True):
            finer = refine(date, int(value)) if _NUMBER.fullmatch(value) else None
            if finer is None:
                raise WindowError(
                    f"column {name!r} has the value {value!r}, which does not exist in the "
                    f"{date.resolution} of column {self.column!r} ({values[0]})"
                )
            date = finer
        return self._window_of_date(date, "-".join(map(unquote, values)))

    def window_of(self, raw: str) -> Window:
        """Return the window of one raw Hive value, percent-encoded or not.

        A local hour that occurs twice counts as the first, a skipped hour as the next.

        Raises:
            WindowError: The value does not fit the grain.
        """
        text = unquote(raw)
        if self.grain == "value":
            return Window(text, None, _value_label(text))
        if text == NULL_VALUE:
            raise WindowError(f"column {self.column!r} is null: it is in no {self.grain}")
        return self._window_of_date(self._parse_date(text), text)

    def parse(self, text: str) -> Window:
        """Return the window of a label, or of a date as a user types it.

        Raises:
            WindowError: It is neither, or means more than one window of this grain.
        """
        return self.window_of(text)

    def between(self, start: str, end: str) -> tuple[Window, ...]:
        """Return all windows of [start, end). A bound may be coarser than the grain (`2024`).

        Raises:
            WindowError: A bound is not a date or is within a window, the range is empty, or the
                grain is `value`, which has no ranges.
        """
        if self.grain == "value":
            raise WindowError(
                f"from {start} to {end}: windows of column {self.column!r} have the grain value "
                "and no order; name the values"
            )
        low, high = (self._bound(text) for text in (start, end))
        if low >= high:
            raise WindowError(
                f"from {start} to {end} is an empty range: the end is exclusive, and must come "
                "after the start"
            )
        return tuple(self._tiles(low, high))

    def last(self, span: str, now: datetime) -> tuple[Window, ...]:
        """Return the last complete windows before now: `12h`, `30d`, `2w`, `6mo` (or `6m`).

        The span is counted back from the beginning of the current window.

        Args:
            span: Span of time.
            now: Current time, with a time zone.

        Raises:
            WindowError: It is not a span, or its unit is finer than the grain.
        """
        match = _SPAN.fullmatch(span.strip().lower())
        if match is None or not int(match[1]):
            raise WindowError(f"{span!r} is not a span of time such as 12h, 30d, 2w or 6mo")
        unit = {"h": "hour", "d": "day", "w": "day", "mo": "month", "m": "month"}[match[2]]
        if self.grain == "value" or SPANS.index(unit) > SPANS.index(self.grain):
            raise WindowError(f"{span!r} does not count windows of the grain {self.grain}")
        if now.tzinfo is None:
            raise WindowError(f"now ({now.isoformat()}) has no time zone")
        zone = _zone(self.timezone)
        end = floor(now.astimezone(UTC), self.grain, zone)
        count = int(match[1]) * (7 if match[2] == "w" else 1)
        try:
            start = floor(subtract(end, unit, count, zone), self.grain, zone)
        except OverflowError as error:
            raise WindowError(f"{span!r} begins before the year 1") from error
        return tuple(self._tiles(start, end))

    def of_values(self, values: Sequence[str]) -> tuple[Window, ...]:
        """Return the windows of some values, each once, sorted. Raises as `window_of`."""
        return tuple(sorted({self.window_of(value) for value in values}))

    def select(self, texts: Iterable[str], windows: Sequence[Window]) -> tuple[Window, ...]:
        """Select windows by texts, in the order of the windows.

        A text is a label, a coarser date (`2024-02` selects all days of February), or a range
        `2024-01..2024-03` that includes both ends.

        Raises:
            WindowError: A text is none of these, or matches no window.
        """
        selected: set[Window] = set()
        for text in texts:
            matching = self._match(text, windows)
            if not matching:
                near = get_close_matches(text, [w.label for w in windows], 1, 0.5)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise WindowError(f"{text!r} names none of the {len(windows):,} windows{hint}")
            selected.update(matching)
        return tuple(window for window in windows if window in selected)

    def _match(self, text: str, windows: Sequence[Window]) -> list[Window]:
        exact = [window for window in windows if window.label == text]
        if exact:
            return exact
        if self.grain == "value":
            return [window for window in windows if window.start == unquote(text)]
        first, dots, last = text.partition("..")
        low, high = self._range(first)
        if dots:
            end, high = self._range(last)
            if end < low:
                raise WindowError(f"the range {text!r} ends before it begins")
        return [w for w in windows if isinstance(w.start, datetime) and low <= w.start < high]

    def _range(self, text: str) -> tuple[datetime, datetime]:
        """Return the first instant of a date, and the first instant after it."""
        date, zone = self._parse_date(text), _zone(self.timezone)
        coarser = SPANS.index(date.resolution) < SPANS.index(self.grain)
        span = date.resolution if coarser else self.grain
        try:
            low = floor(date.begin(zone, span), span, zone)
        except OverflowError:
            raise self._outside_calendar(text) from None
        return low, after(low, span, zone)

    def _bound(self, text: str) -> datetime:
        begin, window = self._locate(self._parse_date(text), text)
        if window.start != begin:
            raise WindowError(
                f"{text!r} is within the {self.grain} {window.label}, not at its beginning"
            )
        return begin

    def _window_of_date(self, date: ParsedDate, text: str) -> Window:
        if SPANS.index(date.resolution) < SPANS.index(self.grain):
            raise WindowError(
                f"column {self.title!r} has the value {text!r}, a whole {date.resolution}: it "
                f"does not fit windows of the grain {self.grain}"
            )
        return self._locate(date, text)[1]

    def _locate(self, date: ParsedDate, text: str) -> tuple[datetime, Window]:
        """Return the first instant of a date, and its window."""
        try:
            begin = date.begin(_zone(self.timezone), self.grain)
            return begin, self._at(begin)
        except OverflowError:
            raise self._outside_calendar(text) from None

    def _outside_calendar(self, text: str) -> WindowError:
        return WindowError(
            f"{text!r} is in no {self.grain} of column {self.title!r}: it is outside of the years "
            f"1 to 9999 in UTC or in {self.timezone}"
        )

    def _parse_date(self, text: str) -> ParsedDate:
        date = parse_date(text)
        if date is None:
            raise WindowError(
                f"column {self.column!r} has windows of the grain {self.grain}, and {text!r} is "
                "not a date or time"
            )
        return date

    def _at(self, moment: datetime) -> Window:
        zone = _zone(self.timezone)
        start = floor(moment, self.grain, zone)
        return Window(start, after(start, self.grain, zone), label_of(start, self.grain, zone))

    def _tiles(self, low: datetime, high: datetime) -> Iterator[Window]:
        for count in range(_MAX_WINDOWS + 1):
            if low >= high:
                return
            if count == _MAX_WINDOWS:
                raise WindowError(f"more than {_MAX_WINDOWS:,} windows of the grain {self.grain}")
            window = self._at(low)
            yield window
            assert window.end is not None, "time windows end"
            low = window.end


@dataclass(frozen=True, slots=True)
class WindowFilter:
    """Selects the objects whose values are in some windows."""

    windowing: Windowing
    windows: tuple[Window, ...]

    def decider(self) -> Callable[[Mapping[str, str]], bool]:
        """Return a function that says whether raw Hive values are in one of the windows.

        A null is in no time window. A value that does not fit the grain raises WindowError.
        """
        rule, windows = self.windowing, frozenset(self.windows)

        @cache
        def keeps(*raws: str) -> bool:
            return rule.window_of_raws(dict(zip(rule.columns, raws, strict=True))) in windows

        return lambda raws: keeps(*(raws.get(name, NULL_VALUE) for name in rule.columns))

    def describe(self) -> dict[str, object]:
        """Return the filter as JSON values."""
        rule = self.windowing
        return {
            "column": rule.column,
            "grain": rule.grain,
            "timezone": rule.timezone,
            "windows": [window.label for window in self.windows],
            **({"further": list(rule.further)} if rule.further else {}),
        }


def no_column(column: str, names: Sequence[str]) -> WindowError:
    """Return the error for a window column that is not a Hive column of the data."""
    if not names:
        return WindowError(
            f"there is no Hive column {column!r}: the input has no name=value directories"
        )
    near = get_close_matches(column, names, 1, 0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return WindowError(
        f"there is no Hive column {column!r}; the input has {', '.join(names)}{hint}"
    )


def _value_label(text: str) -> str:
    # In names of commits a dot separates the label from a number.
    label = quote(text, safe="").replace(".", "%2E")
    if len(label) <= _MAX_LABEL_BYTES:
        return label
    return f"{label[: _MAX_LABEL_BYTES - 17]}~{sha256(text.encode()).hexdigest()[:16]}"


@lru_cache(maxsize=64)
def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise WindowError(
            f"there is no time zone {name!r}; use an IANA name such as UTC or Europe/Berlin"
        ) from error
