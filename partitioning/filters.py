"""Bind filter terms to column types, and translate them into a Polars expression.

A filter is an OR of ANDs of terms. Pruning (`partitioning.pruning`) and the exact row filter
(`filter_expr`) use the same *bound* terms, so they agree:

- a null matches `is null` only; it matches no comparison, not even `!=` and `not in`;
- NaN matches `!=`, `not in` and `is not null` only. (Polars orders NaN above every number;
  statistics leave NaN out.)
- a value between two values of the column's type (1.5 for an integer column, microseconds for
  a millisecond column) compares exactly, without rounding. Only for float16 and float32 columns
  the value is first rounded to the column's type (pruning rounds it to the file's type, and then
  takes `<` and `>` as `<=` and `>=`);
- a time with a zone compares with zoned columns only, a time without a zone with naive columns.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from partitioning.dtypes import INT128, UINT128
from partitioning.errors import FilterError

if TYPE_CHECKING:
    import polars as pl

OPERATORS: Final = (
    "==", "!=", "<", "<=", ">", ">=", "in", "not in", "is null", "is not null",
)  # fmt: skip
_UNARY: Final = ("is null", "is not null")
_LISTS: Final = ("in", "not in")
NANOSECONDS: Final = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}

Native = int | float | bool | bytes
"""Values as they are compared: days, nanoseconds and unscaled decimals are ints, text is UTF-8."""


@dataclass(frozen=True, slots=True)
class Term:
    """A comparison of a column with a value.

    Raises:
        FilterError: The operator is unknown, or the value does not fit it.
    """

    column: str
    op: str
    """Operator, one of `OPERATORS`."""
    value: Any = None
    """Scalar; a sequence for `in` and `not in`; None for `is null` and `is not null`."""

    def __post_init__(self) -> None:
        if self.op not in OPERATORS:
            raise FilterError(
                f"unknown operator {self.op!r} in the filter on {self.column!r}; "
                f"known: {', '.join(OPERATORS)}"
            )
        if self.op in _LISTS:
            if isinstance(self.value, str | bytes) or not isinstance(self.value, Iterable):
                raise FilterError(f"{self} needs a list of values")
            # A tuple, so that a term hashes.
            object.__setattr__(self, "value", tuple(self.value))
        elif self.op in _UNARY and self.value is not None:
            raise FilterError(f"{self} takes no value")
        values = self.value if self.op in _LISTS else (self.value,)
        if self.op not in _UNARY and any(v is None for v in values):
            raise FilterError(f"{self}: nothing equals null; use 'is null' or 'is not null'")
        if any(isinstance(v, float) and math.isnan(v) for v in values):
            raise FilterError(f"{self}: nothing equals NaN")

    def __str__(self) -> str:
        if self.op in _UNARY:
            return f"{self.column} {self.op}"
        value = list(self.value) if isinstance(self.value, tuple) else self.value
        return f"{self.column} {self.op} {value!r}"


Filter = tuple[tuple[Term, ...], ...]
"""An OR of ANDs; the empty tuple keeps all rows."""


@dataclass(frozen=True, slots=True)
class Bound:
    """A term in the native values of its column's type."""

    column: str
    op: str
    """Operator of `OPERATORS`, or `never` (no row matches)."""
    values: tuple[Native, ...] = ()
    floating: bool = False
    """Whether the column's values may include NaN."""


