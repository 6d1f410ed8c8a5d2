"""Show progress: one bar in a terminal, elsewhere a line every few seconds."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Self

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from pipeline.cli.output import live, notes, say
from pipeline.printable import printable_line

MAX_ERRORS = 3
"""Maximum number of kinds of failures below the bar."""
PLAIN_SECONDS = 5.0
"""Seconds between two lines where there is no terminal."""


class LiveBar:
    """Shows the progress of something for as long as its `with` block lasts."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._printed = 0.0
        self._last = self._last_printed = ""
        self._told: set[str] = set()
        self._below = Text("", style="dim")
        self._live: Live | None = None
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> Self:
        if notes.is_terminal and not self._quiet:
            self._bar = Progress(
                TextColumn("{task.fields[phase]:<8}", style="bold", markup=False),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[counted]}", markup=False),
                TimeElapsedColumn(),
                console=notes,
            )
            self._task = self._bar.add_task("", total=None, phase="start", counted="")
            # Removed at the end: the summary replaces it.
            self._live = live(Group(self._bar, self._below), console=notes, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
        else:
            self.settle()

    @property
    def is_drawn(self) -> bool:
        """Whether there is a bar; otherwise there are lines."""
        return self._bar is not None

    def begin(self, name: str, what: str = "") -> None:
        """Name the phase that begins and what it waits for, before its progress is known."""
        if self._bar is not None:
            self._bar.update(self._task, phase=name, total=None, counted="")
            self._below.plain = " " * 9 + what if what else ""

    def stopping(self) -> None:
        """Tell that Ctrl-C was noticed."""
        self.begin("stop", "waiting for workers to hand back their chunks")
        self.line("stopping: completed chunks are kept (this takes a few seconds)")

    def draw(
        self,
        phase: str,
        counted: str,
        share: tuple[int, int],
        rest: str,
        errors: Sequence[str] = (),
    ) -> None:
        """Show the progress.

        Args:
            phase: Name of the phase.
            counted: Text next to the bar, such as `12/40 chunks`.
            share: How much is done, and the total.
            rest: Further figures, shown below the bar.
            errors: Kinds of failures so far, shown below; where there is no bar, each once.
        """
        self._last = f"{phase} {counted}, {rest}"
        if self._bar is not None:
            done, total = share if share[1] else (1, 1)
            self._bar.update(self._task, phase=phase, total=total, completed=done, counted=counted)
            lines = [rest, *(f"✗ {_first_line(error)}" for error in errors[:MAX_ERRORS])]
            self._below.plain = "\n".join(" " * 9 + printable_line(line) for line in lines)
            return
        for error in errors:
            text = _first_line(error)
            kind = text.partition(": ")[2]
            if kind not in self._told:
                self._told.add(kind)
                self.line(f"✗ {text}")
        if time.monotonic() - self._printed >= PLAIN_SECONDS:
            self.line(self._last)

    def settle(self) -> None:
        """Where there is no bar, print the last progress line if it was held back."""
        if self._bar is None:
            self.line(self._last)
        self._last = ""

    def line(self, text: str) -> None:
        """Print a separate line, unless it is the one printed last."""
        if text and text != self._last_printed and not self._quiet:
            self._printed = time.monotonic()
            self._last_printed = text
            say(text, console=notes)


def _first_line(text: str) -> str:
    return text.partition("\n")[0]
