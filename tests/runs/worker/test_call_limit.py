"""At most so many chunks of a transform at a time in one process (`concurrency`)."""

from __future__ import annotations

from threading import Event, Thread

import pytest

from pipeline.config.job import Job
from pipeline.runs.worker.call_limit import limited_calls
from tests.support.runs_by_hand import job_of


def _job(transform: str, concurrency: int | None) -> Job:
    return job_of().model_copy(update={"transform": transform, "concurrency": concurrency})


@pytest.mark.parametrize(
    ("first", "second", "waits"),
    [
        (_job("a:f", 1), _job("a:f", 1), True),
        (_job("a:f", 2), _job("a:f", 2), False),
        (_job("a:f", None), _job("a:f", None), False),
        (_job("b:f", 1), _job("c:f", 1), False),
    ],
    ids=["one", "two", "no limit", "of another transform"],
)
def test_a_chunk_waits_for_its_turn(first: Job, second: Job, waits: bool) -> None:
    began = Event()

    def map_chunk() -> None:
        with limited_calls(second):
            began.set()

    thread = Thread(target=map_chunk)
    with limited_calls(first):
        thread.start()
        assert began.wait(0.2 if waits else 60) is not waits
    assert began.wait(60)
    thread.join()
