"""Chunks are admitted by what chunks have taken, and one always is."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from mmap import PAGESIZE, mmap
from threading import Barrier, Event, Lock

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.runs.worker.batch import Batch, BatchAttempt
from pipeline.runs.worker.memory import (
    AHEAD_SHARE,
    CHUNK_BYTES,
    FIRST_RATIO,
    OTHER_BYTES,
    USABLE_SHARE,
    WorkerMemory,
    _Admitted,
    resident_bytes,
    take_peak,
)
from tests.runs.worker.test_batch import Case, double
from tests.support.runs_by_hand import plan_of

MIB = 1 << 20
BASE = 250 * MIB


@dataclass
class Process:
    """A process whose memory is what its chunks take."""

    now: int = BASE
    peak: int = BASE
    lock: Lock = field(default_factory=Lock)

    def take(self, count: int) -> None:
        with self.lock:
            self.now += count
            self.peak = max(self.peak, self.now)

    def take_peak(self) -> int:
        with self.lock:
            peak, self.peak = self.peak, self.now
            return peak

    def memory(self, limit: int) -> WorkerMemory:
        return WorkerMemory(limit, self.take_peak)


def fitting(memory: WorkerMemory, size: int) -> int:
    """How many chunks of a size are admitted together."""
    others: list[_Admitted] = []
    while memory._fits(size + CHUNK_BYTES) and len(others) < 100:
        others.append(_Admitted(size + CHUNK_BYTES, 0))
        memory._admitted.append(others[-1])
    memory._admitted = [chunk for chunk in memory._admitted if chunk not in others]
    return len(others)


def map_one(memory: WorkerMemory, process: Process, size: int, taken: int) -> None:
    with memory.admit(size):
        process.take(taken)
    process.take(-taken)


def test_a_chunk_that_takes_twice_what_was_planned_halves_what_is_admitted() -> None:
    process = Process()
    memory = process.memory(8 << 30)
    size = 100 * MIB
    before = fitting(memory, size)
    assert before == int((USABLE_SHARE * (8 << 30) - BASE) / (FIRST_RATIO * (size + CHUNK_BYTES)))
    twice = int(2 * FIRST_RATIO * (size + CHUNK_BYTES))
    map_one(memory, process, size, twice + OTHER_BYTES)
    assert fitting(memory, size) <= before // 2
    # Chunks that take less are trusted again, little by little.
    ratios = []
    for _ in range(60):
        map_one(memory, process, size, int(2 * (size + CHUNK_BYTES)))
        ratios.append(memory.ratio)
    assert ratios == sorted(ratios, reverse=True)
    assert fitting(memory, size) > before


def test_memory_that_the_allocator_keeps_is_not_taken_for_a_small_chunk() -> None:
    process = Process()
    memory = process.memory(8 << 30)
    with memory.admit(1000 * MIB):
        process.take(3500 * MIB)
    process.take(-100 * MIB)
    before = memory.ratio
    map_one(memory, process, 30 * MIB, 10 * MIB)
    assert memory.ratio <= before


@given(
    st.integers(300, 4000),
    st.lists(st.tuples(st.integers(0, 900), st.floats(0, 20)), min_size=1, max_size=30),
    st.integers(1, 6),
)
def test_all_chunks_are_mapped_whatever_they_take(
    limit: int, chunks: list[tuple[int, float]], threads: int
) -> None:
    process = Process()
    memory = process.memory(limit * MIB)
    done: list[int] = []

    def work(number: int) -> None:
        size, ratio = chunks[number]
        map_one(memory, process, size * MIB, int(ratio * size * MIB))
        done.append(number)

    with ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(work, number) for number in range(len(chunks))]:
            future.result(20)
    assert sorted(done) == list(range(len(chunks)))
    assert not memory._admitted and not memory._waiting


@given(st.integers(1, 64), st.floats(0.1, 12))
def test_once_measured_equal_chunks_fit_the_limit(gibibytes: int, ratio: float) -> None:
    process, size = Process(), 128 * MIB
    memory = process.memory(gibibytes << 30)
    taken = int(ratio * (size + CHUNK_BYTES))
    map_one(memory, process, size, taken)
    number = fitting(memory, size)
    assert number >= 1
    needed = BASE + number * (taken - OTHER_BYTES)
    assert number == 1 or needed <= USABLE_SHARE * (gibibytes << 30)


def test_a_large_chunk_waits_for_room_and_small_ones_behind_it_for_their_turn() -> None:
    memory = Process().memory(2 << 30)
    order: list[str] = []
    with ThreadPoolExecutor(2) as pool:
        inside = ExitStack()
        inside.enter_context(memory.admit(100 * MIB))
        entered = [Event(), Event()]

        def enter(name: str, size: int, number: int) -> None:
            entered[number].set()
            with memory.admit(size):
                order.append(name)

        first = pool.submit(enter, "large", 2000 * MIB, 0)
        while len(memory._waiting) < 1:
            entered[0].wait(10)
        second = pool.submit(enter, "small", 1 * MIB, 1)
        while len(memory._waiting) < 2:
            entered[1].wait(10)
        assert order == []
        inside.close()
        first.result(10), second.result(10)
    assert order == ["large", "small"]


def test_without_a_limit_nobody_waits() -> None:
    memory, start = WorkerMemory(0), Barrier(8)

    def work(_: int) -> None:
        with memory.admit(1 << 40):
            start.wait(10)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


@pytest.mark.parametrize("limit", [0, 4 << 30])
def test_reading_ahead_is_bounded(limit: int) -> None:
    memory = Process().memory(limit)
    reserved = 0
    while memory.reserve(32 * MIB):
        reserved += 32 * MIB
    assert 0 < reserved <= (AHEAD_SHARE * limit or 256 * MIB)
    memory.release(32 * MIB)
    assert memory.reserve(32 * MIB)


def test_nothing_more_is_read_ahead_while_chunks_fill_the_memory() -> None:
    memory = Process().memory(1 << 30)
    with memory.admit(250 * MIB):
        assert not memory.reserve(32 * MIB)
    assert memory.reserve(32 * MIB)


def test_small_chunks_that_take_much_are_mapped_one_after_the_other() -> None:
    process = Process()
    memory = process.memory(1 << 30)
    assert fitting(memory, MIB) > 8
    map_one(memory, process, MIB, 700 * MIB)
    assert fitting(memory, MIB) == 1


def test_the_peak_of_a_process_is_that_since_the_last_look() -> None:
    take_peak()
    before = take_peak()
    # More than allocators of earlier tests may give back meanwhile.
    with mmap(-1, 512 * MIB) as data:
        for page in range(0, len(data), PAGESIZE):
            data[page] = 1
    assert take_peak() >= before + 192 * MIB
    assert take_peak() < before + 128 * MIB
    assert abs(resident_bytes() - before) < 128 * MIB


class Batches:
    """Batches whose transform takes memory, mapped by several threads of one process."""

    def __init__(self, limit: int, taken: int) -> None:
        self.process = Process()
        self.memory = self.process.memory(limit)
        self.taken = taken
        self.inside, self.together = 0, [0]
        self.lock = Lock()

    def greedy(self, frame: pl.LazyFrame) -> pl.LazyFrame:
        with self.lock:
            self.inside += 1
            self.together.append(self.inside)
        self.process.take(self.taken)
        time.sleep(0.02)
        self.process.take(-self.taken)
        with self.lock:
            self.inside -= 1
        return double(frame)

    def map(self, threads: int, chunks: int) -> int:
        case = Case(self.greedy, plan=plan_of(threads * chunks))

        def map_some(number: int) -> int:
            batch = Batch(f"b{number}", f"{number * chunks}-{(number + 1) * chunks}")
            return BatchAttempt(case.context, batch, "worker", memory=self.memory).run().done

        with ThreadPoolExecutor(threads) as pool:
            return sum(pool.map(map_some, range(threads)))


def test_the_threads_of_a_worker_map_what_fits_its_memory() -> None:
    batches = Batches(BASE + 1000 * MIB, 300 * MIB)
    assert batches.map(threads=4, chunks=8) == 32
    # Up to four until their memory is measured, then three: 15% of the memory are kept free.
    assert max(batches.together[-16:]) in (2, 3)
    alone = Batches(BASE + 100 * MIB, 300 * MIB)
    assert alone.map(threads=4, chunks=3) == 12
    assert max(alone.together[-6:]) == 1
