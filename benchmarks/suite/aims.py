"""What the suite is meant to reach, and whether sessions have reached it.

Aims that are ratios to a peer are named by the workloads; here is each row of the whole table, with
the figure that a record gives for it and the command that measures it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.suite.compare import Comparison, aim_of, comparisons
from benchmarks.suite.environments import PEERS, REFERENCE
from benchmarks.suite.record import Record, Result
from benchmarks.suite.stats import Interval, exact, median, noise_floor, ratio
from benchmarks.suite.workloads import DISTRIBUTED, ONE_PROCESS, WORKLOADS
from pipeline.report.humanize import plural

MAX_NOISE = 0.15
"""Noise floor of a session above which its figures are only an indication."""
TIMES = "{:.2f} times"
"""The unit of a ratio of seconds to a peer's."""
SHARE = "{:.4f} times"
"""The unit of a ratio of what is known exactly, such as bytes."""
MIN_SAMPLES = 3
"""Samples without which nothing is met or missed."""

State = Literal["met", "missed", "too few samples", "not measured"]


@dataclass(frozen=True, slots=True)
class Figure:
    """What a record or the simulation gives for an aim."""

    value: Interval
    samples: int | None = None
    """Of the side that has fewer; None if it is not sampled."""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Aim:
    """One row of the table.

    Attributes:
        what: What is measured, in a few words.
        scale: Scale of the datasets for which it is an aim; empty for what is simulated.
        limit: Value to reach.
        unit: Format of values, with one field.
        figure: Finds the figure in a record; None if it is not in there.
        command: Measures it.
        at_least: Whether the limit is the lowest value, and not the highest.
    """

    what: str
    scale: str
    limit: float
    unit: str
    figure: Callable[[Record], Figure | None]
    command: str
    at_least: bool = False

    @property
    def is_ratio(self) -> bool:
        """Whether it is a ratio of seconds to a peer's."""
        return self.unit == TIMES

    def limit_text(self) -> str:
        """The limit in words."""
        return f"at {'least' if self.at_least else 'most'} {self.unit.format(self.limit)}"

    def is_met(self, value: float) -> bool:
        """Whether a value reaches the limit."""
        return value >= self.limit if self.at_least else value <= self.limit


@dataclass(frozen=True, slots=True)
class Judgement:
    """An aim and what became of it."""

    aim: Aim
    state: State
    figure: Figure | None = None
    record: Record | None = None
    """The session that measured it."""

    @property
    def noise(self) -> float | None:
        """Noise floor of the session, as a share: for a figure of ours alone, that of our times.

        None for what is not sampled, such as bytes.
        """
        noise = self.record.noise if self.record is not None and self._is_sampled else None
        if noise is None or self.aim.is_ratio or REFERENCE not in noise.pairs:
            return None if noise is None else noise.floor
        return noise_floor([noise.pairs[REFERENCE]])

    @property
    def is_noisy(self) -> bool:
        """Whether the session was too noisy for more than an indication."""
        return self._is_sampled and (self.noise is None or self.noise > MAX_NOISE)

    @property
    def _is_sampled(self) -> bool:
        return self.figure is not None and self.figure.samples is not None

    def figure_text(self) -> str:
        """The figure with its interval."""
        if self.figure is None:
            return "–"
        value, unit = self.figure.value, self.aim.unit
        text = unit.format(value.value)
        if (value.low, value.high) != (value.value, value.value):
            text += f" [{unit.format(value.low)}, {unit.format(value.high)}]"
        return text + (f", {self.figure.note}" if self.figure.note else "")

    def noise_text(self) -> str:
        """The session's noise floor."""
        if not self._is_sampled:
            return ""
        return "not measured" if self.noise is None else f"{self.noise:.0%}"


def judge(aims: Iterable[Aim], records: Sequence[Record]) -> list[Judgement]:
    """Judge each aim by the newest record that has a figure for it.

    Args:
        aims: The aims.
        records: Sessions, oldest first, of any scale.
    """
    return [_judge(aim, records) for aim in aims]


def _judge(aim: Aim, records: Sequence[Record]) -> Judgement:
    for record in reversed(records):
        figure = aim.figure(record) if record.scale == aim.scale else None
        if figure is not None:
            few = figure.samples is not None and figure.samples < MIN_SAMPLES
            reached: State = "met" if aim.is_met(figure.value.value) else "missed"
            return Judgement(aim, "too few samples" if few else reached, figure, record)
    return Judgement(aim, "not measured")


# -- figures of a record ------------------------------------------------------------------


def slowest_ratio(workload: str, peers: Sequence[str]) -> Callable[[Record], Figure | None]:
    """Our seconds over those of the fastest of some peers; all of them must have been measured."""

    def figure(record: Record) -> Figure | None:
        found = _compared(record, workload, peers)
        if len(found) < len(peers):
            return None
        worst = max(found, key=_seconds_ratio)
        assert worst.found is not None
        samples = min(len(worst.ours.samples()), len(worst.theirs.samples()))
        note = f"{PEERS[worst.theirs.subject].title} is the fastest" if len(peers) > 1 else ""
        return Figure(worst.found, samples, note)

    return figure


