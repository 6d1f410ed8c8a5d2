"""Measure what checks need of a chunk's result, and join the figures of several chunks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final, Self

import polars as pl

from pipeline.config.job_checks import (
    Checks,
    FreshnessCheck,
    NotNullCheck,
    SqlCheck,
    TotalCheck,
    UniqueCheck,
)

Number = int | float | Fraction
_MAX_MICROSECONDS: Final = 1 << 62
_ALL: Final = "*"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What some checks need to know of a result."""

    totals: tuple[str, ...] = ()
    """Columns whose sum is needed."""
    latest: tuple[str, ...] = ()
    """Columns whose latest value is needed."""
    nulls: tuple[str, ...] = ()
    """Columns whose nulls are counted."""
    kept: tuple[str, ...] | None = ()
    """Columns whose values are needed, of all chunks together; None: all columns."""

    @classmethod
    def of(cls, checks: Checks) -> Self:
        """Collect what the checks of a whole result need."""
        totals, latest, nulls, kept = set[str](), set[str](), set[str](), set[str]()
        is_all = False
        for check in checks.run:
            if isinstance(check, TotalCheck):
                totals.add(check.column)
            elif isinstance(check, FreshnessCheck):
                latest.add(check.column)
            elif isinstance(check, NotNullCheck):
                nulls.update(check.columns)
            elif isinstance(check, UniqueCheck):
                kept.update(check.columns)
            elif isinstance(check, SqlCheck):
                is_all |= check.columns is None
                kept.update(check.columns or ())
        return cls(
            totals=tuple(sorted(totals)),
            latest=tuple(sorted(latest)),
            nulls=tuple(sorted(nulls)),
            kept=None if is_all else tuple(sorted(kept)),
        )

    @property
    def columns(self) -> frozenset[str] | None:
        """All columns that are looked into; None: every column."""
        if self.kept is None:
            return None
        return frozenset((*self.totals, *self.latest, *self.nulls, *self.kept))

    @property
    def keeps(self) -> bool:
        """Whether values are needed, not only figures."""
        return self.kept is None or bool(self.kept)

    def identity(self) -> dict[str, Any]:
        """Return what is needed as JSON, without empty parts; runs that need more are others."""
        parts = {"totals": self.totals, "latest": self.latest, "nulls": self.nulls}
        kept = {"kept": [_ALL] if self.kept is None else list(self.kept)} if self.keeps else {}
        return {name: list(names) for name, names in parts.items() if names} | kept

    def problem(self, schema: Mapping[str, pl.DataType]) -> str | None:
        """Describe why a result of a schema cannot be measured; None if it can."""
        named = (*self.totals, *self.latest, *self.nulls, *(self.kept or ()))
        missing = [name for name in dict.fromkeys(named) if name not in schema]
        if missing:
            return (
                f"the result has no column {', '.join(map(repr, missing))}, which the job's checks "
                f"name; it has {', '.join(schema)}"
            )
        for name in self.totals:
            if not (schema[name].is_numeric() or schema[name] == pl.Null):
                return f"column {name!r} is of type {schema[name]}, which has no total"
        for name in self.latest:
            if schema[name].base_type() not in (pl.Date, pl.Datetime, pl.Null):
                return f"column {name!r} is of type {schema[name]}, neither a date nor a time"
        return None

    def measure(self, frame: pl.DataFrame) -> Figures:
        """Measure a frame, which has no `problem`."""
        if frame.is_empty() or not (self.totals or self.latest or self.nulls):
            return Figures(rows=frame.height)
        wanted = [
            *(_total(frame, name).alias(f"t{at}") for at, name in enumerate(self.totals)),
            *(_latest(frame, name).alias(f"l{at}") for at, name in enumerate(self.latest)),
            *(_at(frame, name).null_count().alias(f"n{at}") for at, name in enumerate(self.nulls)),
        ]
        [row] = frame.lazy().select(wanted).collect().to_dicts()
        latest = {name: row[f"l{at}"] for at, name in enumerate(self.latest)}
        return Figures(
            rows=frame.height,
            totals={name: _exact(row[f"t{at}"]) for at, name in enumerate(self.totals)},
            latest={name: value for name, value in latest.items() if value is not None},
            nulls={name: row[f"n{at}"] for at, name in enumerate(self.nulls) if row[f"n{at}"]},
        )


