"""While storage is slow, more chunks are read and staged at a time; their bytes stay bounded."""

from __future__ import annotations

import time
from collections.abc import Sequence
from threading import Lock
from typing import Any

import polars as pl
import pytest

from partitioning import ObjectInfo
from pipeline.runs.worker import chunk
from pipeline.runs.worker.batch import Batch, BatchAttempt
from pipeline.runs.worker.memory import WorkerMemory
from pipeline.storage import StagedObject
from tests.runs.worker.test_batch import Case, double
from tests.support.faulty_storage import each
from tests.support.memory_storage import MemoryBackend
from tests.support.runs_by_hand import plan_of

CHUNKS = 40
PLAN = plan_of(CHUNKS)
ALL = Batch("r1-00001", f"0-{CHUNKS}")


def slow_double(frame: pl.LazyFrame) -> pl.LazyFrame:
    time.sleep(0.02)
    return double(frame)


class Together:
    """How many threads are inside at a time, at most."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self._lock = Lock()

    def __enter__(self) -> None:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.now -= 1


class SlowReads(Together):
    """Counts the reads at a time; each takes a while."""

    def __init__(self, backend: MemoryBackend, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds
        self._inner = backend.get_ranges
        backend.get_ranges = self.get_ranges  # type: ignore[method-assign]

    def get_ranges(self, info: ObjectInfo, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        with self:
            time.sleep(self._seconds)
        return self._inner(info, ranges)


class SlowStaging:
    """Counts the results that are staged at a time, and those encoded; each takes a while."""

    def __init__(
        self,
        backend: MemoryBackend,
        monkeypatch: pytest.MonkeyPatch,
        seconds: float,
        encoding: float = 0.001,
    ) -> None:
        self.staged, self.encoded = Together(), Together()
        inner, encode = backend.stage, chunk.encode

        def stage(*arguments: Any) -> StagedObject:
            with self.staged:
                time.sleep(seconds)
                return inner(*arguments)

        def encode_one(*arguments: Any) -> tuple[memoryview, str]:
            with self.encoded:
                time.sleep(encoding)
                return encode(*arguments)

        backend.stage = stage  # type: ignore[method-assign, assignment]
        monkeypatch.setattr(chunk, "encode", encode_one)


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


def test_more_results_are_staged_while_uploads_take_long(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(plan=PLAN)
    staging = SlowStaging(case.backend, monkeypatch, 0.15)
    map_all(case, WorkerMemory(0))
    assert staging.staged.most >= 4
    assert staging.encoded.most == 1
    assert case.context.uploads.chunks >= 4


def test_one_result_is_staged_of_a_slow_transform(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(slow_double, plan=PLAN)
    staging = SlowStaging(case.backend, monkeypatch, 0.001)
    map_all(case, WorkerMemory(0))
    assert staging.staged.most == 1
    assert case.context.uploads.chunks == 1


def test_no_more_results_are_staged_than_are_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(plan=PLAN)
    staging = SlowStaging(case.backend, monkeypatch, 0.01, encoding=0.02)
    map_all(case, WorkerMemory(0))
    assert case.context.uploads.chunks <= 2
    assert staging.staged.most <= 2


def test_full_memory_leaves_one_result_staged(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(plan=PLAN)
    staging = SlowStaging(case.backend, monkeypatch, 0.02)
    map_all(case, WorkerMemory(1, lambda: 1))
    assert staging.staged.most == 1


def test_a_worker_that_leaves_stores_what_it_has_staged(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(plan=PLAN)
    case.context.uploads.chunks = 8
    SlowStaging(case.backend, monkeypatch, 0.05)
    left = iter([False] * 9 + [True])
    attempt = BatchAttempt(case.context, ALL, "worker", is_leaving=lambda: next(left))
    result = attempt.run()
    assert (result.done, result.failed, result.left) == (10, 0, CHUNKS - 10)
    assert sorted(case.staged()) == list(range(10))


def test_results_whose_staging_fails_are_staged_again(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(script=each("stage", 5, "before"), plan=PLAN)
    case.context.uploads.chunks = 8
    SlowStaging(case.backend, monkeypatch, 0.01)
    map_all(case, WorkerMemory(0))
