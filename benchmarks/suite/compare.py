"""What a record says: each peer's ratio, whether it is a difference, whether an aim is met."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from benchmarks.suite.environments import REFERENCE
from benchmarks.suite.record import Record, Result
from benchmarks.suite.stats import Interval, Verdict, exact, is_met, ratio, verdict
from benchmarks.suite.workloads import WORKLOADS


@dataclass(frozen=True, slots=True)
class Comparison:
    """chunkmap against one peer on one workload.

    Attributes:
        workload: Its name.
        ours: chunkmap's result.
        theirs: The peer's.
        found: Ours over theirs, in seconds (of a task, where there are tasks); None if either
            side has no valid samples.
        said: What that says; empty without a ratio.
        aim: The ratio that was aimed at, if there is an aim.
    """

    workload: str
    ours: Result
    theirs: Result
    found: Interval | None
    said: Verdict | str
    aim: float | None

    @property
    def cpu(self) -> Interval | None:
        """Our workers' processor time over theirs; None where either is not known."""
        ours, theirs = self.ours.cpu_samples(), self.theirs.cpu_samples()
        known = self.found is not None and ours and theirs
        return ratio(ours, theirs) if known else None

    @property
    def size(self) -> float | None:
        """The bytes that we wrote over theirs; None where either is not known."""
        ours, theirs = self.ours.output_bytes(), self.theirs.output_bytes()
        known = self.found is not None and ours and theirs
        return ours / theirs if known and ours and theirs else None

    @property
    def requests(self) -> float | None:
        """Our S3 requests of one iteration over theirs; None where either was not counted."""
        ours, theirs = self.ours.traffic, self.theirs.traffic
        known = self.found is not None and ours is not None and theirs is not None
        return ours.total / theirs.total if known and ours and theirs and theirs.total else None

    @property
    def moved(self) -> float | None:
        """Our bytes over the network of one iteration over theirs; None if not counted."""
        ours, theirs = self.ours.traffic, self.theirs.traffic
        known = self.found is not None and ours is not None and theirs is not None
        return ours.moved / theirs.moved if known and ours and theirs and theirs.moved else None

    @property
    def met(self) -> bool | None:
        """Whether the aim is met; None without an aim, a ratio, or enough samples to tell."""
        if self.aim is None or self.found is None or self.said == "too few samples":
            return None
        return is_met(self.found, self.aim)


def comparisons(record: Record) -> list[Comparison]:
    """chunkmap against every peer, in the record's order.

    Where there are several numbers of tasks, the largest of each side is compared.
    """
    found = []
    for name in record.workloads():
        mine = [result for result in record.of(name, REFERENCE) if result.workers == 0]
        if not mine:
            continue
        ours = max(mine, key=lambda result: result.tasks)
        found += [_compare(record, ours, theirs) for theirs in _peers(record, name)]
    return found


def _peers(record: Record, workload: str) -> Iterator[Result]:
    names = dict.fromkeys(
        result.subject for result in record.results if result.workload == workload
    )
    for name in names:
        if name != REFERENCE:
            yield max(record.of(workload, name), key=lambda result: result.tasks)


def _compare(record: Record, ours: Result, theirs: Result) -> Comparison:
    aim = aim_of(ours.workload, theirs.subject, record.scale)
    if ours.state != "ok" or theirs.state != "ok":
        return Comparison(ours.workload, ours, theirs, None, "", aim)
    a, b = ours.samples(), theirs.samples()
    found = ratio(a, b)
    said = verdict(found, record.floor, min(len(a), len(b)))
    return Comparison(ours.workload, ours, theirs, found, said, aim)


def aim_of(workload: str, peer: str, scale: str) -> float | None:
    """The ratio that is aimed at on a scale of the datasets."""
    if workload not in WORKLOADS:
        return None
    aims = WORKLOADS[workload].aims
    return next((aim.ratio for aim in aims if peer in aim.peers and scale in aim.scales), None)


FLOORS = {"bytes": 0.05, "requests": 0.10}
"""As a share: smaller differences of what has hardly any noise are none. A new version of Polars
may move sizes a little, and a busy machine repeats requests."""


@dataclass(frozen=True, slots=True)
class Change:
    """One ratio in two records."""

    workload: str
    peer: str
    before: Interval
    after: Interval
    floor: float
    """The larger of both records' noise floors, or what was set as the least difference."""
    what: Literal["seconds", "bytes", "requests"] = "seconds"
    """What the ratio is of: the times, the bytes that were written, the requests to S3."""

    @property
    def name(self) -> str:
        """The comparison in words."""
        return f"{self.workload} against {self.peer}" + f", {self.what}" * (self.what != "seconds")

    @property
    def is_regression(self) -> bool:
        """Worse by more than noise explains: beyond the floor, and the intervals are apart."""
        worse = self.after.value > self.before.value * (1 + self.floor)
        return worse and self.after.low > self.before.high

    @property
    def says(self) -> str:
        """In words."""
        if self.is_regression:
            return "worse"
        better = self.after.value < self.before.value / (1 + self.floor)
        return "better" if better and self.after.high < self.before.low else "no difference"


def changes(before: Record, after: Record, least: float = 0.0) -> list[Change]:
    """Every ratio that both records have, of seconds, of bytes written and of requests.

    Ratios, because absolute times are the machine's.

    Args:
        before: The earlier record.
        after: The later one.
        least: As a share: a smaller difference is none, however quiet the machine was.
    """
    old = {
        (comparison.workload, comparison.theirs.subject): comparison
        for comparison in comparisons(before)
    }
    floor = max(before.floor, after.floor, least)
    made = []
    for now in comparisons(after):
        was = old.get((now.workload, now.theirs.subject))
        if was is None:
            continue
        names = (now.workload, now.theirs.subject)
        if was.found is not None and now.found is not None:
            made.append(Change(*names, was.found, now.found, floor))
        if was.size is not None and now.size is not None:
            ratios = exact(was.size), exact(now.size)
            made.append(Change(*names, *ratios, FLOORS["bytes"], "bytes"))
        if was.requests is not None and now.requests is not None:
            ratios = exact(was.requests), exact(now.requests)
            made.append(Change(*names, *ratios, FLOORS["requests"], "requests"))
    return made


def lost(before: Record, after: Record) -> list[str]:
    """Ratios that the earlier record has and the later one ought to have but has not: failures."""
    now = {
        (comparison.workload, comparison.theirs.subject): comparison
        for comparison in comparisons(after)
    }
    names = []
    for comparison in comparisons(before):
        there = now.get((comparison.workload, comparison.theirs.subject))
        if comparison.found is not None and there is not None and there.found is None:
            side = there.ours if there.ours.state != "ok" else there.theirs
            pair = f"{comparison.workload} against {comparison.theirs.subject}"
            names.append(f"{pair}: {side.title} {side.state}")
    return names
