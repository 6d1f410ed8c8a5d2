"""A worker that is told to leave: its batch ends early, and what is left goes on at once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import pytest
from prometheus_client import REGISTRY

from pipeline import logs, metrics
from pipeline.runs.driver.executor import Kind, Outcome
from pipeline.runs.worker.batch import Batch, BatchAttempt, BatchResult
from tests.runs.driver.test_map_stage import PLAN, Scripted, mapper
from tests.runs.worker.test_batch import ALL, Case
from tests.support.memory_storage import MemoryBackend
from tests.support.runs_by_hand import run_of


def leaving_after(checks: int) -> Callable[[], bool]:
    """Says no so many times, then yes."""
    left = iter(range(checks))
    return lambda: next(left, None) is None


def mapped(case: Case, after: int, batch: Batch = ALL) -> BatchResult:
    return BatchAttempt(case.context, batch, "worker", is_leaving=leaving_after(after)).run()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("prefetch", [True, False])
@pytest.mark.parametrize("after", range(6))
def test_the_chunk_at_hand_is_the_last(after: int, prefetch: bool) -> None:
    case = Case(settings={"reading": {"prefetch": prefetch}})
    result = mapped(case, after)
    assert (result.done, result.failed, result.left) == (after + 1, 0, 5 - after)
    assert sorted(case.staged()) == list(range(after + 1)), "what is done is stored"
    assert not metrics.active_batches


def test_whoever_takes_the_batch_up_does_the_rest() -> None:
    case = Case()
    mapped(case, 2)
    case.faulty.calls.clear()
    rest = case.map()
    assert (rest.done, rest.left) == (3, 0)
    assert case.faulty.calls.count("stage") == 3
    assert sorted(case.staged()) == list(range(6))


class Leaving(Scripted):
    """An engine whose workers leave after one chunk of each batch, some of the time."""

    def _outcome(self, batch: Batch, kind: Kind) -> Outcome:
        left = [
            index
            for index in batch.indices
            if index not in self.run.ledger.read().completions["index"]
        ]
        here = left[: 1 if len(self.batches) % 3 == 0 else None]
        self.run.store(*[replace(self.run.completion(i), batch=batch.name) for i in here])
        done, rest = len(here), len(left) - len(here)
        result = BatchResult(batch.name, done, 0, done, done, done, done, done, 0.1, left=rest)
        return Outcome(batch, "finished", result)


def test_a_batch_that_was_handed_back_is_sent_again_in_the_same_round() -> None:
    run = run_of(MemoryBackend().storage(), PLAN)
    engine = Leaving(run)
    work = mapper(run, engine)
    progress = work.run()
    assert progress.left(40) == []
    assert progress.completions.height == 40
    assert work.rounds == 1
    assert max(engine.times().values()) > 1, "nothing was handed back"


def sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"chunkmap_{name}", labels) or 0.0


def test_what_a_batch_did_is_counted() -> None:
    def picky(frame: object) -> object:
        raise ValueError("never")

    names = ("chunks_total", "quarantined_total", "batch_seconds_count")
    before = {name: sample(name) for name in names}
    rows, back = sample("rows_total", direction="in"), sample("batches_total", end="handed-back")
    mapped(Case(), 3)
    mapped(Case(picky), 6)
    assert sample("chunks_total") == before["chunks_total"] + 4
    assert sample("quarantined_total") == before["quarantined_total"] + 6
    assert sample("batch_seconds_count") == before["batch_seconds_count"] + 2
    assert sample("rows_total", direction="in") == rows + 8
    assert sample("batches_total", end="handed-back") == back + 1


def test_lines_say_which_run_batch_and_chunk_they_are_about() -> None:
    seen: list[dict[str, str]] = []

    def telling(frame: object) -> object:
        seen.append(logs.current_ids())
        return frame

    case = Case(telling)
    with logs.log_ids(run=case.context.record.run, batch=ALL.name):
        case.map()
    assert [line["chunk"] for line in seen] == [
        chunk.id for chunk in case.context.plan.chunks(range(6))
    ]
    assert {(line["run"], line["batch"]) for line in seen} == {(case.context.record.run, ALL.name)}
    assert logs.current_ids() == {}


def test_a_failed_chunk_is_worth_a_line(caplog: pytest.LogCaptureFixture) -> None:
    def bad(frame: object) -> object:
        raise ValueError("not this one")

    with caplog.at_level(logging.WARNING, "pipeline.runs.worker.batch"):
        Case(bad).map(Batch("b", "2-3"))
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith("chunk 2 failed (s3://in/t/002.parquet, rows 0 to 1): TransformError")
    assert "not this one" in line
