"""Judge the figures of a whole result by the checks of a job."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fractions import Fraction
from functools import singledispatch
from typing import Protocol

from pipeline.config.job_checks import (
    Checks,
    FreshnessCheck,
    NotNullCheck,
    RowChecks,
    RowCountCheck,
    RunCheck,
    SqlCheck,
    TotalCheck,
    UniqueCheck,
    share_of,
)
from pipeline.config.units import resolve_limit
from pipeline.quality.figures import Figures, Number
from pipeline.quality.results import MAX_EXAMPLES, CheckResult, Outcome
from pipeline.quality.rows import FailingRows
from pipeline.report.humanize import duration, plural


@dataclass(frozen=True, slots=True)
class Found:
    """Rows that should not be there."""

    count: int
    examples: tuple[str, ...] = ()
    problem: str = ""
    """Why they could not be counted; empty if they were."""


class Values(Protocol):
    """The columns that were kept of a whole result."""

    def repeated(self, columns: tuple[str, ...]) -> Found:
        """Count the values of a key that occur more than once."""
        ...

    def rows_of(self, query: str) -> Found:
        """Count the rows that a query returns. Raises CheckError if it cannot be run."""
        ...


@dataclass(frozen=True, slots=True)
class LastVersion:
    """What a result is compared with."""

    rows: int | None = None
    """Number of rows; None if there is nothing to compare with."""
    totals: Mapping[str, float] = field(default_factory=dict)
    """Sum by name of the check."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A whole result."""

    figures: Figures
    planned: float
    """Unix seconds of the planning, from which ages are counted."""
    values: Values
    last: LastVersion = field(default_factory=LastVersion)


@dataclass(frozen=True, slots=True)
class _Judged:
    """What a check found."""

    passes: bool
    message: str
    figures: dict[str, int | float] = field(default_factory=dict)
    examples: tuple[str, ...] = ()


def evaluate(checks: Checks, subject: Subject) -> list[CheckResult]:
    """Make all checks of a whole result, in their order."""
    return [_result(check, subject) for check in checks.run]


def judge_rows(rows: RowChecks, chunks: Sequence[tuple[int, FailingRows]]) -> CheckResult:
    """Sum up what the schema of rows has found in each chunk.

    Args:
        rows: The check.
        chunks: Number of rows of each chunk's result, and what was found in it.
    """
    rules = Counter[str]()
    for _, found in chunks:
        rules.update(found.rules)
    failing = sum(found.count for _, found in chunks)
    is_kept = rows.severity == "quarantine"
    whole = sum(count for count, _ in chunks) + (failing if is_kept else 0)
    examples = tuple(text for _, found in chunks for text in found.examples)[:MAX_EXAMPLES]
    message = f"{plural(whole, 'row')}, all of which keep the rules"
    outcome: Outcome = "passed"
    if failing:
        message = (
            f"{plural(failing, 'row')} of {whole:,} break rules: "
            + FailingRows(failing, rules).text
        )
        outcome = "quarantined" if is_kept else "warned"
    limit = rows.max_quarantined
    if limit is not None and failing > resolve_limit(limit, whole):
        message += f"; checks.rows.max_quarantined is {limit}"
        outcome = "refused"
    figures: dict[str, int | float] = {"rows": whole, "failing": failing}
    return CheckResult(
        name=rows.title, outcome=outcome, message=message, figures=figures, examples=examples
    )


def _result(check: RunCheck, subject: Subject) -> CheckResult:
    judged = _judge(check, subject)
    failed: Outcome = "refused" if check.severity == "block" else "warned"
    return CheckResult(
        name=check.title,
        outcome="passed" if judged.passes else failed,
        message=judged.message,
        figures=judged.figures,
        examples=judged.examples,
    )


@singledispatch
def _judge(check: object, subject: Subject) -> _Judged:
    raise NotImplementedError(type(check).__name__)


@_judge.register
def _unique(check: UniqueCheck, subject: Subject) -> _Judged:
    found = subject.values.repeated(check.columns)
    figures: dict[str, int | float] = {"repeated_keys": found.count}
    if not found.count:
        return _Judged(True, f"{plural(subject.figures.rows, 'row')}, no key twice", figures)
    message = f"{plural(found.count, 'key')} more than once"
    return _Judged(False, message, figures, found.examples)


