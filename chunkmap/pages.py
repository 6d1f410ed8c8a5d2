"""Small pieces of HTML for notebooks: tables, a bar, a histogram. Everything in them is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from markupsafe import Markup, escape

from pipeline.report.humanize import byte_size


def pairs_html(title: str, rows: Mapping[str, object], more: str = "") -> str:
    """Make a table of names and values."""
    lines = [
        Markup(
            "<tr><th style='text-align:left'>{}</th><td style='text-align:left'>{}</td></tr>"
        ).format(name, value)
        for name, value in rows.items()
        if value not in ("", None)
    ]
    head = Markup("<strong>{}</strong>").format(title)
    return str(
        Markup("<div>{}<table>{}</table>{}</div>").format(head, _joined(lines), Markup(more))
    )


def table_html(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Make a table with a head; lines of a value stay lines."""
    cell = Markup("<td style='text-align:left;vertical-align:top;white-space:pre-wrap'>{}</td>")
    head = _joined(Markup("<th style='text-align:left'>{}</th>").format(name) for name in columns)
    body = _joined(
        Markup("<tr>{}</tr>").format(_joined(cell.format(value) for value in row)) for row in rows
    )
    return str(Markup("<table><tr>{}</tr>{}</table>").format(head, body))


def histogram_html(bars: Sequence[tuple[int, int, int]]) -> str:
    """Draw the sizes of chunks: bars of (lowest bytes, highest bytes, count)."""
    most = max((count for _, _, count in bars), default=0) or 1
    bar = Markup(
        "<tr><td>{} – {}</td><td style='text-align:right'>{}</td><td style='text-align:left'>"
        "<div style='background:#4c78a8;height:0.8em;width:{}px'></div></td></tr>"
    )
    rows = (
        bar.format(byte_size(low), byte_size(high), f"{count:,}", round(200 * count / most))
        for low, high, count in bars
    )
    return str(Markup("<table>{}</table>").format(_joined(rows)))


def progress_html(name: str, phase: str, text: str, done: int, total: int) -> str:
    """Draw the progress of a run."""
    share = round(100 * done / total) if total else 0
    return str(
        Markup(
            "<div>{} · {} {}<div style='width:300px;border:1px solid #888'>"
            "<div style='background:#4c78a8;height:0.6em;width:{}%'></div></div></div>"
        ).format(name, phase, text, share)
    )


def frame_html(page: str, height: int = 600) -> str:
    """Show a whole page inside a notebook, kept apart from it."""
    return str(
        Markup(
            "<iframe srcdoc='{}' sandbox='allow-scripts' "
            "style='display:block;box-sizing:border-box;width:100%;height:{}px;"
            "border:1px solid #888'>"
            "</iframe>"
        ).format(escape(page), height)
    )


def _joined(parts: Iterable[Markup]) -> Markup:
    return Markup("").join(parts)
