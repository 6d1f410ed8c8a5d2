"""Rounds: culprits end up alone, everything else is done, and it always ends."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from partitioning import ObjectInfo
from pipeline.config.sections import BatchSettings
from pipeline.config.units import resolve_limit
from pipeline.errors import JobError, TransientStorageError
from pipeline.runs.driver import ledger_counter, map_stage
from pipeline.runs.driver.executor import Kind, Outcome
from pipeline.runs.driver.map_stage import MapStage
from pipeline.runs.driver.summary import MapProgress
from pipeline.runs.driver.suspects import FUTILE_BATCHES
from pipeline.runs.ledger.records import Completion, Failure, Progress
from pipeline.runs.worker.batch import Batch, BatchResult
from tests.support.examples import fewer
from tests.support.memory_storage import MemoryBackend
from tests.support.runs_by_hand import Run, job_of, plan_of, run_of

PLAN = plan_of(40)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_stage, "PAUSE_SECONDS", 0.0)


@dataclass
class Scripted:
    """An engine whose batches end as a script says; chunks fail or kill on their own account."""

    run: Run
    fate: Callable[[Batch], Kind | None] = lambda batch: "finished"
    killers: frozenset[int] = frozenset()
    failing: dict[int, bool] = field(default_factory=dict)
    """Chunks that fail, and whether that may pass."""
    error: Exception | None = None
    """What every batch raises before it comes to a chunk."""
    is_shared: bool = False
    """Whether all batches are on one worker: who kills it takes along whatever is under way."""
    threads: int = 2
    batches: list[Batch] = field(default_factory=list)
    most_in_flight: int = 0
    _landed: list[Outcome] = field(default_factory=list)
    _queued: list[Batch] = field(default_factory=list)
    """Given to the one worker, not begun."""
    _dropped: set[str] = field(default_factory=set)

    def submit(self, batch: Batch) -> None:
        self.batches.append(batch)
        if self.is_shared:
            self._queued.append(batch)
            self.most_in_flight = max(self.most_in_flight, len(self._queued))
            return
        kind = self.fate(batch)
        if kind is not None:
            self._landed.append(self._outcome(batch, kind))
        self.most_in_flight = max(self.most_in_flight, len(self._landed))

    def wait(self, seconds: float) -> list[Outcome]:
        killed = any(self.killers.intersection(batch.indices) for batch in self._queued)
        self._landed += [
            Outcome(batch, "killed", detail="exit code -9")
            if killed
            else self._outcome(batch, "finished")
            for batch in self._queued
        ]
        self._queued.clear()
        # One at a time, the latest first: outcomes come in any order.
        return [self._landed.pop()] if self._landed else []

    def drop(self, batch: Batch) -> None:
        self._dropped.add(batch.name)

    def _outcome(self, batch: Batch, kind: Kind) -> Outcome:
        if self.error is not None:
            return Outcome.of_error(batch, self.error)
        if kind != "finished":
            return Outcome(batch, kind, detail=f"{kind} on purpose")
        entries: list[Completion | Failure] = []
        for index in batch.indices:
            if index in self.killers:
                # What was flushed before stays: here, nothing.
                return Outcome(batch, "killed", detail="exit code -9")
            if index in self.failing:
                failure = self.run.failure(index, time.time(), self.failing[index])
                entries.append(replace(failure, batch=batch.name))
            else:
                entries.append(self.run.completion(index))
        self.run.store(*entries, batch=batch.name)
        done = sum(isinstance(entry, Completion) for entry in entries)
        result = BatchResult(
            batch.name, done, len(entries) - done, 2 * done, 2 * done, 10 * done, 5, 5, 0.1
        )
        return Outcome(batch, "finished", result)

    def times(self) -> Counter[int]:
        """How often each chunk was handed out."""
        return Counter(index for batch in self.batches for index in batch.indices)


def mapper(
    run: Run, engine: Scripted, limits: dict[str, Any] | None = None, **job: Any
) -> MapStage:
    settings_ = BatchSettings.model_validate(limits or {})
    return MapStage(run.ledger, run.plan, job_of(**job), settings_, engine)


def make(**engine: Any) -> tuple[Run, Scripted]:
    run = run_of(MemoryBackend().storage(), PLAN)
    return run, Scripted(run, **engine)


def failed(progress: Progress) -> dict[int, str]:
    rows = progress.failed()
    return dict(zip(rows["index"], rows["error"], strict=True))


def test_one_round_is_enough_when_nothing_goes_wrong() -> None:
    run, engine = make()
    seen: list[MapProgress] = []
    work = mapper(run, engine)
    work.listen = seen.append
    progress = work.run()
    assert progress.left(40) == []
    assert work.rounds == 1
    assert set(engine.times().values()) == {1}
    assert seen[-1].done == 40
    assert seen[-1].rows_in == seen[-1].rows_out == 80
    assert [progress.done for progress in seen] == sorted(progress.done for progress in seen)
    assert work.batches == seen[-1].batches == len(engine.batches)


@dataclass
class Listing(MemoryBackend):
    """Notes from where on it was listed."""

    begun: list[str] = field(default_factory=list)

    def after(self, folder: str, name: str) -> Iterator[ObjectInfo]:
        self.begun.append(name)
        return super().after(folder, name)


class InOrder(Scripted):
    """Batches come back in the order in which they were handed out."""

    def wait(self, seconds: float) -> list[Outcome]:
        return [self._landed.pop(0)] if self._landed else []


def test_looks_list_only_what_is_under_way_and_see_everything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ledger_counter, "COUNT_SECONDS", 0.0)
    monkeypatch.setattr(ledger_counter, "COUNT_PAUSE_FACTOR", 0)
    backend = Listing()
    run = run_of(backend.storage(), PLAN)
    seen: list[int] = []

    def saw(progress: Progress) -> None:
        there = run.again(run.storage).ledger.read().completions.height
        assert progress.completions.height == there
        seen.append(there)

    driver = mapper(run, InOrder(run), {"max_chunks": 2})
    driver._counter.on_count = saw
    driver.run()
    assert len(set(seen)) > 5
    begun = [name for name in backend.begun if name]
    assert len(begun) > 5
    # Batches that have come back, and those before them, are listed no more.
    assert begun == sorted(begun)
    assert begun[0] < begun[-1]


def test_what_is_done_is_not_mapped_again() -> None:
    run, engine = make()
    run.complete(*range(30))
    work = mapper(run, engine)
    assert work.run().left(40) == []
    assert work.resumed == 30
    assert sorted(engine.times()) == list(range(30, 40))
    again = Scripted(run)
    assert mapper(run, again).run().left(40) == []
    assert again.batches == []


@settings(
    max_examples=fewer(30),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(killers=st.frozensets(st.integers(0, 39), max_size=4), most=st.integers(1, 1000))
def test_chunks_that_kill_end_up_alone(killers: frozenset[int], most: int) -> None:
    run, engine = make(killers=killers)
    work = mapper(run, engine, {"max_chunks": most, "seconds": 100})
    progress = work.run()
    assert progress.left(40) == sorted(killers)
    assert failed(progress) == dict.fromkeys(killers, "WorkerKilledError")
    assert work.rounds <= 3
    for row in progress.failed().iter_rows(named=True):
        assert "exit code -9" in row["message"]
        assert "134 MB" in row["message"]
        assert not row["transient"]
    for killer in killers:
        alone = [batch for batch in engine.batches if batch.indices == [killer]]
        # Once beside others, and once with nothing else under way.
        assert len(alone) == 2
    assert max(engine.times().values(), default=1) <= 4


@settings(
    max_examples=fewer(30),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    killers=st.frozensets(st.integers(0, 39), max_size=4),
    most=st.integers(1, 1000),
    threads=st.integers(1, 8),
    allowed=st.integers(1, 3),
)
def test_nobody_is_blamed_for_what_another_on_that_worker_did(
    killers: frozenset[int], most: int, threads: int, allowed: int
) -> None:
    run, engine = make(killers=killers, is_shared=True, threads=threads)
    progress = mapper(run, engine, {"max_chunks": most, "seconds": 100}, rounds=allowed).run()
    blamed = {index for index, error in failed(progress).items() if error == "WorkerKilledError"}
    assert blamed <= killers
    if allowed == 3:
        assert blamed == killers
        assert progress.left(40) == sorted(killers)


def test_a_killer_in_the_last_round_is_recorded_too() -> None:
    run, engine = make(killers=frozenset({7}))
    progress = mapper(run, engine, {"max_chunks": 40, "seconds": 100}, rounds=2).run()
    assert failed(progress) == {7: "WorkerKilledError"}


@pytest.mark.parametrize("kind", ["error", "lost", "cancelled"])
def test_a_batch_that_ends_badly_once_is_mapped_again(kind: Kind) -> None:
    names: set[str] = set()

    def fate(batch: Batch) -> Kind:
        first = batch.name.startswith("r1-")
        names.add(batch.name)
        return kind if first else "finished"

    run, engine = make(fate=fate)
    work = mapper(run, engine)
    progress = work.run()
    assert progress.left(40) == []
    assert work.rounds == 2
    assert set(engine.times().values()) == {2}
    assert len(names) == len(engine.batches), "names are never used twice"
    assert any("on purpose" in detail for detail in work.suspects.errors)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("kind", ["error", "lost", "cancelled", "killed"])
@pytest.mark.parametrize("most", [1, 2, 5])
def test_rounds_are_bounded_and_every_chunk_left_says_why(kind: Kind, most: int) -> None:
    run, engine = make(fate=lambda batch: kind)
    work = mapper(run, engine, {"max_chunks": 4}, rounds=most)
    progress = work.run()
    assert work.rounds <= most
    # Who is accused of a worker's death is tried once more, alone.
    assert max(engine.times().values()) <= most + (kind == "killed")
    assert progress.left(40) == list(range(40))
    assert sorted(failed(progress)) == list(range(40))
    assert progress.failed()["message"].str.contains("on purpose").all()


@settings(
    max_examples=fewer(30),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(culprits=st.frozensets(st.integers(0, 39), max_size=4), most=st.integers(1, 1000))
def test_a_batch_that_fails_as_a_whole_is_cut_down_to_its_culprit(
    culprits: frozenset[int], most: int
) -> None:
    def fate(batch: Batch) -> Kind:
        return "error" if culprits.intersection(batch.indices) else "finished"

    run, engine = make(fate=fate)
    work = mapper(run, engine, {"max_chunks": most, "seconds": 100})
    progress = work.run()
    assert progress.left(40) == sorted(culprits)
    assert failed(progress) == dict.fromkeys(culprits, "BatchError")
    assert progress.failed()["message"].str.contains("error on purpose").all()
    assert work.rounds <= 3


def test_batches_are_not_cut_down_because_storage_was_away() -> None:
    run, engine = make()
    engine.error = TransientStorageError("nobody answers")
    mapper(run, engine, {"max_chunks": 40, "seconds": 100}, rounds=3).run()
    last = [len(batch) for batch in engine.batches if batch.name.startswith("r3-")]
    assert max(last) > 1


class Away(MemoryBackend):
    """Storage that takes none of the driver's own records for a while."""

    left = 12

    def put_new(self, uri: str, data: bytes) -> None:
        if "/driver-" in uri and self.left:
            self.left -= 1
            raise TransientStorageError(f"put {uri}: nobody answers")
        super().put_new(uri, data)