def check_columns(filters: Filter, names: Sequence[str]) -> None:
    """Raise FilterError for a column that does not exist, naming the most similar column."""
    for term in (term for group in filters for term in group):
        if term.column not in names:
            near = difflib.get_close_matches(term.column, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; columns: {', '.join(names)}"
            raise FilterError(f"the dataset has no column {term.column!r} to filter by{hint}")
        if term.column == "*" or re.fullmatch(r"\^.*\$", term.column):
            raise FilterError(
                f"column {term.column!r} cannot be filtered: Polars reads its name as a pattern"
            )


def bind(term: Term, kind: pa.DataType) -> Bound:
    """Return a term in native values of a column type.

    Raises:
        FilterError: The type cannot be filtered, or the value cannot be compared with it.
    """
    if term.op in _UNARY:
        return Bound(term.column, term.op)
    if pa.types.is_null(kind):
        return Bound(term.column, "never")
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    floating = pa.types.is_floating(kind)
    grid = _grid(kind, term)
    if term.op in _LISTS:
        exact = [n for n in (grid(v) for v in term.value) if not isinstance(n, Fraction)]
        values = tuple(sorted({n for n in exact if _fits(n, kind)}))
        if values:
            return Bound(term.column, term.op, values, floating)
        return Bound(term.column, "never" if term.op == "in" else "is not null")
    return _compare(term, grid(term.value), kind, floating)


def _compare(term: Term, value: Native | Fraction, kind: pa.DataType, floating: bool) -> Bound:
    op = term.op
    if isinstance(value, Fraction):  # between two values of the type
        if op in ("==", "!="):
            return Bound(term.column, "never" if op == "==" else "is not null")
        step = NANOSECONDS[kind.unit] if pa.types.is_timestamp(kind) else 1
        op, value = (">" if op in (">", ">=") else "<="), math.floor(value / step) * step
    if not _fits(value, kind):
        beyond = isinstance(value, int) and value > _range(kind)[1]
        all_match = op == "!=" or (op in ("<", "<=") if beyond else op in (">", ">="))
        return Bound(term.column, "is not null" if all_match else "never")
    return Bound(term.column, op, (value,), floating)


def _range(kind: pa.DataType) -> tuple[int, int]:
    """Return the minimum and maximum native value of an integer-like type."""
    if kind == INT128:
        return -(2**127), 2**127 - 1
    if kind == UINT128:
        return 0, 2**128 - 1
    if pa.types.is_decimal(kind):
        return -(10**kind.precision) + 1, 10**kind.precision - 1
    if pa.types.is_unsigned_integer(kind):
        return 0, 2**kind.bit_width - 1
    unit = NANOSECONDS[kind.unit] if pa.types.is_timestamp(kind) else 1
    return -(2 ** (kind.bit_width - 1)) * unit, (2 ** (kind.bit_width - 1) - 1) * unit


def _fits(value: Native, kind: pa.DataType) -> bool:
    if isinstance(value, bool) or not isinstance(value, int):
        return True
    low, high = _range(kind)
    return low <= value <= high


def _grid(kind: pa.DataType, term: Term) -> Callable[[Any], Native | Fraction]:
    """Return a function that converts a value to a native value, or to a Fraction between two."""
    found: Callable[[Any], Native | Fraction | None] | None = None
    if pa.types.is_boolean(kind):
        found = lambda v: v if isinstance(v, bool) else None  # noqa: E731
    elif pa.types.is_integer(kind):
        found = lambda v: _number(v, 0)  # noqa: E731
    elif pa.types.is_decimal(kind):
        found = lambda v: _number(v, kind.scale)  # noqa: E731
    elif pa.types.is_floating(kind):
        found = lambda v: _float(v, kind)  # noqa: E731
    elif is_text(kind):
        found = lambda v: v.encode() if isinstance(v, str) else None  # noqa: E731
    elif is_binary(kind):
        found = lambda v: v.encode() if isinstance(v, str) else _bytes(v)  # noqa: E731
    elif pa.types.is_date32(kind):
        found = _days
    elif pa.types.is_timestamp(kind):
        found = lambda v: _instant(v, kind)  # noqa: E731
    if found is None:
        raise FilterError(f"{term}: columns of type {kind} cannot be filtered")

    def convert(value: Any) -> Native | Fraction:
        native = found(value)
        if native is None:
            raise FilterError(f"{term}: {value!r} cannot be compared with a column of type {kind}")
        return native

    return convert


def is_text(kind: pa.DataType) -> bool:
    """Whether a type holds text."""
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def is_binary(kind: pa.DataType) -> bool:
    """Whether a type holds bytes that are not text."""
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def _bytes(value: Any) -> bytes | None:
    return value if isinstance(value, bytes) else None


def _integral(value: Fraction) -> int | Fraction:
    return value.numerator if value.denominator == 1 else value


def _number(value: Any, scale: int) -> int | Fraction | None:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return None
    if not isinstance(value, int) and not math.isfinite(value):
        # Any number above the range of all types stands for infinity.
        return 10**100 if value > 0 else -(10**100)
    return _integral(Fraction(value) * Fraction(10) ** scale)


def _float(value: Any, kind: pa.DataType) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return None
    try:
        wide = float(value)
    except OverflowError:
        wide = math.inf if value > 0 else -math.inf
    if kind.bit_width == 64:
        return wide
    with np.errstate(over="ignore"):
        return float(np.float32(wide) if kind.bit_width == 32 else np.float16(wide))


def _days(value: Any) -> int | Fraction | None:
    if isinstance(value, str):
        value = _parsed(value)[0]
    if isinstance(value, datetime):
        if value.tzinfo is not None:
            return None
        return _integral(Fraction(_microseconds(value), 86_400_000_000))
    return (value - date(1970, 1, 1)).days if isinstance(value, date) else None


def _instant(value: Any, kind: pa.DataType) -> int | Fraction | None:
    extra = 0
    if isinstance(value, str):
        value, extra = _parsed(value)
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    if not isinstance(value, datetime) or (value.tzinfo is None) != (kind.tz is None):
        return None
    nanoseconds = _microseconds(value) * 1000 + extra
    # A Fraction even if it is whole: it means "not a value of this column's unit".
    return nanoseconds if nanoseconds % NANOSECONDS[kind.unit] == 0 else Fraction(nanoseconds)


def _microseconds(value: datetime) -> int:
    epoch = datetime(1970, 1, 1, tzinfo=timezone.utc if value.tzinfo else None)  # noqa: UP017
    return (value - epoch) // timedelta(microseconds=1)


def _parsed(text: str) -> tuple[date | datetime | None, int]:
    """Return an ISO 8601 date or time, and the nanoseconds below its microseconds."""
    found = re.fullmatch(r"(.*\.\d{6})(\d{1,3})(\D.*)?", text)
    extra = int(found[2].ljust(3, "0")) if found else 0
    text = found[1] + (found[3] or "") if found else text
    try:
        return (date if len(text) == len("2024-01-01") else datetime).fromisoformat(text), extra
    except ValueError:
        return None, 0


def filter_expr(filters: Filter, schema: pa.Schema) -> pl.Expr:
    """Return the Polars expression of a filter.

    Args:
        filters: OR of ANDs; empty keeps all rows.
        schema: Schema of the dataset (`Plan.schema`), with Hive columns.

    Raises:
        FilterError: A column is missing, or a value cannot be compared with its column's type.
    """
    import polars as pl

    check_columns(filters, schema.names)
    groups = [
        pl.all_horizontal([_term_expr(bind(t, schema.field(t.column).type), schema) for t in group])
        if group
        else pl.lit(True)
        for group in filters
    ]
    return pl.any_horizontal(groups) if groups else pl.lit(True)


def _term_expr(bound: Bound, schema: pa.Schema) -> pl.Expr:
    import polars as pl

    kind = schema.field(bound.column).type
    column = pl.col(bound.column)
    if bound.op == "is null":
        return column.is_null()
    if bound.op == "is not null":
        return column.is_not_null()
    if bound.op == "never":
        return pl.lit(False)
    if pa.types.is_dictionary(kind):
        kind, column = kind.value_type, column.cast(pl.String)
    if pa.types.is_float16(kind):
        column = column.cast(pl.Float32)
    literals = [_literal(value, kind) for value in bound.values]
    if bound.op in _LISTS:
        among = pl.any_horizontal([column == literal for literal in literals])
        return among if bound.op == "in" else ~among
    literal = literals[0]
    compare: dict[str, Callable[[], pl.Expr]] = {
        "==": lambda: column == literal,
        "!=": lambda: column != literal,
        "<": lambda: column < literal,
        "<=": lambda: column <= literal,
        ">": lambda: column > literal,
        ">=": lambda: column >= literal,
    }
    found = compare[bound.op]()
    return found & column.is_not_nan() if bound.floating and bound.op in (">", ">=") else found


def _literal(value: Native, kind: pa.DataType) -> pl.Expr:
    import polars as pl

    if pa.types.is_date32(kind):
        return pl.lit(value, dtype=pl.Int32).cast(pl.Date)
    if pa.types.is_timestamp(kind):
        # Polars has no seconds: it reads them as milliseconds.
        unit: Any = "ms" if kind.unit == "s" else kind.unit
        count = int(value) // NANOSECONDS[unit]
        return pl.lit(count, dtype=pl.Int64).cast(pl.Datetime(unit, kind.tz))
    if pa.types.is_decimal(kind):
        if pa.types.is_decimal256(kind):
            return pl.lit(value, dtype=pl.Int128 if kind == INT128 else pl.UInt128)
        # From text, because arithmetic rounds to the precision of Python's decimal context.
        exact = Decimal(f"{int(value)}E-{kind.scale}")
        return pl.lit(exact, dtype=pl.Decimal(kind.precision, kind.scale))
    if is_text(kind):
        return pl.lit(bytes(value).decode() if isinstance(value, bytes) else value)
    if pa.types.is_integer(kind):
        name = f"{'U' if pa.types.is_unsigned_integer(kind) else ''}Int{kind.bit_width}"
        return pl.lit(value, dtype=getattr(pl, name))
    if pa.types.is_floating(kind):
        return pl.lit(value, dtype=pl.Float64 if kind.bit_width == 64 else pl.Float32)
    return pl.lit(value)
