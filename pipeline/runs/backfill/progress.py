"""How far each window is: what the driver shows, and what anybody recounts from storage."""

from __future__ import annotations

from collections.abc import Iterable
from threading import Lock
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import polars as pl

from pipeline.runs.backfill.records import PROGRESS, State
from pipeline.runs.backfill.selection import EMPTY
from pipeline.runs.ledger.records import Progress

Ranks = npt.NDArray[np.int64]
_COUNTED = ("done", "failed", "rows_in", "rows_out", "bytes_in", "bytes_out", "busy")
_STATES = get_args(State)


class WindowProgress:
    """The state and the figures of every window. Several runs write to it at the same time."""

    def __init__(self, windows: pl.DataFrame) -> None:
        """Begin with what is to be done waiting (schema WINDOWS)."""
        self.labels: list[str] = windows["label"].to_list()
        self.rank = {label: rank for rank, label in enumerate(self.labels)}
        self.chunks: Ranks = windows["chunks"].fill_null(0).to_numpy()
        self.states: list[str] = [
            "waiting" if why is None else "empty" if why == EMPTY else "skipped"
            for why in windows["skipped"].to_list()
        ]
        count = len(self.labels)
        self._figures = {name: np.zeros(count) for name in _COUNTED}
        self._started = np.full(count, np.inf)
        self._ended = np.zeros(count)
        self._lock = Lock()

    def recall(self, progress: pl.DataFrame) -> bool:
        """Take the figures of an earlier driver; states are computed again.

        Returns:
            Whether they are of these windows; of others nothing is taken.
        """
        if progress["label"].to_list() != self.labels:
            return False
        with self._lock:
            for name in _COUNTED:
                self._figures[name] = progress[name].cast(pl.Float64).to_numpy().copy()
            self._started = progress["started"].fill_null(np.inf).to_numpy().copy()
            self._ended = progress["ended"].fill_null(0.0).to_numpy().copy()
        return True

    def follow(self, progress: pl.DataFrame) -> None:
        """Take everything that another driver says, states too."""
        if self.recall(progress):
            self.states = progress["state"].to_list()

    def mark(self, labels: Iterable[str], state: State) -> None:
        """Set the state of some windows."""
        with self._lock:
            for label in labels:
                self.states[self.rank[label]] = state

    def saw(self, progress: Progress, owner: Ranks, labels: Iterable[str]) -> list[str]:
        """Count what a run has stored.

        Args:
            progress: Of the run.
            owner: By the run's chunk, the rank of its window.
            labels: The run's windows.

        Returns:
            The run's windows all of whose chunks are done.
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
            full = self._figures["done"][ranks] == self.chunks[ranks]
            return [self.labels[rank] for rank, is_full in zip(ranks, full, strict=True) if is_full]

    def unfinished(self, labels: Iterable[str]) -> list[str]:
        """Those of some windows whose figures are not those of all their chunks."""
        done = self._figures["done"]
        return [one for one in labels if done[self.rank[one]] < self.chunks[self.rank[one]]]

    def in_state(self, *states: State) -> list[str]:
        """The windows that are in one of these states."""
        return [
            label for label, state in zip(self.labels, self.states, strict=True) if state in states
        ]

    def counts(self) -> dict[str, int]:
        """How many windows are in each state, and the chunks done and failed."""
        with self._lock:
            found = {state: self.states.count(state) for state in _STATES}
            return found | {
                "chunks": int(self.chunks.sum()),
                "chunks_done": int(self._figures["done"].sum()),
                "chunks_failed": int(self._figures["failed"].sum()),
                "rows_in": int(self._figures["rows_in"].sum()),
                "rows_out": int(self._figures["rows_out"].sum()),
                "bytes_in": int(self._figures["bytes_in"].sum()),
                "bytes_out": int(self._figures["bytes_out"].sum()),
            }

    def frame(self) -> pl.DataFrame:
        """Everything (schema PROGRESS)."""
        with self._lock:
            columns: dict[str, Any] = {"label": self.labels, "state": list(self.states)}
            columns |= {name: values.copy() for name, values in self._figures.items()}
            columns["started"] = [None if t == np.inf else float(t) for t in self._started]
            columns["ended"] = [float(t) or None for t in self._ended]
        return pl.DataFrame(columns).cast(dict(PROGRESS))  # type: ignore[arg-type]


def _by_window(completions: pl.DataFrame, owner: Ranks) -> pl.DataFrame:
    ends = pl.col("started") + pl.col("seconds")
    return (
        completions.with_columns(window=pl.Series(owner[completions["index"].to_numpy()]))
        .group_by("window")
        .agg(
            pl.len().alias("done"),
            pl.col("rows_in", "rows_out", "bytes_in", "bytes_out").sum(),
            pl.col("seconds").sum().alias("busy"),
            pl.col("started").min(),
            ends.max().alias("ended"),
        )
    )
