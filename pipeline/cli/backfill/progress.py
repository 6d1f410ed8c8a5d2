"""Show the progress of a backfill that this process drives."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pipeline.cli.progress_bar import LiveBar
from pipeline.report.humanize import byte_rate, duration, plural

if TYPE_CHECKING:
    from pipeline.runs.backfill.progress import WindowProgress

REFRESH_SECONDS = 0.5
"""Minimum seconds between two counts of the windows; updates arrive more often."""
PHASE_NAMES = {"attached": "watch"}
"""Shown names of phases, where they differ."""


class BackfillDisplay(LiveBar):
    """Shows how many windows and chunks are done."""

    def __init__(self, resume: str, quiet: bool = False) -> None:
        """Show nothing yet; `resume` is the command that resumes the backfill."""
        super().__init__(quiet)
        self._announcements = {
            "attached": "another process drives it: watching (--take-over takes over)",
            "paused": f"paused; to resume: {resume}",
        }
        self._began = self._refreshed = 0.0
        self._kinds = 0
        self._first: dict[str, int] = {}
        self._phase = ""

    def show(self, progress: WindowProgress, phase: str) -> None:
        """Show the progress of the windows, and the phase."""
        now, errors = time.monotonic(), progress.errors()
        is_news = phase != self._phase or len(errors) != self._kinds
        if now - self._refreshed < REFRESH_SECONDS and not is_news:
            return
        self._refreshed, self._kinds = now, len(errors)
        counts = progress.counts()
        if not self._first:
            self._first, self._began = counts, now
        if phase != self._phase:
            self._phase = phase
            self.line(self._announcements.get(phase, ""))
        todo = sum(counts[name] for name in ("waiting", "mapping", "staged", "done", "failed"))
        self.draw(
            PHASE_NAMES.get(phase, phase),
            f"{counts['done']:,}/{plural(todo, 'window')}",
            (counts["chunks_done"], counts["chunks"]),
            self._rest(counts, now - self._began, is_paused=phase == "paused"),
            errors,
        )

    def _rest(self, counts: dict[str, int], seconds: float, *, is_paused: bool) -> str:
        """Format counts, speeds and ETA; speeds count only what was done since the first call."""
        first = self._first
        parts = [f"{counts['mapping']:,} mapping", f"{counts['failed']:,} failed"]
        parts.append(f"{counts['chunks_done']:,} of {plural(counts['chunks'], 'chunk')}")
        done = counts["chunks_done"] - first["chunks_done"]
        if done and seconds > 1 and not is_paused:
            parts.append(f"{(counts['rows_in'] - first['rows_in']) / seconds:,.0f} rows/s")
            parts.append(byte_rate((counts["bytes_in"] - first["bytes_in"]) / seconds))
            left = counts["chunks"] - counts["chunks_done"]
            parts.append(f"ETA {duration(left * seconds / done)}")
        return ", ".join(parts)
