"""Select the windows that a scheduled run processes: by its scheduled time, not by the clock."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime

from partitioning.windows import Window, Windowing
from pipeline.config.job import Job
from pipeline.errors import UsageError
from pipeline.runs.backfill.output_windows import materialised_windows
from pipeline.runs.backfill.plan import WindowSelection
from pipeline.table.log import TableLog

SPAN_OF_GRAIN = {"hour": "1h", "day": "1d", "month": "1mo"}
"""Span of one window, by grain."""


def scheduled_windows(
    rule: Windowing, labels: Iterable[str], scheduled: datetime, lookback: str | None = None
) -> WindowSelection:
    """Select the last complete window, those that missed runs have left out, and a lookback.

    A run that starts late, or is started again, selects what it would have selected on time.

    Args:
        rule: Rule of the job's windows.
        labels: Labels of the windows that the output has.
        scheduled: When the run was to start, with a time zone.
        lookback: Span before that time whose windows are compared with their input again, for data
            that comes late, e.g. `3d`; None for none.

    Raises:
        UsageError: The windows are values and have no order in time.
        WindowError: The lookback is no span of time.
    """
    if rule.grain not in SPAN_OF_GRAIN:
        raise UsageError(
            "windows of the grain value have no schedule",
            hint="set window.grain to hour, day or month",
        )
    windows = rule.last(SPAN_OF_GRAIN[rule.grain], scheduled)
    first, last = windows[0], windows[-1]
    since = scheduled
    before = [window for window in map(rule.parse, labels) if window < first]
    if before:
        first = min(first, rule.window_of(_end(max(before))))
        # The first run that was missed would have looked back from the end of its window.
        since = min(since, datetime.fromisoformat(_end(first)))
    if lookback is not None:
        first = min(first, rule.last(lookback, since)[0])
    return WindowSelection(start=_start(first), end=_end(last), allow_missing=True)


def reason_late(
    job: Job,
    table_log: TableLog,
    scheduled: datetime,
    since: datetime,
    has_completed: Callable[[], bool] = lambda: False,
) -> str | None:
    """Return what an output lacks that a schedule was to publish; None if nothing.

    Args:
        job: The job.
        table_log: Log of its output.
        scheduled: Moment whose last complete window was to be published, with a time zone.
        since: Moment since which a job without windows was to publish, with a time zone.
        has_completed: Whether a run of such a job has ended since then with nothing to publish.
    """
    if job.window is not None:
        rule = job.window.windowing()
        if rule.grain in SPAN_OF_GRAIN:
            last = rule.last(SPAN_OF_GRAIN[rule.grain], scheduled)[-1].label
            is_done = last in materialised_windows(table_log, rule)
            return None if is_done else f"window {last} of {job.name} is not published"
    manifest = table_log.manifest()
    if (manifest.number and manifest.created >= since.timestamp()) or has_completed():
        return None
    return f"{job.name} has published nothing"


def _start(window: Window) -> str:
    assert isinstance(window.start, datetime), "time windows"
    return window.start.isoformat()


def _end(window: Window) -> str:
    assert window.end is not None, "time windows"
    return window.end.isoformat()
