"""Print results and notes in the terminal: lines, tables, JSON."""

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
"""Width of the output where there is no terminal, wide enough to keep URIs whole."""


def _console(stream: TextIO | None, *, stderr: bool) -> Console:
    is_terminal = stream is not None and stream.isatty()
    return SafeConsole(stderr=stderr, width=None if is_terminal else PIPE_COLUMNS)


out = _console(sys.stdout, stderr=False)
"""Console for results, on stdout."""
notes = _console(sys.stderr, stderr=True)
"""Console for everything else, on stderr: with --json, stdout holds only the object."""


def print_json(value: Any) -> None:
    """Print one machine-readable object on stdout."""
    print_object(asdict(value) if is_dataclass(value) and not isinstance(value, type) else value)


def say(text: str, *, mark: str = "", console: Console = out, indent: str = "    ") -> None:
    """Print a line literally: nothing in it is read as markup, and nothing is cut.

    Args:
        text: The line.
        mark: Markup to print before it; a style that it leaves open applies to the line.
        console: Where to print.
        indent: Put before further lines of the text, so that data cannot pass for a message.
    """
    console.print(marked(continued(text, indent), mark), soft_wrap=not console.is_terminal)


def live(
    renderable: RenderableType,
    console: Console,
    *,
    auto_refresh: bool = True,
    transient: bool = False,
) -> Live:
    """Make a display that is redrawn in place; it leaves stdout and stderr to `guard_streams`."""
    return Live(
        renderable,
        console=console,
        auto_refresh=auto_refresh,
        transient=transient,
        redirect_stdout=False,
        redirect_stderr=False,
    )


def marked(text: str, mark: str = "") -> Text:
    """Put markup before a text that is shown literally."""
    return Text.from_markup(f"{mark}{escape(printable(text))}", emoji=False)


def warn(text: str) -> None:
    """Print a warning."""
    say(text, mark="[yellow]note:[/] ", console=notes, indent=" " * 6)


def bad(text: str, console: Console = out) -> None:
    """Print one problem."""
    say(text, mark="  [red]✗[/] ", console=console)


def show_commands(commands: Mapping[str, str]) -> None:
    """Print the commands to go on with, each with what it does, ready to be copied."""
    say("Next:", mark="\n[bold]")
    width = max(map(len, commands))
    for command, purpose in commands.items():
        say(f"  {command:<{width}}  # {purpose}")


def show_pairs(title: str, rows: Mapping[str, object]) -> None:
    """Print a title and, below it, a table of names and values."""
    if title:
        say(title, mark="[bold]")
    out.print(pairs(rows))


def pairs(rows: Mapping[str, object]) -> Table:
    """Make a table of names and values."""
    table = Table(show_header=False, **_PLAIN)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, printable(str(value)))
    return table


def columns(
    names: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[str] = ()
) -> Table:
    """Make a table with a header; values are wrapped, not cut."""
    table = Table(**_PLAIN)
    for name in names:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(printable(str(value)) for value in row))
    return table


_PLAIN: dict[str, Any] = {"box": None, "pad_edge": False}