@_judge.register
def _freshness(check: FreshnessCheck, subject: Subject) -> _Judged:
    latest = subject.figures.latest.get(check.column)
    limit = f"the limit is {duration(check.within)}"
    if latest is None:
        return _Judged(False, f"no value; {limit}")
    age = subject.planned - latest / 1e6
    figures: dict[str, int | float] = {"age_seconds": round(age, 3)}
    old = f"{duration(age)} old" if age > 0 else "later than that"
    message = f"the latest value is {_moment(latest)}; when planned it was {old}; {limit}"
    return _Judged(age <= check.within, message, figures)


def _moment(microseconds: int) -> str:
    try:
        return datetime.fromtimestamp(microseconds / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return f"{microseconds / 1e6:.0f} s after 1970"


@_judge.register
def _row_count(check: RowCountCheck, subject: Subject) -> _Judged:
    rows, last = subject.figures.rows, subject.last.rows
    limits, passes = [], True
    figures: dict[str, int | float] = {"rows": rows}
    if check.min is not None:
        passes &= rows >= check.min
        limits.append(f"at least {check.min:,}")
    if check.max is not None:
        passes &= rows <= check.max
        limits.append(f"at most {check.max:,}")
    if check.of_last is not None and last is not None:
        least = math.ceil(round(share_of(check.of_last) * last, 6))
        figures["last_rows"] = last
        passes &= rows >= least
        limits.append(f"at least {least:,} ({check.of_last} of the last {last:,})")
    elif check.of_last is not None:
        limits.append(f"{check.of_last} of the last, of which there are none")
    return _Judged(passes, f"{plural(rows, 'row')}; expected {', '.join(limits)}", figures)


@_judge.register
def _total(check: TotalCheck, subject: Subject) -> _Judged:
    total = subject.figures.totals.get(check.column, 0)
    if isinstance(total, float) and not math.isfinite(total):
        # Without the figure: a later run must not be compared with a total that is none.
        return _Judged(False, f"{_shown(total)}; expected a finite total")
    figures: dict[str, int | float] = {"total": _json_number(total)}
    expected = check.expected
    if expected == "last":
        last = subject.last.totals.get(check.title)
        if last is None:
            return _Judged(True, f"{_shown(total)}; there is no earlier total", figures)
        expected = last
    assert isinstance(expected, float), "anything else is `last`"
    tolerance = check.tolerance
    share = isinstance(tolerance, str)
    most = share_of(tolerance) * abs(expected) if isinstance(tolerance, str) else tolerance
    differs = _difference(total, expected)
    figures |= {"expected": expected, "tolerance": most}
    within = f"{_shown(most)} ({tolerance})" if share else _shown(most)
    message = f"{_shown(total)}; expected {_shown(expected)}, at most {within} more or less"
    return _Judged(differs <= most, message, figures)


def _difference(total: Number, expected: float) -> float:
    if isinstance(total, Fraction) and math.isfinite(expected):
        return float(abs(total - Fraction(expected)))
    return abs(float(total) - expected)


def _json_number(value: Number) -> int | float:
    """Return a total as JSON has numbers: without a loss, if it is a whole one."""
    if isinstance(value, Fraction):
        return int(value) if value.denominator == 1 else float(value)
    return value


def _shown(value: Number) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    exact = Fraction(value)
    return f"{int(exact):,}" if exact.denominator == 1 else f"{float(exact):,.10g}"


@_judge.register
def _not_null(check: NotNullCheck, subject: Subject) -> _Judged:
    rows, least = subject.figures.rows, share_of(check.share)
    nulls = {name: subject.figures.nulls.get(name, 0) for name in check.columns}
    # In whole rows: a share of floats would refuse what is exactly at the limit.
    most = rows - math.ceil(round(least * rows, 6))
    bad = {name: count for name, count in nulls.items() if count > most}
    shown = bad or {name: count for name, count in nulls.items() if count} or nulls
    what = ", ".join(f"{plural(count, 'null')} in {name}" for name, count in shown.items())
    message = f"{what} of {plural(rows, 'row')}; expected values in at least {check.share}"
    return _Judged(not bad, message, {f"nulls_{name}": count for name, count in nulls.items()})


@_judge.register
def _sql(check: SqlCheck, subject: Subject) -> _Judged:
    found = subject.values.rows_of(check.query)
    if found.problem:
        return _Judged(False, found.problem)
    return _Judged(
        not found.count,
        f"the query finds {plural(found.count, 'row') if found.count else 'no row'}",
        {"rows_found": found.count},
        found.examples,
    )
