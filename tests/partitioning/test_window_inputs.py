"""Windows over a listing and a plan, and plans of some windows only."""

from __future__ import annotations

import random
import time
from dataclasses import replace

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partitioning import (
    NoParquetError,
    Plan,
    PlanRequest,
    Term,
    WindowError,
    WindowFilter,
    Windowing,
    inputs_digest,
    inputs_of_listing,
    inputs_of_plan,
    plan_dataset,
    windows_of_plan,
)
from partitioning.listing import list_objects
from tests.partitioning.test_planner import datasets, requests
from tests.support.examples import fewer
from tests.support.stores import DictReader, ids, parquet

DAYS = [f"2024-{month:02d}-{day:02d}" for month in (1, 2, 3) for day in (1, 15, 28)]
REQUEST = PlanRequest("s3://b/t/", target=1, open_cost=0)
MONTHS = Windowing("ds", "month")


def daily(days: list[str] = DAYS) -> dict[str, bytes]:
    """Two objects of two row groups a day."""
    return {
        f"s3://b/t/ds={day}/{name}.parquet": parquet(ids(0, 4), 2) for day in days for name in "ab"
    }


def plan_of(objects: dict[str, bytes], request: PlanRequest = REQUEST) -> Plan:
    return plan_dataset(request, DictReader(objects)).plan


# -- some of a plan's chunks --------------------------------------------------------------------


@settings(max_examples=fewer(150), deadline=None)
@given(datasets(), requests, st.randoms(use_true_random=False), st.booleans())
def test_taken_chunks_are_the_same_chunks(
    objects: dict[str, bytes], request: PlanRequest, rng: random.Random, pruned: bool
) -> None:
    if pruned:
        request = replace(request, filter=((Term("id", ">=", 5), Term("p", "!=", 2)),))
    plan = plan_of(objects, request)
    indices = rng.sample(range(len(plan)), rng.randint(0, len(plan)))
    taken = plan.take(indices)
    expected = [plan.chunk(index) for index in indices]
    for found in (list(taken.chunks()), [taken.chunk(i) for i in range(len(taken))]):
        assert [(c.id, c.partition, c.fragments) for c in found] == [
            (c.id, c.partition, c.fragments) for c in expected
        ]
        assert [c.index for c in found] == list(range(len(indices)))
    assert (taken.schema, taken.chunk_ids) == (plan.schema, [c.id for c in expected])
    assert (taken.rows, taken.stored_bytes, taken.decoded_bytes, taken.fragments) == (
        sum(c.rows for c in expected),
        sum(c.stored_bytes for c in expected),
        sum(c.decoded_bytes for c in expected),
        sum(len(c.fragments) for c in expected),
    )
    assert taken.objects == len({f.uri for c in expected for f in c.fragments})
    assert Plan.from_bytes(taken.to_bytes()) == taken
    again = taken.take(range(len(taken)))
    assert again.id == taken.id
    assert plan.take(range(len(plan))).id == plan.id


def test_a_taken_plan_names_only_what_it_reads() -> None:
    plan = plan_of(daily())
    assert plan.take([5]).table("objects").num_rows == 1
    with pytest.raises(IndexError):
        plan.take([len(plan)])
    with pytest.raises(ValueError, match="once"):
        plan.take([1, 1])


def test_windows_of_many_chunks_are_quick() -> None:
    """100,000 chunks in 1,000 windows, most of the time of which is making the plan."""
    plan = many(100_000, 1_000)
    rule = Windowing("ds", "day")
    started = time.perf_counter()
    found = windows_of_plan(plan, rule)
    taken = plan.take(range(len(plan) - 1, -1, -2))
    seconds = time.perf_counter() - started
    assert len(set(found)) == 1_000
    assert taken.chunk_ids[:2] == [plan.chunk_ids[-1], plan.chunk_ids[-3]]
    assert taken.chunk(0).partition == plan.chunk(len(plan) - 1).partition
    assert seconds < 20, "a second or so on an idle machine"


