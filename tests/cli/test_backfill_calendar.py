"""The calendar in the terminal: a line a row, legible without colours."""

from __future__ import annotations

import polars as pl
from rich.console import Console, Group

from pipeline.cli.backfill.calendar import calendar
from pipeline.runs.backfill.calendar_layout import lay_out


def shown(labels: list[str], states: list[str], grain: str = "day", width: int = 80) -> list[str]:
    done = [{"done": 4, "staged": 4, "mapping": 2}.get(state, 0) for state in states]
    frame = pl.DataFrame(
        {
            "label": labels,
            "state": states,
            "chunks": [4] * len(labels),
            "done": done,
            "failed": [int(state == "failed") for state in states],
        }
    )
    console = Console(width=width, force_terminal=False, color_system=None)
    with console.capture() as capture:
        console.print(Group(calendar(lay_out(frame, grain, 40))))
    return capture.get().splitlines()


def test_each_state_has_a_sign_of_its_own() -> None:
    states = ["done", "staged", "mapping", "waiting", "failed", "skipped", "empty", "done"]
    lines = shown([f"2024-02-{day:02}" for day in range(1, 9)], states)
    assert lines[0].split() == ["1", "5", "10", "15", "20", "25", "30"]
    assert lines[1].startswith("2024-02  █ ■ ▒ · ✗ -   █ ")
    assert lines[1].rstrip().endswith("2/6 ✗1")
    assert "█ published" in lines[2] and "✗ failed" in lines[2]


def test_it_keeps_within_the_terminal() -> None:
    months = [f"2024-01-{day:02}" for day in range(1, 32)]
    values = [f"a-rather-long-customer-name-{number}" for number in range(99)]
    for lines in (
        shown(months, ["done"] * 31),
        shown(values, ["done"] * 99, "value"),
        shown(months, ["failed"] * 31, width=60),
    ):
        assert all(len(line) <= 80 for line in lines)
    assert len(shown(values, ["done"] * 99, "value")) == 4 + 1


def test_a_leap_day_is_where_it_belongs() -> None:
    lines = shown(["2024-02-29", "2024-03-01"], ["done", "failed"])
    assert lines[1].index("█") == lines[0].index("30") - 2
    assert lines[2].index("✗") == lines[0].index("1")
