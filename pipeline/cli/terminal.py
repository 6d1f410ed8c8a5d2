"""Escape control characters in everything that a command prints.

Commands print through the consoles of `pipeline.cli.output`, which escape the text of each segment
and add their own colours. Everything else on stdout and stderr (tracebacks, warnings, lines of
libraries) passes through the streams that `guard_streams` installs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import IO, Any, TextIO, cast

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from pipeline.printable import printable


class SafeConsole(Console):
    """A console that shows text literally, without markup, emoji codes or escape sequences."""

    def __init__(self, *, stderr: bool, width: int | None) -> None:
        super().__init__(stderr=stderr, width=width, highlight=False, markup=False, emoji=False)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Render to segments, with escapes in all but rich's own control segments."""
        for segment in super().render(renderable, options):
            text = segment.text
            if segment.control or text.isprintable():
                yield segment
            else:
                yield Segment(printable(text), segment.style)


class SafeStream:
    """A text stream that escapes what is written to it; rich's consoles write to `stream`."""

    def __init__(self, stream: TextIO) -> None:
        self.rich_proxied_file: IO[str] = stream
        """The wrapped stream, under the name that rich looks for."""

    def write(self, text: str) -> int:
        """Write text."""
        self.rich_proxied_file.write(printable(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)

    def __iter__(self) -> Any:
        return iter(self.rich_proxied_file)


def guard_streams() -> None:
    """Wrap stdout and stderr of this process in a `SafeStream`."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, SafeStream):
            setattr(sys, name, cast("TextIO", SafeStream(stream)))
