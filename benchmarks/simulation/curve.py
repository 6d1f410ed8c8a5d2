"""The same run on other numbers of workers, and where more of them stop being worth it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from multiprocessing import get_context

from benchmarks.simulation.answer import Answer, simulate
from benchmarks.simulation.case import MOST_WORKERS, Case
from benchmarks.simulation.parameters import Parameters

EFFICIENT = 0.8
FACTOR = 4
BELOW, ABOVE = 3, 2
"""Points of the curve on either side of the number that was asked for."""


@dataclass(frozen=True, slots=True)
class Point:
    """One number of workers."""

    workers: int
    seconds: float
    efficiency: float
    dollars: float
    limit: str


def point_of(answer: Answer) -> Point:
    """What the curve shows of an answer."""
    return Point(
        answer.case.workers,
        answer.seconds,
        answer.efficiency,
        sum(answer.dollars.values()),
        answer.limit.name,
    )


def numbers(workers: int) -> list[int]:
    """Numbers of workers around one, each four times the one before."""
    around = [workers * float(FACTOR) ** step for step in range(-BELOW, ABOVE + 1)]
    return sorted({min(MOST_WORKERS, max(1, round(point))) for point in around})


def simulate_around(
    case: Case, parameters: Parameters, processes: int = 1
) -> tuple[Answer, list[Point]]:
    """Simulate a case, and the same on other numbers of workers.

    Args:
        case: The case.
        parameters: What everything costs.
        processes: How many to simulate at a time.

    Returns:
        The answer, and the points of the curve with the fewest workers first.
    """
    cases = [replace(case, workers=number) for number in numbers(case.workers)]
    if processes == 1:
        answers = [simulate(case, parameters) for case in cases]
    else:
        # Not forked: this process has threads of Polars.
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            answers = list(pool.map(simulate, cases, [parameters] * len(cases)))
    (own,) = [answer for answer in answers if answer.case.workers == case.workers]
    return own, [point_of(answer) for answer in answers]


def efficient_up_to(points: Sequence[Point], least: float = EFFICIENT) -> float | None:
    """The number of workers where efficiency falls below a share; None if it is not on the curve.

    Between two points it is taken to change evenly with the logarithm of the number.
    """
    for before, after in pairwise(points):
        if before.efficiency >= least > after.efficiency:
            share = (before.efficiency - least) / (before.efficiency - after.efficiency)
            low, high = math.log(before.workers), math.log(after.workers)
            return math.exp(low + share * (high - low))
    return None
