"""Results of checks, as they are stored and shown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict

from pipeline.masking import mask
from pipeline.printable import printable_line
from pipeline.report.humanize import plural

Outcome = Literal["passed", "warned", "quarantined", "refused"]
MAX_EXAMPLES: Final = 3
"""Maximum number of rows that a result shows."""
MAX_VALUE: Final = 60
"""Maximum number of characters of a value in an example."""
MAX_EXAMPLE: Final = 400
"""Maximum number of characters of an example."""


class CheckResult(BaseModel):
    """What one check found."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    outcome: Outcome
    """What becomes of it: if it failed, `warned` is a note, `quarantined` rows are left out, and
    `refused` keeps the result from being published."""
    message: str
    """What was found, with the figures and the limit."""
    figures: dict[str, int | float] = {}
    """Figures by name, e.g. `rows`."""
    examples: tuple[str, ...] = ()
    """Rows that failed, secrets masked and long values cut."""

    @property
    def line(self) -> str:
        """The result as one line."""
        shown = f", e.g. {self.examples[0]}" if self.examples else ""
        return f"{self.name}: {self.message}{shown}"


def checks_text(made: int, warned: int, rejected: int) -> str:
    """Sum up what checks found in words; empty without checks.

    Args:
        made: Number of checks that were made.
        warned: Number of those that failed and only warn.
        rejected: Number of rows in quarantine.
    """
    if not made:
        return ""
    if not warned and not rejected:
        return f"{made:,} passed"
    parts = [f"{made:,} made"]
    parts += [f"{warned:,} warned"] if warned else []
    parts += [f"{plural(rejected, 'row')} in quarantine"] if rejected else []
    return ", ".join(parts)


def refused(results: Iterable[CheckResult]) -> list[CheckResult]:
    """Return the results that keep a result from being published."""
    return [result for result in results if result.outcome == "refused"]


def example_of(row: Mapping[str, Any]) -> str:
    """Write a row as one line: secrets masked, long values cut."""
    shown = []
    for name, value in row.items():
        text = printable_line(str(mask(value, name)))
        shown.append(f"{name}={text if len(text) <= MAX_VALUE else text[: MAX_VALUE - 1] + '…'}")
    line = printable_line(", ".join(shown))
    return line if len(line) <= MAX_EXAMPLE else line[: MAX_EXAMPLE - 1] + "…"


def examples_of(rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Write the first rows as lines."""
    return tuple(map(example_of, rows[:MAX_EXAMPLES]))
