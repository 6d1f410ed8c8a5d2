"""Counting a backfill's windows anew: from the manifests, and from the ledgers of its runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

import polars as pl

from partitioning.window_inputs import windows_of_plan
from partitioning.windows import Window, Windowing
from pipeline.concurrency import map_concurrently
from pipeline.errors import ObjectMissingError, UsageError
from pipeline.runs.backfill.output_windows import published_by
from pipeline.runs.backfill.progress import WindowProgress
from pipeline.runs.backfill.records import BackfillRecord, State
from pipeline.runs.backfill.store import BackfillStore
from pipeline.runs.driver.heartbeat import DriverRecord
from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.ledger.records import Progress
from pipeline.table.log import TableLog


@dataclass(frozen=True, slots=True)
class Recount:
    """Counts a backfill that nobody drives."""

    ledgers: LedgerCache
    record: BackfillRecord
    windows: pl.DataFrame
    board: WindowProgress

    def recount(self, driver: DriverRecord | None) -> None:
        """Set states and figures on the board.

        Args:
            driver: Who said last how far it was, if anybody did.
        """
        board = self.board
        known = set(board.in_state("done")) if driver is not None else set()
        todo = self.windows.filter(pl.col("run").is_not_null())
        open_ = todo.filter(~pl.col("label").is_in(known))
        if open_.is_empty():
            return
        store = self.ledgers.store
        table_log = TableLog(store.storage, store.output)
        known |= published_by(table_log, self.record, open_)
        self._states(known, self.count(self._begun(open_, driver)))

    def count(self, runs: Sequence[str]) -> set[str]:
        """Set the figures of some runs' windows; returns those of the runs that were begun."""
        counted = self.ledgers.read(runs)
        for run, labels in _labels(self.windows, runs):
            progress = counted.get(run)
            if progress is not None:
                self._count(run, progress, labels)
        return {run for run in runs if counted.get(run) is not None}

    def _begun(self, left: pl.DataFrame, driver: DriverRecord | None) -> list[str]:
        """The runs that may have done something that nobody has said yet."""
        runs = left.sort("group")["run"].unique(maintain_order=True).to_list()
        if driver is None:
            return runs
        frame = self.board.frame()
        busy = (pl.col("done") > 0) | (pl.col("failed") > 0) | (pl.col("state") != "waiting")
        labels = frame.filter(busy)["label"].to_list()
        begun = set(left.filter(pl.col("label").is_in(labels))["run"].to_list())
        # Whoever drove it may have begun a few more before it could say so.
        fresh = [run for run in runs if run not in begun]
        return [run for run in runs if run in begun] + fresh[: self.record.options.max_active]

    def _count(self, run: str, progress: Progress, labels: list[str]) -> None:
        owner = pl.Series(self.ledgers.windows_of(run), dtype=pl.String)
        ranks = owner.replace_strict(self.board.rank, return_dtype=pl.Int64).to_numpy()
        self.board.saw(progress, ranks, labels)

    def _states(self, published: set[str], counted: set[str]) -> None:
        """Nobody maps, so what is not published is staged, failed or waiting."""
        runs = dict(self.windows.select("label", "run").iter_rows())
        for row in self.board.frame().select("label", "state", "done", "failed").iter_rows():
            label, before, done, failed = row
            if before in ("skipped", "empty"):
                continue
            chunks = int(self.board.chunks[self.board.rank[label]])
            state: State = "waiting"
            if label in published:
                state = "done"
            elif chunks and done == chunks:
                state = "staged"
            elif failed or (before == "failed" and runs[label] not in counted):
                state = "failed"
            if state != before:
                self.board.mark([label], state)


def rule_of(store: BackfillStore) -> Windowing:
    """How the values of the backfill's column are cut into windows."""
    rule = store.job().window
    if rule is None:
        raise UsageError(f"backfill {store.backfill} has a job without windows")
    return rule.windowing()


def windows_named(texts: Sequence[str], windows: pl.DataFrame, rule: Windowing) -> list[str]:
    """Labels of the windows that users name: one, a month of days, a range `A..B`.

    Raises:
        WindowError: a text names none of them.
    """
    known = [
        Window(
            start if rule.grain == "value" else datetime.fromisoformat(start),
            datetime.fromisoformat(end) if end else None,
            label,
        )
        for label, start, end in windows.select("label", "start", "end").iter_rows()
    ]
    return [window.label for window in rule.select(texts, known)]


class LedgerCache:
    """The ledgers of a backfill's runs; each is read once."""

    def __init__(self, store: BackfillStore) -> None:
        self.store = store
        self._known: dict[str, Progress | None] = {}
        self._windows: dict[str, list[str]] = {}
        self._rule: Windowing | None = None

    def read(self, runs: Sequence[str]) -> dict[str, Progress | None]:
        """What the ledgers of some runs say; None for a run that was not begun."""
        new = [run for run in runs if run not in self._known]
        self._known.update(zip(new, map_concurrently(self._read, new, 8), strict=True))
        return {run: self._known[run] for run in runs}

    def _read(self, run: str) -> Progress | None:
        ledger = Ledger(self.store.storage, self.store.output, run)
        if self.store.storage.get_or_none(ledger.prefix + "run.json") is None:
            return None
        try:
            return ledger.read()
        except ObjectMissingError:
            return None  # Folded or discarded while we read.

    def windows_of(self, run: str) -> list[str]:
        """The window of each chunk of a run, in its plan's order."""
        if run not in self._windows:
            if self._rule is None:
                self._rule = rule_of(self.store)
            plan = Ledger(self.store.storage, self.store.output, run).plan()
            self._windows[run] = windows_of_plan(plan, self._rule)
        return self._windows[run]


def _labels(windows: pl.DataFrame, runs: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    groups = windows.filter(pl.col("run").is_in(list(runs))).group_by("run").agg("label")
    yield from groups.iter_rows()
