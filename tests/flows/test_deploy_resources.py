"""What differs between what is wanted and what there is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

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


def test_secrets_are_compared_and_not_shown() -> None:
    wanted = Resource("block", "secret/token", {"data": {"value": "new-hush"}})
    actual = {wanted.key: {"data": {"value": "old-hush"}}}
    [change] = compare([wanted], actual, ())
    assert change == Change("block", "secret/token", "update", (("value", "…", "another value"),))
