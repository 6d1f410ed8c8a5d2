"""How far a run is: a bar in a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from pipeline.cli.screen import notes, plural, say, speed

if TYPE_CHECKING:
    from pipeline.rounds import MapProgress

PLAIN_SECONDS = 5.0
"""How often a line is printed where there is no terminal."""


class Display:
    """Shows the phases of a run, and the progress of its mapping."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._phase = ""
        self._printed = 0.0
        self._last = self._said = ""
        self._watched = False
        self._first: MapProgress | None = None
        self._now: MapProgress | None = None
        self._below = Text("", style="dim")
        self._live: Live | None = None
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> Self:
        if notes.is_terminal and not self._quiet:
            self._bar = Progress(
                TextColumn("[bold]{task.fields[phase]:<8}"),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[counted]}"),
                TimeElapsedColumn(),
                console=notes,
            )
            self._task = self._bar.add_task("", total=None, phase="start", counted="")
            # Gone at the end: the summary says it all.
            self._live = Live(Group(self._bar, self._below), console=notes, transient=True)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    @property
    def watched(self) -> bool:
        """Whether another process drove the run for a while."""
        return self._watched

    @property
    def bytes_in(self) -> int:
        """Bytes read while we looked on: what was done before does not count."""
        return self._now.bytes_in - self._first.bytes_in if self._now and self._first else 0

    def phase(self, name: str) -> None:
        """Say what goes on now."""
        if name == self._phase:
            return
        if self._bar is None:
            self._line(self._last)
            self._last = ""
        else:
            self._bar.update(self._task, phase=name, total=None)
        self._phase = name
        if name == "attached":
            self._watched = True
            self._first = None
            self._line("another process drives this run: watching it (--take-over drives instead)")
        elif self._bar is None:
            self._line(f"{name} …")

    def mapping(self, now: MapProgress) -> None:
        """Show how far the mapping is."""
        self._first, self._now = self._first or now, now
        counted = f"{now.done:,}/{plural(now.chunks, 'chunk')}"
        rest = self._rest(now, self._first)
        self._last = f"map {counted}, {rest}"
        if self._bar is not None:
            done, total = (now.done, now.chunks) if now.chunks else (1, 1)
            self._bar.update(self._task, total=total, completed=done, counted=counted)
            self._below.plain = " " * 9 + rest
        elif time.monotonic() - self._printed >= PLAIN_SECONDS:
            self._line(self._last)

    def _line(self, text: str) -> None:
        """Print a line of its own, once."""
        if text and text != self._said and not self._quiet:
            self._printed = time.monotonic()
            self._said = text
            say(text, console=notes)

    @staticmethod
    def _rest(now: MapProgress, first: MapProgress) -> str:
        """Speeds are of what came in since we look: what was done before does not count."""
        seconds = max(now.seconds - first.seconds, 1e-3)
        done = now.done - first.done
        failed = f"{now.failed:,} failed, " if now.failed else ""
        if not done:
            return f"{failed}ETA unknown yet" if now.done < now.chunks else f"{failed}ETA 0 s"
        eta = _duration((now.chunks - now.done) * seconds / done)
        return (
            f"{failed}{(now.rows_in - first.rows_in) / seconds:,.0f} rows/s, "
            f"{speed(now.bytes_in - first.bytes_in, seconds)}, ETA {eta}"
        )


def _duration(seconds: float) -> str:
    """Seconds as a clock shows them; short ones as they are."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
