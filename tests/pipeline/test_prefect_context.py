"""What is sent along with each task run: ours comes to the same as Prefect's own."""

from __future__ import annotations

import inspect
import pickle
from contextlib import AbstractContextManager
from contextvars import copy_context
from typing import Any
from uuid import UUID, uuid4

import pytest
from distributed import Client
from prefect import tags
from prefect.client.orchestration import SyncPrefectClient
from prefect.context import (
    SettingsContext,
    SyncClientContext,
    hydrated_context,
    serialize_context,
)
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED,
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    get_current_settings,
    temporary_settings,
)
from prefect.task_engine import run_task_sync as run
from prefect_dask import DaskTaskRunner, PrefectDaskClient

from pipeline import engine
from pipeline.flows import sending
from pipeline.flows.dask_engine import map_batch_task
from pipeline.flows.heartbeat import SILENT
from pipeline.flows.sending import Sender, WholeSettings
from pipeline.flows.server import HEARTBEAT_SECONDS, talking_to

ADDRESS = "http://127.0.0.1:9/api"


def test_a_worker_gets_the_same_settings_from_them_as_from_prefects_own() -> None:
    found = []
    with temporary_settings({PREFECT_API_URL: ADDRESS, PREFECT_CLIENT_MAX_RETRIES: 3}):
        theirs = serialize_context()
        with WholeSettings.now():
            ours = serialize_context()
    assert {**ours, "settings_context": None} == {**theirs, "settings_context": None}
    for sent in (theirs, ours):
        with hydrated_context(pickle.loads(pickle.dumps(sent))):
            context = SettingsContext.get()
            assert context is not None
            found.append(context.settings)
    assert found[0] == found[1]
    assert (found[1].api.url, found[1].client.max_retries) == (ADDRESS, 3)


def elsewhere(address: str) -> AbstractContextManager[Any]:
    """Settings of a server that is not asked for its version, since it is not there."""
    return temporary_settings(
        {PREFECT_API_URL: address, PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED: False}
    )


class Caught(Exception):
    """What a submission would have sent, instead of sending it."""


def test_a_task_run_gets_the_same_as_from_prefect_dask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names and defaults of prefect-dask's own call, held against ours, as a worker sees it."""

    def catch(self: Client, function: Any, *given: Any, key: Any = None, **named: Any) -> None:
        raise Caught(function, given, named)

    monkeypatch.setattr(Client, "submit", catch)
    client = PrefectDaskClient.__new__(PrefectDaskClient)
    monkeypatch.setattr(DaskTaskRunner, "client", client)
    runner = DaskTaskRunner()
    runner._started = True
    wanted = {"run_uri": "s3://a/b/", "fingerprint": "f", "name": "b1", "spec": "0-3"}
    with elsewhere(ADDRESS), tags("nightly"):
        with pytest.raises(Caught) as caught, WholeSettings.now():
            runner.submit(map_batch_task, wanted)
        _, _, theirs = caught.value.args
        expected = get_current_settings()
        with pytest.raises(Caught) as caught:
            Sender(runner, map_batch_task).submit(**wanted)
    function, given, options = caught.value.args
    assert not options["pure"]
    ours: dict[str, Any] = {}
    monkeypatch.setattr(
        sending, "run_task_sync", lambda task, **named: ours.update(named, task=task)
    )
    function(*pickle.loads(engine.pickled(given)))
    common = {
        key: value for key, value in theirs.items() if key in inspect.signature(run).parameters
    }
    assert sorted(ours) == sorted(common)
    for named in (common, ours):
        assert isinstance(named.pop("task_run_id"), UUID)
        assert named["context"]["asset_context"].pop("task_run_id")
        assert named.pop("task").name == "map-batch"
        settings_ = named["context"].pop("settings_context")
        assert settings_["settings"] == expected
    assert ours == common
    assert ours["context"]["tags_context"] == {"current_tags": {"nightly"}}


def test_a_worker_thread_keeps_one_client_and_makes_another_for_another_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def client(*_: Any, **__: Any) -> SyncPrefectClient:
        with SyncClientContext.get_or_create() as found:
            return found.client

    monkeypatch.setattr(sending, "run_task_sync", client)
    found: list[SyncPrefectClient] = []
    for address in (ADDRESS, ADDRESS, ADDRESS.replace("9", "11")):
        with elsewhere(address), WholeSettings.now():
            parcel = engine.pickled((map_batch_task, serialize_context()))
        # As Dask does it: each task has a context of its own.
        found.append(copy_context().run(sending.run_packed, parcel, uuid4(), {}))
    assert found[0] is found[1]
    assert str(found[1].api_url).rstrip("/") == ADDRESS
    assert str(found[2].api_url).rstrip("/") == ADDRESS.replace("9", "11")
    assert found[1]._client.is_closed
    assert not found[2]._client.is_closed
    assert SyncClientContext.get() is None


def test_they_can_be_sent_again_and_again() -> None:
    whole = WholeSettings.now()
    for _ in range(2):
        with whole:
            assert SettingsContext.get() is whole


def test_secrets_are_left_out_where_that_is_asked_for() -> None:
    current = SettingsContext.get()
    assert current is not None
    theirs = current.serialize(include_secrets=False)
    assert WholeSettings.now().serialize(include_secrets=False) == theirs


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
    assert SILENT.total_seconds() >= 3 * HEARTBEAT_SECONDS