def _total(frame: pl.DataFrame, name: str) -> pl.Expr:
    kind, column = frame.schema[name], _at(frame, name)
    if kind.is_integer():
        return column.cast(pl.Int128).sum().cast(pl.String)  # An Int64 might overflow.
    if kind.is_decimal():
        return column.sum().cast(pl.String)
    return column.cast(pl.Float64).sum()


def _latest(frame: pl.DataFrame, name: str) -> pl.Expr:
    if frame.schema[name] == pl.Null:
        return pl.lit(None, pl.Int64)
    return _at(frame, name).max().cast(pl.Datetime("us")).to_physical()


def _at(frame: pl.DataFrame, name: str) -> pl.Expr:
    """Select a column by position: `col` would take a name such as `*` or `^k$` as a pattern."""
    return pl.nth(frame.get_column_index(name))


def _exact(value: float | str | None) -> Number:
    if value is None:
        return 0
    if isinstance(value, float) and not math.isfinite(value):
        return value
    return Fraction(value)


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures of a result, or of some chunks of it."""

    rows: int = 0
    totals: Mapping[str, Number] = field(default_factory=dict)
    """Sum by column: exact, or a float that is not finite."""
    latest: Mapping[str, int] = field(default_factory=dict)
    """Latest value by column, in microseconds since 1970; without columns of nulls."""
    nulls: Mapping[str, int] = field(default_factory=dict)
    """Number of nulls by column; without columns that have none."""

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON, without empty parts."""
        values: dict[str, Any] = {
            "totals": {name: _text(value) for name, value in self.totals.items()},
            "latest": dict(self.latest),
            "nulls": dict(self.nulls),
        }
        return {name: value for name, value in values.items() if value}

    @classmethod
    def from_json(cls, rows: int, value: Mapping[str, Any]) -> Self:
        """Read what `to_json` returned.

        Raises:
            ValueError, TypeError, AttributeError, KeyError: it is something else.
        """
        return cls(
            rows=rows,
            totals={str(name): _number(text) for name, text in value.get("totals", {}).items()},
            latest={str(n): _integer(v, _MAX_MICROSECONDS) for n, v in _items(value, "latest")},
            nulls={str(n): _integer(v, rows) for n, v in _items(value, "nulls")},
        )

    @classmethod
    def join(cls, several: Iterable[Figures]) -> Self:
        """Join the figures of several chunks."""
        rows, totals, latest, nulls = 0, dict[str, Number](), dict[str, int](), dict[str, int]()
        for part in several:
            rows += part.rows
            for name, total in part.totals.items():
                totals[name] = totals.get(name, 0) + total
            for name, value in part.latest.items():
                latest[name] = max(value, latest.get(name, value))
            for name, count in part.nulls.items():
                nulls[name] = nulls.get(name, 0) + count
        return cls(rows, totals, latest, nulls)


def _items(value: Mapping[str, Any], part: str) -> Iterable[tuple[str, Any]]:
    items: Iterable[tuple[str, Any]] = value.get(part, {}).items()
    return items


def _integer(value: Any, most: int) -> int:
    if type(value) is not int or abs(value) > most:
        raise ValueError(f"{str(value)[:40]!r} is no such number")
    return value


_MAX_DIGITS: Final = 400
"""Maximum characters of a number: a float has at most 309 digits before its point."""


def _text(value: Number) -> str:
    if isinstance(value, Fraction):
        return str(value.numerator) if value.denominator == 1 else str(_decimal(value))
    return str(value)


def _decimal(value: Fraction) -> Decimal | float:
    """Return a fraction as a decimal if it is one of at most 38 places; else as a float."""
    places = 0
    rest = value
    while rest.denominator != 1 and places < 38:
        rest, places = rest * 10, places + 1
    return Decimal(f"{rest.numerator}e-{places}") if rest.denominator == 1 else float(value)


def _number(text: Any) -> Number:
    if not isinstance(text, str) or len(text) > _MAX_DIGITS:
        raise ValueError("a total is no number")
    if text in ("nan", "inf", "-inf"):
        return float(text)
    number = Decimal(text)
    if not number.is_finite() or abs(number.adjusted()) > _MAX_DIGITS:
        raise ValueError("a total is no number")  # 1e999999999 would take a gigabyte.
    return Fraction(number)
