r"""Escape control characters in text that is printed.

Names, values and messages come from data, from servers and from users' code. A terminal would
execute escape sequences in them (colours, titles, links, a cleared screen), and bidirectional
controls make a line read as something else. Printed text shows such characters as `\x1b[31m`.
"""

from __future__ import annotations

import json
import math
import re
from functools import partial
from textwrap import wrap
from typing import Any

_UNPRINTABLE = re.compile(
    "["
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 without tab and newline, DEL, C1
    "\xad\u061c\u180e\u200b\u200e\u200f"  # soft hyphen, direction marks, zero width
    "\u2028-\u202e\u2060-\u206f"  # line separators, direction overrides and isolates
    "\ufeff\ufff9-\ufffb"
    "\ud800-\udfff"  # surrogates, which cannot be encoded
    "\U000e0000-\U000e007f"  # tags
    "]"
)
"""Zero-width joiners are not included: Persian text and emoji need them."""


def printable(text: str) -> str:
    r"""Escape control characters, except tab and newline, as Python does.

    >>> printable("a\x1b[31mb\u202ec")
    'a\\x1b[31mb\\u202ec'
    """
    return text if text.isprintable() else _UNPRINTABLE.sub(_escape, text)


def printable_line(text: str) -> str:
    r"""Escape as `printable` does, newlines too: the text is one line."""
    return printable(text).replace("\n", "\\n")


def encodable(text: str) -> str:
    r"""Escape lone surrogates, which UTF-8 and thus JSON cannot hold, as Python does.

    >>> encodable("caf\udce9")
    'caf\\udce9'
    """
    return text.encode("utf-8", "backslashreplace").decode()


def continued(text: str, indent: str = "    ") -> str:
    """Indent all lines but the first, so that none of them looks like a separate line."""
    return text[:1] + text[1:].replace("\n", f"\n{indent}")


def error_text(message: str, hint: str | None, width: int | None = None) -> str:
    """Format an error and its hint, if any, as a command shows them.

    Args:
        message: The error.
        hint: The next step.
        width: Width of the terminal, to fold lines at words. None: lines stay whole.
    """
    lines = {"error: ": message, "next:  ": hint}
    return "\n".join(
        label + continued(_folded(printable(text), width, len(label)), " " * len(label))
        for label, text in lines.items()
        if text
    )


def _folded(text: str, width: int | None, indent: int) -> str:
    """Fold the lines of a text at words; a longer word stays whole."""
    if width is None or width <= 2 * indent:
        return text
    fold = partial(wrap, width=width - indent, break_long_words=False, break_on_hyphens=False)
    return "\n".join("\n".join(fold(line)) or line for line in text.split("\n"))


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def one_line_json(value: object) -> str:
    """Return valid JSON on one line in ASCII, without control characters.

    Values that JSON does not know become text.
    """
    try:
        text = json.dumps(value, default=str, allow_nan=False)
    except ValueError:
        text = json.dumps(_without_nan(value), default=str, allow_nan=False)
    return escaped_json(text)


def escaped_json(text: str) -> str:
    """Return equal JSON in which control characters are escaped."""
    return text if text.isprintable() else _UNPRINTABLE.sub(_json_escape, text)


def _json_escape(match: re.Match[str]) -> str:
    return "\\u007f" if match[0] == "\x7f" else json.dumps(match[0])[1:-1]


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value