def many(chunks: int, days: int) -> Plan:
    """A plan whose tables are written by hand: one chunk, row group and object each."""
    plan = plan_of(daily(["2024-01-01"]))
    tables = {n: plan.table(n) for n in ("chunks", "row_groups", "objects", "schemas", "skipped")}
    ones = pa.array([0] * chunks)
    for name in ("chunks", "row_groups", "objects"):
        tables[name] = tables[name].take(ones)
    dates = Windowing("ds", "day").between("2021", "2024")[:days]
    per = chunks // days
    count = pa.array(range(chunks), pa.int64())
    stops = pa.array(range(1, chunks + 1), pa.int64())
    uris = [f"s3://b/t/ds={dates[i // per].label}/{i % per}.parquet" for i in range(chunks)]

    def put(table: str, **columns: pa.Array) -> None:
        for name, values in columns.items():
            at = tables[table].schema.get_field_index(name)
            kind = tables[table].schema.field(at)
            tables[table] = tables[table].set_column(at, kind, values.cast(kind.type))

    put("chunks", start=count, stop=stops, id=pa.array(i.to_bytes(16) for i in range(chunks)))
    put("row_groups", object=count)
    ones = pa.array([1] * chunks)
    put("objects", row_group_start=count, row_groups=ones, uri=pa.array(uris))
    return Plan.build(tables, {**plan._file.meta, "chunks": chunks})


# -- windows ------------------------------------------------------------------------------------


def test_each_chunk_has_its_window() -> None:
    plan = plan_of(daily())
    assert windows_of_plan(plan, Windowing("ds", "day")) == [d for d in DAYS for _ in range(4)]
    found = windows_of_plan(plan, MONTHS)
    assert found == [day[:7] for day in DAYS for _ in range(4)]
    march = [rank for rank, label in enumerate(found) if label == "2024-03"]
    assert windows_of_plan(plan.take(march[::-1]), MONTHS) == ["2024-03"] * 12
    assert windows_of_plan(plan.take([]), MONTHS) == []


def test_values_keep_their_zeros() -> None:
    objects = {f"s3://b/t/m={m:02d}/a.parquet": parquet(ids(0, 1)) for m in (1, 2, 12)}
    rule = Windowing("m", "value")
    assert windows_of_plan(plan_of(objects), rule) == ["01", "02", "12"]


@pytest.mark.parametrize("directory", ["ds=2024-01", "ds=soon", "ds=__HIVE_DEFAULT_PARTITION__"])
def test_values_that_do_not_fit(directory: str) -> None:
    objects = {**daily(), f"s3://b/t/{directory}/a.parquet": parquet(ids(0, 1))}
    with pytest.raises(WindowError, match="'ds'"):
        windows_of_plan(plan_of(objects), Windowing("ds", "day"))


def test_a_column_that_is_no_hive_column() -> None:
    reader, rule = DictReader(daily()), Windowing("dt", "day")
    keep = WindowFilter(rule, rule.between("2024", "2025"))
    for call in (
        lambda: windows_of_plan(plan_of(daily()), rule),
        lambda: inputs_of_plan(plan_of(daily()), rule),
        lambda: inputs_of_listing(list_objects(REQUEST, reader), rule),
        lambda: plan_dataset(replace(REQUEST, keep=keep), reader),
    ):
        with pytest.raises(WindowError, match=r"'dt'.*has ds; did you mean 'ds'"):
            call()
    flat = {"s3://b/t/a.parquet": parquet(ids(0, 1))}
    with pytest.raises(WindowError, match="no name=value directories"):
        windows_of_plan(plan_of(flat), rule)


def test_a_chunk_of_two_windows_is_refused() -> None:
    wide = PlanRequest("s3://b/t/", cross_partitions=True)
    with pytest.raises(WindowError, match="cross_partitions"):
        windows_of_plan(plan_of(daily(), wide), Windowing("ds", "day"))


