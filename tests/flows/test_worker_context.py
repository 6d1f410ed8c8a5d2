"""What is sent along with each task run: enough for Prefect's engine, and no secret."""

from __future__ import annotations

import logging
import os
import pickle
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, ClassVar
from uuid import uuid4

import httpx
import pytest
from distributed import Client
from prefect import get_run_logger, runtime, tags, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas import FlowRun
from prefect.context import (
    FlowRunContext,
    SyncClientContext,
    TaskRunContext,
    get_settings_context,
)
from prefect.events import emit_event
from prefect.events.worker import EventsWorker
from prefect.filesystems import LocalFileSystem
from prefect.logging.handlers import APILogWorker
from prefect.results import ResultStore
from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED,
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    PREFECT_LOGGING_LEVEL,
    PREFECT_LOGGING_TO_API_ENABLED,
    Profile,
    Settings,
    get_current_settings,
    temporary_settings,
)
from prefect.variables import Variable
from prefect_dask import DaskTaskRunner, PrefectDaskClient
from pydantic import SecretStr
from pydantic_settings import BaseSettings

from pipeline.cluster.futures import pickled
from pipeline.errors import TransformError
from pipeline.flows.automations import HEARTBEAT_TIMEOUT
from pipeline.flows.executor import map_batch_task
from pipeline.flows.map_dataset import map_dataset
from pipeline.flows.secret_settings import secrets_of
from pipeline.flows.server import HEARTBEAT_SECONDS, talking_to
from pipeline.flows.task_report import TaskReport, read_report
from pipeline.flows.task_sender import TaskSender
from pipeline.flows.worker_context import worker_context, worker_settings
from pipeline.flows.worker_task import TaskRunNames, run_packed

ADDRESS = "http://127.0.0.1:9/api"
PLANTED = "planted-secret"


@pytest.fixture
def no_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Settings of a server that is not there, and none that may be started."""

    def refuse(self: SubprocessASGIServer, *_: Any) -> None:
        raise AssertionError("a Prefect server of its own was started")

    monkeypatch.setattr(SubprocessASGIServer, "start", refuse)
    settings = {PREFECT_API_URL: ADDRESS, PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED: False}
    with temporary_settings(settings):
        yield


# -- what is sent ----------------------------------------------------------------------------------


class Caught(Exception):
    """What a submission would have sent, instead of sending it."""


PARAMETERS = {"run_uri": "s3://a/b/", "fingerprint": "f", "name": "b1", "spec": "0-3", "types": ""}


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch, no_server: None) -> Iterator[Any]:
    """Submits a batch; returns the function and arguments that Dask would get."""

    def catch(self: Client, function: Any, *arguments: Any, **options: Any) -> None:
        raise Caught(function, arguments, options)

    monkeypatch.setattr(Client, "submit", catch)
    monkeypatch.setattr(Client, "subscribe_topic", lambda *_: None)
    client = PrefectDaskClient.__new__(PrefectDaskClient)
    monkeypatch.setattr(DaskTaskRunner, "client", client)
    runner = DaskTaskRunner(
        cluster_class="distributed.LocalCluster", cluster_kwargs={"env": [PLANTED]}
    )
    runner._started = True

    def submit() -> tuple[Any, Any, Any]:
        with pytest.raises(Caught) as caught:
            TaskSender(runner, map_batch_task, list(PARAMETERS)).submit(**PARAMETERS)
        function, arguments, options = caught.value.args
        return function, arguments, options

    yield submit


class Vault(LocalFileSystem):
    """A storage of results that knows a password."""

    _block_type_name: ClassVar[str] = "vault"
    password: SecretStr = SecretStr(PLANTED)


def flow_context() -> FlowRunContext:
    """That of a flow run from a deployment, with secrets wherever they may be."""
    runner: Any = DaskTaskRunner(
        cluster_class="distributed.LocalCluster", cluster_kwargs={"env": [PLANTED]}
    )
    flow: Any = map_dataset.with_options(task_runner=runner)
    run = FlowRun(
        id=uuid4(),
        flow_id=uuid4(),
        name="sales",
        parameters={"job_yaml": PLANTED},
        job_variables={"env": {"TOKEN": PLANTED}},
        context={"who": PLANTED},
        tags=["nightly"],
        run_count=1,
    )
    given: dict[str, Any] = {
        "flow": flow,
        "flow_run": run,
        "task_runner": runner,
        "parameters": {"job_yaml": PLANTED},
        "result_store": ResultStore(result_storage=Vault()),
        "client": SyncClientContext.get(),
        "log_prints": False,
        "start_time": datetime.now(UTC),
    }
    return FlowRunContext.model_construct(**given)


def test_no_secret_is_submitted(submitted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted in each setting of Prefect's, in the profile, the flow, its run and its storage."""
    known = get_settings_context()
    planted = _planted(known.settings)
    assert {"api.key", "api.auth_string", "server.database.password"} <= set(secrets_of(planted))
    profile = Profile(name="mine", settings={"PREFECT_API_KEY": PLANTED})
    context = known.model_copy(update={"settings": planted, "profile": profile})
    with context, flow_context():
        sent = submitted()
    whole = pickled(sent)
    assert PLANTED.encode() not in whole
    _, arguments, _ = pickle.loads(whole)
    parcel, *_ = arguments
    assert PLANTED.encode() not in parcel
    _, context_sent, _ = pickle.loads(parcel)
    settings = context_sent["settings_context"]["settings"]
    assert secrets_of(settings) == ["api.key"]  # A word that is no secret: no events are to go.
    assert PLANTED not in repr(_dumped(settings))


