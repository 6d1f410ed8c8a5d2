"""Draw the windows of a backfill as a calendar in the terminal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from pipeline.runs.backfill.calendar_layout import Layout

_SHADES = "░▒▓"
"""Glyphs of a cell that is less than a third, less than two thirds, not fully done."""
_GLYPHS = {"done": "█", "failed": "✗", "staged": "■", "waiting": "·", "skipped": "-", "empty": " "}
_STYLES = {
    "done": "green",
    "failed": "bold red",
    "staged": "cyan",
    "mapping": "blue",
    "partly": "green",
    "waiting": "bright_black",
    "skipped": "bright_black",
    "empty": "",
}
_WORDS = {
    "done": "published",
    "staged": "mapped",
    "mapping": "being mapped",
    "partly": "partly done",
    "failed": "failed",
    "waiting": "waiting",
    "skipped": "skipped",
}
_MAX_LABEL_WIDTH = 14
"""Maximum characters of a row's name; longer values are cut."""


@dataclass(frozen=True, slots=True)
class CalendarView:
    """A calendar that folds to the width at hand; colours add no information.

    Cells are two characters apart. Where that is too wide they touch, and where that is too wide
    as well, the columns continue below: never is a cell or a total cut off.
    """

    layout: Layout

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the calendar."""
        layout = self.layout
        rows: list[list[dict[str, Any]]] = [[] for _ in layout.rows]
        for cell in layout.cells.iter_rows(named=True):
            rows[cell["row"]].append(cell)
        totals = [_total(cells) for cells in rows]
        names = min(max((len(row) for row in layout.rows), default=0), _MAX_LABEL_WIDTH)
        room = options.max_width - names - 2 - max((len(total) for total in totals), default=0)
        pitch = 2 if 2 * len(layout.columns) <= room else 1
        per_block = max(1, room // 2 if pitch == 2 else room - 1)
        starts = range(0, max(len(layout.columns), 1), per_block)
        for start in starts:
            at = range(start, min(start + per_block, len(layout.columns)))
            if layout.unit in _TICKS:
                yield _header(layout, at, names, pitch)
            is_last = start == starts[-1]
            for name, cells, total in zip(layout.rows, rows, totals, strict=True):
                line = _line(_short(name, names), cells, at, pitch)
                if is_last:
                    line.append(" " * (2 - pitch))
                    line.append_text(total)
                yield line
        yield _legend(layout)


_TICKS = {"hour": 6, "day": 5, "month": 1, "year": 1}
"""Columns between two column names, by unit."""


def _header(layout: Layout, at: range, width: int, pitch: int) -> Text:
    tick = _TICKS[layout.unit]
    if pitch == 1:
        tick = max(tick, 2 if layout.unit == "day" else 1)
    line = [" "] * (pitch * len(at) + 4)
    for column in at:
        name, place = layout.columns[column], pitch * (column - at.start)
        is_named = column % tick == 0
        if layout.unit == "day":
            is_named = column == 0 or (column + 1) % tick == 0
        if is_named:
            short = name[0] if layout.unit == "month" else name
            line[place : place + len(short)] = short
    return Text(" " * (width + 2) + "".join(line).rstrip(), style="dim")


def _short(name: str, width: int) -> str:
    return f"{name if len(name) <= width else name[: width - 1] + '…':<{width}}  "


def _line(name: str, cells: list[dict[str, Any]], columns: range, pitch: int) -> Text:
    line = Text(name, style="dim")
    at = columns.start
    for cell in cells:
        if cell["column"] in columns:
            line.append(" " * pitch * (cell["column"] - at))
            line.append(_glyph(cell), style=_STYLES[cell["state"]])
            line.append(" " * (pitch - 1))
            at = cell["column"] + 1
    line.append(" " * pitch * (columns.stop - at))
    return line


def _total(cells: list[dict[str, Any]]) -> Text:
    todo = sum(cell["windows"] - cell["skipped"] - cell["empty"] for cell in cells)
    done = sum(cell["done"] for cell in cells)
    failed = sum(cell["failed"] for cell in cells)
    total = Text(f"{done:,}/{todo:,}" if todo else "–", style="dim")
    if failed:
        total.append(f" ✗{failed:,}", style="red")
    return total


def _glyph(cell: dict[str, Any]) -> str:
    state = cell["state"]
    if state not in ("mapping", "partly"):
        return _GLYPHS[state]
    share = cell["chunks_done"] / max(cell["chunks"], 1)
    return _SHADES[min(int(share * len(_SHADES)), len(_SHADES) - 1)]


def _legend(layout: Layout) -> Text:
    line = Text(f"a cell is {_an(layout.unit)}:", style="dim")
    shown = set(layout.cells["state"].to_list())
    for state, words in _WORDS.items():
        if state in shown:
            glyph = _GLYPHS.get(state, _SHADES)
            line.append(f"  {glyph}", style=_STYLES[state])
            line.append(f" {words}", style="dim")
    return line


def _an(unit: str) -> str:
    if unit[0].isdigit():
        return unit
    return f"an {unit}" if unit == "hour" else f"a {unit}"
