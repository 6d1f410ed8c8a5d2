"""Translate Polars expressions into filter terms, as far as terms can say the same.

What they cannot say is left over as an expression. A null matches no comparison, as in Polars; NaN
matches `!=` and `not in` only, whereas Polars takes it as greater than all numbers.

The order of texts is left over, except of dates: of an Enum, Polars compares the positions of the
categories, terms compare texts, and the type of a column is not known here.
"""

from __future__ import annotations

import json
from datetime import date, datetime
from decimal import Decimal
from functools import reduce
from math import isnan
from operator import and_
from typing import TYPE_CHECKING, Any

from partitioning.calendar import parse_date
from partitioning.filters import Filter, Term

if TYPE_CHECKING:
    import polars as pl

MAX_GROUPS = 64
"""Maximum number of groups of terms that a conjunction of alternatives is multiplied out to."""
_FLIPPED = {"==": "==", "!=": "!=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
_NEGATED = {
    **{"==": "!=", "!=": "==", "<": ">=", "<=": ">", ">": "<=", ">=": "<"},
    **{"in": "not in", "not in": "in", "is null": "is not null", "is not null": "is null"},
}
_COMPARISONS = {"Eq": "==", "NotEq": "!=", "Lt": "<", "LtEq": "<=", "Gt": ">", "GtEq": ">="}
_AND, _OR = ("And", "LogicalAnd"), ("Or", "LogicalOr")
_BOUNDS = {"Both": (">=", "<="), "Left": (">=", "<"), "Right": (">", "<="), "None": (">", "<")}
Groups = list[list[Term]]


def split_filter(expression: pl.Expr) -> tuple[Filter, pl.Expr | None]:
    """Split a condition on rows into terms and the rest; a row must satisfy both.

    Args:
        expression: A boolean expression over the columns of the dataset.

    Returns:
        The terms, empty if there are none, and the expression that is left over, None if all of it
        became terms.
    """
    groups: Groups = [[]]
    rest: list[pl.Expr] = []
    for part in _conjuncts(expression):
        found = _groups(part, negated=False)
        product = None if found is None else _product(groups, found)
        if product is None:
            rest.append(part)
        else:
            groups = product
    terms = () if groups == [[]] else tuple(tuple(group) for group in groups)
    return terms, reduce(and_, rest) if rest else None


def _conjuncts(expression: pl.Expr) -> list[pl.Expr]:
    kind, about = _root(expression)
    if kind == "BinaryExpr" and about["op"] in _AND:
        return [part for child in _children(expression) for part in _conjuncts(child)]
    return [expression]


def _groups(expression: pl.Expr, *, negated: bool) -> Groups | None:
    """Return an OR of ANDs of terms; None if the expression is more than that."""
    kind, about = _root(expression)
    if kind == "Column":
        return [[Term(about, "==", not negated)]]
    if kind == "BinaryExpr":
        left, right = _children(expression)
        operator = about["op"]
        if operator in _COMPARISONS:
            return _comparison(left, _COMPARISONS[operator], right, negated=negated)
        if operator not in (*_AND, *_OR):
            return None
        first, second = _groups(left, negated=negated), _groups(right, negated=negated)
        if first is None or second is None:
            return None
        return _product(first, second) if (operator in _AND) != negated else first + second
    if kind == "Function":
        return _function(expression, about["function"], negated=negated)
    return None


def _comparison(left: pl.Expr, operator: str, right: pl.Expr, *, negated: bool) -> Groups | None:
    if _column(left) is None:
        left, right, operator = right, left, _FLIPPED[operator]
    column, value = _column(left), _literal(right, is_ordered=operator not in ("==", "!="))
    if column is None or value is None:
        return None
    return [[Term(column, _NEGATED[operator] if negated else operator, value)]]


def _function(expression: pl.Expr, function: Any, *, negated: bool) -> Groups | None:
    boolean = function.get("Boolean") if isinstance(function, dict) else None
    children = _children(expression)
    if boolean == "Not":
        return _groups(children[0], negated=not negated)
    column = _column(children[0]) if children else None
    if column is None or boolean is None:
        return None
    if boolean in ("IsNull", "IsNotNull"):
        operator = "is null" if boolean == "IsNull" else "is not null"
        return [[Term(column, _NEGATED[operator] if negated else operator)]]
    if not isinstance(boolean, dict):
        return None
    if "IsIn" in boolean and not boolean["IsIn"].get("nulls_equal"):
        values = _list(children[1])
        if values is None:
            return None
        return [[Term(column, "not in" if negated else "in", values)]]
    if "IsBetween" in boolean:
        low, high = (_literal(bound, is_ordered=True) for bound in children[1:3])
        bounds = _BOUNDS.get(str(boolean["IsBetween"].get("closed")))
        if low is None or high is None or bounds is None:
            return None
        terms = [Term(column, bounds[0], low), Term(column, bounds[1], high)]
        if not negated:
            return [terms]
        return [[Term(column, _NEGATED[term.op], term.value)] for term in terms]
    return None


def _product(first: Groups, second: Groups) -> Groups | None:
    if len(first) * len(second) > MAX_GROUPS:
        return None
    return [one + two for one in first for two in second]


def _root(expression: pl.Expr) -> tuple[str, Any]:
    """Return the kind of an expression's outermost part, and what Polars says of it."""
    try:
        root = json.loads(expression.meta.serialize(format="json"))
    except Exception:
        return "", None  # It holds something that cannot be written, e.g. a Python function.
    return next(iter(root.items())) if isinstance(root, dict) and len(root) == 1 else ("", None)


def _children(expression: pl.Expr) -> list[pl.Expr]:
    return expression.meta.pop()[::-1]


def _column(expression: pl.Expr) -> str | None:
    kind, about = _root(expression)
    return about if kind == "Column" and isinstance(about, str) else None


def _literal(expression: pl.Expr, *, is_ordered: bool) -> Any:
    """Return the value of a literal that a term can hold; None for others.

    Args:
        expression: The literal.
        is_ordered: Whether the term says what is less or greater than the value.
    """
    value = _evaluated(expression)
    if is_ordered and isinstance(value, str) and not ("-" in value and parse_date(value)):
        return None
    return value if _is_plain(value) else None


def _list(expression: pl.Expr) -> tuple[Any, ...] | None:
    value: Any = _evaluated(expression)
    values = value.to_list() if hasattr(value, "to_list") else value
    if not isinstance(values, list) or not values or not all(map(_is_plain, values)):
        return None
    return tuple(values)


def _evaluated(expression: pl.Expr) -> Any:
    import polars as pl

    if expression.meta.root_names() or _root(expression)[0] not in ("Literal", "Cast"):
        return None
    series = pl.select(expression).to_series()
    if _is_finer_than_python(series):
        return None
    return series.item() if len(series) == 1 else series


def _is_finer_than_python(series: pl.Series) -> bool:
    """Whether times have nanoseconds that Python would cut off."""
    import polars as pl

    if isinstance(series.dtype, pl.List | pl.Array):
        series = series.explode()
    if not (isinstance(series.dtype, pl.Datetime) and series.dtype.time_unit == "ns"):
        return False
    return bool((series.dt.nanosecond() % 1_000 != 0).any())


def _is_plain(value: Any) -> bool:
    if isinstance(value, float | Decimal) and isnan(value):
        return False  # No term takes NaN.
    return isinstance(value, bool | int | float | str | date | datetime | Decimal)
