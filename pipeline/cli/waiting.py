"""Show what a command is waiting for: a spinner in a terminal, a line elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from pipeline.cli.output import notes, out, say


class Waiting:
    """Shows what is being waited for, and for how long, until its `with` block ends."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._progress: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._hide()

    def __call__(self, what: str) -> None:
        """Show what is being waited for from now on."""
        if self._quiet:
            return
        if not notes.is_terminal:
            say(f"waiting for {what} …", console=notes)
            return
        if self._progress is None:
            columns = (
                SpinnerColumn(),
                TextColumn("waiting for {task.description}", markup=False),
                TimeElapsedColumn(),
            )
            self._progress = Progress(
                *columns,
                console=notes,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._task = self._progress.add_task(what, total=None)
            self._progress.start()
        else:
            self._progress.reset(self._task, description=what, total=None)

    def line(self, text: str, console: Console = out) -> None:
        """Print a line; the spinner continues below it."""
        with self._hidden():
            say(text, console=console)

    @contextmanager
    def _hidden(self) -> Iterator[None]:
        # The spinner is on stderr, and a line on stdout would be drawn over.
        if self._progress is not None:
            self._progress.stop()
        try:
            yield
        finally:
            if self._progress is not None:
                self._progress.start()

    def _hide(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
