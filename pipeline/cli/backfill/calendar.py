"""Draw the windows of a backfill as a calendar in the terminal."""

from __future__ import annotations

from typing import Any

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


def calendar(layout: Layout) -> Text:
    """Draw one line per row and one character per cell; colours add no information."""
    width = min(max((len(row) for row in layout.rows), default=0), _MAX_LABEL_WIDTH)
    lines = [_header(layout, width)] if layout.unit in _TICKS else []
    by_row: dict[int, list[dict[str, Any]]] = {}
    for cell in layout.cells.iter_rows(named=True):
        by_row.setdefault(cell["row"], []).append(cell)
    for rank, name in enumerate(layout.rows):
        lines.append(_line(name, by_row.get(rank, []), len(layout.columns), width))
    lines.append(_legend(layout))
    text = Text("\n").join(lines)
    # In a narrow terminal, lines are cut rather than wrapped.
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


_TICKS = {"hour": 6, "day": 5, "month": 1, "year": 1}
"""Columns between two column names, by unit."""


def _header(layout: Layout, width: int) -> Text:
    tick = _TICKS[layout.unit]
    line = [" "] * (2 * len(layout.columns) + 4)
    for at, name in enumerate(layout.columns):
        is_named = at % tick == 0 if layout.unit != "day" else at == 0 or (at + 1) % tick == 0
        if is_named:
            short = name[0] if layout.unit == "month" else name
            line[2 * at : 2 * at + len(short)] = short
    return Text(" " * (width + 2) + "".join(line).rstrip(), style="dim")


def _line(name: str, cells: list[dict[str, Any]], columns: int, width: int) -> Text:
    short = name if len(name) <= width else name[: width - 1] + "…"
    line = Text(f"{short:<{width}}  ", style="dim")
    at = 0
    for cell in cells:
        line.append("  " * (cell["column"] - at))
        line.append(_glyph(cell), style=_STYLES[cell["state"]])
        line.append(" ")
        at = cell["column"] + 1
    line.append("  " * (columns - at))
    todo = sum(cell["windows"] - cell["skipped"] - cell["empty"] for cell in cells)
    done = sum(cell["done"] for cell in cells)
    failed = sum(cell["failed"] for cell in cells)
    line.append(f"{done:,}/{todo:,}" if todo else "–", style="dim")
    if failed:
        line.append(f" ✗{failed:,}", style="red")
    return line


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
