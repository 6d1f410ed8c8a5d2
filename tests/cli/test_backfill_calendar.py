"""The calendar in the terminal: a line a row, legible without colours."""

from __future__ import annotations

import polars as pl
import pytest
from rich.console import Console, Group

from pipeline.cli.backfill.calendar import CalendarView
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
        console.print(Group(CalendarView(lay_out(frame, grain, 40))))
    return capture.get().splitlines()


def test_each_state_has_a_sign_of_its_own() -> None:
    states = ["done", "staged", "mapping", "waiting", "failed", "skipped", "empty", "done"]
    lines = shown([f"2024-02-{day:02}" for day in range(1, 9)], states)
    assert lines[0].split() == ["1", "5", "10", "15", "20", "25", "30"]
    assert lines[1].startswith("2024-02  █ ■ ▒ · ✗ -   █ ")
    assert lines[1].rstrip().endswith("2/6 ✗1")
    assert "█ published" in lines[2] and "✗ failed" in lines[2]


@pytest.mark.parametrize(("width", "rows"), [(80, 2), (60, 2), (40, 4), (24, 12)])
def test_it_folds_to_the_terminal_and_keeps_each_cell_and_total(width: int, rows: int) -> None:
    months = [f"2024-{month:02}-{day:02}" for month in (1, 3) for day in range(1, 32)]
    states = ["done"] * 31 + ["failed"] * 31
    lines = shown(months, states, width=width)
    assert all(len(line) <= width for line in lines)
    cells = "\n".join(line for line in lines if line.startswith("2024"))
    assert (cells.count("█"), cells.count("✗")) == (31, 31 + 1)
    totals = [line for line in lines if "/31" in line]
    assert [line.split("/31")[1].strip() for line in totals] == ["", "✗31"]
    assert len([line for line in lines if line.startswith("2024")]) == rows


def test_values_keep_within_the_terminal() -> None:
    values = [f"a-rather-long-customer-name-{number}" for number in range(99)]
    for width, rows in ((80, 4), (60, 4), (30, 16)):
        lines = shown(values, ["done"] * 99, "value", width)
        assert all(len(line) <= width for line in lines)
        assert len([line for line in lines if line.startswith("a-rather")]) == rows
        assert sum(line.count("█") for line in lines if line.startswith("a-rather")) == 99


def test_a_leap_day_is_where_it_belongs() -> None:
    lines = shown(["2024-02-29", "2024-03-01"], ["done", "failed"])
    assert lines[1].index("█") == lines[0].index("30") - 2
    assert lines[2].index("✗") == lines[0].index("1")
