"""The door to the terminal: whatever is printed in a command passes here, and is spelled.

Commands print through the consoles of `pipeline.cli.output`, which spell the text of each segment
and add colours of their own. All else that ends up on stdout and stderr (tracebacks, warnings,
lines of libraries) passes the streams that `guard_streams` puts in place.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import IO, Any, TextIO, cast

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from pipeline.printable import printable


class SafeConsole(Console):
    """A console that shows text as it is: no markup, no emoji codes, no escape sequences in it."""

    def __init__(self, *, stderr: bool, width: int | None) -> None:
        super().__init__(stderr=stderr, width=width, highlight=False, markup=False, emoji=False)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Render to segments; those that are no control of rich's own are spelled."""
        for segment in super().render(renderable, options):
            text = segment.text
            if segment.control or text.isprintable():
                yield segment
            else:
                yield Segment(printable(text), segment.style)


class SafeStream:
    """A text stream that spells what is written to it. Consoles of rich write beneath it."""

    def __init__(self, stream: TextIO) -> None:
        self.rich_proxied_file: IO[str] = stream
        """The stream beneath, by the name that rich looks for."""

    def write(self, text: str) -> int:
        """Write text."""
        self.rich_proxied_file.write(printable(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write some texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)

    def __iter__(self) -> Any:
        return iter(self.rich_proxied_file)


def guard_streams() -> None:
    """Let stdout and stderr of this process spell what is printed."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, SafeStream):
            setattr(sys, name, cast("TextIO", SafeStream(stream)))