def _planted(settings: BaseSettings) -> Any:
    """A copy with a secret wherever a text or a dictionary may hold one."""
    changes: dict[str, Any] = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        kind = str(type(settings).model_fields[name].annotation)
        if isinstance(value, BaseSettings):
            if not name.startswith(("experiments", "flows", "internal", "logging", "results")):
                changes[name] = _planted(value)
        elif "SecretStr" in kind:
            changes[name] = SecretStr(PLANTED)
        elif isinstance(value, dict):
            changes[name] = {"authorization": PLANTED}
    return settings.model_copy(update=changes)


def _dumped(settings: BaseSettings) -> Any:
    def shown(value: Any) -> Any:
        if isinstance(value, BaseSettings):
            return {name: shown(getattr(value, name)) for name in type(value).model_fields}
        return value.get_secret_value() if isinstance(value, SecretStr) else str(value)

    return shown(settings)


def test_what_is_sent_is_small_and_made_once(submitted: Any) -> None:
    with flow_context():
        function, (parcel, names, parameters, functions), options = submitted()
    assert function is run_packed
    assert len(parcel) < 20_000
    assert (parameters, names[1]) == (PARAMETERS, "b1")
    assert not options["pure"] and not functions and options["resources"] is None


def test_a_workers_environment_gives_its_settings_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", ADDRESS)
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", PLANTED)
    monkeypatch.setenv("PREFECT_SERVER_DATABASE_PASSWORD", PLANTED)
    settings = worker_settings(Settings())
    assert settings.api.url is None
    assert not settings.server.ephemeral.enabled
    assert PLANTED not in repr(_dumped(settings))


def test_what_a_task_run_needs_is_kept() -> None:
    with temporary_settings({PREFECT_LOGGING_LEVEL: "DEBUG"}):
        settings = worker_settings(get_current_settings())
    assert settings.logging.level == "DEBUG"
    assert settings.results == get_current_settings().results
    assert settings.tasks == get_current_settings().tasks


# -- on a worker -----------------------------------------------------------------------------------


@task(name="looks", task_run_name="{name}", persist_result=False, cache_policy=NO_CACHE)
def look(name: str, what: str) -> Any:
    """What a transform could do with Prefect."""
    get_run_logger().info("looking at %s", what)
    flow_run, task_run = FlowRunContext.get(), TaskRunContext.get()
    assert flow_run is not None and task_run is not None
    match what:
        case "names":
            assert flow_run.flow is not None
            return [
                flow_run.flow.name,
                runtime.flow_run.get_name(),
                runtime.flow_run.get_parameters(),
                task_run.task_run.name,
            ]
        case "request":
            with SyncClientContext.get_or_create() as context:
                context.client.hello()
        case "variable":
            Variable.get("x")
        case "event":
            return emit_event("mine", {"prefect.resource.id": "mine"}) is None
        case "error":
            raise TransformError("no such column", hint="see `chunkmap check`")
        case "surrogate":
            raise ValueError("\ud800\0" + 10_000 * "x")
    return None


