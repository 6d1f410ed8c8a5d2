"""Progress of each window of a backfill, in memory."""

from __future__ import annotations

from collections.abc import Iterable
from threading import Lock
from typing import Any, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import polars as pl

from pipeline.report.humanize import plural
from pipeline.runs.backfill.records import CHECKED, PROGRESS, State
from pipeline.runs.backfill.selection import EMPTY
from pipeline.runs.driver.summary import failure_kinds
from pipeline.runs.ledger.records import Progress
from pipeline.table.manifest import CommitEntry

Ranks = npt.NDArray[np.int64]
_SUMMED = ("rows_in", "rows_out", "bytes_in", "bytes_out", "reads", "writes", "retries")
_COUNTED = ("done", "failed", "busy", *_SUMMED)
_STATES = get_args(State)


class WindowError(NamedTuple):
    """A kind of failure of one run."""

    error: str
    """Class of the error."""
    message: str
    chunks: int
    window: str
    """Label of the window of the first of these chunks."""


class WindowProgress:
    """State and figures of every window. Thread-safe: several runs update it at the same time."""

    def __init__(self, windows: pl.DataFrame) -> None:
        """Start with all windows waiting that are to be done (schema WINDOWS)."""
        self.labels: list[str] = windows["label"].to_list()
        self.rank = {label: rank for rank, label in enumerate(self.labels)}
        self.chunks: Ranks = windows["chunks"].fill_null(0).to_numpy()
        self.states: list[str] = [
            "waiting" if why is None else "empty" if why == EMPTY else "skipped"
            for why in windows["skipped"].to_list()
        ]
        count = len(self.labels)
        self._figures = {name: np.zeros(count) for name in (*_COUNTED, *CHECKED)}
        self._errors: dict[str, list[WindowError]] = {}
        self._started = np.full(count, np.inf)
        self._ended = np.zeros(count)
        self._lock = Lock()

    def restore_figures(self, progress: pl.DataFrame) -> bool:
        """Restore the figures that an earlier driver saved, without the states.

        Returns:
            Whether they are of these windows; otherwise nothing is restored.
        """
        if progress["label"].to_list() != self.labels:
            return False
        with self._lock:
            for name in self._figures:
                self._figures[name] = progress[name].cast(pl.Float64).to_numpy().copy()
            self._started = progress["started"].fill_null(np.inf).to_numpy().copy()
            self._ended = progress["ended"].fill_null(0.0).to_numpy().copy()
        return True

    def restore(self, progress: pl.DataFrame) -> None:
        """Restore the figures and states that another driver saved."""
        if self.restore_figures(progress):
            self.states = progress["state"].to_list()

    def mark(self, labels: Iterable[str], state: State) -> None:
        """Set the state of some windows."""
        with self._lock:
            for label in labels:
                self.states[self.rank[label]] = state

    def note_checks(self, commits: Iterable[CommitEntry]) -> None:
        """Set what checks have found in the rows of windows, from the commits of these."""
        with self._lock:
            for entry in commits:
                if entry.window in self.rank:
                    rank = self.rank[entry.window]
                    for name in CHECKED:
                        self._figures[name][rank] = getattr(entry, name)

    def update(self, progress: Progress, owner: Ranks, labels: Iterable[str]) -> list[str]:
        """Refresh the figures of a run's windows from its ledger.

        Args:
            progress: Progress of the run.
            owner: Rank of each chunk's window.
            labels: Labels of the run's windows.

        Returns:
            Labels of the windows whose chunks are all done.
        """
        ranks = [self.rank[label] for label in labels]
        done, failed = _by_window(progress.completions, owner), progress.failed()
        with self._lock:
            for name in _COUNTED:
                self._figures[name][ranks] = 0
            for row in done.iter_rows(named=True):
                for name in _COUNTED:
                    if name != "failed":
                        self._figures[name][row["window"]] = row[name]
                self._started[row["window"]] = row["started"]
                self._ended[row["window"]] = row["ended"]
            np.add.at(self._figures["failed"], owner[failed["index"].to_numpy()], 1)
            self._errors[self.labels[ranks[0]]] = _errors(failed, owner, self.labels)
            full = self._figures["done"][ranks] == self.chunks[ranks]
            return [self.labels[rank] for rank, is_full in zip(ranks, full, strict=True) if is_full]

    def errors(self) -> list[str]:
        """Describe the kinds of failures that runs of this driver have met, most frequent first."""
        with self._lock:
            found = [error for errors in self._errors.values() for error in errors]
        kinds: dict[tuple[str, str], list[WindowError]] = {}
        for error in found:
            kinds.setdefault((error.error, error.message), []).append(error)
        groups = sorted(kinds.values(), key=lambda group: -sum(error.chunks for error in group))
        return [
            f"{plural(sum(error.chunks for error in group), 'chunk')} failed: {group[0].error}: "
            f"{group[0].message} (e.g. window {group[0].window})"
            for group in groups
        ]

    def unfinished(self, labels: Iterable[str]) -> list[str]:
        """Select the windows whose figures lack some of their chunks."""
        done = self._figures["done"]
        return [label for label in labels if done[self.rank[label]] < self.chunks[self.rank[label]]]

    def in_state(self, *states: State) -> list[str]:
        """List the windows that are in one of these states."""
        return [
            label for label, state in zip(self.labels, self.states, strict=True) if state in states
        ]

    def counts(self) -> dict[str, int]:
        """Count windows by state, and sum chunks, rows and bytes."""
        with self._lock:
            states = {state: self.states.count(state) for state in _STATES}
            return states | {
                "chunks": int(self.chunks.sum()),
                "chunks_done": int(self._figures["done"].sum()),
                "chunks_failed": int(self._figures["failed"].sum()),
                "rows_in": int(self._figures["rows_in"].sum()),
                "rows_out": int(self._figures["rows_out"].sum()),
                "bytes_in": int(self._figures["bytes_in"].sum()),
                "bytes_out": int(self._figures["bytes_out"].sum()),
                **{name: int(self._figures[name].sum()) for name in CHECKED},
            }

    def frame(self) -> pl.DataFrame:
        """Return states and figures of all windows (schema PROGRESS)."""
        with self._lock:
            columns: dict[str, Any] = {"label": self.labels, "state": list(self.states)}
            columns |= {name: values.copy() for name, values in self._figures.items()}
            columns["started"] = [None if t == np.inf else float(t) for t in self._started]
            columns["ended"] = [float(t) or None for t in self._ended]
        return pl.DataFrame(columns).cast(dict(PROGRESS))  # type: ignore[arg-type]


def _errors(failed: pl.DataFrame, owner: Ranks, labels: list[str]) -> list[WindowError]:
    """Group the last failures of a run (schema FAILURES)."""
    return [
        WindowError(
            row["error"],
            row["message"].partition("\n")[0],
            row["chunks"],
            labels[owner[row["index"]]],
        )
        for row in failure_kinds(failed).iter_rows(named=True)
    ]


def _by_window(completions: pl.DataFrame, owner: Ranks) -> pl.DataFrame:
    ends = pl.col("started") + pl.col("seconds")
    return (
        completions.with_columns(window=pl.Series(owner[completions["index"].to_numpy()]))
        .group_by("window")
        .agg(
            pl.len().alias("done"),
            pl.col(_SUMMED).sum(),
            pl.col("seconds").sum().alias("busy"),
            pl.col("started").min(),
            ends.max().alias("ended"),
        )
    )