def test_a_failure_is_recorded_once_storage_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    backend = Away()
    run = run_of(backend.storage(), PLAN)
    engine = Scripted(
        run, fate=lambda batch: "error" if batch.name.startswith("r1-") else "finished"
    )
    assert mapper(run, engine).run().left(40) == []
    assert backend.left == 0


def test_a_run_whose_batches_cannot_begin_is_stopped() -> None:
    run, engine = make()
    engine.error = JobError("there is no module of that name")
    work = mapper(run, engine, {"max_chunks": 1}, rounds=3)
    progress = work.run()
    assert len(engine.batches) < 2 * FUTILE_BATCHES
    assert "no module of that name" in work.stopped
    assert progress.completions.is_empty()
    # Nothing is decided: with the module, the next driver maps them all.
    assert mapper(run, Scripted(run)).run().left(40) == []


def test_a_run_that_has_begun_goes_on_whatever_becomes_of_some_batches() -> None:
    run, engine = make()
    work = mapper(run, engine, {"max_chunks": 1}, rounds=1)
    ended = Outcome.of_error(Batch("r1-x-1", "0-1"), JobError("other code"))
    work._handle(
        Outcome(Batch("r1-x-0", "1-2"), "finished", BatchResult("b", 1, 0, 1, 1, 1, 1, 1, 0.1))
    )
    for _ in range(2 * FUTILE_BATCHES):
        work._handle(ended)
    assert work.stopped == ""