def on_a_worker(what: str, one: Any = look, **more: str) -> TaskReport:
    """As Dask calls it, where no variable of the driver is."""
    with tags("nightly"), flow_context():
        parcel = pickled((one, worker_context(), ""))
    names = TaskRunNames(str(uuid4()), "b1", "key", str(uuid4()))
    report = run_packed(parcel, tuple(names), {"name": "b1", "what": what, **more})
    return read_report(report)


@pytest.fixture
def nothing_sent(no_server: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """No event, no log line and no request leaves this process."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("something was sent to Prefect")

    monkeypatch.setattr(EventsWorker, "send", refuse)
    monkeypatch.setattr(APILogWorker, "send", refuse)
    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", refuse)
    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", refuse)


@pytest.mark.usefixtures("nothing_sent")
def test_a_task_sees_which_run_it_is_of() -> None:
    report = on_a_worker("names")
    assert report.result == ["map_dataset", "sales", {}, "b1"]
    assert [(state.type, state.name) for state in report.states] == [
        ("RUNNING", "Running"),
        ("COMPLETED", "Completed"),
    ]
    first, last = report.states
    assert time.time() - 60 < first.at <= last.at <= time.time()


@pytest.mark.usefixtures("nothing_sent")
def test_its_log_lines_come_back() -> None:
    lines = on_a_worker("nothing").lines
    assert [line.message for line in lines if "looking" in line.message] == ["looking at nothing"]
    assert all(abs(line.at - time.time()) < 60 for line in lines)


@pytest.mark.usefixtures("nothing_sent")
def test_nothing_is_collected_where_logs_are_not_wanted() -> None:
    with temporary_settings({PREFECT_LOGGING_TO_API_ENABLED: False}):
        assert on_a_worker("nothing").lines == ()


@pytest.mark.usefixtures("nothing_sent")
@pytest.mark.parametrize("what", ["request", "variable"])
def test_it_cannot_ask_the_server(what: str) -> None:
    for _ in range(2):
        error = on_a_worker(what).error
        assert error is not None
        assert "workers have no Prefect server" in error.message
        assert not error.is_final


@pytest.mark.usefixtures("nothing_sent")
def test_its_own_events_go_nowhere() -> None:
    assert on_a_worker("event").result is True


@pytest.mark.usefixtures("nothing_sent")
def test_an_error_comes_back_as_words() -> None:
    report = on_a_worker("error")
    assert report.error is not None
    assert (report.error.type, report.error.message) == ("TransformError", "no such column")
    assert (report.error.hint, report.error.is_final) == ("see `chunkmap check`", True)
    assert [state.type for state in report.states] == ["RUNNING", "FAILED"]


@pytest.fixture
def no_logs() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


# Prefect logs it, and what pytest captures of it could not be sent to another process of tests.
@pytest.mark.usefixtures("nothing_sent", "no_logs")
def test_an_error_that_is_no_text_comes_back_all_the_same() -> None:
    report = on_a_worker("surrogate")
    assert report.error is not None
    assert "xxx" in report.error.message
    assert "\0" not in report.error.message


@task(name="tries", task_run_name="{name}", retries=2, cache_policy=NO_CACHE)
def try_again(name: str, what: str, mark: str) -> str:
    """Fail until there is a file."""
    if not os.path.exists(mark):
        with open(mark, "w", encoding="utf-8"):
            raise ValueError("not yet")
    return what


@pytest.mark.usefixtures("nothing_sent")
def test_retries_are_told(tmp_path: Any) -> None:
    report = on_a_worker("done", try_again, mark=str(tmp_path / "mark"))
    assert report.result == "done"
    assert [state.name for state in report.states] == ["Running", "Retrying", "Completed"]


# -- the driver's heartbeats -----------------------------------------------------------------------


@pytest.mark.parametrize(("own", "expected"), [(None, None), ("60", 60)])
def test_only_what_is_watched_sends_heartbeats(own: str | None, expected: int | None) -> None:
    """They make a flow run end up to a second later; a user may want them all the same."""
    wanted = {} if own is None else {PREFECT_FLOWS_HEARTBEAT_FREQUENCY: int(own)}
    with temporary_settings(wanted):
        with talking_to(ADDRESS, 1):
            assert get_current_settings().flows.heartbeat_frequency == expected
        with talking_to(ADDRESS, 1, beats=True):
            assert get_current_settings().flows.heartbeat_frequency == HEARTBEAT_SECONDS


def test_a_driver_that_lives_is_never_taken_for_dead() -> None:
    assert HEARTBEAT_TIMEOUT.total_seconds() >= 3 * HEARTBEAT_SECONDS
