"""Format numbers for people: thousands separators, decimal byte units, compound times."""

from __future__ import annotations

import math
from datetime import UTC, datetime

_BYTE_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
_COUNT_UNITS = ("", "thousand", "million", "billion", "trillion")


def count(value: float) -> str:
    """Format a whole number with thousands separators: 1,234,567."""
    return f"{round(value):,}"


def short_count(value: float) -> str:
    """Format a count, from a million up in three digits and a word: 6.00 million."""
    if abs(value) < 1_000_000:
        return count(value)
    scaled, unit = _scale(float(value), 1000.0, _COUNT_UNITS)
    return f"{_three_digits(scaled)} {unit}"


def byte_size(value: float) -> str:
    """Format bytes in decimal units with three digits: 12.4 GB."""
    scaled, unit = _scale(float(value), 1000.0, _BYTE_UNITS)
    return f"{scaled:.0f} {unit}" if unit == "B" else f"{_three_digits(scaled)} {unit}"


def duration(seconds: float) -> str:
    """Format seconds in their two largest units: 850 ms, 42.1 s, 3 min 20 s, 2 d 4 h."""
    if seconds < 0.0005:
        return "0 s" if seconds <= 0 else "under 1 ms"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s" if seconds >= 9.995 else f"{seconds:.2f} s"
    whole = round(seconds)
    for size, unit, small, small_unit in (
        (86_400, "d", 3_600, "h"),
        (3_600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            rest = whole % size // small
            return f"{whole // size} {unit}" + (f" {rest} {small_unit}" if rest else "")
    return f"{seconds:.1f} s"


def rate(value: float, unit: str) -> str:
    """Format a speed: 1.25 million rows/s."""
    return f"{short_count(value) if value >= 100 else f'{value:.3g}'} {unit}/s"


def byte_rate(value: float) -> str:
    """Format bytes per second: 350 MB/s."""
    return f"{byte_size(value)}/s"


def percent(share: float) -> str:
    """Format a share as a percentage that never rounds to a false 0 or 100: <0.1%, 99.9%."""
    if 0 < share < 0.001:
        return "<0.1%"
    if 0.999 < share < 1:
        return ">99.9%"
    text = f"{share * 100:.1f}" if share < 0.1 or share > 0.99 else f"{share * 100:.0f}"
    return text.removesuffix(".0") + "%"


def money(amount: float, currency: str) -> str:
    """Format an amount of money: 12.40 USD, 0.0031 USD, under 0.0001 USD."""
    if 0 < amount < 0.0001:
        return f"under 0.0001 {currency}"
    return f"{amount:,.{2 if amount >= 0.995 or not amount else 4}f} {currency}"


def instant(unix_seconds: float) -> str:
    """Format a moment in UTC: 2026-03-01 14:05:11 UTC."""
    return datetime.fromtimestamp(unix_seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def short_instant(unix_seconds: float, *, seconds: bool = False) -> str:
    """Format a moment for a column of a table, whose header names UTC: 03-01 14:05."""
    form = "%m-%d %H:%M:%S" if seconds else "%m-%d %H:%M"
    return datetime.fromtimestamp(unix_seconds, UTC).strftime(form)


def clock_time(unix_seconds: float) -> str:
    """Format the time of day of a moment in UTC: 14:05:11 UTC."""
    return datetime.fromtimestamp(unix_seconds, UTC).strftime("%H:%M:%S UTC")


def plural(number: float, singular: str, several: str | None = None) -> str:
    """Format a count with its noun: 1 chunk, 2,000 chunks."""
    return f"{count(number)} {singular if number == 1 else several or singular + 's'}"


def _scale(value: float, base: float, units: tuple[str, ...]) -> tuple[float, str]:
    for unit in units[:-1]:
        # 999.5 of a unit would be printed as 1,000.
        if abs(value) < base * 0.9995:
            return value, unit
        value /= base
    return value, units[-1]


def _three_digits(value: float) -> str:
    if value == 0:
        return "0"
    decimals = max(0, 2 - math.floor(math.log10(abs(value)) + 1e-9))
    return f"{value:,.{min(decimals, 2)}f}"
