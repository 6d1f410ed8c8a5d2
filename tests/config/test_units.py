"""Sizes and durations as people write them."""

import pytest

from pipeline.config.units import format_size, parse_seconds, parse_size


@pytest.mark.parametrize(
    ("written", "count"),
    [
        (1, 1),
        ("1", 1),
        ("128MiB", 128 * 2**20),
        ("128 mib", 128 * 2**20),
        ("1.5GB", 1_500_000_000),
        ("2TiB", 2 * 2**40),
        ("1_000kB", 1_000_000),
    ],
)
def test_sizes(written: object, count: int) -> None:
    assert parse_size(written) == count


@pytest.mark.parametrize(
    "written",
    [0, -1, True, None, "", "MiB", "1 apple", "-5MiB", float("inf"), 10**309, "9" * 300 + "TB"],
    ids=lambda written: str(written)[:10],
)
def test_what_is_no_size_is_refused(written: object) -> None:
    with pytest.raises(ValueError, match=r"is not a size|is below 1"):
        parse_size(written)


@pytest.mark.parametrize(
    ("written", "seconds"), [(2.5, 2.5), ("90s", 90), ("5min", 300), ("250ms", 0.25), ("2h", 7200)]
)
def test_durations(written: object, seconds: float) -> None:
    assert parse_seconds(written) == seconds


@pytest.mark.parametrize("written", [-1, False, None, "soon", "1 MiB", float("nan")])
def test_what_is_no_duration_is_refused(written: object) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_seconds(written)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (128 * 2**20, "128 MiB"), (2**42, "4 TiB")],
)
def test_sizes_are_shown_as_they_are_written(count: int, text: str) -> None:
    assert format_size(count) == text
    if count:
        assert parse_size(text) == count
