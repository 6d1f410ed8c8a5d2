"""Find what the texts of a CSV column look like: whole or other numbers, booleans, or text.

What is found in parts of a column is merged, and says the same as the whole column would.
"""

from __future__ import annotations

from typing import Final

import polars as pl
from pydantic import BaseModel, ConfigDict

_LEADING_ZERO: Final = r"^[+-]?0[0-9]"
"""Numbers with leading zeros are codes."""
_DIGITS: Final = r"^[+-]?[0-9]+$"
_LONG: Final = r"^[+-]?[0-9]{16,}$"
"""More digits than a float holds."""
_LONG_BYTES: Final = 16
_NUMBER: Final = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
_BOOLEANS: Final = ("true", "false")
_SAMPLE_ROWS: Final = 1_000
"""Number of values that are looked at first: one that is no number makes the column text."""


class Look(BaseModel):
    """What texts look like. Without any, all of them are everything."""

    model_config = ConfigDict(frozen=True)

    seen: bool = False
    """Whether there are texts."""
    text: bool = False
    """Whether one of them can only be text, or two contradict each other."""
    whole: bool = True
    """Whether all are whole numbers that fit Int64."""
    long: bool = False
    """Whether one has more digits than a float holds."""
    number: bool = True
    boolean: bool = True

    def merged(self, other: Look) -> Look:
        """Return what these texts and others look like together."""
        return Look(
            seen=self.seen or other.seen,
            text=self.text or other.text,
            whole=self.whole and other.whole,
            long=self.long or other.long,
            number=self.number and other.number,
            boolean=self.boolean and other.boolean,
        )

    @property
    def dtype(self) -> pl.DataType:
        """The type of the column; Null without texts."""
        if not self.seen:
            return pl.Null()
        if self.text:
            return pl.String()
        if self.whole:
            return pl.Int64()
        if self.number and not self.long:
            return pl.Float64()
        return pl.Boolean() if self.boolean else pl.String()


_TEXT: Final = Look(seen=True, text=True, whole=False, number=False, boolean=False)


def read_texts(column: pl.Series) -> tuple[Look, pl.Series]:
    """Return what the texts of a column look like, and its values of that type, or else the texts.

    Columns that are text need no second look: they are mostly seen to be in the first rows.
    """
    if len(column) > _SAMPLE_ROWS and _read(column.head(_SAMPLE_ROWS))[0].text:
        return _TEXT, column
    return _read(column)


def _read(column: pl.Series) -> tuple[Look, pl.Series]:
    # A column of booleans, or of whole numbers as they are usually written, needs no search.
    nulls = column.null_count()
    if nulls == len(column):
        return Look(), column
    if column.head(nulls + 1).is_in(_BOOLEANS).any() and column.is_in(_BOOLEANS).all():
        return Look(seen=True, whole=False, number=False), column == "true"
    numbers = column.cast(pl.Int64, strict=False)
    fits = numbers.null_count() == nulls
    if not (fits and (numbers.cast(pl.String) == column).all()):
        if column.str.contains(_LEADING_ZERO).any():
            return _TEXT, column
        fits = fits and column.str.contains(_DIGITS).all()
    values: pl.Series | None = numbers if fits else _as_floats(column)
    if values is None:
        are_booleans = column.str.to_lowercase().is_in(_BOOLEANS).all()
        return (Look(seen=True, whole=False, number=False) if are_booleans else _TEXT), column
    may_be_long = (column.str.len_bytes().max() or 0) >= _LONG_BYTES  # type: ignore[operator]
    long = may_be_long and column.str.contains(_LONG).any()
    if long and not fits:
        return _TEXT, column
    return Look(seen=True, whole=fits, long=long, boolean=False), values


def _as_floats(column: pl.Series) -> pl.Series | None:
    """Return numbers; None if a text is none. Those that are too large stay texts."""
    numbers = column.cast(pl.Float64, strict=False)
    if numbers.null_count() > column.null_count():
        return None
    if numbers.is_finite().all():
        return numbers
    # What is read as infinite or not a number may be a word.
    return column if column.str.contains(_NUMBER).all() else None
