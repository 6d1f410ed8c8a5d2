"""What the simulation is meant to predict for runs that no machine here can measure."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.simulation.answer import simulate
from benchmarks.simulation.case import Case
from benchmarks.simulation.parameters import Parameters, load_parameters
from benchmarks.suite.aims import Aim, Figure, Judgement, judge
from benchmarks.suite.environments import REFERENCE
from benchmarks.suite.record import Record
from benchmarks.suite.stats import exact, median
from benchmarks.suite.workloads import WORKLOADS
from pipeline.report.humanize import plural

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


MEASURED = "here"
"""The store of the machine where the parameters were fitted."""
WAIT = WORKLOADS["wait"]
ACCURACY = Aim(
    "simulated: runs that wait on 1 to 32 threads, off by",
    *("s", 0.20, "{:.0%}", lambda record: error_of(record, load_parameters(MEASURED))),
    "chunkmap bench run wait --iterations 4",
)


def error_of(record: Record, parameters: Parameters) -> Figure | None:
    """How far predictions are from a session's runs that wait: the largest share, either way.

    Args:
        record: The session. It has to be of the machine on which the parameters were fitted.
        parameters: Of that machine.
    """
    cards = [card for card in record.datasets if card.name == WAIT.dataset]
    points = [result for result in record.of(WAIT.name, REFERENCE) if result.state == "ok"]
    if not cards or len(points) < len(WAIT.workers):
        return None
    errors = {}
    for point in points:
        case = Case(
            workers=point.workers,
            chunks=point.tasks,
            stored_bytes=point.tasks * cards[0].bytes / cards[0].row_groups,
            files=cards[0].files,
            wait_seconds=WAIT.params["seconds"],
        )
        actual = median(point.samples()).value * point.tasks
        errors[point.workers] = simulate(case, parameters).seconds / actual - 1
    workers = max(errors, key=lambda number: abs(errors[number]))
    worst = abs(errors[workers])
    samples = min(len(point.samples()) for point in points)
    note = f"{errors[workers]:+.0%} on {plural(workers, 'thread')}"
    return Figure(exact(worst), samples, note)


def judge_simulated(records: Sequence[Record] = ()) -> list[Judgement]:
    """Simulate each case with the parameters in the package, and compare with what was measured.

    Args:
        records: Sessions, oldest first.
    """
    parameters = load_parameters(STORE)
    judged = []
    for case, aim in AIMS:
        answer = simulate(case, parameters)
        minutes = answer.seconds / 60
        note = f"limited by {answer.limit.name}, next {answer.next_limit.name}"
        figure = Figure(exact(minutes), None, note)
        judged.append(Judgement(aim, "met" if aim.is_met(minutes) else "missed", figure))
    return judged + judge([ACCURACY], records)