# -- what they read -----------------------------------------------------------------------------


def test_inputs_are_per_window_and_change_with_any_object() -> None:
    objects = daily()
    plan, listing = plan_of(objects), list_objects(REQUEST, DictReader(objects, shuffle=3))
    found = inputs_of_plan(plan, MONTHS)
    assert found == inputs_of_listing(listing, MONTHS)
    assert [(w, one.objects) for w, one in found.items()] == [
        ("2024-01", 6), ("2024-02", 6), ("2024-03", 6)]  # fmt: skip
    assert found["2024-01"].bytes == sum(len(d) for u, d in objects.items() if "2024-01" in u)
    objects["s3://b/t/ds=2024-02-15/a.parquet"] = parquet(ids(1, 5), 2)
    del objects["s3://b/t/ds=2024-03-15/a.parquet"]
    now = inputs_of_listing(list_objects(REQUEST, DictReader(objects)), MONTHS)
    assert [found[label].digest == now[label].digest for label in found] == [True, False, False]
    assert inputs_digest([("a", '"x"', 1), ("b", "y", 2)]) == inputs_digest(
        [("b", "y", 2), ("a", "x", 1)]
    )


def test_only_the_footers_of_kept_windows_are_read() -> None:
    objects = daily()
    reader = DictReader(objects)
    keep = WindowFilter(MONTHS, MONTHS.between("2024-02", "2024-03"))
    result = plan_dataset(replace(REQUEST, keep=keep), reader)
    assert len(reader.lengths) == 6
    assert set(windows_of_plan(result.plan, MONTHS)) == {"2024-02"}
    assert result.plan.table("objects").num_rows == 6
    assert result.plan.input["filter"] == []
    assert result.plan.input["keep"]["windows"] == ["2024-02"]
    whole = plan_of(objects)
    assert set(result.plan.chunk_ids) < set(whole.chunk_ids)
    assert result.plan.schema == whole.schema


def test_a_column_has_one_type_whichever_windows_are_planned() -> None:
    objects = {
        f"s3://b/t/ds={day}/region={region}/a.parquet": parquet(ids(0, 1))
        for day, region in (("2024-01-01", "1"), ("2024-02-01", "eu"))
    }
    keep = WindowFilter(MONTHS, MONTHS.between("2024-01", "2024-02"))
    plan = plan_of(objects, replace(REQUEST, keep=keep))
    assert plan.schema == plan_of(objects).schema
    assert plan.chunk(0).partition[1] == ("region", "1")


def test_nothing_in_the_windows_says_so() -> None:
    keep = WindowFilter(MONTHS, MONTHS.between("2025-01", "2025-02"))
    with pytest.raises(NoParquetError, match="18 outside the windows"):
        plan_of(daily(), replace(REQUEST, keep=keep))


def test_nulls_are_in_no_time_window_and_bad_values_are_refused() -> None:
    keep = WindowFilter(MONTHS, MONTHS.between("2024-01", "2024-02"))
    null = {**daily(), "s3://b/t/ds=__HIVE_DEFAULT_PARTITION__/a.parquet": parquet(ids(0, 1))}
    assert set(windows_of_plan(plan_of(null, replace(REQUEST, keep=keep)), MONTHS)) == {"2024-01"}
    bad = {**daily(), "s3://b/t/ds=soon/a.parquet": parquet(ids(0, 1))}
    with pytest.raises(WindowError, match="'soon'"):
        plan_of(bad, replace(REQUEST, keep=keep))
    lacking = {**daily(), "s3://b/t/region=eu/a.parquet": parquet(ids(0, 1))}
    with pytest.raises(WindowError, match=r"'ds' is not in the key of .*region=eu/a\.parquet"):
        plan_of(lacking, replace(REQUEST, keep=keep))
    plan_of(lacking, replace(REQUEST, keep=keep, schema="union"))
