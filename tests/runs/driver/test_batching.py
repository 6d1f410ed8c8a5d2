"""Batches: every chunk in exactly one, within the bounds, large ones first."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.runs.driver.batching import (
    CHUNK_OVERHEAD,
    GUESSED_SPEED,
    MAX_PROBE_CHUNKS,
    MIN_BATCH_CHUNKS,
    MIN_BATCH_DIVISOR,
    SHARED_SECONDS,
    Batcher,
    Throughput,
)
from pipeline.runs.worker.batch import Batch, spec_of

INDICES = st.sets(st.integers(0, 5000), max_size=300).map(sorted)


@given(INDICES.filter(bool))
def test_a_spec_is_its_indices(indices: list[int]) -> None:
    batch = Batch("b", spec_of(indices))
    assert batch.indices == indices
    assert len(batch) == len(indices)


def test_a_spec_of_many_is_short() -> None:
    assert spec_of(range(100_000)) == "0-100000"
    assert spec_of([3, 4, 5, 9]) == "3-6,9-10"


@given(
    indices=INDICES,
    seed=st.randoms(use_true_random=False),
    threads=st.lists(st.integers(0, 64), min_size=1, max_size=5),
    seconds=st.floats(0.1, 100),
    most=st.integers(1, 100),
    speeds=st.lists(st.floats(1e-3, 1e3), max_size=5),
)
@example(  # Chunks take longer after the size of the last batches was chosen.
    indices=[4, 36, 48, 83, 95],
    seed=Random(0.5005708048115801),
    threads=[8],
    seconds=20.0,
    most=10,
    speeds=[0.01, 1.0, 0.125],
)
def test_each_chunk_is_in_one_batch_within_the_bounds(
    indices: list[int],
    seed: object,
    threads: list[int],
    seconds: float,
    most: int,
    speeds: list[float],
) -> None:
    sizes = [seed.randint(0, 1 << 30) for _ in indices]  # type: ignore[attr-defined]
    cost = dict(zip(indices, sizes, strict=True))
    batcher = Batcher("p-", indices, sizes, seconds=seconds, max_chunks=most)
    names, found, left = set(), [], sum(sizes) + len(sizes) * CHUNK_OVERHEAD
    turn = 0
    while True:
        now, speed = threads[turn % len(threads)], batcher.pace.speed
        shared = max(1, now) * SHARED_SECONDS
        least = max(seconds / MIN_BATCH_DIVISOR, shared) * speed if batcher.pace.is_known else 0
        batch = batcher.take(now)
        if batch is None:
            break
        turn += 1
        names.add(batch.name)
        found += batch.indices
        own = sum(cost[i] for i in batch.indices) + len(batch) * CHUNK_OVERHEAD
        assert 1 <= len(batch) <= most
        several = MIN_BATCH_CHUNKS * left / (len(indices) - len(found) + len(batch))
        whole = max(max(seconds, 2 * shared) * speed, several)
        budget = min(whole, max(least, left / (2 * max(1, now))))
        half = (max(cost.values()) + CHUNK_OVERHEAD) / 2
        half += (cost[batch.indices[-1]] + CHUNK_OVERHEAD) / 2
        assert len(batch) == 1 or own - half <= budget * (1 + 1e-9)
        left -= own
        if turn <= len(speeds):
            batcher.pace.add(len(batch), 1 << 20, speeds[turn - 1])
    assert found == indices
    assert len(names) == turn
    assert all(name.startswith("p-") for name in names)
    assert batcher.take(1) is None


def test_the_first_are_large_and_the_last_are_small() -> None:
    # A chunk takes 10 ms: a whole batch would be 2,000 of them, and the least is 200.
    batcher = Batcher("p", range(10_000), [0] * 10_000, seconds=20, max_chunks=10_000)
    batcher.pace.add(1, 0, 0.01)
    sizes = []
    while (batch := batcher.take(4)) is not None:
        sizes.append(len(batch))
    assert sizes[0] == 10_000 // 8
    assert sizes == sorted(sizes, reverse=True)
    # When there is no least one for each thread any more, they share what is left.
    assert sizes[-5] >= 200 > sizes[-4] == sizes[-2] >= sizes[-1] > 100
    assert len(sizes) < 25


@pytest.mark.parametrize(("threads", "chunks"), [(32, 64), (32, 96), (200, 200), (8, 24)])
def test_no_thread_is_left_without_a_batch(threads: int, chunks: int) -> None:
    batcher = Batcher("p", range(chunks), [0] * chunks, seconds=5, max_chunks=1000)
    batcher.pace.add(1, 0, 0.5)
    first = [batcher.take(threads) for _ in range(threads)]
    assert all(first)
    assert sum(len(batch) for batch in first if batch) <= chunks


def test_a_whole_batch_of_slow_chunks_lets_reading_and_staging_overlap() -> None:
    # Ten seconds each, where a batch should take five.
    batcher = Batcher("p", range(1000), [10**9] * 1000, seconds=5, max_chunks=1000)
    batcher.pace.add(1, 10**9, 10)
    sizes = []
    while (batch := batcher.take(4)) is not None:
        sizes.append(len(batch))
    assert sizes[0] == MIN_BATCH_CHUNKS
    assert sizes[-4:] == [1] * 4


def test_many_threads_get_batches_that_driver_and_prefect_keep_up_with() -> None:
    threads, second = 200, 10  # Chunks of a tenth of a second.
    chunks = 2 * 10**6
    batcher = Batcher("p", range(chunks), [0] * chunks, seconds=5, max_chunks=10**6)
    batcher.pace.add(1, 0, 1 / second)
    sizes = []
    while (batch := batcher.take(threads)) is not None:
        sizes.append(len(batch))
    assert sizes[0] == 2 * threads * SHARED_SECONDS * second
    # All of them together may not ask for one more often than that, on average.
    assert chunks / second / threads / len(sizes) >= SHARED_SECONDS * 0.9


@pytest.mark.parametrize("factor", [0.01, 1, 7])
def test_sizes_follow_the_measured_speed(factor: float) -> None:
    size = 1 << 20
    batcher = Batcher("p", range(10**6), [size] * 10**6, seconds=2.0, max_chunks=10**6)
    probe = batcher.take(1)
    assert probe is not None
    assert len(probe) == MAX_PROBE_CHUNKS
    guessed = int(2.0 * GUESSED_SPEED / (size + CHUNK_OVERHEAD))
    for _ in range(3):
        batcher.pace.add(guessed, guessed * size, 2.0 / factor)
    adapted = batcher.take(1)
    assert adapted is not None
    assert abs(len(adapted) - max(factor * guessed, MIN_BATCH_CHUNKS)) <= 1 + factor


def test_batches_that_took_no_time_teach_nothing() -> None:
    batcher = Batcher("p", [0, 1], [5, 5], seconds=1.0, max_chunks=10)
    batcher.pace.add(0, 0, 0.0)
    assert batcher.pace.speed == GUESSED_SPEED


def test_a_remembered_speed_counts_until_a_batch_is_measured() -> None:
    size = 1 << 20
    pace = Throughput(remembered=10 * GUESSED_SPEED)
    batcher = Batcher("p", range(10**6), [size] * 10**6, seconds=2, max_chunks=10**6, pace=pace)
    sizes = [len(batch) for _ in range(2) if (batch := batcher.take(1)) is not None]
    expected = 2 * 10 * GUESSED_SPEED / (size + CHUNK_OVERHEAD)
    assert sizes == [pytest.approx(expected, abs=1)] * 2
    pace.add(1, size, (size + CHUNK_OVERHEAD) / GUESSED_SPEED)
    assert pace.speed == pytest.approx(GUESSED_SPEED)
