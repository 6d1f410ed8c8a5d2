"""A secret in what users' code or a library raises or logs leaves this process masked only."""

from __future__ import annotations

import logging
import pickle
import sys
from typing import Any

import orjson
import pytest

from partitioning import Chunk
from pipeline.config.job import Job
from pipeline.config.sections import LineageSettings
from pipeline.errors import RunFailedError, TransformError
from pipeline.flows import run_events
from pipeline.flows.event_sender import Origin
from pipeline.flows.lineage import lineage
from pipeline.flows.map_dataset import shown_job
from pipeline.flows.run_events import RUN, reported
from pipeline.flows.run_logs import flow_logs
from pipeline.flows.task_report import cut
from pipeline.logs import JsonFormatter, TextFormatter
from pipeline.runs.driver.driver_failures import DriverFailures
from pipeline.runs.worker.failures import failure_of
from tests.config.test_masking import FORMS, SECRET
from tests.support.memory_storage import MemoryBackend
from tests.support.publishing import PLAN
from tests.support.runs_by_hand import Run, run_of

forms = pytest.mark.parametrize("form", FORMS)


@pytest.fixture(scope="module")
def run() -> Run:
    return run_of(MemoryBackend().storage(), PLAN, "append")


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Events that would be sent to Prefect."""
    events: list[bytes] = []

    class Sender:
        def send(self, _: Origin, sent: list[bytes]) -> None:
            events.extend(sent)

    monkeypatch.setattr(run_events, "event_sender", Sender)
    return events


@forms
@pytest.mark.parametrize("kind", [RunFailedError, ValueError])
def test_events(form: str, kind: type[Exception], sent: list[bytes]) -> None:
    with pytest.raises(kind), reported(RUN, "s3://out/t/", {"job": "j"}):
        raise kind(form)
    assert [orjson.loads(event)["event"] for event in sent] == [
        f"{RUN}.{s}" for s in ("started", "failed")
    ]
    assert SECRET not in str(sent)


@forms
def test_errors_of_ours(form: str) -> None:
    error = pickle.loads(pickle.dumps(RunFailedError(form, hint=form)))
    assert SECRET not in f"{error} {error!r} {error.message} {error.hint} {error.args}"


@forms
def test_other_errors_that_end_a_flow(form: str) -> None:
    """Prefect stores them with the state, and logs them with their causes."""
    logger = logging.getLogger("prefect.flow_runs")
    with pytest.raises(ValueError) as caught, flow_logs(flush_seconds=0):
        try:
            raise KeyError(form)
        except KeyError as cause:
            raise ValueError(form) from cause
    assert SECRET not in str(caught.value)
    error = (ValueError, caught.value, caught.value.__traceback__)
    record = logger.makeRecord(logger.name, 40, "", 1, "it ended with %s", (form,), error)
    assert logger.filter(record)
    text = logging.Formatter().format(record)
    assert "KeyError" in text
    assert SECRET not in text


def test_parameters_of_flow_runs() -> None:
    """Prefect stores them, and shows them to everybody."""
    job = Job.model_validate(
        {
            "name": "prices",
            "input": {"uri": "s3://in/t/"},
            "transform": "shop.prices:euros",
            "params": {
                "rate": 0.9,
                "password": SECRET,
                "http": {"headers": [{"name": "Authorization", "value": SECRET}]},
                "database": f"postgresql://me:{SECRET}@h/db",
                "api_key": {"from_env": "SHOP_KEY"},
            },
            "reduce": {"combine": "shop.prices:add"},
            "then": {"function": "shop.prices:send", "params": {"token": [SECRET], "days": 3}},
            "output": {"uri": "s3://out/t/"},
        }
    )
    text = shown_job(job)
    assert SECRET not in text
    for shown in ("rate: 0.9", "h/db", "days: 3", "shop.prices:euros", "s3://out/t/"):
        assert shown in text
    assert SECRET in job.to_yaml(), "the job itself is as it was"


@forms
def test_failures_in_the_ledger(form: str, run: Run) -> None:
    """Reports, `status` and the log lines of workers show these."""
    chunk: Chunk = next(iter(run.plan.chunks([0])))
    try:
        try:
            raise ValueError(form)
        except ValueError as cause:
            raise TransformError(f"m:f raised ValueError: {form}") from cause
    except TransformError as error:
        failure = failure_of(chunk, error, "b", "w", allow=[__name__])
    assert "ValueError" in failure.trace
    assert SECRET not in failure.message + failure.trace
    DriverFailures(run.ledger, run.plan).record([1], "BatchError", form, transient=True)
    assert SECRET not in str(run.ledger.read().failures.to_dicts())


@forms
def test_log_lines(form: str) -> None:
    try:
        raise ValueError(form)
    except ValueError:
        record = logging.LogRecord("pipeline", 30, "", 1, "found %s", (form,), sys.exc_info())
    for formatter in (JsonFormatter(), TextFormatter()):
        assert SECRET not in formatter.format(record)


@forms
def test_reports_of_task_runs(form: str) -> None:
    assert SECRET not in cut(form)
    # Masked before it is cut: a part of a secret is one too.
    assert SECRET[:4] not in cut(3_990 * "x" + f" password={SECRET}")


@forms
def test_lineage(form: str, run: Run) -> None:
    pytest.importorskip("openlineage.client")
    posted: list[Any] = []
    settings = LineageSettings.model_validate({"url": "http://127.0.0.1:9"})
    from tests.flows.test_lineage import facts_of

    connect: Any = lambda _: posted.append  # noqa: E731
    with pytest.raises(ValueError), lineage(settings, run.storage, facts_of(run), connect):
        raise ValueError(form)
    assert len(posted) == 2
    assert SECRET not in str(posted)
