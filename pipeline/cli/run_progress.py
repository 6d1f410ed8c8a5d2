"""How far a run is: a bar in a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.cli.output import clock, plural, speed
from pipeline.cli.progress_bar import LiveBar

if TYPE_CHECKING:
    from pipeline.runs.driver.summary import MapProgress


class Display(LiveBar):
    """Shows the phases of a run, and the progress of its mapping."""

    def __init__(self, quiet: bool = False) -> None:
        super().__init__(quiet)
        self._phase = ""
        self._watched = False
        self._first: MapProgress | None = None
        self._now: MapProgress | None = None

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
        self._phase = name
        self.settle()
        self.begin(name)
        if name == "attached":
            self._watched = True
            self._first = None
            self.line("another process drives this run: watching it (--take-over drives instead)")
        elif not self.is_drawn:
            self.line(f"{name} …")

    def mapping(self, now: MapProgress) -> None:
        """Show how far the mapping is."""
        self._first, self._now = self._first or now, now
        counted = f"{now.done:,}/{plural(now.chunks, 'chunk')}"
        self.draw("map", counted, (now.done, now.chunks), _rest(now, self._first))


def _rest(now: MapProgress, first: MapProgress) -> str:
    """Speeds are of what came in since we look: what was done before does not count."""
    seconds = max(now.seconds - first.seconds, 1e-3)
    done = now.done - first.done
    failed = f"{now.failed:,} failed, " if now.failed else ""
    if not done:
        return f"{failed}ETA unknown yet" if now.done < now.chunks else f"{failed}ETA 0 s"
    eta = clock((now.chunks - now.done) * seconds / done)
    return (
        f"{failed}{(now.rows_in - first.rows_in) / seconds:,.0f} rows/s, "
        f"{speed(now.bytes_in - first.bytes_in, seconds)}, ETA {eta}"
    )
