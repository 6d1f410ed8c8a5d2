"""Show how far a run is: a bar in a terminal, in a notebook a widget or HTML that changes."""

from __future__ import annotations

import sys
import time
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol, Self

from typing_extensions import override

from chunkmap.pages import progress_html
from pipeline.report.humanize import plural

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
        self._is_quiet = quiet
        self._display: _Display | None = None
        self._drawn = ("", 0.0)

    def __enter__(self) -> Self:
        if self._is_quiet:
            return self
        if in_notebook():
            has_widgets = find_spec("ipywidgets") is not None
            self._display = _Widget(self._name) if has_widgets else _Html(self._name)
        elif sys.stderr.isatty():
            self._display = _Terminal()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._display is not None:
            # What the call returns is shown instead.
            self._display.close(failed=kind is not None)

    def show(self, phase: str, done: int = 0, total: int = 0, unit: str = "chunk") -> None:
        """Show a phase and, if it has parts, how many of them are done."""
        if self._display is None:
            return
        before, at = self._drawn
        if phase == before and done < total and time.monotonic() - at < REDRAW_SECONDS:
            return
        self._drawn = phase, time.monotonic()
        text = f"{done:,} of {plural(total, unit)}" if total else ""
        self._display.draw(phase, text, done, total)


class _Display(Protocol):
    def draw(self, phase: str, text: str, done: int, total: int) -> None:
        """Show how far it is; without a total, only the phase."""

    def close(self, *, failed: bool) -> None:
        """End the display; after an error the last state may stay."""


class _Terminal(_Display):
    """A bar of rich, on standard error."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        text = TextColumn("{task.fields[text]}", markup=False)
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), text)
        self._bar = Progress(
            *columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True
        )
        self._bar.start()
        self._task = self._bar.add_task("start", total=None, text="")

    @override
    def draw(self, phase: str, text: str, done: int, total: int) -> None:
        self._bar.update(
            self._task, description=phase, completed=done, total=total or None, text=text
        )

    @override
    def close(self, *, failed: bool) -> None:
        self._bar.stop()


class _Html(_Display):
    """A line of HTML that is replaced."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._html: Any = import_module("IPython.display")
        self._handle = self._html.display(self._page("start", "", 0, 0), display_id=True)

    @override
    def draw(self, phase: str, text: str, done: int, total: int) -> None:
        self._handle.update(self._page(phase, text, done, total))

    @override
    def close(self, *, failed: bool) -> None:
        if not failed:
            self._handle.update(self._html.HTML(""))

    def _page(self, phase: str, text: str, done: int, total: int) -> Any:
        return self._html.HTML(progress_html(self._name, phase, text, done, total))


class _Widget(_Display):
    """A progress bar of ipywidgets."""

    def __init__(self, name: str) -> None:
        widgets: Any = import_module("ipywidgets")
        self._name = name
        self._bar = widgets.IntProgress(value=0, min=0, max=1)
        self._text = widgets.Label(f"{name} · start")
        self._box = widgets.HBox([self._bar, self._text])
        import_module("IPython.display").display(self._box)

    @override
    def draw(self, phase: str, text: str, done: int, total: int) -> None:
        # The maximum first: a value above it would be cut.
        self._bar.max, self._bar.value = max(1, total), done
        self._text.value = f"{self._name} · {phase} {text}"

    @override
    def close(self, *, failed: bool) -> None:
        if failed:
            self._bar.bar_style = "danger"
        else:
            self._box.close()


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"
