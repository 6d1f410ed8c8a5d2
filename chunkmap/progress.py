"""Show how far a run is: a bar in a terminal, a line that changes in a notebook, else nothing."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from importlib import import_module
from typing import TYPE_CHECKING, Any, Self

from chunkmap.pages import progress_html
from pipeline.report.humanize import plural

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

REDRAW_SECONDS = 0.5
"""Minimum seconds between two updates in a notebook."""


class Progress:
    """Shows the phases of a run while its `with` block lasts."""

    def __init__(self, name: str, *, quiet: bool = False) -> None:
        """Start with nothing shown.

        Args:
            name: What runs.
            quiet: Show nothing at all.
        """
        self._name = name
        self._stack = ExitStack()
        self._bar: RichProgress | None = None
        self._task: Any = None
        self._handle: Any = None
        self._drawn = ("", 0.0)
        self._is_quiet = quiet

    def __enter__(self) -> Self:
        if self._is_quiet:
            return self
        if in_notebook():
            html = import_module("IPython.display")
            page = html.HTML(progress_html(self._name, "start", "", 0, 0))
            self._handle = html.display(page, display_id=True)
        elif sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            text = TextColumn("{task.fields[text]}", markup=False)
            columns = (TextColumn("{task.description}", markup=False), BarColumn(), text)
            bar = Progress(
                *columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True
            )
            self._bar = self._stack.enter_context(bar)
            self._task = bar.add_task("start", total=None, text="")
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._stack.close()
        if self._handle is not None and kind is None:
            # What the call returns is shown instead.
            self._handle.update(import_module("IPython.display").HTML(""))

    def show(self, phase: str, done: int = 0, total: int = 0, unit: str = "chunk") -> None:
        """Show a phase and, if it has parts, how many of them are done."""
        text = f"{done:,} of {plural(total, unit)}" if total else ""
        if self._bar is not None:
            whole = total or None
            self._bar.update(self._task, description=phase, completed=done, total=whole, text=text)
        elif self._handle is not None:
            before, at = self._drawn
            if phase == before and done < total and time.monotonic() - at < REDRAW_SECONDS:
                return
            self._drawn = phase, time.monotonic()
            page = progress_html(self._name, phase, text, done, total)
            self._handle.update(import_module("IPython.display").HTML(page))


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"
