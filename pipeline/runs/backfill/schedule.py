"""The order in which a backfill's runs are driven. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import polars as pl

from pipeline.runs.backfill.records import Control, Options


@dataclass(frozen=True, slots=True)
class ScheduledRun:
    """One drive of one run."""

    rank: int
    """Of the run."""
    only: frozenset[str]
    """The windows to map."""
    publishes: bool = True
    is_canary: bool = False


def schedule_runs(
    windows: pl.DataFrame, options: Options, control: Control, wanted: Collection[str]
) -> list[ScheduledRun]:
    """What is to be driven, in order: the canary first, unless it was told to go on without.

    Args:
        windows: Of the backfill (schema WINDOWS).
        options: Of the backfill.
        control: What users wish.
        wanted: Windows that are to be mapped.
    """
    mapped = windows.filter(pl.col("label").is_in(list(wanted)))
    steps = []
    sample = mapped.filter(pl.col("canary"))
    if sample.height and not control.approved:
        # Of all or nothing, a canary is mapped and not published: it is part of the one run.
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
