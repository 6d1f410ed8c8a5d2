"""Real commands on a real terminal (a pty) or none, and the bytes that they print."""

from __future__ import annotations

import os
import pty
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support import forks
from tests.support.forks import MAIN

ESCAPES = {
    "colour": "\x1b[31;1mred",
    "title": "\x1b]0;title\x07",
    "link": "\x1b]8;;http://evil.example/\x1b\\link",
    "clear": "\x1b[2J\x1b[H",
    "c1": "\x9b31mred\x9d0;title\x9c",
    "bidi": "\u202eevil\u2066\u200f",
    "markup": "[link=http://evil.example/]link[/] [bold red]x[/] [/nonsense]",
    "emoji": ":warning:",
    "others": "\x07\x08\x0b\x0c\r\x7f\u2028",
}
HOSTILE = "start" + "".join(ESCAPES.values()) + "end"
"""No newline in it: files of Hive partitions and names of columns have none either."""

_OURS = re.compile(r"\x1b\[[0-9;]*m|\x1b\[\?25[lh]|\x1b\[[0-9]*[AK]|\x1b\[2K|\r")
"""What rich draws with: colours, a hidden cursor, lines that it redraws."""
_DATA_COLOUR = "31;1"
"""As rich never writes bold red."""
_BIDI = "\u061c\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


@dataclass(frozen=True)
class Printed:
    """What a command printed, as bytes."""

    code: int
    out: bytes
    err: bytes
    """Empty on a terminal, where both are one."""

    @property
    def text(self) -> str:
        """Both."""
        return (self.out + self.err).decode()


def give(
    folder: Path,
    *arguments: str,
    terminal: bool,
    environment: Mapping[str, str] | None = None,
    code: str = MAIN,
) -> Printed:
    """Give a command in a folder, on a terminal of 150 columns or without one."""
    variables = {
        **os.environ,
        "PYTHONPATH": forks.REPOSITORY,
        "TERM": "xterm-256color",
        "COLUMNS": "150",
        **(environment or {}),
    }
    if not terminal:
        done = forks.give(*arguments, code=code, cwd=folder, variables=variables, seconds=240)
        return Printed(done.returncode, done.stdout.encode(), done.stderr.encode())
    ours, theirs = pty.openpty()
    process = forks.forks().start(code, arguments, str(folder), variables, theirs, theirs, theirs)
    os.close(theirs)
    printed = b"".join(_read(ours))
    os.close(ours)
    return Printed(process.wait(240), printed, b"")


def _read(ours: int) -> Iterator[bytes]:
    """Bytes from a terminal, until the last process has closed it."""
    while True:
        try:
            block = os.read(ours, 65536)
        except OSError:
            return
        if not block:
            return
        yield block


def assert_harmless(printed: Printed, *, terminal: bool) -> None:
    """Raise unless nothing but text and rich's own drawing was printed."""
    text = printed.text
    if terminal:
        assert _DATA_COLOUR not in re.findall(r"\x1b\[([0-9;]*)m", text), "the data's colour"
        text = _OURS.sub("", text)
    bad = {
        character
        for character in text
        if (unicodedata.category(character) == "Cc" and character not in "\n\t")
        or character in _BIDI
    }
    assert not bad, f"{bad} in {printed.text[:2000]!r}"
    assert "⚠" not in text
