"""What a worker returns of a batch is checked before the driver goes by it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest

from pipeline.runs.driver.driver_failures import SEGMENT_FAILURES
from pipeline.runs.driver.executor import Outcome
from pipeline.runs.driver.map_stage import HAND_BACKS
from pipeline.runs.worker.batch import Batch, BatchResult
from tests.runs.driver.test_map_stage import Scripted, make, mapper

BATCH = Batch("r1-x-00001", "0-5")
SOUND = BatchResult(BATCH.name, 3, 1, 10, 10, 100, 100, 1000, 0.5, left=1)


def test_a_sound_result_is_taken() -> None:
    assert Outcome.of_result(BATCH, SOUND) == Outcome(BATCH, "finished", SOUND)


@dataclass(frozen=True, slots=True)
class Looser(BatchResult):
    """What another class says may change from one look to the next."""


@pytest.mark.parametrize(
    ("result", "problem"),
    [
        (None, "NoneType, not a BatchResult"),
        ({"batch": BATCH.name}, "dict, not"),
        (Looser(BATCH.name, 3, 1, 1, 1, 1, 1, 1, 0.5), "Looser, not"),
        (replace(SOUND, batch="r1-x-00002"), "another batch"),
        (replace(SOUND, done=-1), "the count -1"),
        (replace(SOUND, done=True), "the count True"),
        (replace(SOUND, rows_in=1.5), "the count 1.5"),  # type: ignore[arg-type]
        (replace(SOUND, rows_out=1 << 70), "the count 11805"),
        (replace(SOUND, decoded_bytes="x" * 9999), "the count xxx"),  # type: ignore[arg-type]
        (replace(SOUND, done=5), "7 chunks of a batch of 5"),
        (replace(SOUND, left=1 << 40), "chunks of a batch of 5"),
        (replace(SOUND, seconds=-0.1), "the time"),
        (replace(SOUND, seconds=math.nan), "the time nan"),
        (replace(SOUND, seconds=math.inf), "the time inf"),
        (replace(SOUND, seconds="soon"), "the time soon"),  # type: ignore[arg-type]
    ],
)
def test_any_other_result_is_an_error_of_the_batch(result: Any, problem: str) -> None:
    outcome = Outcome.of_result(BATCH, result)
    assert outcome.kind == "error" and outcome.result is None
    assert problem in outcome.detail
    assert len(outcome.detail) < 200


class HandsBack(Scripted):
    """Says of each batch that its worker leaves, for ever."""

    def _outcome(self, batch: Batch, kind: Any) -> Outcome:
        return Outcome.of_result(batch, BatchResult(batch.name, 0, 0, 0, 0, 0, 0, 0, 0.1, left=1))


def test_a_batch_that_comes_back_for_ever_waits_for_the_next_round() -> None:
    run, _ = make()
    engine = HandsBack(run)
    progress = mapper(run, engine, {"max_chunks": 40}, rounds=1).run()
    assert len(progress.left(40)) == 40
    counted: dict[str, int] = {}
    for batch in engine.batches:
        counted[batch.name] = counted.get(batch.name, 0) + 1
    assert set(counted.values()) == {HAND_BACKS + 1}


def test_a_driver_that_gives_up_on_much_writes_segments_that_are_read() -> None:
    run, engine = make()
    work = mapper(run, engine)
    work.failures._prefixes = ["r1-x-"]
    work.failures.record(
        list(range(40)) * (SEGMENT_FAILURES // 20), "E", "m" * 99_999, transient=True
    )
    assert run.ledger.uncompacted == 0
    progress = run.ledger.read()
    assert progress.problems == ()
    assert progress.failures.height == 2 * SEGMENT_FAILURES
    assert run.ledger.uncompacted == 2
