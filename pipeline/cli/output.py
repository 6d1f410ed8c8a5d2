"""What the commands share in the terminal: consoles, tables, lines, JSON."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any, TextIO

from rich.console import Console, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from pipeline.cli.errors import print_object
from pipeline.cli.terminal import SafeConsole
from pipeline.printable import continued, printable

PIPE_COLUMNS = 200
"""Where there is no terminal nobody sees a width, and a URI cut in two is of no use."""


def _console(stream: TextIO, *, stderr: bool) -> Console:
    return SafeConsole(stderr=stderr, width=None if stream.isatty() else PIPE_COLUMNS)


out = _console(sys.stdout, stderr=False)
"""For results."""
notes = _console(sys.stderr, stderr=True)
"""For everything else: with --json nothing but the object is on stdout."""


def print_json(value: Any) -> None:
    """One machine-readable object on stdout."""
    print_object(asdict(value) if is_dataclass(value) and not isinstance(value, type) else value)


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(count) < 1024 or unit == "TiB":
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1024
    raise AssertionError("the last unit returns")


def speed(count: float, seconds: float) -> str:
    """Bytes a second for people; small ones are not shown as nothing."""
    megabytes = count / max(seconds, 1e-9) / 1e6
    return f"{megabytes:,.1f} MB/s" if megabytes >= 1 else f"{megabytes:.2g} MB/s"


def clock(seconds: float) -> str:
    """Seconds as a clock shows them; short ones as they are."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def plural(count: int, noun: str) -> str:
    """A number of things."""
    return f"{count:,} {noun}" + ("" if count == 1 else "es" if noun.endswith("h") else "s")


def say(text: str, *, mark: str = "", console: Console = out, indent: str = "    ") -> None:
    """Print a line as it is: what looks like markup is the user's, and nothing is cut.

    Args:
        text: The line.
        mark: Markup of ours before it; a style that it leaves open is the line's.
        console: Where to.
        indent: Before further lines of the text, so that data cannot pass for a line of ours.
    """
    console.print(marked(continued(text, indent), mark), soft_wrap=not console.is_terminal)


def live(
    renderable: RenderableType,
    console: Console,
    *,
    auto_refresh: bool = True,
    transient: bool = False,
) -> Live:
    """What is drawn again and again; it leaves stdout and stderr to `guard_streams`."""
    return Live(
        renderable,
        console=console,
        auto_refresh=auto_refresh,
        transient=transient,
        redirect_stdout=False,
        redirect_stderr=False,
    )


def marked(text: str, mark: str = "") -> Text:
    """Text as it is, after markup of ours."""
    return Text.from_markup(f"{mark}{escape(printable(text))}", emoji=False)


def warn(text: str) -> None:
    """Print a warning."""
    say(text, mark="[yellow]note:[/] ", console=notes, indent=" " * 6)


def bad(text: str, console: Console = out) -> None:
    """Print one thing that is wrong."""
    say(text, mark="  [red]✗[/] ", console=console)


def show_pairs(title: str, rows: Mapping[str, object]) -> None:
    """Print a title and, below it, a small table of names and values."""
    if title:
        say(title, mark="[bold]")
    out.print(pairs(rows))


def pairs(rows: Mapping[str, object]) -> Table:
    """A small table of names and values."""
    table = Table(show_header=False, **_PLAIN)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, printable(str(value)))
    return table


def columns(
    names: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[str] = ()
) -> Table:
    """A table with a header; no value is cut, whatever the terminal's width."""
    table = Table(**_PLAIN)
    for name in names:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(printable(str(value)) for value in row))
    return table


_PLAIN: dict[str, Any] = {"box": None, "pad_edge": False}
