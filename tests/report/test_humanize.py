"""Numbers as people read them."""

from __future__ import annotations

import time

import pytest

from pipeline.report import humanize


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.0001, "under 1 ms"),
        (0.0421, "42 ms"),
        (0.9996, "1.00 s"),
        (9.996, "10.0 s"),
        (42.06, "42.1 s"),
        (59.97, "1 min"),
        (200, "3 min 20 s"),
        (3600, "1 h"),
        (3599.7, "1 h"),
        (90_061, "1 d 1 h"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert humanize.duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (999_999, "999,999"), (6_001_215, "6.00 million"), (2.4e10, "24.0 billion")],
)
def test_short_count(value: float, text: str) -> None:
    assert humanize.short_count(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (999, "999 B"), (999_999, "1.00 MB"), (12_400_000_000, "12.4 GB")],
)
def test_byte_size(value: float, text: str) -> None:
    assert humanize.byte_size(value) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0%"), (0.0004, "<0.1%"), (0.041, "4.1%"), (0.5, "50%"), (0.99999, ">99.9%"), (1, "100%")],
)
def test_percent_is_never_a_false_0_or_100(share: float, text: str) -> None:
    assert humanize.percent(share) == text


def test_plural() -> None:
    assert humanize.plural(1, "chunk") == "1 chunk"
    assert humanize.plural(2000, "retry", "retries") == "2,000 retries"


def test_moments_are_those_of_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        at = 1_772_373_911.0
        assert humanize.instant(at) == "2026-03-01 14:05:11 UTC"
        assert humanize.short_instant(at) == "03-01 14:05"
        assert humanize.short_instant(at, seconds=True) == "03-01 14:05:11"
        assert humanize.clock_time(at) == "14:05:11 UTC"
    finally:
        monkeypatch.undo()
        time.tzset()
