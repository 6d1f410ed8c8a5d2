"""The page that every report shares: one self-contained HTML file.

A page holds its styles, its data and the Vega libraries itself. Its content security policy lets
the browser load nothing at all and run only the two scripts that are in the page, known by their
hashes: neither a stray address nor an error message full of markup can do anything.

Charts take their colours from CSS variables, so one drawing serves light, dark and print.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

from markupsafe import Markup, escape

from pipeline.printable import printable

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
    """A colour of a chart in words."""

    label: str
    colour: str
    """A CSS colour, by preference one of the page's variables: `var(--read)`."""
    value: str = ""


@dataclass(frozen=True, slots=True)
class Chart:
    """A Vega-Lite chart with what a reader needs who cannot see it."""

    kind: ClassVar[str] = "chart"
    title: str
    spec: Mapping[str, Any]
    """Vega-Lite, with its data; sized `container` in width."""
    description: str
    """What the chart shows, in words: the text alternative."""
    caption: str = ""
    """What to see in it: one or two sentences under the title."""
    legend: tuple[LegendItem, ...] = ()
    half: bool = False
    """Half the page's width, where the page is wide enough."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table, as the HTML that tables.py makes."""

    kind: ClassVar[str] = "table"
    title: str
    html: Markup
    caption: str = ""
    half: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """Names and values, in a list; a value may be Markup (a link)."""

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
    """A long text, such as an error's message, folded behind its summary."""

    kind: ClassVar[str] = "example"
    summary: str
    text: str
    open: bool = False
    half: bool = False


Block = Chart | Table | Facts | Note | Example


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what is under it."""

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
    """The kind of report, above the title."""
    summary: str
    """The page in one sentence."""
    cards: tuple[Card, ...]
    sections: tuple[Section, ...]
    badge: str = ""
    badge_tone: Tone = "plain"
    notice: Notice | None = None
    footer: str = ""


def render_page(page: Page) -> str:
    """The page as HTML that opens offline.

    Raises:
        ValueError: A script would end the element that it is in.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.filters["json"] = script_json
    has_charts = any(block.kind == "chart" for part in page.sections for block in part.blocks)
    scripts = [_vega_bundle(), _asset("page.js")] if has_charts else []
    return environment.get_template("page.html.j2").render(
        page=page,
        style=_Asset(_asset("page.css")),
        scripts=[_Asset(script) for script in scripts],
        policy=_policy(scripts),
        theme=vega_theme(),
    )


class _Asset(Markup):
    """A style or a script of ours: the policy names its hash, so it stays as it is."""


def _shown(value: Any) -> Any:
    """Spell control characters and bidirectional overrides in whatever the page shows."""
    if isinstance(value, _Asset) or not isinstance(value, str):
        return value
    return Markup(printable(str(value))) if isinstance(value, Markup) else printable(value)


def _spelled(value: Any) -> Any:
    """The same in the data of a chart."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {_spelled(key): _spelled(item) for key, item in value.items()}
    return [_spelled(item) for item in value] if isinstance(value, list | tuple) else value


def script_json(value: Any) -> Markup:
    """JSON that is safe inside a script element, whatever its strings hold."""
    text = json.dumps(_spelled(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(
        text.replace("&", "\\u0026")
        .replace("<", "\\u003c")
        .replace(">", "\\u003e")
        .replace("\u2028", "\\u2028")
        .replace("\u2029", "\\u2029")
    )


def vega_theme() -> dict[str, Any]:
    """The Vega-Lite configuration of every chart."""
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


def _policy(scripts: Sequence[str]) -> str:
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in scripts
    )
    # Vega sets style attributes; nothing in them can load, since everything else is 'none'.
    allowed = hashes or "'none'"
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


@cache
def _vega_bundle() -> str:
    import vl_convert

    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    # A block keeps the bundle's thousands of names out of the page's global scope.
    return _script("{" + bundle + "}")


@cache
def _asset(name: str) -> str:
    return _script((_ASSETS / name).read_text(encoding="utf-8"))


def _script(text: str) -> str:
    lowered = text.lower()
    if "</script" in lowered or "<!--" in lowered or "</style" in lowered:
        raise ValueError("a script or style of the page would end its own element")
    return text.replace("\r\n", "\n")


def link(url: str) -> str:
    """An address as a link, if it is one of the web."""
    # Only an address of the web becomes a link: javascript: and the like stay text.
    if urlsplit(url).scheme not in ("http", "https"):
        return url
    return Markup('<a href="{0}" rel="noreferrer">{0}</a>').format(escape(url))
