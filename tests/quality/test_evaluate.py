"""What checks say of figures, at and beyond their limits."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import pytest

from pipeline.config.job_checks import Checks
from pipeline.quality.evaluate import Found, LastVersion, Subject, evaluate
from pipeline.quality.figures import Figures
from pipeline.quality.results import CheckResult, example_of

DAY = 86_400
PLANNED = 1_000 * DAY


NOTHING = Found(0)


@dataclass
class Kept:
    keys: Found = NOTHING
    rows: Found = NOTHING

    def repeated(self, columns: tuple[str, ...]) -> Found:
        return self.keys

    def rows_of(self, query: str) -> Found:
        return self.rows


def result(
    check: dict[str, Any],
    figures: Figures,
    last: LastVersion | None = None,
    kept: Kept | None = None,
) -> CheckResult:
    subject = Subject(figures, PLANNED, kept or Kept(), last or LastVersion())
    [found] = evaluate(Checks.model_validate({"run": [check]}), subject)
    return found


ROWS = {"check": "row_count"}
TOTAL = {"check": "total", "column": "n"}


@pytest.mark.parametrize(
    ("check", "rows", "last", "passes"),
    [
        ({"min": 10}, 10, None, True),
        ({"min": 10}, 9, None, False),
        ({"max": 10}, 10, None, True),
        ({"max": 10}, 11, None, False),
        ({"of_last": "90%"}, 90, 100, True),
        ({"of_last": "90%"}, 89, 100, False),
        ({"of_last": "110%"}, 110, 100, True),
        ({"of_last": "90%"}, 0, None, True),
        ({"of_last": "33.3%"}, 333, 1000, True),
    ],
)
def test_row_counts(check: dict[str, Any], rows: int, last: int | None, passes: bool) -> None:
    found = result(ROWS | check, Figures(rows), LastVersion(last))
    assert (found.outcome == "passed") is passes, found.message


@pytest.mark.parametrize(
    ("check", "total", "last", "passes"),
    [
        ({"expected": 100}, 100, None, True),
        ({"expected": 100}, 101, None, False),
        ({"expected": 100, "tolerance": 1}, 101, None, True),
        ({"expected": -100, "tolerance": "1%"}, -101, None, True),
        ({"expected": 100, "tolerance": "1%"}, 102, None, False),
        ({}, 5, None, True),
        ({}, 5, 5.0, True),
        ({}, 6, 5.0, False),
        ({"expected": 100, "tolerance": 1e300}, float("nan"), None, False),
        ({}, float("nan"), None, False),
        ({}, float("-inf"), None, False),
        ({}, float("inf"), 5.0, False),
        ({"expected": 1e16}, 10**16 + 1, None, False),
    ],
)
def test_totals(check: dict[str, Any], total: Any, last: float | None, passes: bool) -> None:
    exact = total if isinstance(total, float) else Fraction(total)
    totals = {} if last is None else {"total(n)": last}
    found = result(TOTAL | check, Figures(1, {"n": exact}), LastVersion(totals=totals))
    assert (found.outcome == "passed") is passes, found.message


def test_a_total_that_is_no_number_is_not_what_later_ones_are_compared_with() -> None:
    found = result(TOTAL | {"severity": "warn"}, Figures(1, {"n": float("nan")}))
    assert (found.outcome, dict(found.figures)) == ("warned", {})


@pytest.mark.parametrize(
    ("age", "passes"), [(2 * DAY, True), (2 * DAY + 1, False), (-5, True), (None, False)]
)
def test_freshness(age: int | None, passes: bool) -> None:
    latest = {} if age is None else {"at": (PLANNED - age) * 1_000_000}
    check = {"check": "freshness", "column": "at", "within": "2d"}
    assert (result(check, Figures(1, latest=latest)).outcome == "passed") is passes


@pytest.mark.parametrize(
    ("share", "nulls", "passes"),
    [("100%", 0, True), ("100%", 1, False), ("99%", 10, True), ("99%", 11, False)],
)
def test_nulls(share: str, nulls: int, passes: bool) -> None:
    check = {"check": "not_null", "columns": ["a", "b"], "share": share}
    found = result(check, Figures(1000, nulls={"b": nulls}))
    assert (found.outcome == "passed") is passes, found.message
    assert passes or (f"{nulls} null" in found.message and "in b" in found.message)


@pytest.mark.parametrize(("severity", "outcome"), [("warn", "warned"), ("block", "refused")])
def test_severity_and_examples(severity: str, outcome: str) -> None:
    kept = Kept(Found(2, ("id=1 (2 rows)",)))
    check = {"check": "unique", "columns": ["id"], "severity": severity, "name": "one per id"}
    found = result(check, Figures(9), kept=kept)
    assert (found.name, found.outcome) == ("one per id", outcome)
    assert found.line == "one per id: 2 keys more than once, e.g. id=1 (2 rows)"


def test_examples_hold_no_secret_and_no_long_value() -> None:
    line = example_of(
        {
            "id": 5,
            "password": "hunter2",
            "url": "https://me:pw@host/",
            "text": "x" * 500,
            "e": "\x1b[31m",
        }
    )
    assert "hunter2" not in line and "pw@" not in line and "\x1b" not in line
    assert line.startswith("id=5, password=********, url=https://********@host/, text=xxx")
    assert len(line) < 250
