"""Lay out windows as cells of a calendar: days by month, hours by day, months by year. Pure.

If a calendar would have too many rows, hours are grouped by day, days by month, months by year.
Values, which have no calendar, are laid out line by line.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import get_args

import polars as pl

from pipeline.runs.backfill.records import State

STATES: tuple[str, ...] = get_args(State)
PER_LINE = 25
"""Cells per line of values."""


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """A calendar of windows."""

    unit: str
    """Unit of a cell: an hour, a day, a month, a year, a value, or several values."""
    rows: tuple[str, ...]
    """Names of the rows, from top to bottom."""
    columns: tuple[str, ...]
    """Names of the columns, from left to right."""
    cells: pl.DataFrame
    """One row per cell: `name`, `row` and `column` (ranks), `windows`, one column per state with
    its number of windows, `chunks`, `chunks_done`, `chunks_failed`, and `state`, how the cell is
    shown: a state of windows, or `partly` (some done, others waiting). If windows have `code` and
    `error`, also `first` (window), `rows_in`, `rows_out`, `seconds`, `runs`, `codes`, `errors`."""


_LEVELS = ("hour", "day", "month", "year")
_ROW = {"hour": 10, "day": 7, "month": 4, "year": 3}
"""Number of characters of a window's label that name its row."""
_NAME = {"hour": None, "day": 10, "month": 7, "year": 4}
"""Number of characters of a window's label that name its cell; None for all."""


def lay_out(windows: pl.DataFrame, grain: str, most_rows: int) -> Layout:
    """Lay windows out with the finest unit that fits into `most_rows`.

    Args:
        windows: Windows (schemas WINDOWS and PROGRESS), in the order of time.
        grain: Grain of the windows.
        most_rows: Maximum number of rows; years by decades may have more.
    """
    if grain == "value":
        return _values(windows, most_rows)
    levels = _LEVELS[_LEVELS.index(grain) :]
    for level in levels:
        row = pl.col("label").str.slice(0, _ROW[level])
        if level == levels[-1] or windows.select(row.n_unique()).item() <= most_rows:
            return _calendar(windows, level)
    raise AssertionError("the last level returns")


def _calendar(windows: pl.DataFrame, level: str) -> Layout:
    name = pl.col("label").str.slice(0, _NAME[level])
    cells = _cells(windows.with_columns(name=name, line=pl.col("label").str.slice(0, _ROW[level])))
    rows = tuple(cells["line"].unique(maintain_order=True).to_list())
    ranks = {row: rank for rank, row in enumerate(rows)}
    places: list[int] = []
    before = ("", -1)
    for label, line in cells.select("name", "line").iter_rows():
        place = _place(label, level)
        # When clocks go back, a day has an hour twice: move the following hours to the right.
        if before[0] == line and place <= before[1]:
            place = before[1] + 1
        before = (line, place)
        places.append(place)
    columns = {
        "hour": tuple(f"{hour:02}" for hour in range(max(24, max(places, default=0) + 1))),
        "day": tuple(str(day) for day in range(1, 32)),
        "month": tuple(
            ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
        ),
        "year": tuple(str(year) for year in range(10)),
    }[level]
    placed = cells.with_columns(
        row=pl.col("line").replace_strict(ranks, return_dtype=pl.Int64),
        column=pl.Series(places, dtype=pl.Int64),
    )
    named = tuple(f"{row}0s" for row in rows) if level == "year" else rows
    return Layout(level, named, tuple(columns), placed.drop("line"))


def _place(label: str, level: str) -> int:
    if level == "hour":
        return int(label[11:13])
    if level == "day":
        return int(label[8:10]) - 1
    return int(label[5:7]) - 1 if level == "month" else int(label[3])


def _values(windows: pl.DataFrame, most_rows: int) -> Layout:
    together = max(1, ceil(windows.height / (PER_LINE * max(most_rows, 1))))
    rank = pl.int_range(pl.len()) // together
    names = windows.group_by(rank.alias("cell"), maintain_order=True).agg(
        first=pl.col("label").first(), last=pl.col("label").last()
    )
    texts = [a if a == b else f"{a} … {b}" for _, a, b in names.iter_rows()]
    by_cell = dict(enumerate(texts))
    cells = _cells(
        windows.with_columns(
            name=rank.replace_strict(by_cell, return_dtype=pl.String), line=rank // PER_LINE
        )
    ).with_row_index("cell")
    placed = cells.with_columns(
        row=(pl.col("cell") // PER_LINE).cast(pl.Int64),
        column=(pl.col("cell") % PER_LINE).cast(pl.Int64),
    )
    rows = tuple(names["first"].to_list()[::PER_LINE])
    unit = "value" if together == 1 else f"{together} values"
    columns = tuple(str(at) for at in range(min(PER_LINE, placed.height)))
    return Layout(unit, rows, columns, placed.drop("line", "cell"))


def _cells(windows: pl.DataFrame) -> pl.DataFrame:
    """Return one row per cell, from windows with the `name` and `line` of their cell."""
    counted = windows.group_by("name", "line", maintain_order=True).agg(
        pl.len().cast(pl.Int64).alias("windows"),
        *((pl.col("state") == state).sum().cast(pl.Int64).alias(state) for state in STATES),
        pl.col("chunks").sum(),
        pl.col("done").filter(pl.col("chunks") > 0).sum().alias("chunks_done"),
        pl.col("failed").sum().alias("chunks_failed"),
        *_details(windows),
    )
    return counted.with_columns(state=_shown_state())


def _details(windows: pl.DataFrame) -> list[pl.Expr]:
    """Return what links and tooltips of a report's cells show; nothing for other windows."""
    if not {"code", "error"} <= set(windows.columns):
        return []
    return [
        pl.col("label").first().alias("first"),
        pl.col("rows_in", "rows_out").sum(),
        (pl.col("ended").max() - pl.col("started").min()).alias("seconds"),
        *(
            pl.col(name).filter(pl.col(name) != "").unique(maintain_order=True).alias(f"{name}s")
            for name in ("run", "code", "error")
        ),
    ]


def _shown_state() -> pl.Expr:
    """Choose the most important state among the windows of a cell."""
    some = {state: pl.col(state) > 0 for state in STATES}
    waits = pl.when(some["waiting"]).then(
        pl.when(some["done"] | (pl.col("chunks_done") > 0))
        .then(pl.lit("partly"))
        .otherwise(pl.lit("waiting"))
    )
    return (
        pl.when(some["failed"])
        .then(pl.lit("failed"))
        .when(some["mapping"])
        .then(pl.lit("mapping"))
        .when(some["staged"])
        .then(pl.lit("staged"))
        .otherwise(
            waits.when(some["done"])
            .then(pl.lit("done"))
            .when(some["skipped"])
            .then(pl.lit("skipped"))
            .otherwise(pl.lit("empty"))
        )
    )