def largest_of(
    workload: str,
    peers: Sequence[str],
    share: Callable[[Comparison], float | None],
    does: str,
) -> Callable[[Record], Figure | None]:
    """Our share of what a peer writes or moves, next to the peer that does so the least.

    Args:
        workload: The workload.
        peers: The peers.
        share: What is compared, ours over theirs; None if it was not measured.
        does: What the peer does, in a word.
    """

    def figure(record: Record) -> Figure | None:
        shares = {
            value: PEERS[compared.theirs.subject].title
            for compared in _compared(record, workload, peers)
            if (value := share(compared)) is not None
        }
        if not shares:
            return None
        most = max(shares)
        return Figure(exact(most), None, f"{shares[most]} {does} the least")

    return figure


def cpu_ratio(workload: str, peer: str) -> Callable[[Record], Figure | None]:
    """Our workers' processor time over a peer's own."""

    def figure(record: Record) -> Figure | None:
        for compared in _compared(record, workload, (peer,)):
            if compared.cpu is not None:
                few = min(len(compared.ours.cpu_samples()), len(compared.theirs.cpu_samples()))
                return Figure(compared.cpu, few)
        return None

    return figure


def seconds(
    workload: str,
    samples: Callable[[Result], list[float]] = Result.samples,
    tasks: int = 0,
    factor: float = 1.0,
) -> Callable[[Record], Figure | None]:
    """The median of our seconds, or of what `samples` takes from our result."""

    def figure(record: Record) -> Figure | None:
        ours = _ours(record, workload, tasks)
        values = samples(ours) if ours is not None else []
        return _median([value * factor for value in values]) if values else None

    return figure


def further_task(workload: str) -> Callable[[Record], Figure | None]:
    """Milliseconds of one more task: between the fewest and the most that were measured."""

    def figure(record: Record) -> Figure | None:
        points = sorted(_ok(record, workload), key=lambda result: result.tasks)
        if len(points) < 2:
            return None
        few, many = points[0], points[-1]
        first, last = few.samples(), many.samples()  # seconds per task
        base = median(first).value * few.tasks
        more = many.tasks - few.tasks
        values = [(value * many.tasks - base) / more * 1000 for value in last]
        note = f"from {few.tasks:,} to {many.tasks:,}"
        return Figure(median(values), min(len(first), len(last)), note)

    return figure


def files_per_second(workload: str) -> Callable[[Record], Figure | None]:
    """Files of the dataset that are planned per second."""

    def figure(record: Record) -> Figure | None:
        dataset = WORKLOADS[workload].dataset
        cards = [card for card in record.datasets if card.name == dataset]
        ours = _ours(record, workload)
        if ours is None or not cards or not ours.samples():
            return None
        return _median([cards[0].files / value for value in ours.samples()])

    return figure


def efficiency(workload: str) -> Callable[[Record], Figure | None]:
    """Speed of a thread among the most that were measured, by its speed among the fewest."""

    def figure(record: Record) -> Figure | None:
        points = sorted(_ok(record, workload), key=lambda result: result.workers)
        if len(points) < 2:
            return None
        few, many = points[0], points[-1]
        found, ideal = ratio(few.samples(), many.samples()), many.workers / few.workers
        share = Interval(found.value / ideal, found.low / ideal, found.high / ideal)
        samples = min(len(few.samples()), len(many.samples()))
        return Figure(share, samples, plural(many.workers, "thread"))

    return figure


def requests_per_file(workload: str) -> Callable[[Record], Figure | None]:
    """S3 requests of one iteration for each file that it wrote."""

    def figure(record: Record) -> Figure | None:
        ours = _ours(record, workload)
        value = ours.requests_per_file() if ours is not None else None
        return None if value is None else Figure(exact(value))

    return figure


def driver_megabytes(result: Result) -> list[float]:
    """The most memory that the driver's process held."""
    told = [each.figures.get("driver_peak_bytes") for each in result.compared()]
    return [value / 1e6 for value in told if value]


def _compared(record: Record, workload: str, peers: Sequence[str]) -> list[Comparison]:
    return [
        compared
        for compared in comparisons(record)
        if compared.workload == workload
        and compared.theirs.subject in peers
        and compared.found is not None
    ]


def _seconds_ratio(compared: Comparison) -> float:
    return compared.found.value if compared.found is not None else 0.0


def _ok(record: Record, workload: str) -> list[Result]:
    return [result for result in record.of(workload, REFERENCE) if result.state == "ok"]


def _ours(record: Record, workload: str, tasks: int = 0) -> Result | None:
    """Our result with the most tasks, or with exactly this number of tasks."""
    found = [result for result in _ok(record, workload) if not tasks or result.tasks == tasks]
    return max(found, key=lambda result: result.tasks, default=None)


def _median(values: Sequence[float]) -> Figure:
    return Figure(median(values), len(values))


# -- the table ----------------------------------------------------------------------------

