"""Parse, check and evaluate the conditions and templates of a pipeline.

    rows > 0 and weekday(date) == 0
    country in ["DE", "FR"] or not orders.changed
    date + 1d

Expressions are parsed, never evaluated as Python. Names stand for facts, whose kinds are known
before anything runs, so that a wrong expression is refused when its file is read.

    expression  = both {"or" both}
    both        = negation {"and" negation}
    negation    = "not" negation | comparison
    comparison  = sum [("==" | "!=" | "<" | "<=" | ">" | ">=") sum | ["not"] "in" list]
    list        = "[" sum {"," sum} "]"
    sum         = value {("+" | "-") value}
    value       = NUMBER | "-" NUMBER | DURATION | TEXT | DATE | "true" | "false" | NAME
                | FUNCTION "(" sum ")" | "(" expression ")"
"""

from __future__ import annotations

import math
import operator
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final, Literal, NamedTuple

from typing_extensions import override

MAX_LENGTH: Final = 1_000
"""Maximum number of characters of an expression."""
MAX_DEPTH: Final = 50
"""Maximum depth of nested brackets and negations."""

Kind = Literal["boolean", "number", "text", "date", "duration"]
Value = bool | int | float | str | date | timedelta
Kinds = Mapping[str, Kind]
Facts = Mapping[str, Value]

