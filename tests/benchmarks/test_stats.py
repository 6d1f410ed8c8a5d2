import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.suite.stats import Interval, median, noise_floor, ratio, verdict

SECONDS = st.lists(st.floats(0.01, 1000), min_size=1, max_size=12)


@given(SECONDS)
def test_the_median_lies_in_its_interval_and_that_in_the_samples(samples: list[float]) -> None:
    found = median(samples)
    assert min(samples) <= found.low <= found.high <= max(samples)
    assert found.low <= found.value <= found.high or len(samples) < 3


@given(SECONDS, st.floats(0.1, 10))
def test_a_ratio_scales(samples: list[float], factor: float) -> None:
    scaled = [value * factor for value in samples]
    assert math.isclose(ratio(scaled, samples).value, factor, rel_tol=1e-9)


def test_intervals_are_the_same_each_time() -> None:
    samples = [1.0, 1.5, 1.2, 0.9, 1.1]
    assert median(samples) == median(samples)


def test_more_samples_narrow_the_interval() -> None:
    few, many = median([1.0, 1.1, 1.2]), median([1.0, 1.1, 1.2] * 20)
    assert many.high - many.low < few.high - few.low


@pytest.mark.parametrize(
    ("found", "floor", "samples", "said"),
    [
        (Interval(0.8, 0.75, 0.85), 0.05, 5, "faster"),
        (Interval(1.2, 1.15, 1.25), 0.05, 5, "slower"),
        (Interval(1.2, 0.95, 1.5), 0.05, 5, "no difference"),
        (Interval(1.04, 1.03, 1.05), 0.05, 5, "no difference"),
        (Interval(0.96, 0.95, 0.97), 0.05, 5, "no difference"),
        (Interval(0.5, 0.5, 0.5), 0.05, 2, "too few samples"),
        (Interval(0.01, 0.01, 0.01), math.inf, 5, "no difference"),
    ],
)
def test_verdicts(found: Interval, floor: float, samples: int, said: str) -> None:
    assert verdict(found, floor, samples) == said


def test_the_floor_is_the_worst_pair_either_way_round() -> None:
    steady, slower = [1.0] * 5, [1.3] * 5
    assert noise_floor([(steady, steady)]) == 0
    up, down = noise_floor([(steady, slower)]), noise_floor([(slower, steady)])
    assert math.isclose(up, 0.3) and math.isclose(down, 0.3)
    assert noise_floor([(steady, steady), (steady, slower)]) == up
    assert noise_floor([]) == 0


@pytest.mark.parametrize(
    ("ours", "theirs", "words"), [([], [1.0], "no samples"), ([1.0], [0.0], "cannot be divided")]
)
def test_ratios_that_are_none(ours: list[float], theirs: list[float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ratio(ours, theirs)


def test_no_median_of_nothing() -> None:
    with pytest.raises(ValueError, match="no samples"):
        median([])
