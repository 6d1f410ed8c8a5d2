"""Which events tell of runs, backfills, ingests, loads and pipelines, and what they say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
import pytest

from pipeline.errors import EngineUnavailableError, RunFailedError
from pipeline.flows import deployments, run_events
from pipeline.flows.event_sender import Origin
from pipeline.flows.load import destination_of
from pipeline.flows.run_events import (
    BACKFILL,
    INGEST,
    LOAD,
    PIPELINE,
    RUN,
    failures_reported,
    reported,
)
from pipeline.load.records import LoadSummary
from pipeline.pipelines.summary import PipelineSummary, StageFailedError, StageResult
from pipeline.runs.backfill.summary import BackfillIncompleteError, BackfillSummary
from tests.support.memory_storage import MemoryBackend
from tests.support.runs_by_hand import OUTPUT, job_of

Sent = list[dict[str, Any]]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    """Events that would be sent to Prefect."""
    events: Sent = []

    class Sender:
        def send(self, _: Origin, sent: list[bytes]) -> None:
            events.extend(map(orjson.loads, sent))

    monkeypatch.setattr(run_events, "event_sender", Sender)
    return events


def names(events: Sent) -> list[str]:
    return [event["event"] for event in events]


@pytest.mark.parametrize(
    ("kind", "payload", "command"),
    [
        (RUN, {"run": "r1"}, "chunkmap status r1 -o s3://out/t/"),
        (RUN, {}, "chunkmap status -o s3://out/t/"),
        (BACKFILL, {"backfill": "b1"}, "chunkmap backfill status b1 -o s3://out/t/"),
        (BACKFILL, {}, "chunkmap backfill list -o s3://out/t/"),
        (INGEST, {}, "chunkmap history s3://out/t/"),
        (LOAD, {"output": "s3://out/input/"}, "chunkmap history s3://out/input/"),
        (PIPELINE, {}, "chunkmap pipeline status FILE.yaml"),
    ],
)
def test_a_failure_says_what_to_type(
    sent: Sent, kind: str, payload: dict[str, str], command: str
) -> None:
    given = {"job": "j", **payload}
    with pytest.raises(RunFailedError), reported(kind, "s3://out/t/", given):
        raise RunFailedError("it failed", hint="do this")
    started, failed = sent
    assert names(sent) == [f"{kind}.started", f"{kind}.failed"]
    assert started["resource"]["prefect.resource.id"] == "s3://out/t/"
    told = {key: failed["payload"][key] for key in ("message", "hint", "command", "job")}
    assert told == {"message": "it failed", "hint": "do this", "command": command, "job": "j"}


def test_a_pipeline_that_its_stage_has_stopped_is_no_second_incident(sent: Sent) -> None:
    summary = PipelineSummary("daily", "p1", {}, 1, "failed", (), 1.0)
    with pytest.raises(StageFailedError), reported(PIPELINE, "s3://state/", {"job": "daily"}):
        try:
            with reported(INGEST, "s3://out/orders/", {"job": "orders"}):
                raise RunFailedError("the API refuses")
        except RunFailedError as error:
            raise StageFailedError("orders", str(error), None, summary) from error
    assert names(sent) == [
        *("chunkmap.pipeline.started", "chunkmap.ingest.started"),
        *("chunkmap.ingest.failed", "chunkmap.pipeline.stopped"),
    ]
    # A call has no flow run that could tell of it.
    sent.clear()
    with pytest.raises(StageFailedError), reported(PIPELINE, "s3://state/", {"job": "daily"}):
        raise StageFailedError("report", "no disk", None, summary) from ValueError("no disk")
    assert names(sent) == ["chunkmap.pipeline.started", "chunkmap.pipeline.failed"]


def test_which_windows_failed_and_that_too_many_did(sent: Sent) -> None:
    counts = dict.fromkeys(("waiting", "mapping", "staged", "done"), 1) | {"failed": 2}
    notes = ("2 windows of run r1 failed (2024-03-01, 2024-03-02): no price", "stopped: 2 windows")
    summary = BackfillSummary("b1", "j", OUTPUT, "failed", "", 6, 6, 1, 1, 1.0, counts, notes=notes)
    with pytest.raises(BackfillIncompleteError), reported(BACKFILL, OUTPUT, {"backfill": "b1"}):
        raise BackfillIncompleteError(summary)
    assert sent[-1]["payload"]["notes"] == list(notes)


def test_ends_of_loads_and_pipelines(sent: Sent) -> None:
    load = LoadSummary("s3://o/", 3, "w.duckdb", "t", "append", (), 7, 0, False, (), 1.5)
    stage = StageResult("orders", "ingest", "orders.yaml", "done")
    pipeline = PipelineSummary("daily", "p1", {}, 1, "done", (stage,), 2.0)
    with reported(PIPELINE, "s3://state/", {}) as ended, reported(LOAD, "w.duckdb#t", {}) as done:
        done(load)
        ended(pipeline)
    assert names(sent)[2:] == ["chunkmap.load.completed", "chunkmap.pipeline.completed"]
    assert sent[2]["payload"] == {"manifest": 3, "rows": 7, "seconds": 1.5}
    assert sent[3]["payload"] == {"stages": {"orders": "done"}, "seconds": 2.0}


def test_errors_are_reported_once(sent: Sent) -> None:
    with (
        pytest.raises(ValueError),
        failures_reported(RUN, OUTPUT, {}),
        reported(RUN, OUTPUT, {}),
    ):
        raise ValueError("of a library")
    assert names(sent) == ["chunkmap.run.started", "chunkmap.run.failed"]


@pytest.fixture
def no_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deployment's run, on a worker whose settings name a cluster that does not answer."""

    def refuse(*_: object) -> None:
        raise EngineUnavailableError("no scheduler answers", hint="start one")

    storage = MemoryBackend().storage()
    monkeypatch.setattr(deployments, "open_storage", lambda settings: storage)
    monkeypatch.setattr(deployments, "check_server", lambda settings: None)
    monkeypatch.setattr(deployments, "set_up_driver", lambda *_: None)
    monkeypatch.setattr(deployments, "task_runner", refuse)


@pytest.mark.usefixtures("no_scheduler")
@pytest.mark.parametrize(
    ("call", "event"),
    [
        (lambda: deployments.run_job.fn(job_of().to_yaml()), "chunkmap.run.failed"),
        (lambda: deployments.resume_backfill.fn(OUTPUT, "b1"), "chunkmap.backfill.failed"),
    ],
)
def test_deployments_that_fail_before_anything_runs(
    sent: Sent, call: Callable[[], object], event: str
) -> None:
    with pytest.raises(EngineUnavailableError):
        call()
    [failed] = sent
    assert (failed["event"], failed["resource"]["prefect.resource.id"]) == (event, OUTPUT)
    assert failed["payload"]["message"] == "no scheduler answers"


def test_a_destination_is_named_without_secrets() -> None:
    from pipeline.config.load_file import LoadInto

    into = LoadInto.model_validate({"uri": "postgresql://me@db/shop", "table": "sales.orders"})
    assert destination_of(into) == "postgresql://********@db/shop#sales.orders"
    into = LoadInto.model_validate({"uri": "delta:s3://lake/orders/"})
    assert destination_of(into) == "delta:s3://lake/orders/"
