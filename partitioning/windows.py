"""Windows: half-open ranges of the values of a Hive column, or of several that make up a date.

A time window is a calendar hour, day or month of one time zone, so that a day has 23 or 25 hours
where the clocks change. Windows of one grain tile time: each instant is in exactly one.
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
    Spelled,
    after,
    back,
    floor,
    label_of,
    refined,
    spelled,
)
from partitioning.errors import WindowError
from partitioning.hive_paths import NULL_VALUE

Grain = Literal["hour", "day", "month", "value"]
GRAINS: Final[tuple[str, ...]] = get_args(Grain)
_NUMBER: Final = re.compile(r"\d{1,2}", re.ASCII)
_SPAN: Final = re.compile(r"(\d+)\s*(h|d|w|mo|m)", re.ASCII)
_LONGEST_LABEL: Final = 150
"""Bytes of a value's label; S3 servers refuse segments of a key above 255."""
_MOST: Final = 1_000_000
"""Windows of one range: more is a slip of the pen."""


@dataclass(frozen=True, slots=True, order=True)
class Window:
    """A half-open range [start, end) of partition values. Windows sort in time order."""

    start: datetime | str
    """In UTC, for the time grains; for the grain `value` the value itself, decoded."""
    end: datetime | None
    """The first instant that is not in it, in UTC; None for the grain `value`."""
    label: str
    """Unique, in time order, safe in object keys and without a dot: `2024-02`, `2024-02-29`,
    `2024-02-29T05`; where clocks go back, the second of two hours has its offset,
    `2024-10-27T02+0100`. Values are percent-encoded."""


@dataclass(frozen=True, slots=True)
class Windowing:
    """How the values of a column are cut into windows.

    Raises:
        WindowError: there is no such grain or time zone, or several columns cannot be cut so.
    """

    column: str
    """Name of a Hive column."""
    grain: Grain
    """Finer values are grouped (days by month); coarser ones do not fit."""
    timezone: str = "UTC"
    """IANA name: where hours, days and months begin, and what values without an offset mean."""
    further: tuple[str, ...] = ()
    """Names of Hive columns that hold the finer parts of the date, each the number of a month, a
    day or an hour: (month, day) after a column of years, (hour,) after one of days."""

    def __post_init__(self) -> None:
        if self.grain not in GRAINS:
            raise WindowError(f"{self.grain!r} is no grain; there are {', '.join(GRAINS)}")
        if self.further and self.grain == "value":
            raise WindowError(f"columns {self.title} make up a date: the grain is not value")
        if len(set(self.columns)) < len(self.columns) or len(self.columns) > len(SPANS):
            raise WindowError(
                f"columns {self.title} are no date: name those of year, month, day and hour, from "
                "coarse to fine"
            )
        _zone(self.timezone)

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of all columns, from coarse to fine."""
        return (self.column, *self.further)

    @property
    def title(self) -> str:
        """The columns' names, for messages."""
        return ", ".join(self.columns)

    def window_of_raws(self, raws: Mapping[str, str]) -> Window | None:
        """Return the window of an object by the raw Hive values of its folders.

        None where one of the columns is null or not there: that is in no hour, day or month.

        Raises:
            WindowError: the values do not fit the grain.
        """
        values = [raws.get(name, NULL_VALUE) for name in self.columns]
        if self.grain == "value":
            return self.window_of(values[0])
        if NULL_VALUE in values:
            return None
        if not self.further:
            return self.window_of(values[0])
        found = self._spelled(unquote(values[0]))
        for name, value in zip(self.further, map(unquote, values[1:]), strict=True):
            finer = refined(found, int(value)) if _NUMBER.fullmatch(value) else None
            if finer is None:
                raise WindowError(
                    f"column {name!r} has the value {value!r}, which is no part of the "
                    f"{found.resolution} that {self.column!r} begins with ({values[0]})"
                )
            found = finer
        return self._fitting(found, "-".join(map(unquote, values)))

    def window_of(self, raw: str) -> Window:
        """Return the window of one raw Hive value, percent-encoded or not.

        A local hour that clocks show twice counts as the first one, a skipped one as the next.

        Raises:
            WindowError: the value does not fit the grain.
        """
        text = unquote(raw)
        if self.grain == "value":
            return Window(text, None, _value_label(text))
        if text == NULL_VALUE:
            raise WindowError(f"column {self.column!r} is null: it is in no {self.grain}")
        return self._fitting(self._spelled(text), text)

    def parse(self, text: str) -> Window:
        """Return the window that a label, or a date as a user types it, names.

        Raises:
            WindowError: it is none, or names more than one window of this grain.
        """
        return self.window_of(text)

    def between(self, start: str, end: str) -> tuple[Window, ...]:
        """Return every window of [start, end). A bound may be coarser than the grain (`2024`).

        Raises:
            WindowError: a bound is no date or lies within a window, the range is empty, or the
                grain is `value`, which has no ranges.
        """
        if self.grain == "value":
            raise WindowError(
                f"from {start} to {end}: column {self.column!r} has windows of the grain value, "
                "which have no order; name the values"
            )
        low, high = (self._bound(text) for text in (start, end))
        if low >= high:
            raise WindowError(
                f"from {start} to {end} is an empty range: windows are half-open, and the end "
                "must come after the start"
            )
        return tuple(self._tiles(low, high))

    def last(self, span: str, now: datetime) -> tuple[Window, ...]:
        """Return the last complete windows before now: `12h`, `30d`, `2w`, `6mo` (or `6m`).

        The span is counted back from the beginning of the window that now is in.

        Args:
            span: how far back.
            now: with a time zone.

        Raises:
            WindowError: it is no span, or one of a unit finer than the grain.
        """
        found = _SPAN.fullmatch(span.strip().lower())
        if found is None or not int(found[1]):
            raise WindowError(f"{span!r} is no span of time such as 12h, 30d, 2w or 6mo")
        unit = {"h": "hour", "d": "day", "w": "day", "mo": "month", "m": "month"}[found[2]]
        if self.grain == "value" or SPANS.index(unit) > SPANS.index(self.grain):
            raise WindowError(f"{span!r} does not count windows of the grain {self.grain}")
        if now.tzinfo is None:
            raise WindowError(f"now ({now.isoformat()}) has no time zone")
        zone = _zone(self.timezone)
        end = floor(now.astimezone(UTC), self.grain, zone)
        count = int(found[1]) * (7 if found[2] == "w" else 1)
        try:
            start = back(end, unit, count, zone)
        except OverflowError as error:
            raise WindowError(f"{span!r} reaches back before the calendar") from error
        return tuple(self._tiles(floor(start, self.grain, zone), end))

    def of_values(self, values: Sequence[str]) -> tuple[Window, ...]:
        """Return the windows of some values, each once, sorted. Raises as `window_of`."""
        return tuple(sorted({self.window_of(value) for value in values}))

    def select(self, texts: Iterable[str], windows: Sequence[Window]) -> tuple[Window, ...]:
        """Return those of some windows that texts name, in the windows' order.

        A text is a label, a date of any coarseness (`2024-02` names all days of February) or a
        range `2024-01..2024-03` in which both ends are included.

        Raises:
            WindowError: a text is no such thing, or names none of these windows.
        """
        chosen: set[Window] = set()
        for text in texts:
            named = self._named(text, windows)
            if not named:
                near = get_close_matches(text, [w.label for w in windows], 1, 0.5)
                hint = f"; is it {near[0]}?" if near else ""
                raise WindowError(f"{text!r} names none of the {len(windows):,} windows{hint}")
            chosen.update(named)
        return tuple(window for window in windows if window in chosen)

    def _named(self, text: str, windows: Sequence[Window]) -> list[Window]:
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
        """The first instant of a text, and the first after it."""
        found, zone = self._spelled(text), _zone(self.timezone)
        begin = found.begin(zone)
        coarser = SPANS.index(found.resolution) < SPANS.index(self.grain)
        span = found.resolution if coarser else self.grain
        low = floor(begin, span, zone)
        return low, after(low, span, zone)

    def _bound(self, text: str) -> datetime:
        begin = self._spelled(text).begin(_zone(self.timezone))
        window = self._at(begin)
        if window.start != begin:
            raise WindowError(
                f"{text!r} lies within the {self.grain} {window.label}, and does not begin one"
            )
        return begin

    def _fitting(self, found: Spelled, text: str) -> Window:
        if SPANS.index(found.resolution) < SPANS.index(self.grain):
            raise WindowError(
                f"column {self.title!r} has the value {text!r}, a whole {found.resolution}: it "
                f"does not fit windows of the grain {self.grain}"
            )
        return self._at(found.begin(_zone(self.timezone)))

    def _spelled(self, text: str) -> Spelled:
        found = spelled(text)
        if found is None:
            raise WindowError(
                f"column {self.column!r} has windows of the grain {self.grain}, and {text!r} is "
                "no date or time"
            )
        return found

    def _at(self, moment: datetime) -> Window:
        zone = _zone(self.timezone)
        start = floor(moment, self.grain, zone)
        return Window(start, after(start, self.grain, zone), label_of(start, self.grain, zone))

    def _tiles(self, low: datetime, high: datetime) -> Iterator[Window]:
        for count in range(_MOST + 1):
            if low >= high:
                return
            if count == _MOST:
                raise WindowError(f"more than {_MOST:,} windows of the grain {self.grain}")
            window = self._at(low)
            yield window
            assert window.end is not None, "time windows end"
            low = window.end


