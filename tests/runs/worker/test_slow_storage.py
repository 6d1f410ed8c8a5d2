"""While storage is slow, more chunks are read ahead; their bytes stay bounded."""

from __future__ import annotations

import time
from collections.abc import Sequence
from threading import Lock

import polars as pl
import pytest

from partitioning import ObjectInfo
from pipeline.runs.worker.batch import Batch, BatchAttempt
from pipeline.runs.worker.memory import WorkerMemory
from tests.runs.worker.test_batch import Case, double
from tests.support.memory_storage import MemoryBackend
from tests.support.runs_by_hand import plan_of

CHUNKS = 40
PLAN = plan_of(CHUNKS)
ALL = Batch("r1-00001", f"0-{CHUNKS}")


def slow_double(frame: pl.LazyFrame) -> pl.LazyFrame:
    time.sleep(0.02)
    return double(frame)


class SlowReads:
    """Counts the reads at a time; each takes a while."""

    def __init__(self, backend: MemoryBackend, seconds: float) -> None:
        self.now = self.most = 0
        self._seconds, self._lock = seconds, Lock()
        self._inner = backend.get_ranges
        backend.get_ranges = self.get_ranges  # type: ignore[method-assign]

    def get_ranges(self, info: ObjectInfo, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(self._seconds)
        with self._lock:
            self.now -= 1
        return self._inner(info, ranges)


def map_all(case: Case, memory: WorkerMemory) -> None:
    result = BatchAttempt(case.context, ALL, "worker", memory=memory).run()
    assert (result.done, result.failed) == (CHUNKS, 0)
    assert case.staged() == {n: [4 * n, 4 * n + 2] for n in range(CHUNKS)}
    assert memory._ahead == 0


def test_more_chunks_are_read_ahead_while_reads_take_long() -> None:
    case = Case(plan=PLAN)
    reads = SlowReads(case.backend, 0.05)
    map_all(case, WorkerMemory(0))
    assert reads.most >= 4
    assert case.context.ahead.chunks >= 4


def test_one_chunk_is_read_ahead_of_a_slow_transform() -> None:
    case = Case(slow_double, plan=PLAN)
    reads = SlowReads(case.backend, 0.0)
    map_all(case, WorkerMemory(0))
    assert reads.most <= 2
    assert case.context.ahead.chunks == 1


@pytest.mark.parametrize("limit", [1, 200])
def test_full_memory_leaves_one_chunk_ahead(limit: int) -> None:
    case = Case(plan=PLAN)
    reads = SlowReads(case.backend, 0.02)
    map_all(case, WorkerMemory(limit, lambda: limit))
    assert reads.most <= 2
