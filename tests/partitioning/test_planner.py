"""Plans: the same for the same snapshot, exact, stored, and made again from little."""

from __future__ import annotations

import pickle
import random
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partitioning import (
    ColumnError,
    Plan,
    PlanFormatError,
    PlanRequest,
    Term,
    plan_dataset,
)
from partitioning.footers import FooterBatch
from partitioning.model import chunk_id, fragment_identity
from partitioning.table_file import pack_tables
from tests.support.examples import fewer
from tests.support.stores import DictReader, dataset, ids, parquet, read


@st.composite
def datasets(draw: st.DrawFn) -> dict[str, bytes]:
    objects: dict[str, bytes] = {}
    start = 0
    for number in range(draw(st.integers(1, 6))):
        rows = draw(st.integers(0, 12))
        part = draw(st.integers(1, 3))
        group, has_index = draw(st.integers(1, 5)), draw(st.booleans())
        data = parquet(ids(start, start + rows), group, write_page_index=has_index)
        objects[f"s3://b/t/p={part}/{number}.parquet"] = data
        start += rows
    return objects


requests = st.builds(
    PlanRequest,
    st.just("s3://b/t/"),
    target=st.integers(1, 200),
    open_cost=st.integers(0, 50),
    max_rows=st.none() | st.integers(1, 10),
    cross_partitions=st.booleans(),
    min_part=st.sampled_from([1, 8, 16 << 20]),
) | st.sampled_from(
    [PlanRequest("s3://b/t/", per_file=True), PlanRequest("s3://b/t/", per_partition=True)]
)


def row_ids(plan: Plan, objects: dict[str, bytes]) -> list[int]:
    return [i for c in plan.chunks() for table in read(c, objects) for i in table["id"].to_pylist()]


@settings(max_examples=fewer(100), deadline=None)
@given(datasets(), requests, st.integers(0, 2**16))
def test_each_row_once_and_the_listing_order_does_not_matter(
    objects: dict[str, bytes], request: PlanRequest, seed: int
) -> None:
    plan = plan_dataset(request, DictReader(objects)).plan
    count = sum(pa.parquet.read_metadata(pa.BufferReader(o)).num_rows for o in objects.values())
    assert sorted(row_ids(plan, objects)) == list(range(count))
    assert plan.rows == count
    again = plan_dataset(request, DictReader(objects, shuffle=seed)).plan
    assert again.to_bytes() == plan.to_bytes()
    for chunk in plan.chunks():
        alone = len(chunk.fragments) == 1 and (
            chunk.fragments[0].row_group_stop - chunk.fragments[0].row_group_start == 1
        )
        cuts = not (request.per_file or request.per_partition)
        assert alone or not cuts or chunk.decoded_bytes <= request.target
        assert alone or request.max_rows is None or chunk.rows <= request.max_rows


@settings(max_examples=fewer(100), deadline=None)
@given(datasets(), datasets(), requests, requests)
def test_planning_again_gives_the_plan_that_planning_afresh_gives(
    before: dict[str, bytes], after: dict[str, bytes], first: PlanRequest, second: PlanRequest
) -> None:
    previous = plan_dataset(first, DictReader(before)).plan
    reader = DictReader(after)
    again = plan_dataset(second, reader, previous=Plan.from_bytes(previous.to_bytes()))
    afresh = plan_dataset(second, DictReader(after))
    assert again.plan.id == afresh.plan.id
    assert again.plan.to_bytes() == afresh.plan.to_bytes()
    same = {uri for uri in after if before.get(uri) == after[uri]}
    assert again.changes.unchanged == len(same)
    assert set(again.changes.added) == set(after) - set(before)
    assert set(again.changes.removed) == set(before) - set(after)
    assert set(again.changes.changed) == (set(after) & set(before)) - same
    # Only a plan that cuts row groups knows which are indexed.
    is_known = second.min_part > 200
    read = len(after) - len(same)
    assert len(reader.lengths) == read if is_known else read <= len(reader.lengths) <= len(after)


@settings(max_examples=fewer(50), deadline=None)
@given(datasets(), st.sampled_from([None, (), ("id",), ("p",)]))
def test_columns_chosen_by_a_schema_are_columns_that_were_given(
    objects: dict[str, bytes], columns: tuple[str, ...] | None
) -> None:
    request = PlanRequest("s3://b/t/", size_columns=columns, on_bad_object="skip")
    seen: list[pl.Schema] = []

    def choose(schema: pl.Schema) -> tuple[str, ...] | None:
        seen.append(schema)
        return columns

    bad = {"s3://b/t/p=0/0.parquet": b"no Parquet", **objects}
    expected = plan_dataset(request, DictReader(bad)).plan
    chosen = plan_dataset(
        replace(request, size_columns=None), DictReader(bad), choose_columns=choose
    ).plan
    assert chosen.to_bytes() == expected.to_bytes()
    assert [schema.names() for schema in seen] == [["id", "p"]]