_SECONDS, _MS = "{:.2f} s", "{:.3g} ms"
_SIX = "--iterations 6"
"""One cold time and five warm ones."""


def _against(workload: str, scale: str, peers: Sequence[str], what: str, options: str = "") -> Aim:
    """A ratio of seconds, whose limit the workload names."""
    limit = aim_of(workload, peers[0], scale)
    assert limit is not None, f"{workload} has no aim against {peers[0]} at scale {scale}"
    command = _run(workload, scale, f"{_SIX}{options}")
    return Aim(what, scale, limit, TIMES, slowest_ratio(workload, peers), command)


def _run(workload: str, scale: str, options: str = "") -> str:
    sized = f" --scale {scale}" if scale != "s" else ""
    return f"chunkmap bench run {workload}{sized} {options}".strip()


EVERYBODY = (*ONE_PROCESS, *DISTRIBUTED)
_POLARS = " --against polars"
_THREE = "".join(f" --against {peer}" for peer in ONE_PROCESS)
AIMS = (
    _against(
        "row-map",
        "m",
        ONE_PROCESS,
        "row-map, 24 million rows, against the fastest of Polars, DuckDB and Daft",
    ),
    _against(
        "row-map",
        "l",
        ONE_PROCESS,
        "row-map, 120 million rows, against the fastest of Polars, DuckDB and Daft",
        _THREE,
    ),
    Aim(
        "row-map, bytes written against the smallest output of Polars, DuckDB and Daft",
        "m",
        1.0,
        SHARE,
        largest_of("row-map", ONE_PROCESS, lambda it: it.size, "writes"),
        _run("row-map", "m", _SIX),
    ),
    _against(
        "row-map",
        "m",
        DISTRIBUTED,
        "row-map, 24 million rows, against the fastest of PySpark, Ray Data and Dask DataFrame",
    ),
    Aim(
        "row-map, processor time of the workers against Polars' own",
        "m",
        0.80,
        TIMES,
        cpu_ratio("row-map", "polars"),
        _run("row-map", "m", _SIX),
    ),
    _against(
        "add-columns",
        "s",
        EVERYBODY,
        "three columns next to sixteen kept ones, against the fastest that writes all",
    ),
    Aim(
        "three columns next to sixteen kept ones, bytes over the network",
        "s",
        1 / 3,
        SHARE,
        largest_of("add-columns", EVERYBODY, lambda it: it.moved, "moves"),
        _run("add-columns", "s", _SIX),
    ),
    _against("rename-column", "s", ("polars",), "one column renamed, against Polars", _POLARS),
    _against("stations", "m", ("polars",), "stations, 100 million rows, against Polars", _POLARS),
    _against("stations", "l", ("polars",), "stations, 1,000 million rows, against Polars", _POLARS),
    Aim(
        "fixed cost: a run of one tiny chunk, until it is published",
        "s",
        0.30,
        _SECONDS,
        seconds("fixed", Result.published_samples),
        _run("fixed", "s"),
    ),
    _against("daily", "m", ("polars",), "daily, 1,096 files to as many, against Polars", _POLARS),
    Aim(
        "daily, S3 requests per output",
        "m",
        2.2,
        "{:.2f}",
        requests_per_file("daily"),
        _run("daily", "m", f"{_SIX}{_POLARS}"),
    ),
    Aim(
        "backfill of 1,096 windows",
        "s",
        6.0,
        _SECONDS,
        seconds("backfill"),
        _run("backfill", "s", f"--iterations 4{_POLARS}"),
    ),
    Aim(
        "each further window of a backfill",
        "m",
        4.0,
        _MS,
        further_task("windows"),
        _run("windows", "m", "--iterations 4"),
    ),
    Aim(
        "100,000 chunks of 4 KiB, staged and published, per chunk",
        "l",
        3.0,
        _MS,
        seconds("small-files", factor=1000),
        _run("small-files", "l", "--iterations 4"),
    ),
    Aim(
        "100,000 chunks of 4 KiB, peak memory of the driver",
        "l",
        400.0,
        "{:.0f} MB",
        seconds("small-files", driver_megabytes),
        _run("small-files", "l", "--iterations 4"),
    ),
    Aim(
        "100,000 chunks in the ledger alone, per chunk",
        "m",
        0.06,
        _MS,
        seconds("ledger", tasks=100_000, factor=1000),
        _run("ledger", "m", f"--iterations 4{_POLARS}"),
    ),
    Aim(
        "planning 100,000 files of two row groups",
        "l",
        6_000,
        "{:,.0f} files/s",
        files_per_second("plan"),
        _run("plan", "l", f"--iterations 4{_POLARS}"),
        at_least=True,
    ),
    Aim(
        "planning them again, unchanged",
        "l",
        40_000,
        "{:,.0f} files/s",
        files_per_second("plan-again"),
        _run("plan-again", "l", "--iterations 4"),
        at_least=True,
    ),
    Aim(
        "32 threads that wait, share of the ideal",
        "s",
        0.92,
        "{:.0%}",
        efficiency("wait"),
        _run("wait", "s", "--iterations 4"),
        at_least=True,
    ),
)
