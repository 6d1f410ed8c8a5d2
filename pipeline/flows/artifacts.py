"""Show runs, backfills and ingests in Prefect by artifacts, which are for people.

If the server is slow or unavailable, the work continues without them.
"""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import dataclass, field
from threading import Thread
from typing import Any
from uuid import UUID

import polars as pl
from prefect.artifacts import (
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from pipeline.flows.event_sender import FLUSH_SECONDS
from pipeline.report.humanize import byte_size, instant, plural
from pipeline.runs.backfill.progress import WindowProgress

ARTIFACT_SECONDS = 5.0
"""Seconds between two updates of the progress artifact."""
MAX_WINDOWS = 500
"""Maximum number of windows in the table of a backfill."""
_ORDER = ("failed", "mapping", "staged", "waiting", "done", "skipped", "empty")
"""States of windows, what people look for first."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class ArtifactSender:
    """Sends artifacts of the current flow run, one at a time, in a thread."""

    key: str
    """Key of the progress artifact."""
    _artifact: UUID | None = None
    _request: Thread | None = None
    _updated: float = field(default_factory=time.monotonic)
    _unsent: tuple[float, str] | None = None
    """The latest progress, if Prefect was busy with the one before."""

    def show_progress(self, percent: float, text: str, *, at_once: bool) -> None:
        """Show the progress, unless that was done seconds ago; `at_once`, e.g. the last, anyway."""
        if at_once or time.monotonic() - self._updated >= ARTIFACT_SECONDS:
            self._updated = time.monotonic()
            self._unsent = percent, text
            self._send_progress()

    def send(self, create: Callable[[], object]) -> None:
        """Send an artifact after those before it; not if these wait for the server."""
        self.wait()
        if self._is_free:
            self._start(create)

    def wait(self) -> None:
        """Wait until all is sent; not for long if the server is gone."""
        self._join()
        if self._unsent is not None and self._is_free:
            self._send_progress()
            self._join()

    @property
    def _is_free(self) -> bool:
        return self._request is None or not self._request.is_alive()

    def _join(self) -> None:
        if self._request is not None:
            self._request.join(FLUSH_SECONDS)

    def _send_progress(self) -> None:
        if self._unsent is not None and self._is_free:
            percent, text = self._unsent
            self._unsent = None
            self._start(lambda: self._show(percent, text))

    def _show(self, percent: float, text: str) -> None:
        if self._artifact is None:
            created: Any = create_progress_artifact(
                progress=percent, key=self.key, description=text
            )
            self._artifact = created
        else:
            update_progress_artifact(self._artifact, progress=percent, description=text)

    def _start(self, call: Callable[[], object]) -> None:
        """Call Prefect in a thread, which has no event loop and delays nobody."""
        run = copy_context().run
        self._request = Thread(target=run, args=(_log_errors, call), daemon=True)
        self._request.start()


def _log_errors(call: Callable[[], object]) -> None:
    try:
        call()
    except Exception as error:
        log.warning("the Prefect UI is not up to date: %s", error)


@dataclass(slots=True)
class BackfillArtifacts:
    """Shows a backfill: its progress, and at its end a table of its windows."""

    backfill: str
    output: str
    sender: ArtifactSender = field(init=False)
    _last: WindowProgress | None = None

    def __post_init__(self) -> None:
        self.sender = ArtifactSender(f"backfill-{self.backfill}")

    def update(self, progress: WindowProgress) -> None:
        """Show how many windows and chunks are done."""
        self._last = progress
        self._show(progress, at_once=False)

    def finish(self) -> None:
        """Show the table of windows; waits a few seconds at most until Prefect has it."""
        if self._last is None:
            return  # It ended before its windows were read.
        self._show(self._last, at_once=True)
        windows = self._last.frame()
        rows, shown = windows_rows(windows), windows_summary(windows)
        rest = windows.height - len(rows)
        look = f"chunkmap backfill status {self.backfill} --output {shlex.quote(self.output)}"
        text = f"{shown}; `{look}` shows more"
        if rest > 0:
            text += f". The table leaves out {plural(rest, 'window')}"
        key = f"windows-{self.backfill}"
        self.sender.send(lambda: create_table_artifact(rows, key=key, description=text))
        self.sender.wait()

    def _show(self, progress: WindowProgress, *, at_once: bool) -> None:
        counts = progress.counts()
        percent = 100.0 * counts["chunks_done"] / max(1, counts["chunks"])
        todo = len(progress.labels) - counts["skipped"] - counts["empty"]
        text = (
            f"{counts['done']:,} of {plural(todo, 'window')} done, {counts['failed']:,} failed; "
            f"{counts['chunks_done']:,} of {plural(counts['chunks'], 'chunk')}"
        )
        self.sender.show_progress(percent, text, at_once=at_once)


def windows_summary(windows: pl.DataFrame) -> str:
    """Count windows by state (schema PROGRESS), e.g. `12 windows: 1 failed, 11 done`."""
    counts = dict(windows["state"].value_counts().iter_rows())
    named = ", ".join(f"{counts[state]:,} {state}" for state in _ORDER if counts.get(state))
    return f"{plural(windows.height, 'window')}: {named}" if named else "no windows"


def windows_rows(windows: pl.DataFrame) -> list[dict[str, Any]]:
    """Return rows for people, of failed windows first, then by state, the newest first.

    Args:
        windows: States and figures (schema PROGRESS), in the order of time.
    """
    rank = {state: number for number, state in enumerate(_ORDER)}
    ordered = (
        windows.with_row_index("at")
        .sort(pl.col("state").replace_strict(rank, return_dtype=pl.Int64), -pl.col("at").cast(int))
        .head(MAX_WINDOWS)
    )
    return [
        {
            "window": row["label"],
            "state": row["state"],
            "chunks done": row["done"],
            "chunks failed": row["failed"],
            "rows": row["rows_out"],
            "size": byte_size(row["bytes_out"]),
            "ended": "" if row["ended"] is None else instant(row["ended"]),
        }
        for row in ordered.iter_rows(named=True)
    ]
