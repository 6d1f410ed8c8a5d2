"""Render the page that all reports share: one self-contained HTML file.

A page contains its styles, its data and the Vega libraries. Its content security policy lets the
browser load nothing and run only the two scripts in the page, identified by their hashes: an
address or markup in an error message can do no harm.

Charts take their colours from CSS variables, so the same drawing works in light mode, dark mode and
print.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal
from urllib.parse import urlsplit

from markupsafe import Markup, escape

from pipeline.printable import printable
from pipeline.report.vega_bundle import vega_bundle

if TYPE_CHECKING:
    from jinja2 import Template

Tone = Literal["plain", "good", "warn", "bad"]
_ASSETS = Path(__file__).parent / "assets"


@dataclass(frozen=True, slots=True)
class Card:
    """One headline figure."""

    label: str
    value: str
    note: str = ""
    tone: Tone = "plain"


@dataclass(frozen=True, slots=True)
class LegendItem:
    """The meaning of a colour of a chart."""

    label: str
    colour: str
    """CSS colour, preferably one of the page's variables, such as `var(--read)`."""
    value: str = ""


@dataclass(frozen=True, slots=True)
class Chart:
    """A Vega-Lite chart with a text alternative."""

    kind: ClassVar[str] = "chart"
    title: str
    spec: Mapping[str, Any]
    """Vega-Lite specification with its data; its width is `container`."""
    description: str
    """Text alternative: what the chart shows."""
    caption: str = ""
    """One or two sentences under the title that state the result."""
    legend: tuple[LegendItem, ...] = ()
    half: bool = False
    """Whether it takes half the page's width, if the page is wide enough."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table, as HTML made by tables.py."""

    kind: ClassVar[str] = "table"
    title: str
    html: Markup
    caption: str = ""
    half: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """A list of names and values; a value may be Markup (a link)."""

    kind: ClassVar[str] = "facts"
    title: str
    items: tuple[tuple[str, str], ...]
    half: bool = False


@dataclass(frozen=True, slots=True)
class Note:
    """A paragraph in place of a chart that has nothing to show."""

    kind: ClassVar[str] = "note"
    text: str
    half: bool = False


@dataclass(frozen=True, slots=True)
class Example:
    """A long text, such as an error's message, collapsed behind its summary."""

    kind: ClassVar[str] = "example"
    summary: str
    text: str
    open: bool = False
    half: bool = False


Block = Chart | Table | Facts | Note | Example


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and the blocks under it."""

    title: str
    blocks: tuple[Block, ...]
    lead: str = ""


@dataclass(frozen=True, slots=True)
class Notice:
    """What to do next, with the command to type."""

    text: str
    command: str = ""
    tone: Tone = "plain"


@dataclass(frozen=True, slots=True)
class Page:
    """Everything on a page, from top to bottom. Text is escaped unless it is Markup."""

    title: str
    kicker: str
    """Kind of report, shown above the title."""
    summary: str
    """Summary of the page in one sentence."""
    cards: tuple[Card, ...]
    sections: tuple[Section, ...]
    badge: str = ""
    badge_tone: Tone = "plain"
    notice: Notice | None = None
    footer: str = ""
    is_live: bool = False
    """Whether it asks the server that it comes from for changes, at `/state`."""


def render_page(page: Page) -> str:
    """Render the page as HTML that opens offline.

    Raises:
        ValueError: A script contains the end tag of its own element.
    """
    has_charts = any(block.kind == "chart" for part in page.sections for block in part.blocks)
    scripts = [_vega_bundle(), _asset("page.js")] if has_charts or page.is_live else []
    if page.is_live:
        scripts.append(_asset("live.js"))
    return _template().render(
        page=page,
        style=_Asset(_asset("page.css")),
        scripts=[_Asset(script) for script in scripts],
        policy=_policy(scripts, is_live=page.is_live),
        theme=vega_theme(),
    )


@cache
def _template() -> Template:
    """Compile the page's template, once per process."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_escape_controls,
    )
    environment.filters["json"] = script_json
    return environment.get_template("page.html.j2")


class _Asset(Markup):
    """A style or a script of the page, inserted unchanged, since the policy has its hash."""


def _escape_controls(value: Any) -> Any:
    """Escape control characters and bidirectional overrides in a value of the template."""
    if isinstance(value, _Asset) or not isinstance(value, str):
        return value
    return Markup(printable(str(value))) if isinstance(value, Markup) else printable(value)


def _escape_data(value: Any) -> Any:
    """Escape control characters in the data of a chart."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {_escape_data(key): _escape_data(item) for key, item in value.items()}
    return [_escape_data(item) for item in value] if isinstance(value, list | tuple) else value


def script_json(value: Any) -> Markup:
    """Render JSON that is safe inside a script element, with any strings."""
    text = json.dumps(
        _escape_data(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False
    )
    return Markup(
        text.replace("&", "\\u0026")
        .replace("<", "\\u003c")
        .replace(">", "\\u003e")
        .replace("\u2028", "\\u2028")
        .replace("\u2029", "\\u2029")
    )


def vega_theme() -> dict[str, Any]:
    """Make the Vega-Lite configuration of all charts."""
    text = {
        "labelColor": "var(--soft)",
        "titleColor": "var(--soft)",
        "labelFontSize": 11,
        "titleFontSize": 11,
        "titleFontWeight": 400,
    }
    return {
        "font": "-apple-system, 'Segoe UI', Inter, Roboto, 'Helvetica Neue', Arial, sans-serif",
        "background": None,
        "padding": {"left": 0, "right": 10, "top": 6, "bottom": 2},
        "autosize": {"type": "fit-x", "contains": "padding"},
        "view": {"stroke": None},
        "axis": {
            **text,
            "domainColor": "var(--line)",
            "tickColor": "var(--line)",
            "gridColor": "var(--line)",
            "gridOpacity": 0.7,
            "tickSize": 4,
            "labelPadding": 5,
            "titlePadding": 8,
        },
        "axisX": {"grid": False},
        "axisY": {"domain": False, "ticks": False, "titleAnchor": "end"},
        "header": text,
        "text": {"color": "var(--soft)", "fontSize": 11},
        "rule": {"color": "var(--faint)"},
        "bar": {"color": "var(--accent)"},
        "line": {"color": "var(--accent)", "strokeWidth": 1.6},
        "area": {"color": "var(--accent)", "fillOpacity": 0.16},
        "point": {"color": "var(--accent)", "filled": True},
    }


def _policy(scripts: Sequence[str], *, is_live: bool) -> str:
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in scripts
    )
    # Vega sets style attributes; they can load nothing, since everything else is 'none'.
    allowed = hashes or "'none'"
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    ) + ("; connect-src 'self'" if is_live else "")


@cache
def _vega_bundle() -> str:
    # The braces keep the bundle's thousands of names out of the global scope.
    return _script("{" + vega_bundle() + "}")


@cache
def _asset(name: str) -> str:
    return _script((_ASSETS / name).read_text(encoding="utf-8"))


def _script(text: str) -> str:
    lowered = text.lower()
    if "</script" in lowered or "<!--" in lowered or "</style" in lowered:
        raise ValueError("a script or style of the page would end its own element")
    return text.replace("\r\n", "\n")


def link(url: str) -> str:
    """Make a link of a web address; any other, such as `javascript:`, stays text."""
    if urlsplit(url).scheme not in ("http", "https"):
        return url
    return Markup('<a href="{0}" rel="noreferrer">{0}</a>').format(escape(url))
