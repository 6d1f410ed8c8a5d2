"""Windows: hours, days and months of any zone tile time, and every value is in one of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partitioning import Window, WindowError, Windowing
from tests.support.examples import fewer

ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe",
         "Africa/Cairo", "America/Havana", "Pacific/Apia"]  # fmt: skip
"""Cairo skips midnight, Havana shows it twice, Lord Howe moves by half an hour, Apia left out a
day."""
MOMENTS = st.datetimes(datetime(2009, 1, 1), datetime(2026, 1, 1), timezones=st.just(UTC))
GRAINS = st.sampled_from(["hour", "day", "month"])


def labels(windows: tuple[Window, ...]) -> list[str]:
    return [window.label for window in windows]


def hours(window: Window) -> float:
    assert isinstance(window.start, datetime)
    assert window.end is not None
    return (window.end - window.start) / timedelta(hours=1)


# -- values -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "grain", "label"),
    [
        ("2024-02-29", "day", "2024-02-29"),
        ("20240229", "day", "2024-02-29"),
        ("2024-02", "month", "2024-02"),
        ("202402", "month", "2024-02"),
        ("2024-02-29", "month", "2024-02"),
        ("2024-02-29T05", "hour", "2024-02-29T05"),
        ("2024-02-29-05", "hour", "2024-02-29T05"),
        ("2024022905", "hour", "2024-02-29T05"),
        ("2024-02-29_05", "hour", "2024-02-29T05"),
        ("2024-02-29 05:00:00", "hour", "2024-02-29T05"),
        ("2024-02-29%2005%3A59%3A59.999", "hour", "2024-02-29T05"),
        ("2024-02-29T05:30:00Z", "hour", "2024-02-29T05"),
        ("2024-02-29T05:30:00+05:30", "hour", "2024-02-29T00"),
        ("2024-02-29T23:30:00-0100", "day", "2024-03-01"),
        ("9999-12-31", "day", "9999-12-31"),
        ("0001-01-01", "day", "0001-01-01"),
        ("New York", "value", "New%20York"),
        ("New%20York", "value", "New%20York"),
        ("1.5/2", "value", "1%2E5%2F2"),
        ("__HIVE_DEFAULT_PARTITION__", "value", "__HIVE_DEFAULT_PARTITION__"),
    ],
)
def test_the_usual_spellings(raw: str, grain: str, label: str) -> None:
    assert Windowing("ds", grain).window_of(raw).label == label  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("raw", "grain"),
    [
        ("2024-02", "day"),
        ("2024", "month"),
        ("2024-02-29", "hour"),
        ("2023-02-29", "day"),
        ("2024-13", "month"),
        ("2024-00", "month"),
        ("2024-02-29T24", "hour"),
        ("2024-0229", "day"),
        ("yesterday", "day"),
        ("", "day"),
        ("__HIVE_DEFAULT_PARTITION__", "day"),
    ],
)
def test_what_does_not_fit_names_column_value_and_grain(raw: str, grain: str) -> None:
    with pytest.raises(WindowError) as caught:
        Windowing("ds", grain).window_of(raw)  # type: ignore[arg-type]
    said = str(caught.value)
    assert "'ds'" in said
    assert grain in said
    assert repr(raw) in said or "null" in said


def test_long_values_have_labels_that_fit_a_key() -> None:
    rule = Windowing("name", "value")
    found = {rule.window_of("ä" * 100 + end).label for end in "ab"}
    assert len(found) == 2
    assert max(map(len, found)) <= 150


@given(st.text(max_size=12), st.text(max_size=12))
@settings(deadline=None)
def test_labels_of_values_are_unique_and_come_back(one: str, other: str) -> None:
    rule = Windowing("name", "value")
    first, second = (rule.of_values([text.replace("%", "")])[0] for text in (one, other))
    assert (first.label == second.label) == (first == second)
    assert not set("/. ") & set(first.label)
    assert rule.parse(first.label) == first


# -- ranges -----------------------------------------------------------------------------------


def test_leap_days_and_the_ends_of_months() -> None:
    days = Windowing("ds", "day")
    assert labels(days.between("2024-02-28", "2024-03-02")) == [
        "2024-02-28", "2024-02-29", "2024-03-01"]  # fmt: skip
    assert labels(days.between("2023-02-28", "2023-03-02")) == ["2023-02-28", "2023-03-01"]
    assert len(days.between("2022", "2025")) == 365 + 365 + 366
    assert labels(Windowing("ds", "month").between("2023-12", "2024-03")) == [
        "2023-12", "2024-01", "2024-02"]  # fmt: skip


@pytest.mark.parametrize(("day", "length"), [("2024-03-31", 23), ("2024-10-27", 25)])
def test_days_on_which_clocks_change(day: str, length: int) -> None:
    zone = "Europe/Berlin"
    assert hours(Windowing("ds", "day", zone).window_of(day)) == length
    following = (datetime.fromisoformat(day) + timedelta(days=1)).date().isoformat()
    windows = Windowing("hour", "hour", zone).between(day, following)
    assert len(windows) == length
    if length == 25:
        assert labels(windows)[1:5] == [f"{day}T{end}" for end in ("01", "02", "02+0100", "03")]
        rule = Windowing("hour", "hour", zone)
        assert rule.window_of(f"{day}T02") == windows[2]
        assert rule.window_of(f"{day}T02:00+0200") == windows[2]
        assert rule.window_of(f"{day}T01:30Z") == rule.parse(f"{day}T02+0100") == windows[3]
    else:
        assert labels(windows)[1:3] == [f"{day}T01", f"{day}T03"]


def test_half_an_hour_and_a_day_left_out() -> None:
    howe = Windowing("h", "hour", "Australia/Lord_Howe")
    assert [hours(w) for w in howe.between("2024-04-07", "2024-04-08")][:3] == [1.0, 1.5, 1.0]
    assert [hours(w) for w in howe.between("2024-10-06", "2024-10-07")][:4] == [1, 1, 0.5, 1]
    apia = Windowing("d", "day", "Pacific/Apia")
    assert labels(apia.between("2011-12-29", "2012-01-01")) == ["2011-12-29", "2011-12-31"]


@pytest.mark.parametrize(
    ("start", "end", "said"),
    [
        ("2024-03-01", "2024-02-01", r"2024-03-01 to 2024-02-01.*the end is exclusive"),
        ("2024-03-01", "2024-03-01", r"2024-03-01 to 2024-03-01.*the end is exclusive"),
        ("2024-03-01T05", "2024-03-02", r"'2024-03-01T05' is within the day 2024-03-01"),
        ("soon", "2024-03-02", r"'soon' is not a date"),
    ],
)
def test_ranges_that_cannot_be(start: str, end: str, said: str) -> None:
    with pytest.raises(WindowError, match=said):
        Windowing("ds", "day").between(start, end)


def test_values_have_no_ranges() -> None:
    with pytest.raises(WindowError, match="name the values"):
        Windowing("region", "value").between("a", "b")
    assert labels(Windowing("region", "value").of_values(["b", "a", "b"])) == ["a", "b"]


@given(MOMENTS, st.integers(0, 800), st.sampled_from(ZONES), GRAINS)
@settings(max_examples=fewer(300), deadline=None)
def test_windows_tile_time(begin: datetime, days: int, zone: str, grain: str) -> None:
    """Whatever clocks do: no gap, no overlap, unique labels that sort, each its own value."""
    rule = Windowing("ds", grain, zone)  # type: ignore[arg-type]
    low = begin.astimezone(ZoneInfo(zone)).strftime("%Y-%m")
    span = timedelta(days=days if grain == "month" else days % (70 if grain == "day" else 33))
    high = (begin + span + timedelta(days=31)).astimezone(ZoneInfo(zone)).strftime("%Y-%m")
    windows = rule.between(low, high)
    assert windows[0] == rule.window_of(f"{low}-01T00")
    assert windows[-1].end == rule.window_of(f"{high}-01T00").start
    for one, other in pairwise(windows):
        assert one.end == other.start
        assert one < other
        assert one.label < other.label
    for window in windows[:: max(1, len(windows) // 40)]:
        assert isinstance(window.start, datetime)
        assert 0 < hours(window) <= {"hour": 1.5, "day": 25, "month": 24 * 31 + 1}[grain]
        assert rule.parse(window.label) == window


@given(MOMENTS, st.sampled_from(ZONES), GRAINS)
@settings(max_examples=fewer(300), deadline=None)
def test_each_moment_is_in_one_window_and_its_local_date_names_it(
    moment: datetime, zone: str, grain: str
) -> None:
    rule = Windowing("ds", grain, zone)  # type: ignore[arg-type]
    window = rule.window_of(moment.strftime("%Y-%m-%dT%H:%M:%SZ"))
    assert isinstance(window.start, datetime)
    assert window.end is not None
    assert window.start <= moment < window.end
    for inside in (window.start, window.end - timedelta(seconds=1)):
        assert rule.window_of(inside.strftime("%Y-%m-%dT%H:%M:%SZ")) == window
    local = moment.astimezone(ZoneInfo(zone)).strftime("%Y-%m-%dT%H")
    assert local.startswith(window.label[:13])


# -- the last ones ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("span", "grain", "zone", "first", "last", "count"),
    [
        ("30d", "day", "UTC", "2024-03-01", "2024-03-30", 30),
        ("2w", "day", "UTC", "2024-03-17", "2024-03-30", 14),
        ("12h", "hour", "UTC", "2024-03-31T00", "2024-03-31T11", 12),
        ("1d", "hour", "Europe/Berlin", "2024-03-30T14", "2024-03-31T13", 23),
        ("6mo", "month", "UTC", "2023-09", "2024-02", 6),
        ("6m", "month", "UTC", "2023-09", "2024-02", 6),
        ("1mo", "day", "UTC", "2024-02-29", "2024-03-30", 31),
    ],
)
def test_the_last_complete_windows(
    span: str, grain: str, zone: str, first: str, last: str, count: int
) -> None:
    now = datetime(2024, 3, 31, 12, 34, tzinfo=UTC)
    windows = Windowing("ds", grain, zone).last(span, now)  # type: ignore[arg-type]
    assert (windows[0].label, windows[-1].label, len(windows)) == (first, last, count)


@pytest.mark.parametrize("span", ["", "30", "0d", "-1d", "3y", "12h", "99999999d"])
def test_spans_that_cannot_be(span: str) -> None:
    with pytest.raises(WindowError):
        Windowing("ds", "day").last(span, datetime.now(UTC))


def test_now_must_know_its_zone() -> None:
    with pytest.raises(WindowError, match="no time zone"):
        Windowing("ds", "day").last("3d", datetime(2024, 1, 1))


# -- some of them -----------------------------------------------------------------------------


def test_some_windows_are_named_by_labels_dates_and_ranges() -> None:
    rule = Windowing("ds", "day")
    windows = rule.between("2024-01", "2024-05")
    assert labels(rule.select(["20240102", "2024-01-01"], windows)) == ["2024-01-01", "2024-01-02"]
    assert len(rule.select(["2024-02"], windows)) == 29
    assert len(rule.select(["2024-01..2024-03"], windows)) == 31 + 29 + 31
    assert len(rule.select(["2024-02-28..2024-03-01", "2024-02-29"], windows)) == 3
    with pytest.raises(WindowError, match=r"2025-01-01.*none of the 121"):
        rule.select(["2025-01-01"], windows)
    with pytest.raises(WindowError, match="ends before it begins"):
        rule.select(["2024-03..2024-01"], windows)
    with pytest.raises(WindowError, match="not a date"):
        rule.select(["march"], windows)


def test_some_values_are_named() -> None:
    rule = Windowing("region", "value")
    windows = rule.of_values(["eu/west", "eu/east", "us"])
    assert labels(rule.select(["eu/west", "us"], windows)) == ["eu%2Fwest", "us"]
    assert labels(rule.select(["eu%2Feast"], windows)) == ["eu%2Feast"]
    with pytest.raises(WindowError, match=r"did you mean us\?"):
        rule.select(["uss"], windows)


def test_no_such_zone_and_no_such_grain() -> None:
    with pytest.raises(WindowError, match="Europe/Berlim"):
        Windowing("ds", "day", "Europe/Berlim")
    with pytest.raises(WindowError, match=r"'week'.*hour, day, month, value"):
        Windowing("ds", "week")  # type: ignore[arg-type]


# -- the ends of the calendar -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "grain", "zone", "label"),
    [
        ("9999-12-31T23", "day", "America/New_York", "9999-12-31"),
        ("9999-12-31T23", "month", "America/New_York", "9999-12"),
        ("9999-12-31T18", "hour", "America/New_York", "9999-12-31T18"),
        ("9999-12-31", "day", "Pacific/Kiritimati", "9999-12-31"),
        ("9999-12-31T22Z", "hour", "Europe/Berlin", "9999-12-31T23"),
        ("9999-12-31T23", "hour", "UTC", "9999-12-31T23"),
        ("0001-01-01", "day", "Asia/Kolkata", "0001-01-01"),
        ("0001-01-01T00", "day", "Europe/Berlin", "0001-01-01"),
        ("0001-01-01T01", "hour", "Europe/Berlin", "0001-01-01T01"),
        ("0001-01-01", "day", "America/New_York", "0001-01-01"),
        ("0001-01-01T00", "hour", "UTC", "0001-01-01T00"),
    ],
)
def test_windows_at_the_ends_of_the_calendar(raw: str, grain: str, zone: str, label: str) -> None:
    rule = Windowing("ds", grain, zone)  # type: ignore[arg-type]
    window = rule.window_of(raw)
    assert window.label == label
    assert hours(window) > 0
    assert rule.parse(label) == window


@pytest.mark.parametrize("zone", ["Asia/Kolkata", "Etc/GMT-5", "America/New_York", "Etc/GMT+5"])
@pytest.mark.parametrize("day", ["0001-01-01", "9999-12-31"])
@pytest.mark.parametrize("grain", ["hour", "day", "month"])
def test_no_hour_at_the_ends_of_the_calendar_is_in_a_wrong_window(
    grain: str, day: str, zone: str
) -> None:
    rule = Windowing("ds", grain, zone)  # type: ignore[arg-type]
    for hour in range(24):
        for end in ("", "Z"):
            value = f"{day}T{hour:02}{end}"
            try:
                label = rule.window_of(value).label
            except WindowError as error:
                assert "'ds'" in str(error) and repr(value) in str(error)
                assert end or grain == "hour"
            else:
                wall = datetime.fromisoformat(value)
                wall = wall.astimezone(ZoneInfo(zone)) if end else wall
                assert wall.isoformat().startswith(label[:13])
    with pytest.raises(WindowError):
        rule.between(f"{day}T23", f"{day}T22")


def test_a_span_that_begins_before_the_calendar_is_refused() -> None:
    for zone in ZONES:
        for grain, span in (("hour", "24h"), ("day", "1d"), ("month", "1mo")):
            rule = Windowing("ds", grain, zone)  # type: ignore[arg-type]
            with pytest.raises(WindowError, match="before the year 1"):
                rule.last(span, datetime(1, 1, 1, 13, tzinfo=UTC))