def test_what_failed_for_good_is_not_mapped_again_by_this_driver() -> None:
    run, engine = make(failing={3: False, 4: True})
    work = mapper(run, engine, rounds=4)
    progress = work.run()
    assert failed(progress) == {3: "Oops", 4: "Oops"}
    assert engine.times()[3] == 1
    assert engine.times()[4] == 4
    assert engine.times()[5] == 1
    # The next driver tries: the user may have fixed the cause.
    time.sleep(0.01)
    healthy = Scripted(run)
    assert mapper(run, healthy).run().left(40) == []
    assert sorted(healthy.times()) == [3, 4]


def test_only_what_failed() -> None:
    run, engine = make()
    run.store(run.failure(9, time.time() - 5))
    run.complete(0)
    work = mapper(run, engine)
    work.only_failed = True
    assert work.run().left(40) == [i for i in range(1, 40) if i != 9]
    assert list(engine.times()) == [9]


@pytest.mark.parametrize(("limit", "most"), [(0, 0), (2, 2), ("10%", 4), ("100%", 40)])
def test_too_many_failures_stop_the_run(limit: int | str, most: int) -> None:
    assert resolve_limit(limit, 40) == most
    run, engine = make(failing=dict.fromkeys(range(40), False))
    work = mapper(run, engine, {"max_chunks": 1}, max_failures=limit)
    progress = work.run()
    tried = len(failed(progress))
    if most == 40:
        assert tried == 40
        assert not work.stopped
        return
    assert most < tried <= most + 1 + 2 * 2  # what was in flight ends
    assert str(limit) in work.stopped
    assert set(engine.times().values()) == {1}


