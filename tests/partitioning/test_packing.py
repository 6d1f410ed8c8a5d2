"""Packing against a slow, obvious packer, and its promises one by one."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitioning import PlanRequest, TargetError
from partitioning.packing import PackRules, pack


@dataclass(frozen=True)
class Group:
    object: int
    partition: int
    rows: int
    decoded: int


@st.composite
def row_groups(draw: st.DrawFn) -> list[Group]:
    found = []
    partition = 0
    for number in range(draw(st.integers(0, 8))):
        partition += draw(st.integers(0, 1))
        for _ in range(draw(st.integers(1, 5))):
            rows, decoded = draw(st.integers(1, 50)), draw(st.integers(0, 150))
            found.append(Group(number, partition, rows, decoded))
    return found


rules = st.builds(
    PackRules,
    target=st.integers(1, 300),
    open_cost=st.integers(0, 100),
    max_rows=st.none() | st.integers(1, 100),
    cross_partitions=st.booleans(),
)


def packed(rule: PackRules, groups: list[Group]) -> list[list[Group]]:
    ranges = pack(
        rule,
        [g.object for g in groups],
        [g.partition for g in groups],
        [g.rows for g in groups],
        [g.decoded for g in groups],
    )
    return [groups[a:b] for a, b in ranges]


def weight(rule: PackRules, chunk: list[Group]) -> int:
    cost = min(rule.open_cost, rule.target)
    objects = itertools.groupby(chunk, key=lambda g: g.object)
    return sum(max(cost, sum(g.decoded for g in own)) for _, own in objects)


def fits(rule: PackRules, chunk: list[Group]) -> bool:
    return (
        weight(rule, chunk) <= rule.target
        and (rule.max_rows is None or sum(g.rows for g in chunk) <= rule.max_rows)
        and (rule.cross_partitions or len({g.partition for g in chunk}) == 1)
    )


@given(rules, row_groups())
def test_packs_as_the_slow_packer_does(rule: PackRules, groups: list[Group]) -> None:
    slow: list[list[Group]] = []
    for group in groups:
        if slow and fits(rule, [*slow[-1], group]):
            slow[-1].append(group)
        else:
            slow.append([group])
    assert packed(rule, groups) == slow


@given(rules, row_groups())
def test_every_row_group_once_in_order_and_within_bounds(
    rule: PackRules, groups: list[Group]
) -> None:
    chunks = packed(rule, groups)
    assert list(itertools.chain.from_iterable(chunks)) == groups
    for chunk in chunks:
        assert chunk
        assert len(chunk) == 1 or sum(g.decoded for g in chunk) <= rule.target
        assert len(chunk) == 1 or fits(rule, chunk)


@given(row_groups(), st.integers(1, 50))
def test_per_file_and_per_partition_cut_nowhere_else(groups: list[Group], target: int) -> None:
    by_file = packed(PackRules(target, per_file=True), groups)
    assert [len({g.object for g in c}) for c in by_file] == [1] * len({g.object for g in groups})
    whole = packed(PackRules(target, per_partition=True), groups)
    assert [c[0].partition for c in whole] == sorted({g.partition for g in groups})


def test_small_files_do_not_pile_up_beyond_their_open_cost() -> None:
    groups = [Group(i, 0, 1, 1) for i in range(100)]
    assert [len(c) for c in packed(PackRules(100, open_cost=10), groups)] == [10] * 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": 0}, "target is 0"),
        ({"max_rows": 0}, "max_rows is 0"),
        ({"per_file": True, "per_partition": True}, "per_partition contradicts per_file"),
        ({"per_file": True, "max_rows": 5}, "max_rows contradicts per_file"),
        ({"per_partition": True, "cross_partitions": True}, "cross_partitions contradicts"),
    ],
)
def test_impossible_chunking_is_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(TargetError, match=message):
        PlanRequest("s3://b/t/", **options)  # type: ignore[arg-type]
