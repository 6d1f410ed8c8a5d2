"""Which runs of a backfill may begin."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Event
from typing import Any

import pytest

from pipeline.runs.backfill.queue import ActiveRun, RunQueue
from pipeline.runs.backfill.records import Control
from pipeline.runs.backfill.schedule import ScheduledRun

CONTROL = Control(max_active=4)


def step(rank: int, *labels: str, is_canary: bool = False) -> ScheduledRun:
    return ScheduledRun(rank, frozenset(labels), is_canary=is_canary)


def wait_for(event: Event) -> None:
    event.wait()


@pytest.fixture
def queue() -> Iterator[RunQueue]:
    queue = RunQueue()
    yield queue
    queue.close()


def test_a_run_has_one_driver_at_a_time(queue: RunQueue) -> None:
    """A retry schedules windows of a run that is still being mapped."""
    ended = Event()
    run: Any = None
    queue.replace([step(0, "a", "b"), step(1, "c")])
    first = queue.take(CONTROL)
    assert first is not None
    queue.start(ActiveRun(first, run), lambda active: wait_for(ended))
    try:
        queue.replace([step(0, "a"), step(1, "c")])
        assert queue.take(CONTROL) == step(1, "c")
        assert queue.take(CONTROL) is None
        assert queue.active_labels == {"a", "b"}
    finally:
        ended.set()
    while queue.active_labels:
        list(queue.collect())
    assert queue.take(CONTROL) == step(0, "a")
    assert queue.is_empty


def test_nothing_begins_before_the_canary_has_ended(queue: RunQueue) -> None:
    ended = Event()
    run: Any = None
    canary = step(0, "a", is_canary=True)
    queue.replace([canary, step(1, "b")])
    assert queue.take(CONTROL) == canary
    queue.start(ActiveRun(canary, run), lambda active: wait_for(ended))
    try:
        assert queue.take(CONTROL) is None
        queue.replace([canary, step(1, "b")])
        assert queue.take(CONTROL) is None, "its retry waits for it, and the others for both"
    finally:
        ended.set()