def test_few_batches_are_in_flight() -> None:
    run, engine = make(threads=3)
    mapper(run, engine, {"max_chunks": 1, "in_flight_per_thread": 2}).run()
    assert engine.most_in_flight <= 6


def test_a_batch_that_does_not_come_back_is_sent_again() -> None:
    seen: Counter[str] = Counter()

    def fate(batch: Batch) -> Kind | None:
        seen[batch.name] += 1
        return None if 3 in batch.indices and seen[batch.name] == 1 else "finished"

    run, engine = make(fate=fate)
    limits = {"max_chunks": 10, "straggler_seconds": 0.01, "straggler_factor": 1, "seconds": 0.01}
    work = mapper(run, engine, limits)
    progress = work.run()
    assert progress.left(40) == []
    assert work.rounds == 1
    assert [seen[batch.name] for batch in engine.batches if 3 in batch.indices] == [2, 2]
    assert max(seen.values()) == 2, "once more, never a third time"


def test_a_driver_that_ends_drops_what_is_in_flight() -> None:
    run, engine = make(fate=lambda batch: None)
    work = mapper(run, engine, {"max_chunks": 10})

    def interrupt(_: MapProgress) -> None:
        raise KeyboardInterrupt

    work.listen = interrupt
    with pytest.raises(KeyboardInterrupt):
        work.run()
    assert engine._dropped == {batch.name for batch in engine.batches}
