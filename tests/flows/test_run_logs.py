"""Log lines in Prefect's flow runs: which go there, with which ids, and how many."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import copy_context
from threading import Thread
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.schemas import FlowRun
from prefect.context import FlowRunContext
from prefect.settings import PREFECT_LOGGING_TO_API_ENABLED, temporary_settings

from pipeline.flows import run_logs
from pipeline.flows.run_logs import LineLimit, TaskLines, collecting, flow_logs
from pipeline.flows.task_report import LogLine
from pipeline.logs import log_ids

log = logging.getLogger("pipeline.tests")


class Sender:
    """Keeps what would be sent."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def send(self, _origin: object, _events: object, lines: list[dict[str, Any]]) -> None:
        self.lines += lines

    @property
    def messages(self) -> list[str]:
        return [line["message"] for line in self.lines]


@pytest.fixture
def sender(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sender]:
    sender = Sender()
    monkeypatch.setattr(run_logs, "event_sender", lambda: sender)
    with temporary_settings({PREFECT_LOGGING_TO_API_ENABLED: True}):
        yield sender


@contextmanager
def flow_run() -> Iterator[UUID]:
    run = FlowRun(id=uuid4(), flow_id=uuid4(), name="sales")
    context: Any = FlowRunContext
    with context.model_construct(flow_run=run), flow_logs(flush_seconds=0):
        yield run.id


def test_lines_have_ids_and_belong_to_their_flow_run(sender: Sender) -> None:
    log.info("before")
    with flow_run() as outer:
        with log_ids(run="r1"), log_ids(batch="b1"):
            log.info("planned %d chunks", 3)
            log.warning("chunk 5 failed: no\nsuch column")
        with flow_run() as inner:
            log.info("a subflow")
        log.debug("too small")
    log.info("after")
    assert sender.messages == [
        "planned 3 chunks [run=r1 batch=b1]",
        "chunk 5 failed: no [run=r1 batch=b1]\nsuch column",
        "a subflow",
    ]
    assert [UUID(line["flow_run_id"]) for line in sender.lines] == [outer, outer, inner]
    assert [line["level"] for line in sender.lines] == [20, 30, 20]


def test_other_threads(sender: Sender) -> None:
    """A pool's thread has no context: its lines are of the only flow run, if there is one."""
    with flow_run() as run:
        threads = [Thread(target=log.warning, args=("from a thread",))]
        threads.append(Thread(target=copy_context().run, args=(log.warning, "with a context")))
        for thread in threads:
            thread.start()
            thread.join()
    assert [(line["message"], UUID(line["flow_run_id"])) for line in sender.lines] == [
        ("from a thread", run),
        ("with a context", run),
    ]


def test_the_terminal_and_other_handlers_see_what_they_saw(
    sender: Sender, caplog: pytest.LogCaptureFixture
) -> None:
    own = logging.getLogger("pipeline")
    before = own.level, own.propagate, list(own.handlers)
    with flow_run():
        log.info("not shown")
        log.warning("shown")
    assert caplog.messages == ["shown"]
    assert (own.level, own.propagate, own.handlers) == before
    assert sender.messages == ["not shown", "shown"]


def test_lines_are_limited(sender: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    with flow_run():
        for number in range(run_logs.MAX_LINES + 500):
            log.warning("chunk %d failed", number)
        log.info("published")
    assert len(sender.lines) == run_logs.MAX_LINES + 2
    assert sender.messages[-2:] == ["further warnings are in the driver's log only", "published"]


def test_nothing_is_sent_where_logs_are_not_wanted(sender: Sender) -> None:
    with temporary_settings({PREFECT_LOGGING_TO_API_ENABLED: False}), flow_run():
        log.warning("not sent")
    assert sender.lines == []


def test_lines_of_a_worker(sender: Sender) -> None:
    """They are collected, also those of its threads, and are not the driver's in one process."""
    lines: list[tuple[str, int, float, str]] = []

    def add(*line: Any) -> None:
        lines.append(line)

    with flow_run(), collecting(TaskLines(add)), log_ids(run="r1", batch="b1", chunk="c1"):
        log.warning("chunk 1 failed")
        thread = Thread(target=copy_context().run, args=(log.warning, "while it is staged"))
        thread.start()
        thread.join()
        for _ in range(100):
            log.warning("again")
    assert [line[3] for line in lines[:2]] == [
        "chunk 1 failed [run=r1 batch=b1 chunk=c1]",
        "while it is staged [run=r1 batch=b1 chunk=c1]",
    ]
    assert len(lines) == run_logs.MAX_TASK_LINES + 1
    assert lines[-1][3] == "further warnings are in the worker's log only"
    assert sender.lines == []


def test_lines_of_all_workers_are_limited_and_prefects_own_are_not() -> None:
    limit = LineLimit("the logs of the workers", 2)
    own = LogLine(logger="pipeline.runs.worker.batch", level=30, at=0.0, message="failed")
    prefects = LogLine(logger="prefect.task_runs", level=20, at=0.0, message="Finished")
    admitted = [line for _ in range(5) for line in limit.admit_lines((own, prefects))]
    assert [line.message for line in admitted if line.level == 30] == [
        "failed",
        "failed",
        "further warnings are in the logs of the workers only",
    ]
    assert len([line for line in admitted if line.level == 20]) == 5