@dataclass(frozen=True, slots=True)
class WindowFilter:
    """Chooses the objects whose value of the column lies in some windows."""

    windowing: Windowing
    windows: tuple[Window, ...]

    def decider(self) -> Callable[[Mapping[str, str]], bool]:
        """Return what tells whether raw Hive values are in one of the windows.

        A null is in no time window. It raises WindowError for a value that does not fit the grain.
        """
        rule, chosen = self.windowing, frozenset(self.windows)

        @cache
        def keeps(*raws: str) -> bool:
            return rule.window_of_raws(dict(zip(rule.columns, raws, strict=True))) in chosen

        return lambda raws: keeps(*(raws.get(name, NULL_VALUE) for name in rule.columns))

    def describe(self) -> dict[str, object]:
        """Return it as JSON values."""
        rule = self.windowing
        return {
            "column": rule.column,
            "grain": rule.grain,
            "timezone": rule.timezone,
            "windows": [window.label for window in self.windows],
            **({"further": list(rule.further)} if rule.further else {}),
        }


def no_column(column: str, names: Sequence[str]) -> WindowError:
    """Return the error for a window column that is no Hive column of the data."""
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
    # Dots separate the number of a later commit from the label in its name.
    label = quote(text, safe="").replace(".", "%2E")
    if len(label) <= _LONGEST_LABEL:
        return label
    return f"{label[: _LONGEST_LABEL - 17]}~{sha256(text.encode()).hexdigest()[:16]}"


@lru_cache(maxsize=64)
def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise WindowError(
            f"there is no time zone {name!r}; IANA names are such as UTC or Europe/Berlin"
        ) from error