FUNCTIONS: Final[Mapping[str, Callable[[date], int]]] = {
    "weekday": date.weekday,
    "day": lambda day: day.day,
    "month": lambda day: day.month,
    "year": lambda day: day.year,
}
"""Functions of a date. The weekday of a Monday is 0."""
WORDS: Final = ("and", "or", "not", "in", "true", "false")
"""Words that are no names."""
_COMPARISONS: Final[Mapping[str, Callable[..., bool]]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_A: Final[Mapping[str, str]] = {
    "boolean": "true or false",
    "number": "a number",
    "text": "a text",
    "date": "a date",
    "duration": "a duration",
}
_TOKEN = re.compile(
    r"""(?P<space>\s+)
    | (?P<date>\d{4}-\d{2}-\d{2}(?![\w.]))
    | (?P<duration>\d{1,6}[dw](?![\w.]))
    | (?P<number>\d{1,15}(?:\.\d{1,15})?(?![\w.]))
    | (?P<text>"[^"]*"|'[^']*')
    | (?P<name>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)
    | (?P<sign><=|>=|==|!=|[-<>()\[\],+])""",
    re.ASCII | re.VERBOSE,
)


class ExpressionError(ValueError):
    """An expression is wrong, or has no value."""


def kind_of(value: Value) -> Kind:
    """Return the kind of a value."""
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "text"
    return "date" if isinstance(value, date) else "duration"


class Node(ABC):
    """A part of an expression."""

    @abstractmethod
    def kind(self, kinds: Kinds) -> Kind:
        """Return the kind of its value. Raises ExpressionError if it can have none."""

    @abstractmethod
    def value(self, facts: Facts) -> Value:
        """Return its value. Raises ExpressionError if a date or number leaves its range."""

    def names(self) -> Iterator[str]:
        """Return the names of the facts that it uses."""
        return iter(())


@dataclass(frozen=True, slots=True)
class Constant(Node):
    """A number, text, date, duration, true or false."""

    constant: Value

    @override
    def kind(self, kinds: Kinds) -> Kind:
        return kind_of(self.constant)

    @override
    def value(self, facts: Facts) -> Value:
        return self.constant


@dataclass(frozen=True, slots=True)
class Name(Node):
    """The name of a fact."""

    name: str

    @override
    def kind(self, kinds: Kinds) -> Kind:
        if self.name not in kinds:
            raise ExpressionError(f"unknown name `{self.name}`; known: {_some(kinds)}")
        return kinds[self.name]

    @override
    def value(self, facts: Facts) -> Value:
        return facts[self.name]

    @override
    def names(self) -> Iterator[str]:
        yield self.name


@dataclass(frozen=True, slots=True)
class Function(Node):
    """A function of a date."""

    function: str
    argument: Node

    @override
    def kind(self, kinds: Kinds) -> Kind:
        kind = self.argument.kind(kinds)
        if kind != "date":
            raise ExpressionError(f"{self.function}() takes a date, not {_A[kind]}")
        return "number"

    @override
    def value(self, facts: Facts) -> Value:
        argument = self.argument.value(facts)
        assert isinstance(argument, date), "its kind was checked"
        return FUNCTIONS[self.function](argument)

    @override
    def names(self) -> Iterator[str]:
        return self.argument.names()


@dataclass(frozen=True, slots=True)
class Sum(Node):
    """A sum or difference of numbers, or a date that is moved by a duration."""

    sign: str
    left: Node
    right: Node

    @override
    def kind(self, kinds: Kinds) -> Kind:
        left, right = self.left.kind(kinds), self.right.kind(kinds)
        if (left, right) in (("number", "number"), ("date", "duration")):
            return left
        raise ExpressionError(
            f"`{self.sign}` takes two numbers, or a date and a duration such as 1d; here it has "
            f"{_A[left]} and {_A[right]}"
        )

    @override
    def value(self, facts: Facts) -> Value:
        left, right = self.left.value(facts), self.right.value(facts)
        act: Callable[..., Value] = operator.add if self.sign == "+" else operator.sub
        try:
            result = act(left, right)
        except OverflowError:
            raise ExpressionError(f"{left} {self.sign} {right} is out of range") from None
        if isinstance(result, float) and not math.isfinite(result):
            raise ExpressionError(f"{left} {self.sign} {right} is out of range")
        return result

    @override
    def names(self) -> Iterator[str]:
        yield from self.left.names()
        yield from self.right.names()


@dataclass(frozen=True, slots=True)
class Comparison(Node):
    """A comparison of two values of the same kind."""

    sign: str
    left: Node
    right: Node

    @override
    def kind(self, kinds: Kinds) -> Kind:
        left, right = self.left.kind(kinds), self.right.kind(kinds)
        if left != right:
            raise ExpressionError(f"`{self.sign}` compares {_A[left]} with {_A[right]}")
        if left == "boolean" and self.sign not in ("==", "!="):
            raise ExpressionError(f"`{self.sign}` does not compare true and false")
        return "boolean"

    @override
    def value(self, facts: Facts) -> Value:
        return _COMPARISONS[self.sign](self.left.value(facts), self.right.value(facts))

    @override
    def names(self) -> Iterator[str]:
        yield from self.left.names()
        yield from self.right.names()


@dataclass(frozen=True, slots=True)
class Membership(Node):
    """Whether a value is in a list."""

    member: Node
    items: tuple[Node, ...]

    @override
    def kind(self, kinds: Kinds) -> Kind:
        kind = self.member.kind(kinds)
        for item in self.items:
            if item.kind(kinds) != kind:
                raise ExpressionError(f"`in` compares {_A[kind]} with {_A[item.kind(kinds)]}")
        return "boolean"

    @override
    def value(self, facts: Facts) -> Value:
        member = self.member.value(facts)
        return any(item.value(facts) == member for item in self.items)

    @override
    def names(self) -> Iterator[str]:
        for part in (self.member, *self.items):
            yield from part.names()


@dataclass(frozen=True, slots=True)
class Not(Node):
    """A negation."""

    inner: Node

    @override
    def kind(self, kinds: Kinds) -> Kind:
        return _boolean("not", self.inner, kinds)

    @override
    def value(self, facts: Facts) -> Value:
        return not self.inner.value(facts)

    @override
    def names(self) -> Iterator[str]:
        return self.inner.names()


@dataclass(frozen=True, slots=True)
class Both(Node):
    """Two parts of which both (`and`), or one (`or`), must hold."""

    word: str
    left: Node
    right: Node

    @override
    def kind(self, kinds: Kinds) -> Kind:
        _boolean(self.word, self.left, kinds)
        return _boolean(self.word, self.right, kinds)

    @override
    def value(self, facts: Facts) -> Value:
        left = self.left.value(facts)
        if bool(left) == (self.word == "or"):
            return left
        return self.right.value(facts)

    @override
    def names(self) -> Iterator[str]:
        yield from self.left.names()
        yield from self.right.names()


def _boolean(word: str, node: Node, kinds: Kinds) -> Kind:
    kind = node.kind(kinds)
    if kind != "boolean":
        raise ExpressionError(f"`{word}` takes a condition such as `rows > 0`, not {_A[kind]}")
    return kind


def _some(names: Kinds) -> str:
    return ", ".join(sorted(names)[:20]) or "none"


class _Token(NamedTuple):
    kind: str
    text: str
    at: int
    """Number of its first character, from 1."""


def parse(text: str) -> Node:
    """Parse an expression.

    Raises:
        ExpressionError: It is none; the message says where.
    """
    return _Parser(text).parse()


class _Parser:
    """A recursive-descent parser; a method per rule."""

    def __init__(self, text: str) -> None:
        if len(text) > MAX_LENGTH:
            raise ExpressionError(f"{len(text):,} characters are more than {MAX_LENGTH:,}")
        self._tokens = list(_tokens(text))
        self._next = 0
        self._depth = 0

    def parse(self) -> Node:
        node = self._either()
        if self._token.kind != "end":
            raise self._unexpected("the end, `and` or `or`")
        return node

    @property
    def _token(self) -> _Token:
        return self._tokens[self._next]

    def _take(self, *texts: str) -> str | None:
        """Take the next token if it is one of these words or signs."""
        token = self._token
        if token.kind in ("name", "sign") and token.text in texts:
            self._next += 1
            return token.text
        return None

    def _expect(self, text: str) -> None:
        if self._take(text) is None:
            raise self._unexpected(f"`{text}`")

    def _unexpected(self, wanted: str) -> ExpressionError:
        found = f"`{self._token.text}`" if self._token.text else "its end"
        return ExpressionError(f"expected {wanted} at character {self._token.at}, found {found}")

    def _deeper(self) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ExpressionError(f"nested deeper than {MAX_DEPTH} levels")

    def _either(self) -> Node:
        node = self._both()
        while self._take("or"):
            node = Both("or", node, self._both())
        return node

    def _both(self) -> Node:
        node = self._negation()
        while self._take("and"):
            node = Both("and", node, self._negation())
        return node

    def _negation(self) -> Node:
        if not self._take("not"):
            return self._comparison()
        self._deeper()
        node = Not(self._negation())
        self._depth -= 1
        return node

    def _comparison(self) -> Node:
        left = self._sum()
        sign = self._take(*_COMPARISONS)
        if sign:
            return Comparison(sign, left, self._sum())
        if self._take("in"):
            return Membership(left, self._items())
        if self._take("not"):
            self._expect("in")
            return Not(Membership(left, self._items()))
        return left

    def _items(self) -> tuple[Node, ...]:
        self._expect("[")
        items = [self._sum()]
        while self._take(","):
            items.append(self._sum())
        self._expect("]")
        return tuple(items)

    def _sum(self) -> Node:
        node = self._value()
        while sign := self._take("+", "-"):
            node = Sum(sign, node, self._value())
        return node

    def _value(self) -> Node:
        if self._take("-"):
            token = self._token
            if token.kind != "number":
                raise self._unexpected("a number")
            self._next += 1
            return Constant(-_number(token.text))
        if self._take("("):
            self._deeper()
            node = self._either()
            self._depth -= 1
            self._expect(")")
            return node
        token = self._token
        if token.kind in ("end", "sign") or token.text in ("and", "or", "not", "in"):
            raise self._unexpected("a value")
        self._next += 1
        return self._named(token) if token.kind == "name" else Constant(_constant(token))

    def _named(self, token: _Token) -> Node:
        if token.text in ("true", "false"):
            return Constant(token.text == "true")
        if not self._take("("):
            return Name(token.text)
        if token.text not in FUNCTIONS:
            raise ExpressionError(
                f"unknown function `{token.text}` at character {token.at}; known: "
                f"{', '.join(FUNCTIONS)}"
            )
        self._deeper()
        node = Function(token.text, self._sum())
        self._depth -= 1
        self._expect(")")
        return node


def _tokens(text: str) -> Iterator[_Token]:
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise ExpressionError(f"cannot read {text[at : at + 20]!r} at character {at + 1}")
        kind = match.lastgroup
        assert kind is not None, "each alternative has a name"
        if kind != "space":
            yield _Token(kind, match[0], at + 1)
        at = match.end()
    yield _Token("end", "", at + 1)


def _constant(token: _Token) -> Value:
    if token.kind == "text":
        return token.text[1:-1]
    if token.kind == "number":
        return _number(token.text)
    if token.kind == "duration":
        count, unit = int(token.text[:-1]), token.text[-1]
        return timedelta(days=count * (7 if unit == "w" else 1))
    try:
        return date.fromisoformat(token.text)
    except ValueError:
        raise ExpressionError(
            f"{token.text} at character {token.at} is no date of the calendar"
        ) from None


def _number(text: str) -> int | float:
    return float(text) if "." in text else int(text)