@st.composite
def mixed(draw: st.DrawFn) -> dict[str, bytes]:
    """Return a dataset of which some objects have further columns."""
    objects = {}
    for number in draw(st.lists(st.integers(0, 8), min_size=1, max_size=6, unique=True)):
        start = draw(st.integers(0, 20))
        further: dict[str, list[object]] = draw(
            st.sampled_from([{}, {"a": [1] * 5}, {"b": ["x"] * 5, "a": [2] * 5}])
        )
        part = draw(st.integers(1, 2))
        objects[f"s3://b/t/p={part}/{number}.parquet"] = parquet(
            ids(start, start + 5, **further), draw(st.integers(1, 5))
        )
    return objects


TERMS = [
    (Term("id", "<", 10),),
    (Term("p", "==", 1), Term("id", ">", 3)),
    (Term("p", "in", [2, 3]),),
    (Term("p", ">", 5),),
]


@settings(max_examples=fewer(150), deadline=None)
@given(mixed(), mixed(), st.lists(st.sampled_from(TERMS), max_size=2), st.integers(0, 99))
def test_planning_again_is_exact_with_a_filter_and_several_schemas(
    before: dict[str, bytes],
    after: dict[str, bytes],
    groups: list[tuple[Term, ...]],
    seed: int,
) -> None:
    request = PlanRequest("s3://b/t/", schema="union", filter=tuple(groups))
    previous = plan_dataset(request, DictReader(before)).plan
    again = plan_dataset(request, DictReader(after, shuffle=seed), previous=previous).plan
    assert again.to_bytes() == plan_dataset(request, DictReader(after)).plan.to_bytes()


@settings(max_examples=fewer(50), deadline=None)
@given(datasets(), requests, st.data())
def test_a_stored_plan_gives_any_chunk_alone(
    objects: dict[str, bytes], request: PlanRequest, data: st.DataObject
) -> None:
    plan = plan_dataset(request, DictReader(objects)).plan
    stored = pickle.loads(pickle.dumps(plan))
    chunks = list(plan.chunks())
    assert [c.index for c in chunks] == list(range(len(plan)))
    assert [c.id for c in chunks] == stored.chunk_ids
    if chunks:
        wanted = data.draw(st.lists(st.integers(0, len(chunks) - 1)))
        assert list(stored.chunks(wanted)) == [chunks[i] for i in wanted]
        assert stored.chunk(wanted[0] if wanted else 0) == chunks[wanted[0] if wanted else 0]
    assert (stored, stored.id, hash(stored)) == (plan, plan.id, hash(plan))
    assert sum(c.rows for c in chunks) == stored.rows
    assert sum(c.stored_bytes for c in chunks) == stored.stored_bytes
    assert sum(c.decoded_bytes for c in chunks) == stored.decoded_bytes
    assert sum(len(c.fragments) for c in chunks) == stored.fragments


def test_the_identity_of_a_chunk_is_its_fragments_and_nothing_else() -> None:
    objects = dataset(4)
    narrow = plan_dataset(
        PlanRequest("s3://b/t/", columns=("id",), per_file=True), DictReader(objects)
    )
    wide = plan_dataset(PlanRequest("s3://b/t/", target=10**9, per_file=True), DictReader(objects))
    assert narrow.plan.chunk_ids == wide.plan.chunk_ids
    fewer = dict(list(objects.items())[2:])
    assert (
        plan_dataset(PlanRequest("s3://b/t/", per_file=True), DictReader(fewer)).plan.chunk_ids
        == wide.plan.chunk_ids[2:]
    )
    one = wide.plan.chunk(0)
    assert (
        one.id
        == chunk_id(
            fragment_identity(f.uri, f.etag, f.size, f.row_group_start, f.row_group_stop)
            for f in one.fragments
        ).hex()
    )
    [first] = one.fragments
    etag = first.etag.strip('"')
    assert first.identity == f"{len(first.uri)}:{first.uri},32:{etag},{first.size},0,3;"
    quoted = fragment_identity("s3://b/k", '"e"', 1, 0, 1)
    assert quoted == fragment_identity("s3://b/k", "e", 1, 0, 1)
    assert quoted != fragment_identity("s3://b/k", "f", 1, 0, 1)


def test_changed_only_plans_the_difference_and_keeps_the_rest_for_next_time() -> None:
    objects = dataset(6)
    request = PlanRequest("s3://b/t/", changed_only=True)
    first = plan_dataset(request, DictReader(objects))
    assert first.plan.rows == 60
    objects["s3://b/t/001.parquet"] = parquet(ids(100, 107), 3)
    objects["s3://b/t/004x.parquet"] = parquet(ids(200, 202))
    second = plan_dataset(request, DictReader(objects), previous=first.plan)
    assert row_ids(second.plan, objects) == [*range(100, 107), *range(200, 202)]
    assert second.plan.objects == 2
    assert second.explain.objects_unchanged == 5
    # The chunk holds two objects with an unplanned one between them.
    assert [len(c.fragments) for c in second.plan.chunks()] == [2]
    reader = DictReader(objects)
    whole = plan_dataset(PlanRequest("s3://b/t/"), reader, previous=second.plan)
    assert reader.lengths == []
    assert whole.plan == plan_dataset(PlanRequest("s3://b/t/"), DictReader(objects)).plan
    nothing = plan_dataset(request, DictReader(objects), previous=whole.plan)
    assert (len(nothing.plan), nothing.changes.unchanged) == (0, 7)


