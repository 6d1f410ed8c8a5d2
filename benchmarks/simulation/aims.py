"""What the simulation is meant to predict for runs that no machine here can measure."""

from __future__ import annotations

from benchmarks.simulation.answer import simulate
from benchmarks.simulation.case import Case
from benchmarks.simulation.parameters import load_parameters
from benchmarks.suite.aims import Aim, Figure, Judgement
from benchmarks.suite.stats import Interval

STORE = "amazon"
_MINUTES = "{:.1f} min"
_COMMAND = "chunkmap bench simulate"
LARGE = Case(workers=1_000, chunks=1_000_000, stored_bytes=100e12, files=1_000_000)
TRILLION = Case(
    workers=200, chunks=100_000, stored_bytes=2.4e12, files=100_000, rows=1e12, reduces=True
)
AIMS = (
    (
        LARGE,
        Aim(
            "simulated: a million chunks, 100 TB, on 1,000 workers",
            *("", 60.0, _MINUTES, lambda record: None),
            f"{_COMMAND} --workers 1000 --chunks 1e6 --bytes 100TB",
        ),
    ),
    (
        TRILLION,
        Aim(
            "simulated: a trillion rows (1TRC) on 200 threads",
            *("", 4.5, _MINUTES, lambda record: None),
            f"{_COMMAND} --workers 200 --chunks 1e5 --bytes 2.4TB --rows 1e12 --reduce",
        ),
    ),
)


def judge_simulated() -> list[Judgement]:
    """Simulate each case with the parameters in the package."""
    parameters = load_parameters(STORE)
    judged = []
    for case, aim in AIMS:
        answer = simulate(case, parameters)
        minutes = answer.seconds / 60
        note = f"limited by {answer.limit.name}, next {answer.next_limit.name}"
        figure = Figure(Interval(minutes, minutes, minutes), None, note)
        judged.append(Judgement(aim, "met" if aim.is_met(minutes) else "missed", figure))
    return judged
