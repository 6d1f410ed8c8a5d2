"""What a simulated run came to: how long, where the time goes, what limits it, what it costs."""

from __future__ import annotations

import math
from collections.abc import Mapping as Map
from dataclasses import dataclass

from benchmarks.simulation.case import Case
from benchmarks.simulation.costs import Costs
from benchmarks.simulation.model import Clock, Mapping
from benchmarks.simulation.parameters import Parameters
from pipeline.storage.s3_objects import PAGE

DRAIN_SECONDS = 10.0
"""The longest that a run which is over waits for the Prefect server."""


@dataclass(frozen=True, slots=True)
class Part:
    """Something that takes time, and cannot be made faster by more workers unless it is them.

    Attributes:
        name: What it is.
        seconds: How long it would take alone, if all others took no time.
        phase: In which phase.
        binds_from: The number of workers from which on it takes longer than they do; None for the
            workers themselves and for phases that are not theirs.
        advice: What to do about it.
    """

    name: str
    seconds: float
    phase: str
    binds_from: int | None
    advice: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one case.

    Attributes:
        case: What was simulated.
        phases: Seconds of each phase, in order.
        threads: Seconds of all worker threads while mapping, by what they did.
        driver: Seconds of the driver while mapping, by what it did.
        parts: Everything that may limit, the largest first.
        requests: To the object store, by kind.
        dollars: By kind.
        batches: Submitted.
        efficiency: Of all threads' time from beginning to end, the share that went into chunks.
        prefect_behind: Seconds that the Prefect server was behind when the mapping ended.
    """

    case: Case
    phases: Map[str, float]
    threads: Map[str, float]
    driver: Map[str, float]
    parts: tuple[Part, ...]
    requests: Map[str, float]
    dollars: Map[str, float]
    batches: int
    efficiency: float
    prefect_behind: float

    @property
    def seconds(self) -> float:
        """From the command until it ends."""
        return sum(self.phases.values())

    @property
    def limit(self) -> Part:
        """What takes the most time."""
        return self.parts[0]

    @property
    def next_limit(self) -> Part:
        """What will, once what limits now is gone; with workers as the limit: once there are more.

        The workers themselves are never meant: more of them is what one would try.
        """
        return next(part for part in self.parts[1:] if part.name != WORKERS)


WORKERS = "worker threads"
NEVER = 1e12
"""Numbers of workers from which on something limits, and at which nothing does."""
_ADVICE = {
    WORKERS: "more workers",
    "scheduler": "longer batches (batches.seconds)",
    "Prefect server": "longer batches (batches.seconds); nobody waits for it, but its pages lag",
    "GET requests": "more prefixes, or larger chunks",
    "PUT requests": "more prefixes, or larger chunks",
    "cores": "more machines",
    "planning": "fewer, larger files; resuming and planning again read only what is new",
    "reducing": "longer batches (batches.seconds): fewer partial results",
    "publishing": "larger chunks: each is one upload to complete",
    "report": "larger chunks",
    "start and end": "larger jobs",
}


def simulate(case: Case, parameters: Parameters) -> Answer:
    """Simulate one case from the command to the published output."""
    costs, mapping = Costs(case, parameters), Mapping(case, parameters)
    tally = mapping.run()
    phases = {
        "start and end": parameters.driver.start_seconds + min(tally.drain, DRAIN_SECONDS),
        "planning": costs.planning(),
        "mapping": tally.seconds,
        **({"reducing": costs.reducing(tally.segments)} if case.reduces else {}),
        "publishing": costs.publishing(),
        "report": costs.reporting(),
    }
    threads = {
        "chunks": tally.threads.useful,
        "around batches": tally.threads.overhead,
        "opening the run": tally.threads.opening,
        "waiting for a limit": tally.threads.waiting,
        "idle": tally.threads.idle,
    }
    clock = tally.driver
    driver = {
        "submitting": clock.submit,
        "taking in": clock.settle,
        "polling": clock.poll,
        "reading the ledger": clock.look,
        "folding it": clock.fold,
    }
    requests = _requests(costs, mapping)
    return Answer(
        case=case,
        phases=phases,
        threads=threads,
        driver=driver,
        parts=_parts(mapping, phases),
        requests=requests,
        dollars=_dollars(requests, parameters, case, sum(phases.values())),
        batches=tally.batches,
        efficiency=tally.threads.useful / (case.workers * sum(phases.values())),
        prefect_behind=tally.drain,
    )


def _parts(mapping: Mapping, phases: Map[str, float]) -> tuple[Part, ...]:
    tally, case = mapping.tally, mapping.case
    own = tally.threads.useful + tally.threads.overhead + tally.threads.opening
    shared = {
        "driver": tally.driver.total(),
        "scheduler": mapping.scheduler.busy_seconds(),
        "Prefect server": mapping.prefect.busy_seconds(),
        "GET requests": mapping.gets.busy_seconds(),
        "PUT requests": mapping.puts.busy_seconds(),
        "cores": mapping.cores.busy_seconds(),
    }
    parts = [Part(WORKERS, own / case.workers, "mapping", None, _ADVICE[WORKERS])]
    for name, seconds in shared.items():
        binds = math.ceil(own / seconds) if seconds * NEVER > own else None
        advice = _of_driver(tally.driver) if name == "driver" else _ADVICE[name]
        parts.append(Part(name, seconds, "mapping", binds, advice))
    for name, seconds in phases.items():
        if name != "mapping":
            parts.append(Part(name, seconds, name, None, _ADVICE[name]))
    return tuple(sorted(parts, key=lambda part: -part.seconds))


def _of_driver(clock: Clock) -> str:
    if clock.look + clock.fold > clock.submit + clock.settle:
        return (
            "longer batches (batches.seconds) and rarer flushes (batches.flush_seconds): "
            "fewer objects of completions to list and to read"
        )
    return "longer batches (batches.seconds): fewer to submit and to take in"


def _requests(costs: Costs, mapping: Mapping) -> dict[str, float]:
    case, tally = costs.case, mapping.tally
    footers, staged = case.files, 0 if case.reduces else case.chunks
    copied = staged if costs.is_copied else 0
    uploaded = staged - copied
    partials = tally.segments if case.reduces else 0
    listing = math.ceil(case.files / PAGE)
    return {
        "GetObject": footers + tally.gets + partials + (3 * case.workers if case.cold else 0),
        "CreateMultipartUpload": uploaded,
        "UploadPart": uploaded * costs.parts,
        "CompleteMultipartUpload": uploaded,
        "PutObject": copied + tally.segments + partials + tally.folds + 10,
        "CopyObject": copied,
        "DeleteObjects": costs.staged_pages if copied else 0,
        "ListMultipartUploads": costs.staged_pages if uploaded else 0,
        "ListObjects": listing
        + (costs.staged_pages if copied else 0)
        + tally.batches
        + tally.listed // PAGE
        + tally.looks,
    }


def _dollars(
    requests: Map[str, float], parameters: Parameters, case: Case, seconds: float
) -> dict[str, float]:
    prices = parameters.prices
    gets = requests["GetObject"]
    puts = sum(requests.values()) - gets - requests["DeleteObjects"]  # which are free
    return {
        "GET requests": gets / 1000 * prices.get_1000,
        "PUT, POST and LIST requests": puts / 1000 * prices.put_1000,
        "workers": case.workers * seconds / 3600 * prices.worker_hour,
    }
