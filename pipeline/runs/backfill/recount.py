"""Count a backfill's windows again: from the manifests, and from the ledgers of its runs."""

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
    """Counts a backfill that no driver runs."""

    ledgers: LedgerCache
    record: BackfillRecord
    windows: pl.DataFrame
    progress: WindowProgress

    def recount(self, driver: DriverRecord | None) -> None:
        """Set the states and figures of all windows.

        Args:
            driver: Record of the last driver that saved progress; None if there is none.
        """
        published = set(self.progress.in_state("done")) if driver is not None else set()
        todo = self.windows.filter(pl.col("run").is_not_null())
        left = todo.filter(~pl.col("label").is_in(published))
        if left.is_empty():
            return
        store = self.ledgers.store
        table_log = TableLog(store.storage, store.output)
        found = published_by(table_log, self.record, left)
        self.progress.note_checks(found.values())
        published |= found.keys()
        self._set_states(published, self.count_runs(self._started_runs(left, driver)))

    def count_runs(self, runs: Sequence[str]) -> set[str]:
        """Set the figures of some runs' windows; return the runs that had been started."""
        counted = self.ledgers.read(runs)
        for run, labels in _labels_by_run(self.windows, runs):
            progress = counted.get(run)
            if progress is not None:
                self._count(run, progress, labels)
        return {run for run in runs if counted.get(run) is not None}

    def _started_runs(self, left: pl.DataFrame, driver: DriverRecord | None) -> list[str]:
        """List the runs that may have stored something that no driver has counted."""
        runs = left.sort("group")["run"].unique(maintain_order=True).to_list()
        if driver is None:
            return runs
        frame = self.progress.frame()
        busy = (pl.col("done") > 0) | (pl.col("failed") > 0) | (pl.col("state") != "waiting")
        labels = frame.filter(busy)["label"].to_list()
        started = set(left.filter(pl.col("label").is_in(labels))["run"].to_list())
        # The driver may have started a few more after it last saved progress.
        others = [run for run in runs if run not in started]
        return [run for run in runs if run in started] + others[: self.record.options.max_active]

    def _count(self, run: str, progress: Progress, labels: list[str]) -> None:
        owner = pl.Series(self.ledgers.windows_of(run), dtype=pl.String)
        ranks = owner.replace_strict(self.progress.rank, return_dtype=pl.Int64).to_numpy()
        self.progress.update(progress, ranks, labels)

    def _set_states(self, published: set[str], counted: set[str]) -> None:
        """Set the states: since no driver runs, windows are done, staged, failed or waiting."""
        runs = dict(self.windows.select("label", "run").iter_rows())
        for row in self.progress.frame().select("label", "state", "done", "failed").iter_rows():
            label, before, done, failed = row
            if before in ("skipped", "empty"):
                continue
            chunks = int(self.progress.chunks[self.progress.rank[label]])
            state: State = "waiting"
            if label in published:
                state = "done"
            elif chunks and done == chunks:
                state = "staged"
            elif failed or (before == "failed" and runs[label] not in counted):
                state = "failed"
            if state != before:
                self.progress.mark([label], state)


def rule_of(store: BackfillStore) -> Windowing:
    """Return the rule that cuts the values of the backfill's column into windows."""
    rule = store.job().window
    if rule is None:
        raise UsageError(f"backfill {store.backfill} has a job without windows")
    return rule.windowing()


def windows_named(texts: Sequence[str], windows: pl.DataFrame, rule: Windowing) -> list[str]:
    """Return the labels of the windows that users name: a window, a month, a range `A..B`.

    Raises:
        WindowError: a text names no window.
    """
    all_windows = [
        Window(
            start if rule.grain == "value" else datetime.fromisoformat(start),
            datetime.fromisoformat(end) if end else None,
            label,
        )
        for label, start, end in windows.select("label", "start", "end").iter_rows()
    ]
    return [window.label for window in rule.select(texts, all_windows)]


class LedgerCache:
    """Reads the ledgers of a backfill's runs, each once."""

    def __init__(self, store: BackfillStore) -> None:
        self.store = store
        self._progress: dict[str, Progress | None] = {}
        self._windows: dict[str, list[str]] = {}
        self._rule: Windowing | None = None

    def read(self, runs: Sequence[str]) -> dict[str, Progress | None]:
        """Return the progress of some runs; None for a run that was not started."""
        new = [run for run in runs if run not in self._progress]
        self._progress.update(zip(new, map_concurrently(self._read, new, 8), strict=True))
        return {run: self._progress[run] for run in runs}

    def _read(self, run: str) -> Progress | None:
        ledger = Ledger(self.store.storage, self.store.output, run)
        if self.store.storage.get_or_none(ledger.prefix + "run.json") is None:
            return None
        try:
            return ledger.read()
        except ObjectMissingError:
            return None  # Compacted or discarded while it was read.

    def windows_of(self, run: str) -> list[str]:
        """Return the window of each chunk of a run, in its plan's order."""
        if run not in self._windows:
            if self._rule is None:
                self._rule = rule_of(self.store)
            plan = Ledger(self.store.storage, self.store.output, run).plan()
            self._windows[run] = windows_of_plan(plan, self._rule)
        return self._windows[run]


def _labels_by_run(windows: pl.DataFrame, runs: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    groups = windows.filter(pl.col("run").is_in(list(runs))).group_by("run").agg("label")
    yield from groups.iter_rows()
