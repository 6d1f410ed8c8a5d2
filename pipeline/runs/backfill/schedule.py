"""Order the runs of a backfill. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import polars as pl

from pipeline.runs.backfill.records import Control, Options


@dataclass(frozen=True, slots=True)
class ScheduledRun:
    """A run to be driven, or a part of its windows."""

    rank: int
    """Rank of the run."""
    only: frozenset[str]
    """Labels of the windows to map."""
    publishes: bool = True
    is_canary: bool = False


def schedule_runs(
    windows: pl.DataFrame, options: Options, control: Control, wanted: Collection[str]
) -> list[ScheduledRun]:
    """Schedule the runs: the canary first, unless the user has approved to continue without it.

    Args:
        windows: Windows of the backfill (schema WINDOWS).
        options: Options of the backfill.
        control: Desired state.
        wanted: Labels of the windows to map.
    """
    mapped = windows.filter(pl.col("label").is_in(list(wanted)))
    steps = []
    sample = mapped.filter(pl.col("canary"))
    if sample.height and not control.approved:
        # With all_or_nothing, the canary is part of the only run: map it, publish it later.
        steps = [
            ScheduledRun(rank, frozenset(labels), not options.all_or_nothing, True)
            for rank, labels in _by_run(sample)
        ]
        if not options.all_or_nothing:
            mapped = mapped.filter(~pl.col("canary"))
    return steps + [ScheduledRun(rank, frozenset(labels)) for rank, labels in _by_run(mapped)]


def _by_run(windows: pl.DataFrame) -> list[tuple[int, list[str]]]:
    runs = windows.group_by("group").agg("label").sort("group")
    return list(runs.select("group", "label").iter_rows())
