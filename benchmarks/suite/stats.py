"""Medians with bootstrap intervals, ratios, and what is too small a difference to be one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

RESAMPLES = 4000
CONFIDENCE = 0.95
_SEED = 7

Verdict = Literal["faster", "slower", "no difference", "too few samples"]


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with the interval that the bootstrap gives it."""

    value: float
    low: float
    high: float


def exact(value: float) -> Interval:
    """A value that is known exactly."""
    return Interval(value, value, value)


def median(samples: Sequence[float]) -> Interval:
    """The median with its percentile bootstrap interval; of one sample, that sample.

    Raises:
        ValueError: there are no samples.
    """
    if not samples:
        raise ValueError("no samples, no median")
    values = np.asarray(samples, dtype=float)
    return _interval(float(np.median(values)), _medians(values, 0))


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """Median over median, both resampled independently.

    Raises:
        ValueError: one of them has no samples, or theirs are not above zero.
    """
    if not ours or not theirs:
        raise ValueError("no samples, no ratio")
    if min(theirs) <= 0:
        raise ValueError(f"a sample of {min(theirs)} s cannot be divided by")
    a, b = np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float)
    return _interval(float(np.median(a) / np.median(b)), _medians(a, 1) / _medians(b, 2))


def noise_floor(pairs: Sequence[tuple[Sequence[float], Sequence[float]]]) -> float:
    """How far two measurements of the very same thing may lie apart, as a share (0.05: 5%).

    Args:
        pairs: Samples of the same subject, measured as if it were two.

    Returns:
        The largest distance from 1 that any pair's interval of ratios reaches, either way round;
        0.0 without pairs.
    """
    worst = 0.0
    for first, second in pairs:
        found = ratio(first, second)
        worst = max(worst, found.high - 1, 1 / found.low - 1)
    return worst


def verdict(found: Interval, floor: float, samples: int) -> Verdict:
    """What a ratio (ours over theirs) says, given the noise floor.

    Args:
        found: The ratio.
        floor: Of the machine, as a share.
        samples: Of the side that has fewer. Below three there is no telling.
    """
    if samples < 3:
        return "too few samples"
    if found.low <= 1 <= found.high or max(found.value, 1 / found.value) - 1 <= floor:
        return "no difference"
    return "faster" if found.value < 1 else "slower"


def is_met(found: Interval, aim: float) -> bool:
    """Whether a ratio is at most the aim, by its median."""
    return found.value <= aim


def _medians(values: np.ndarray, stream: int) -> np.ndarray:
    random = np.random.default_rng([_SEED, stream])
    drawn = random.choice(values, size=(RESAMPLES, len(values)), replace=True)
    medians: np.ndarray = np.median(drawn, axis=1)
    return medians


def _interval(value: float, resampled: np.ndarray) -> Interval:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Interval(value, float(low), float(high))
