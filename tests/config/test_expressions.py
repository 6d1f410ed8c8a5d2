"""Conditions: their values beside an oracle, their kinds, and what is refused."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.expressions import (
    MAX_DEPTH,
    MAX_LENGTH,
    ExpressionError,
    Facts,
    Kind,
    kind_of,
    parse,
)
from tests.support.examples import fewer

FACTS: Facts = {
    "rows": 12,
    "rate": 1.5,
    "date": date(2024, 3, 4),
    "country": "DE",
    "input.changed": True,
    "orders.rows": 0,
}
KINDS: dict[str, Kind] = {name: kind_of(value) for name, value in FACTS.items()}


def value_of(text: str) -> Any:
    node = parse(text)
    node.kind(KINDS)
    return node.value(FACTS)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("rows > 0", True),
        ("rows > 0 and orders.rows > 0", False),
        ("not input.changed or rows == 12", True),
        ("not (input.changed or rows == 12)", False),
        ("weekday(date) == 0", True),
        ("day(date) == 4 and month(date) == 3 and year(date) == 2024", True),
        ("date == 2024-03-04", True),
        ("date + 1d", date(2024, 3, 5)),
        ("date - 2w", date(2024, 2, 19)),
        ("date + 1d > 2024-03-04", True),
        ("country in ['DE', \"FR\"]", True),
        ("country not in ['DE']", False),
        ("rows + 1 - 3", 10),
        ("rate >= -1.5", True),
        ("true != false", True),
        ("'a b' == \"a b\"", True),
    ],
)
def test_values(text: str, value: object) -> None:
    assert value_of(text) == value


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "expected a value at character 1, found its end"),
        ("rows >", "expected a value at character 7"),
        ("rows = 0", "cannot read '= 0' at character 6"),
        ("rows 0", "expected the end, `and` or `or` at character 6, found `0`"),
        ("1 < rows < 3", "expected the end"),
        ("(rows > 0", r"expected `\)`"),
        ("row > 0", "unknown name `row`"),
        ("rows > 'a'", "compares a number with a text"),
        ("input.changed > true", "does not compare true and false"),
        ("date > 3", "compares a date with a number"),
        ("country in ['DE', 3]", "compares a text with a number"),
        ("rows and true", "`and` takes a condition"),
        ("not rows", "`not` takes a condition"),
        ("rows + date", "takes two numbers, or a date and a duration"),
        ("weekday(rows)", "takes a date, not a number"),
        ("eval(rows)", "unknown function `eval`"),
        ("__import__('os')", "unknown function"),
        ("rows.__class__ == 1", "unknown name `rows.__class__`"),
        ("2024-13-01 == date", "no date of the calendar"),
        ("date + 999999w > date", "out of range"),
        ("'open", "cannot read"),
        ("-'a' == 'a'", "expected a number"),
        ("1" * 400 + " > 0", "cannot read"),
        ("rows > 0 " + "and rows > 0 " * 100, f"more than {MAX_LENGTH:,}"),
        ("(" * 60 + "true" + ")" * 60, f"deeper than {MAX_DEPTH}"),
        ("not " * 60 + "true", f"deeper than {MAX_DEPTH}"),
    ],
)
def test_what_is_wrong_is_refused(text: str, says: str) -> None:
    with pytest.raises(ExpressionError, match=says):
        value_of(text)


def test_names_are_known() -> None:
    node = parse("a.rows > 0 and (not b or weekday(c) in [d, 1 + e])")
    assert set(node.names()) == {"a.rows", "b", "c", "d", "e"}


NUMBERS = st.one_of(
    st.integers(0, 20).map(lambda n: (str(n), n)),
    st.integers(0, 20).map(lambda n: (f"{n}.25", n + 0.25)),
    st.just(("rows", 12)),
    st.dates(date(2020, 1, 1), date(2030, 1, 1)).map(lambda d: (f"weekday({d})", d.weekday())),
)
DATES = st.one_of(
    st.dates(date(2020, 1, 1), date(2030, 1, 1)).map(lambda d: (str(d), d)),
    st.just(("date", FACTS["date"])),
    st.integers(0, 40).map(lambda n: (f"date - {n}d", date(2024, 3, 4) - timedelta(n))),
)
TEXTS = st.sampled_from([("'a'", "a"), ('"and"', "and"), ("country", "DE"), ("''", "")])
SIGNS = st.sampled_from(["==", "!=", "<", "<=", ">", ">="])


@st.composite
def comparisons(draw: st.DrawFn) -> tuple[str, bool]:
    """A comparison, and what Python says of it."""
    values = draw(st.sampled_from([NUMBERS, DATES, TEXTS]))
    (left, a), (right, b) = draw(values), draw(values)
    if draw(st.booleans()):
        items = draw(st.lists(values, min_size=1, max_size=3))
        word = draw(st.sampled_from(["in", "not in"]))
        is_in = a in [value for _, value in items]
        return f"{left} {word} [{', '.join(t for t, _ in items)}]", is_in == (word == "in")
    sign = draw(SIGNS)
    # An oracle that shares nothing with the parser: Python itself, on plain values.
    return f"{left} {sign} {right}", bool(eval(f"a {sign} b", {"a": a, "b": b}))


CONDITIONS = st.recursive(
    comparisons(),
    lambda inner: st.one_of(
        inner.map(lambda one: (f"not ({one[0]})", not one[1])),
        st.tuples(inner, inner).map(
            lambda p: (f"({p[0][0]}) and ({p[1][0]})", p[0][1] and p[1][1])
        ),
        st.tuples(inner, inner).map(lambda p: (f"({p[0][0]}) or ({p[1][0]})", p[0][1] or p[1][1])),
        # Without brackets, `and` binds closer than `or`.
        st.tuples(comparisons(), comparisons(), comparisons()).map(
            lambda p: (f"{p[0][0]} or {p[1][0]} and {p[2][0]}", p[0][1] or (p[1][1] and p[2][1]))
        ),
    ),
    max_leaves=6,
)


@settings(max_examples=fewer(200), deadline=None)
@given(CONDITIONS)
def test_conditions_have_the_values_that_python_gives(condition: tuple[str, bool]) -> None:
    text, value = condition
    if len(text) <= MAX_LENGTH:
        assert value_of(text) is value


@settings(max_examples=fewer(200), deadline=None)
@given(st.text(alphabet="rows date()[]<>=!,.+-'\"01dw_andornt ", max_size=60))
def test_any_text_has_a_value_or_is_refused(text: str) -> None:
    try:
        value_of(text)
    except ExpressionError as error:
        assert str(error)
