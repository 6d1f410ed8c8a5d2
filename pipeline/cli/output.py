"""Print results and notes in the terminal: lines, tables, JSON."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, Literal, TextIO

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
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
    """Print the next commands, each with what it does, ready to be copied."""
    say("Next:", mark="\n[bold]")
    width = max(map(len, commands))
    for command, purpose in commands.items():
        say(f"  {command:<{width}}  # {purpose}")


def show_pairs(title: str, rows: Mapping[str, object]) -> None:
    """Print a title and, below it, a table of names and values."""
    if title:
        say(title, mark="[bold]")
    out.print(pairs(rows))


def report_place(uri: str, local: str) -> str:
    """Say where a report is: the copy on this machine, if there is one, and the stored page."""
    return f"{local} (stored as {uri})" if local else uri


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
) -> RenderableType:
    """Make a table with a header; values are wrapped, not cut.

    Where the table is too narrow for the words in it, each row is shown as names and values.
    """
    texts = [[printable(str(value)) for value in row] for row in rows]
    return _Columns(tuple(names), texts, tuple(right))


@dataclass(frozen=True, slots=True)
class _Columns:
    """A table that becomes a list where it would break its words."""

    names: tuple[str, ...]
    rows: list[list[str]]
    right: tuple[str, ...]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the table, or the list."""
        if self._word_widths() <= options.max_width:
            table = Table(**_PLAIN)
            for name in self.names:
                justify: Literal["left", "right"] = "right" if name in self.right else "left"
                table.add_column(name, justify=justify, overflow="fold")
            for row in self.rows:
                table.add_row(*row)
            yield table
            return
        for number, row in enumerate(self.rows):
            if number:
                yield Text()
            shown = zip(self.names, row, strict=True)
            yield pairs({name: value for name, value in shown if value.strip()})

    def _word_widths(self) -> int:
        """The sum of the columns' longest words, without those that no table could hold."""
        columns = zip(self.names, *self.rows, strict=True)
        words = (max(map(_longest_word, column), default=0) for column in columns)
        return sum(words) + 2 * (len(self.names) - 1)


def _longest_word(text: str) -> int:
    return max((cell_len(word) for word in text.split() if len(word) <= MAX_WORD), default=0)


MAX_WORD = 24
"""Characters of a word above which it may be broken: URIs, paths."""
_PLAIN: dict[str, Any] = {"box": None, "pad_edge": False}
