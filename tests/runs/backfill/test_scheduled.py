"""Which windows a scheduled run processes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partitioning.errors import WindowError
from partitioning.windows import Windowing
from pipeline.errors import UsageError
from pipeline.runs.backfill.scheduled import scheduled_windows
from tests.support.examples import fewer

DAYS = Windowing("ds", "day")
NOON = datetime(2024, 3, 10, 12, tzinfo=UTC)


def labels(
    rule: Windowing, done: list[str], at: datetime, lookback: str | None = None
) -> list[str]:
    selection = scheduled_windows(rule, done, at, lookback)
    assert selection.start is not None
    assert selection.end is not None
    return [window.label for window in rule.between(selection.start, selection.end)]


def test_the_last_complete_window() -> None:
    assert labels(DAYS, [], NOON) == ["2024-03-09"]
    assert labels(Windowing("ds", "month"), [], NOON) == ["2024-02"]
    assert labels(Windowing("ds", "hour"), [], NOON) == ["2024-03-10T11"]


def test_what_missed_runs_have_left_out_is_added() -> None:
    assert labels(DAYS, ["2024-03-05", "2024-03-06"], NOON) == [
        "2024-03-07",
        "2024-03-08",
        "2024-03-09",
    ]
    assert labels(DAYS, ["2024-03-09", "2024-03-20"], NOON) == ["2024-03-09"]


def test_a_lookback_reaches_further() -> None:
    done = ["2024-03-09"]
    assert labels(DAYS, done, NOON, "3d") == ["2024-03-07", "2024-03-08", "2024-03-09"]
    with pytest.raises(WindowError, match="not a span"):
        labels(DAYS, done, NOON, "soon")
    # The run for the 6th, which was missed, would have looked at the 4th and the 5th again.
    found = labels(DAYS, ["2024-03-04", "2024-03-05"], NOON, "3d")
    assert found == [f"2024-03-0{day}" for day in range(4, 10)]


def test_the_day_is_that_of_the_windows_time_zone() -> None:
    berlin = Windowing("ds", "day", "Europe/Berlin")
    early = datetime(2024, 3, 10, 0, 30, tzinfo=ZoneInfo("Europe/Berlin"))
    assert labels(berlin, [], early) == ["2024-03-09"]
    assert labels(DAYS, [], early) == ["2024-03-08"]


def test_values_have_no_schedule() -> None:
    with pytest.raises(UsageError, match="no schedule"):
        scheduled_windows(Windowing("shop", "value"), [], NOON)


@settings(deadline=None, max_examples=fewer(40))
@given(
    st.lists(st.integers(0, 12), max_size=6),
    st.sets(st.integers(0, 12)),
    st.sampled_from(["UTC", "Europe/Berlin", "Pacific/Apia"]),
)
def test_no_window_is_left_out_whatever_runs_are_missed(
    order: list[int], missed: set[int], zone: str
) -> None:
    """Runs at days after a first one, some missed, late ones in any order: no hole."""
    rule = Windowing("ds", "day", zone)
    begin = datetime(2024, 2, 20, 2, tzinfo=ZoneInfo(zone))
    done = labels(rule, [], begin.astimezone(UTC))
    for day in [*sorted(set(order) - missed), *order]:
        at = (begin + timedelta(days=day)).astimezone(UTC)
        done = sorted({*done, *labels(rule, done, at)})
    windows = [rule.parse(label) for label in done]
    first, last = windows[0].start, windows[-1].end
    assert isinstance(first, datetime)
    assert last is not None
    assert windows == list(rule.between(first.isoformat(), last.isoformat()))
