"""Parse and format sizes and durations as people write them: `128MiB`, `90s`, `5%`."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

_FACTORS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_QUANTITY = re.compile(r"\s*(\d+(?:_\d+)*(?:\.\d+)?)\s*([a-zA-Z]*)\s*")


def parse_size(value: Any) -> int:
    """Parse bytes from a number or a text such as `128MiB` or `1.5 GB`.

    Raises:
        ValueError: The value is not a size of at least one byte.
    """
    return _at_least(1, round(_quantity(value, _FACTORS, "a size such as 128MiB or 2GB")), value)


def parse_size_or_none(value: Any) -> int:
    """Parse as `parse_size` does, and accept 0.

    Raises:
        ValueError: The value is not a size.
    """
    return round(_quantity(value, _FACTORS, "a size such as 4MiB, or 0"))


def parse_seconds(value: Any) -> float:
    """Parse seconds from a number or a text such as `90s`, `5min` or `2h`.

    Raises:
        ValueError: The value is not a duration.
    """
    return _quantity(value, _SECONDS, "a duration such as 90s, 5min or 2h")


def resolve_limit(limit: int | str, whole: int) -> float:
    """Return a limit as a number; `5%` is a share of `whole`."""
    return float(limit) if isinstance(limit, int) else whole * float(limit.rstrip("% ")) / 100


def format_size(count: float) -> str:
    """Format bytes for people: `1.5 GiB`; exact multiples have no decimals."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return _trim(count) + f" {unit}"
        count /= 1024
    return _trim(count) + " TiB"


def _trim(count: float) -> str:
    return f"{count:.1f}".removesuffix(".0")


def _quantity(value: Any, factors: dict[str, Any], wanted: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        number, factor = value, 1.0
    else:
        match = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
        if match is None or match[2].lower() not in factors:
            raise ValueError(f"{value!r} is not {wanted}")
        number, factor = float(match[1]), factors[match[2].lower()]
    try:
        product = number * factor
    except OverflowError:
        product = math.inf
    if not 0 <= product < math.inf:
        raise ValueError(f"{value!r} is not {wanted}")
    return product


def _at_least(minimum: int, number: int, value: Any) -> int:
    if number < minimum:
        raise ValueError(f"{value!r} is below {minimum}")
    return number


_SizeText = Annotated[str, Field(pattern=rf"^{_QUANTITY.pattern}$", examples=["128MiB"])]
_SecondsText = Annotated[str, Field(pattern=rf"^{_QUANTITY.pattern}$", examples=["90s"])]

Size = Annotated[
    int, BeforeValidator(parse_size, json_schema_input_type=Annotated[int, Field(ge=1)] | _SizeText)
]
"""Bytes, at least 1; a number, or a text with a unit."""

SizeOrNone = Annotated[
    int,
    BeforeValidator(
        parse_size_or_none, json_schema_input_type=Annotated[int, Field(ge=0)] | _SizeText
    ),
]
"""Bytes, or 0; a number, or a text with a unit."""

Seconds = Annotated[
    float,
    BeforeValidator(
        parse_seconds, json_schema_input_type=Annotated[float, Field(ge=0)] | _SecondsText
    ),
    Field(ge=0),
]
"""Seconds; a number, or a text with a unit."""
