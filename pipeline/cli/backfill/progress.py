"""How far a backfill is while we drive it: a bar in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pipeline.cli.output import clock, plural, speed
from pipeline.cli.progress_bar import LiveBar

if TYPE_CHECKING:
    from pipeline.runs.backfill.progress import WindowProgress

LOOK_SECONDS = 0.5
"""How often the board is counted: it is told more often than anybody reads."""
PHASES = {"attached": "watch"}
"""What a phase is called, where not by its own name."""
ANNOUNCED = {
    "attached": "another process drives it: watching (--take-over drives instead)",
    "paused": "paused: `chunkmap backfill resume` goes on",
}


class BackfillDisplay(LiveBar):
    """Shows windows and chunks as they get done."""

    def __init__(self, quiet: bool = False) -> None:
        super().__init__(quiet)
        self._began = self._looked = 0.0
        self._first: dict[str, int] = {}
        self._phase = ""

    def show(self, board: WindowProgress, phase: str) -> None:
        """Show how far the windows are, and what goes on."""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS and phase == self._phase:
            return
        self._looked = now
        counts = board.counts()
        if not self._first:
            self._first, self._began = counts, now
        if phase != self._phase:
            self._phase = phase
            self.line(ANNOUNCED.get(phase, ""))
        todo = sum(counts[name] for name in ("waiting", "mapping", "staged", "done", "failed"))
        self.draw(
            PHASES.get(phase, phase),
            f"{counts['done']:,}/{plural(todo, 'window')}",
            (counts["chunks_done"], counts["chunks"]),
            self._rest(counts, now - self._began, waits=phase == "paused"),
        )

    def _rest(self, counts: dict[str, int], seconds: float, *, waits: bool) -> str:
        """Speeds are of what came in since we look: what was done before does not count."""
        first = self._first
        said = [f"{counts['mapping']:,} mapping", f"{counts['failed']:,} failed"]
        said.append(f"{counts['chunks_done']:,} of {plural(counts['chunks'], 'chunk')}")
        done = counts["chunks_done"] - first["chunks_done"]
        if done and seconds > 1 and not waits:
            said.append(f"{(counts['rows_in'] - first['rows_in']) / seconds:,.0f} rows/s")
            said.append(speed(counts["bytes_in"] - first["bytes_in"], seconds))
            left = counts["chunks"] - counts["chunks_done"]
            said.append(f"ETA {clock(left * seconds / done)}")
        return ", ".join(said)
