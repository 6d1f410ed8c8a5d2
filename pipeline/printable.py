r"""Spell what a terminal would obey instead of show.

Names, values and messages come from data, from servers and from users' code. A terminal obeys
escape sequences in them (colours, titles, links, a cleared screen), and bidirectional controls let
a line read as something else. Wherever text is printed, such characters are spelled: `\x1b[31m`.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

_UNPRINTABLE = re.compile(
    "["
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 without tab and newline, DEL, C1
    "\xad\u061c\u180e\u200b\u200e\u200f"  # soft hyphen, marks of direction, no width
    "\u2028-\u202e\u2060-\u206f"  # separators of lines, overrides and isolates of direction
    "\ufeff\ufff9-\ufffb"
    "\ud800-\udfff"  # halves of pairs, which no encoding has
    "\U000e0000-\U000e007f"  # tags
    "]"
)
"""Zero-width joiners are not among them: Persian and emoji are written with them."""


def printable(text: str) -> str:
    r"""Text whose control characters, except tab and newline, are spelled as Python does.

    >>> printable("a\x1b[31mb\u202ec")
    'a\\x1b[31mb\\u202ec'
    """
    return text if text.isprintable() else _UNPRINTABLE.sub(_spelled, text)


def printable_line(text: str) -> str:
    r"""Text on one line: as `printable`, and newlines are spelled too."""
    return printable(text).replace("\n", "\\n")


def continued(text: str, indent: str = "    ") -> str:
    """Text whose further lines are indented: none of them looks like a line of its own."""
    return text[:1] + text[1:].replace("\n", f"\n{indent}")


def error_text(message: str, hint: str | None) -> str:
    """Format an error and its hint, if any, as a command shows them."""
    lines = {"error: ": message, "next:  ": hint}
    return "\n".join(
        label + printable(continued(text, " " * len(label)))
        for label, text in lines.items()
        if text
    )


def _spelled(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def one_line_json(value: object) -> str:
    """Valid JSON on one line, in ASCII without control characters; what JSON lacks becomes text."""
    try:
        text = json.dumps(value, default=str, allow_nan=False)
    except ValueError:
        text = json.dumps(_without_nan(value), default=str, allow_nan=False)
    return escaped_json(text)


def escaped_json(text: str) -> str:
    """The same JSON, with escapes for what a terminal would obey."""
    return text if text.isprintable() else _UNPRINTABLE.sub(_json_escape, text)


def _json_escape(found: re.Match[str]) -> str:
    return "\\u007f" if found[0] == "\x7f" else json.dumps(found[0])[1:-1]


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value
