"""What is sent along with each task run: ours comes to the same as Prefect's own."""

from __future__ import annotations

import pickle

import pytest
from prefect.context import SettingsContext, hydrated_context, serialize_context
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    get_current_settings,
    temporary_settings,
)

from pipeline.flows.dask_engine import WholeSettings
from pipeline.flows.heartbeat import SILENT
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
