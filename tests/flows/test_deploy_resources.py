"""What differs between what is wanted and what there is."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound

from pipeline.errors import ConflictError
from pipeline.flows.automations import automations
from pipeline.flows.deploy import kinds
from pipeline.flows.deploy.deploy import _read_back
from pipeline.flows.deploy.resources import KINDS, Change, Key, Resource, compare

keys = st.tuples(st.sampled_from(KINDS), st.sampled_from("abc"))
values = st.dictionaries(st.sampled_from("xy"), st.integers(0, 2), min_size=1)
states = st.dictionaries(keys, values, max_size=8)


@given(states, states, st.sets(keys))
def test_the_changes_lead_to_what_is_wanted_and_spare_the_rest(
    wanted: dict[Key, dict[str, int]], there: dict[Key, dict[str, int]], made: set[Key]
) -> None:
    resources = [Resource(kind, name, fields) for (kind, name), fields in wanted.items()]
    state: dict[Key, Mapping[str, Any]] = dict(there)
    changes = compare(resources, state, made)
    for change in changes:
        key = (change.kind, change.name)
        if change.action == "remove":
            del state[key]
        else:
            state[key] = {**state.get(key, {}), **wanted[key]}
    assert compare(resources, state, made) == []
    assert all(state[key].items() >= fields.items() for key, fields in wanted.items())
    spared = there.keys() - wanted.keys() - made
    assert all(state[key] == there[key] for key in spared)
    assert state.keys() == wanted.keys() | spared
    made_order = [KINDS.index(each.kind) for each in changes if each.action != "remove"]
    gone_order = [KINDS.index(each.kind) for each in changes if each.action == "remove"]
    assert made_order == sorted(made_order)
    assert gone_order == sorted(gone_order, reverse=True)


def test_what_the_server_changes_by_itself_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some versions of Prefect activate schedules when their deployment is updated."""

    class Active:
        async def read(self, client: Any, name: str) -> dict[str, Any]:
            return {"active": True}

    monkeypatch.setitem(kinds.KINDS, "schedule", Active())
    client: Any = None
    wanted = Resource("schedule", "chunkmap/revenue", {"active": False})
    with pytest.raises(ConflictError, match=r"schedule chunkmap/revenue \(active\)"):
        asyncio.run(_read_back(client, [wanted]))
    asyncio.run(_read_back(client, [replace(wanted, fields={"active": True})]))


class Stored:
    """A server that has one automation."""

    def __init__(self, automation: AutomationCore) -> None:
        self.automation = automation

    async def read_automations_by_name(self, name: str) -> list[Any]:
        return [SimpleNamespace(model_dump=lambda **_: self.automation.model_dump())]

    async def read_deployment(self, deployment: object) -> Any:
        raise ObjectNotFound(Exception("none"))


def test_automations_are_equal_whatever_the_order_of_their_events() -> None:
    """Prefect keeps events as sets: compared as lists, equal ones differed in some processes."""
    for automation in automations(kinds.UNKNOWN):
        wanted = kinds.automation_resource(automation, f"deleted ({kinds.UNKNOWN})")
        client: Any = Stored(automation)
        found = asyncio.run(kinds.Automations().read(client, automation.name))
        assert found == wanted.fields
        for field in ("after", "expect", "for_each"):
            events = wanted.fields["definition"]["trigger"][field]
            assert events == sorted(events)


def test_secrets_are_compared_and_not_shown() -> None:
    wanted = Resource("block", "secret/token", {"data": {"value": "new-hush"}})
    actual = {wanted.key: {"data": {"value": "old-hush"}}}
    [change] = compare([wanted], actual, ())
    assert change == Change("block", "secret/token", "update", (("value", "…", "another value"),))