def test_footers_are_read_again_for_another_filter_or_other_columns() -> None:
    objects = dataset(3)
    previous = plan_dataset(PlanRequest("s3://b/t/"), DictReader(objects)).plan
    for request in (
        PlanRequest("s3://b/t/", columns=("id",)),
        PlanRequest("s3://b/t/", filter=((Term("id", ">", 15),),)),
    ):
        reader = DictReader(objects)
        again = plan_dataset(request, reader, previous=previous)
        assert len(reader.lengths) == 3
        assert again.plan == plan_dataset(request, DictReader(objects)).plan


def test_a_mapper_reads_the_footers_elsewhere() -> None:
    objects = dataset(2500, rows=2, group=2)
    asked: list[int] = []

    def mapper(function: Any, groups: Any) -> Iterator[FooterBatch]:
        shipped = list(groups)
        random.Random(1).shuffle(shipped)
        for group in shipped:
            asked.append(len(group.objects))
            send = pickle.dumps((function, group))
            assert len(send) < 3_000_000
            run, what = pickle.loads(send)
            yield pickle.loads(pickle.dumps(run(what)))

    told: list[tuple[int, int]] = []
    request = PlanRequest("s3://b/t/", map_threshold=2000)
    mapped = plan_dataset(
        request, DictReader(objects), mapper=mapper, progress=lambda *a: told.append(a)
    )
    assert sorted(asked) == [499, 1000, 1000]
    assert told[-1] == (2499, 2499)
    assert mapped.plan == plan_dataset(request, DictReader(objects)).plan
    asked.clear()
    plan_dataset(PlanRequest("s3://b/t/"), DictReader(objects), mapper=mapper)
    assert asked == []


def test_figures_of_a_planning() -> None:
    objects = dataset(4, rows=10, group=4)
    request = PlanRequest("s3://b/t/", filter=((Term("id", "<", 12),),), columns=("id",))
    result = plan_dataset(request, DictReader(objects))
    figures = result.explain
    assert (figures.row_groups, figures.row_groups_pruned) == (12, 8)
    assert (figures.objects_planned, figures.objects_without_rows) == (2, 2)
    assert (figures.rows, figures.footers_read, figures.requests) == (14, 4, 7)
    assert figures.bytes_listed == sum(map(len, objects.values()))
    assert 0 < figures.bytes_to_read < figures.bytes_listed
    assert figures.chunk_sizes is not None
    assert sum(count for _, _, count in figures.chunk_sizes.histogram) == figures.chunks == 1
    assert figures.to_dict()["chunk_sizes"]["median"] == result.plan.decoded_bytes


def warnings(objects: dict[str, bytes], **options: Any) -> str:
    result = plan_dataset(PlanRequest("s3://b/t/", **options), DictReader(objects))
    return "\n".join(result.explain.warnings)


def test_warnings() -> None:
    assert "150 of 150 objects are smaller than 1 MB" in warnings(dataset(150, rows=1))
    assert "12 of 12 row groups decode to more than the target" in warnings(dataset(4), target=1)
    large = {**dataset(6), "s3://b/t/z.parquet": parquet(ids(0, 5000))}
    assert "chunk sizes are skewed" in warnings(large, per_file=True)
    assert "per_file and per_partition do not cut" in warnings(dataset(2), target=50, per_file=True)
    assert warnings(dataset(2)) == ""


def test_unknown_columns_are_refused_before_all_footers_are_read() -> None:
    reader = DictReader(dataset(50))
    with pytest.raises(ColumnError, match="no column 'idd'; did you mean 'id'"):
        plan_dataset(PlanRequest("s3://b/t/", columns=("idd",)), reader)
    assert len(reader.lengths) == 1


def test_indices_out_of_range_and_foreign_bytes_are_refused() -> None:
    plan = plan_dataset(PlanRequest("s3://b/t/"), DictReader(dataset(2))).plan
    for wrong in (-1, len(plan)):
        with pytest.raises(IndexError):
            plan.chunk(wrong)
        with pytest.raises(IndexError):
            list(plan.chunks([wrong]))
    data = plan.to_bytes()
    damaged: Iterable[bytes] = (b"", b"CMPLAN01", data[:-1], data[1:], b"x" * 100)
    for other in damaged:
        with pytest.raises(PlanFormatError):
            Plan.from_bytes(other)
    with pytest.raises(PlanFormatError, match="damaged"):
        Plan.from_bytes(data[:-16] + (2**40).to_bytes(8, "little") + data[-8:])
    names = ("chunks", "row_groups", "objects", "schemas", "skipped")
    tables = {name: plan.table(name) for name in names}
    newer = pack_tables(tables, {**plan._file.meta, "version": 7})
    with pytest.raises(PlanFormatError, match="version 7; this release reads 1 and 2"):
        Plan.from_bytes(newer)
    assert repr(plan).startswith("Plan(")
    assert plan.input["uri"] == "s3://b/t/"
