"""Driver, scheduler, workers, Prefect server and object store over time.

Batches are simulated, not chunks: within a batch a worker does the same thing over and over, which
`costs.py` adds up. Limits of requests, of the scheduler and of shared cores are queues that serve
in the order of arrival; a batch claims all it needs when it starts and ends no sooner than it has
got it. That keeps rates exact over anything longer than a batch.

The loop is that of `pipeline.runs.driver.map_stage.MapStage._fly`, with its own batcher.

Very large cases are reduced, in two ways that keep every rate as it is. Workers move in groups: one
that is simulated stands for several, and whatever is shared is charged for all of them. And where
each worker has thousands of chunks, a part of the run stands for the whole: what grows with the
completions that are stored (reading and folding the ledger) is charged as if all were there.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, overload

import simpy

from benchmarks.simulation.case import Case
from benchmarks.simulation.costs import BatchCost, Costs
from benchmarks.simulation.parameters import Parameters
from pipeline.flows.executor import COUNT_SECONDS
from pipeline.runs.driver.batching import SHARED_SECONDS, Batcher
from pipeline.runs.driver.ledger_counter import (
    COMPACT_SECONDS,
    COMPACT_SEGMENTS,
    COUNT_PAUSE_FACTOR,
)
from pipeline.runs.worker.batch import Batch
from pipeline.storage.s3_objects import PAGE

WAIT_SECONDS = 1.0
"""How long the driver waits for the next batch to come back before it looks around."""

MOST_SIMULATED = 60_000
"""Chunks that are simulated one by one, about."""
FEWEST_WORKERS = 32
"""That are simulated, where there are more: with few, a group that waits is too large a share."""
FEWEST_EACH = 200
"""Chunks of each worker: with fewer, beginning and end are too large a part to be stretched."""

Steps = Generator[simpy.Event, Any, None]


@dataclass(slots=True)
class Queue:
    """Something that serves one after the other, at a rate.

    Attributes:
        rate: Units a second; infinite if it is no limit.
        free: When it has served all that was asked for.
        served: Units so far.
    """

    rate: float
    free: float = 0.0
    served: float = 0.0

    def claim(self, units: float, now: float) -> float:
        """Return when this many units, requested now, have been served."""
        self.served += units
        self.free = max(self.free, now) + units / self.rate
        return self.free

    def busy_seconds(self) -> float:
        """How long it takes to serve all that was asked for."""
        return self.served / self.rate


@dataclass(slots=True)
class Clock:
    """Seconds of the driver by what it did with them."""

    submit: float = 0.0
    settle: float = 0.0
    poll: float = 0.0
    look: float = 0.0
    fold: float = 0.0

    def total(self) -> float:
        """All of them."""
        return self.submit + self.settle + self.poll + self.look + self.fold


@dataclass(slots=True)
class Threads:
    """Seconds of all worker threads by what they did with them."""

    useful: float = 0.0
    overhead: float = 0.0
    """Around the chunks: beginning and ending batches, storing completions."""
    opening: float = 0.0
    waiting: float = 0.0
    """For requests, shared cores or the scheduler, beyond what the chunks themselves take."""
    idle: float = 0.0
    """Nothing to do: the driver had not submitted anything, or all was handed out."""


@dataclass(slots=True)
class Tally:
    """What has happened."""

    seconds: float = 0.0
    batches: int = 0
    chunks: int = 0
    segments: int = 0
    looks: int = 0
    folds: int = 0
    listed: int = 0
    """Keys."""
    gets: float = 0.0
    puts: float = 0.0
    drain: float = 0.0
    """How far the Prefect server was behind at the end."""
    driver: Clock = field(default_factory=Clock)
    threads: Threads = field(default_factory=Threads)


@dataclass(slots=True)
class _Landed:
    chunks: int
    seconds: float
    segments: int


@dataclass(frozen=True, slots=True)
class Reduction:
    """How much smaller a case is simulated.

    Attributes:
        workers: That are simulated.
        chunks: That are simulated.
        together: Workers that each of them stands for.
        stretch: How many times the simulated part makes the whole.
    """

    workers: int
    chunks: int
    together: float
    stretch: float


def reduction(case: Case, most: int) -> Reduction:
    """Choose how to simulate a case with about this many chunks.

    Args:
        case: The case.
        most: Chunks.
    """
    groups = min(math.ceil(case.chunks / most), max(1, case.workers // FEWEST_WORKERS))
    workers = round(case.workers / groups)
    together = case.workers / workers
    left = case.chunks / together
    least = max(most, workers * FEWEST_EACH)
    chunks = max(1, round(min(left, least)))
    return Reduction(workers, chunks, together, case.chunks / together / chunks)


class Mapping:
    """The mapping phase of one case."""

    def __init__(self, case: Case, parameters: Parameters, most: int = MOST_SIMULATED) -> None:
        """Prepare.

        Args:
            case: The case.
            parameters: What everything costs.
            most: Chunks that are simulated one by one, about; a larger case is reduced.
        """
        self.case = case
        self.parameters = parameters
        self.costs = Costs(case, parameters)
        self.tally = Tally()
        self.reduced = reduction(case, most)
        store, services = parameters.store, parameters.services
        self.gets = Queue(store.gets_per_second * case.prefixes)
        self.puts = Queue(store.puts_per_second * case.prefixes)
        self.cores = Queue(float(store.cores) if store.cores else float("inf"))
        self.scheduler = Queue(_per(services.scheduler_seconds))
        self.prefect = Queue(_per(services.prefect_seconds))
        workers = self.reduced.workers
        self._environment = simpy.Environment()
        self._pending: deque[int] = deque()
        self._idle: list[int] = list(range(workers))
        self._opened = bytearray(workers)
        self._idle_since = [0.0] * workers
        self._batch_costs: dict[int, BatchCost] = {}
        self._landed: list[_Landed] = []
        self._wake: simpy.Event | None = None
        self._flying = 0
        self._known_segments = 0
        self._unread_entries = 0

    def run(self) -> Tally:
        """Map everything; returns what happened."""
        done = self._environment.process(self._drive())
        self._environment.run(until=done)
        tally, now = self.tally, self._environment.now
        tally.seconds = now
        tally.drain = max(0.0, self.prefect.free - now)
        tally.threads.idle += sum(max(0.0, now - self._idle_since[worker]) for worker in self._idle)
        tally.gets += self.gets.served
        tally.puts += self.puts.served
        self._enlarge()
        return tally

    def _enlarge(self) -> None:
        """From what was simulated to the whole case. What is shared was charged for all workers."""
        tally, stretch, together = self.tally, self.reduced.stretch, self.reduced.together
        for name in ("seconds", "looks", "folds", "listed", "gets", "puts"):
            setattr(tally, name, type(getattr(tally, name))(getattr(tally, name) * stretch))
        for name in ("batches", "chunks", "segments"):
            setattr(tally, name, round(getattr(tally, name) * stretch * together))
        for counter in fields(tally.driver):
            setattr(tally.driver, counter.name, getattr(tally.driver, counter.name) * stretch)
        for counter in fields(tally.threads):
            share = 1.0 if counter.name == "opening" else stretch  # Once, however long it takes.
            value = getattr(tally.threads, counter.name) * together * share
            setattr(tally.threads, counter.name, value)
        tally.seconds -= (stretch - 1) * self.costs.opening()
        for queue in (self.gets, self.puts, self.cores, self.scheduler, self.prefect):
            queue.served *= stretch

    # -- the driver -----------------------------------------------------------------------------

    def _drive(self) -> Steps:
        case, driver, tally = self.case, self.parameters.driver, self.tally
        workers, together = self.reduced.workers, self.reduced.together
        batcher = _batcher(self.costs, self.reduced)
        looked, pause, folded, unfolded, more = 0.0, 0.0, 0.0, 0.0, True
        yield from self._spend(self._look(whole=True), "look")
        while more or self._flying:
            while more and self._flying < workers * case.batches.in_flight_per_thread:
                batch = batcher.take(workers)
                more = batch is not None
                if batch is not None:
                    yield from self._spend(driver.submit_seconds * together, "submit")
                    self._submit(batch)
            if not self._landed:
                yield self._something()
            landed, self._landed = self._landed, []
            polling = self._flying * together * driver.poll_seconds
            tally.driver.poll += polling
            settling = len(landed) * together * driver.settle_seconds
            yield from self._spend(settling, "settle", polling)
            for outcome in landed:
                decoded = int(outcome.chunks * self.costs.decoded_bytes)
                batcher.pace.add(outcome.chunks, decoded, outcome.seconds)
            self._flying -= len(landed)
            now = self._environment.now
            if now - looked >= pause:
                unfolded += (tally.segments - self._known_segments) * together
                looking = self._look()
                yield from self._spend(looking, "look")
                looked, pause = (
                    self._environment.now,
                    max(COUNT_SECONDS, COUNT_PAUSE_FACTOR * looking),
                )
            if now - folded >= COMPACT_SECONDS and unfolded > COMPACT_SEGMENTS:
                yield from self._spend(self.costs.fold(self._whole(tally.chunks)), "fold")
                folded, unfolded = self._environment.now, 0.0
                tally.folds += 1
                self.puts.claim(1, folded)
        yield from self._spend(self._look(whole=True), "look")

    def _whole(self, simulated: int) -> int:
        """Of the whole case, at the same share of it."""
        return round(simulated * self.reduced.together * self.reduced.stretch)

    def _something(self) -> simpy.Event:
        """When a batch comes back, or the time is up."""
        self._wake = self._environment.event()
        event = self._wake
        self._environment.timeout(WAIT_SECONDS).callbacks.append(lambda _: _succeed(event))
        return event

    def _spend(self, seconds: float, on: str, more: float = 0.0) -> Steps:
        """Let the driver be busy with one thing, and for so much longer with what is noted."""
        if seconds + more <= 0:
            return
        clock, now = self.tally.driver, self._environment.now
        setattr(clock, on, getattr(clock, on) + seconds)
        end = max(now + seconds + more, self.cores.claim(seconds + more, now))
        yield self._environment.timeout(end - now)

    def _look(self, *, whole: bool = False) -> float:
        """Read the ledger, or what is new of it; returns how long it takes."""
        tally, together = self.tally, self.reduced.together
        new = round((tally.segments - self._known_segments) * together)
        # Half of what the batches under way will store is there, and is listed too.
        each = tally.segments / max(1, tally.batches - self._flying)
        listed = new + round(self._flying * each / 2 * together)
        listed = self._whole(tally.segments) if whole else listed
        entries = round(self._unread_entries * together)
        seconds = self.costs.look(listed, new, entries, self._whole(tally.chunks))
        self.gets.claim(new, self._environment.now)
        self.puts.claim(1 + listed // PAGE, self._environment.now)
        self._known_segments, self._unread_entries = tally.segments, 0
        tally.looks += 1
        tally.listed += listed
        return seconds

    # -- scheduler and workers ------------------------------------------------------------------

    def _submit(self, batch: Batch) -> None:
        self._flying += 1
        self.tally.batches += 1
        self._pending.append(len(batch))
        if self._idle:
            thread = self._idle.pop()
            self.tally.threads.idle += self._environment.now - self._idle_since[thread]
            self._start(thread)

    def _start(self, thread: int) -> None:
        """Give a thread the next batch, or let it wait for one."""
        now, tally = self._environment.now, self.tally
        if not self._pending:
            self._idle.append(thread)
            self._idle_since[thread] = now
            return
        chunks, together = self._pending.popleft(), self.reduced.together
        cost = self._batch_costs.get(chunks)
        if cost is None:
            cost = self._batch_costs[chunks] = self.costs.batch(chunks)
        begin = self.scheduler.claim(together, now)
        opening = 0.0 if self._opened[thread] else self.costs.opening()
        self._opened[thread] = 1
        own = begin + opening + cost.seconds
        end = max(
            own,
            self.gets.claim(cost.gets * together, now),
            self.puts.claim(cost.puts * together, now),
            self.cores.claim(cost.cpu * together, now),
        )
        threads = tally.threads
        threads.useful += cost.useful
        threads.overhead += cost.seconds - cost.useful
        threads.opening += opening
        threads.waiting += (end - own) + (begin - now)
        landed = _Landed(chunks, end - begin - opening, cost.segments)
        timeout = self._environment.timeout(end - now)
        timeout.callbacks.append(lambda _: self._end(thread, landed))

    def _end(self, thread: int, landed: _Landed) -> None:
        tally, now = self.tally, self._environment.now
        tally.chunks += landed.chunks
        tally.segments += landed.segments
        self._unread_entries += landed.chunks
        together, services = self.reduced.together, self.parameters.services
        self.prefect.claim(together, now)
        spent = services.scheduler_seconds + services.prefect_seconds
        self.cores.claim(spent * together, now)
        self._landed.append(landed)
        if self._wake is not None:
            _succeed(self._wake)
        self._start(thread)


def _succeed(event: simpy.Event) -> None:
    if not event.triggered:
        event.succeed()


def _per(seconds: float) -> float:
    return 1 / seconds if seconds > 0 else float("inf")


@dataclass(frozen=True, slots=True)
class Same(Sequence[int]):
    """A sequence of one value, however long."""

    value: int
    length: int

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, at: int) -> int: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[int]: ...
    def __getitem__(self, at: int | slice) -> int | Sequence[int]:
        """See `Sequence`."""
        if isinstance(at, slice):
            return Same(self.value, len(range(*at.indices(self.length))))
        if not -self.length <= at < self.length:
            raise IndexError(at)
        return self.value


def _batcher(costs: Costs, reduced: Reduction) -> Batcher:
    case = costs.case
    return Batcher(
        "b",
        range(reduced.chunks),
        Same(int(costs.decoded_bytes), reduced.chunks),
        # Threads that are not simulated ask for batches, too.
        shared=SHARED_SECONDS * reduced.together,
        seconds=case.batches.seconds,
        max_chunks=case.batches.max_chunks,
    )
