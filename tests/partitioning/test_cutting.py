"""Row groups far above the target: planned as parts of consecutive rows."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitioning import Chunk, Plan, PlanRequest, plan_dataset
from partitioning.explain import PlanResult
from partitioning.integrity import checked_plan
from partitioning.packing import (
    MAX_RATIO,
    MAX_UNINDEXED_PARTS,
    PackRules,
    PartLimit,
    parts_of,
)
from partitioning.parquet_footer import FooterSelection, parse_footer
from partitioning.thrift import write_varint
from partitioning.window_inputs import windows_of_plan
from partitioning.windows import Windowing
from pipeline.runs.ledger.keys import folders_of
from tests.support.stores import DictReader, ids, parquet

URI = "s3://b/t/a.parquet"
ROWS = 1_000
GROUP = 8 * ROWS + ROWS // 8
"""Decoded bytes of a row group of this number of ids."""


def planned(objects: dict[str, bytes], target: int, **options: Any) -> PlanResult:
    asked = {"min_part": 1, "open_cost": 0, **options}
    return plan_dataset(PlanRequest("s3://b/t/", target=target, **asked), DictReader(objects))


def chunks(objects: dict[str, bytes], target: int, **options: Any) -> list[Chunk]:
    return list(planned(objects, target, **options).plan.chunks())


@pytest.fixture(scope="module")
def indexed() -> dict[str, bytes]:
    return {URI: parquet(ids(0, ROWS), write_page_index=True)}


@pytest.fixture(scope="module")
def unindexed() -> dict[str, bytes]:
    return {URI: parquet(ids(0, ROWS))}


def test_parts_are_balanced_and_share_the_bytes(indexed: dict[str, bytes]) -> None:
    [whole] = chunks(indexed, GROUP)
    found = chunks(indexed, GROUP // 7)
    assert len(found) == 8
    assert [c.rows for c in found] == [125] * 8
    assert [c.fragments[0].part for c in found] == [(n * 125, n * 125 + 125) for n in range(8)]
    assert [c.fragments[0].row_start for c in found] == [n * 125 for n in range(8)]
    for measure in ("rows", "stored_bytes", "decoded_bytes"):
        figures = [getattr(c, measure) for c in found]
        assert sum(figures) == getattr(whole, measure)
        assert max(figures) - min(figures) <= 1
    assert len({c.id for c in found} | {whole.id}) == 9


@pytest.mark.parametrize(
    ("target", "options", "count"),
    [
        (GROUP // 2 + 1, {}, 1),
        (GROUP // 2, {}, 3),
        (1, {}, ROWS),
        (1, {"min_part": GROUP // 5}, 5),
        (1, {"min_part": 16 << 20}, 1),
        (1, {"per_file": True}, 1),
        (1, {"per_partition": True}, 1),
    ],
)
def test_what_is_cut(
    indexed: dict[str, bytes], target: int, options: dict[str, Any], count: int
) -> None:
    assert len(chunks(indexed, target, **options)) == count


def test_small_row_groups_are_not_cut_by_default(indexed: dict[str, bytes]) -> None:
    plan = plan_dataset(PlanRequest("s3://b/t/", target=1), DictReader(indexed)).plan
    assert len(plan) == 1


def test_without_an_index_parts_are_few_and_count_all_bytes(unindexed: dict[str, bytes]) -> None:
    [whole] = chunks(unindexed, GROUP)
    found = chunks(unindexed, GROUP // 50)
    assert [c.rows for c in found] == [250] * MAX_UNINDEXED_PARTS
    assert {c.stored_bytes for c in found} == {whole.stored_bytes}
    assert {c.decoded_bytes for c in found} == {whole.decoded_bytes}


def test_an_index_is_needed_of_the_columns_that_are_read_only() -> None:
    table = ids(0, ROWS, text=pa.array(["x"] * ROWS))
    objects = {URI: without_index_of_text(parquet(table, write_page_index=True))}
    options: dict[str, Any] = {"target": GROUP // 50}
    assert len(chunks(objects, **options)) == MAX_UNINDEXED_PARTS
    assert len(chunks(objects, **options, columns=("id",))) > 40


def without_index_of_text(data: bytes) -> bytes:
    """The footer says that the second column's index begins before the file."""
    length = int.from_bytes(data[-8:-4], "little")
    footer = data[-8 - length : -8]
    [group] = parse_footer(footer, len(data), FooterSelection()).groups
    old = write_varint(group.columns[1].index_start << 1)
    new = b"\x80" * (len(old) - 1) + b"\x00"  # A zero that is as long.
    assert len(old) > 1 and footer.count(old) == 1
    return data[: -8 - length] + footer.replace(old, new) + data[-8:]


def test_only_large_row_groups_are_cut_and_chunks_keep_their_order() -> None:
    objects = {
        "s3://b/t/p=1/a.parquet": parquet(ids(0, 10)),
        "s3://b/t/p=1/b.parquet": parquet(ids(10, 10 + ROWS), write_page_index=True),
        "s3://b/t/p=1/c.parquet": parquet(ids(10 + ROWS, 20 + ROWS)),
        "s3://b/t/p=2/d.parquet": parquet(ids(20 + ROWS, 20 + 2 * ROWS), write_page_index=True),
    }
    result = planned(objects, GROUP // 4)
    plan = result.plan
    assert [c.rows for c in plan.chunks()] == [10, *[200] * 5, 10, *[200] * 5]
    assert [dict(c.partition)["p"] for c in plan.chunks()] == [1] * 7 + [2] * 5
    figures = result.explain
    assert (figures.row_groups, figures.row_groups_cut, figures.parts) == (4, 2, 10)
    assert figures.warnings == ()
    firsts = plan.chunk_table["first_row"].to_pylist()
    assert firsts == [None, 0, 200, 400, 600, 800, None, 0, 200, 400, 600, 800]
    stored = checked_plan(plan.to_bytes())
    assert list(stored.chunks()) == list(plan.chunks())
    assert [c.fragments for c in stored.take([8, 0, 3]).chunks()] == [
        plan.chunk(at).fragments for at in (8, 0, 3)
    ]


def test_warnings_name_what_is_read_often_and_what_cannot_be_cut(
    indexed: dict[str, bytes], unindexed: dict[str, bytes]
) -> None:
    objects = {URI: indexed[URI], "s3://b/t/b.parquet": unindexed[URI]}
    result = planned(objects, GROUP // 10)
    skewed, often = result.explain.warnings
    assert skewed.startswith("chunk sizes are skewed")
    assert often.startswith("1 of the 2 row groups that are cut have no page index: each of")
    [warning] = planned(indexed, GROUP - 1).explain.warnings
    assert warning.startswith("1 of 1 row groups decode to more than the target of")


def test_a_plan_that_cuts_nothing_is_stored_as_ever(indexed: dict[str, bytes]) -> None:
    plain, cut = planned(indexed, GROUP).plan, planned(indexed, GROUP // 9).plan
    assert plain._file.meta["version"] == 1
    assert "first_row" not in plain.chunk_table.column_names
    assert "indexed" not in plain.table("row_groups").column_names
    assert cut._file.meta["version"] == 2, "earlier releases must not read it"
    assert Plan.from_bytes(cut.to_bytes()).id == cut.id


@given(
    rows=st.integers(1, 10**6),
    decoded=st.integers(0, 10**9),
    target=st.integers(1, 10**8),
    least=st.integers(1, 10**8),
    most=st.integers(2, 1000),
)
def test_how_many_parts(rows: int, decoded: int, target: int, least: int, most: int) -> None:
    rules = PackRules(target, min_part=least)
    count = parts_of(rules, rows, decoded, most)
    assert 1 <= count <= min(rows, most)
    assert count == 1 or (decoded > 2 * target and decoded // count >= least)
    if decoded > 2 * target and decoded >= 2 * least and rows > 1:
        assert count > 1


def test_a_plan_is_in_proportion_to_the_bytes_that_are_there() -> None:
    """Whatever footers claim: row groups that overlap share the bytes of their object."""
    rules = PackRules(1, min_part=50 * MAX_RATIO)
    limit = PartLimit(rules, 10 * 50)
    huge = 1 << 50
    counts = []
    for _ in range(3):
        counts.append(parts_of(rules, huge, huge, limit.max_parts(8 * 50, is_indexed=True)))
        limit.take(counts[-1])
    assert counts == [MAX_UNINDEXED_PARTS + 8, MAX_UNINDEXED_PARTS + 2, MAX_UNINDEXED_PARTS]
    assert (
        parts_of(rules, huge, huge, limit.max_parts(huge, is_indexed=False)) == MAX_UNINDEXED_PARTS
    )


def test_what_is_stored_in_few_bytes_has_few_parts() -> None:
    same = pa.table({"id": pa.array([7] * 100_000, pa.int64())})
    objects = {URI: parquet(same, write_page_index=True)}
    [whole] = chunks(objects, 1 << 30)
    least = 10_000
    found = chunks(objects, 1, min_part=least)
    assert len(found) == MAX_UNINDEXED_PARTS + whole.stored_bytes // (least // MAX_RATIO)
    assert len(found) < whole.decoded_bytes // least
    assert sum(c.rows for c in found) == 100_000


def test_parts_are_in_the_window_and_the_folder_of_their_object() -> None:
    objects = {
        f"s3://b/t/ds=2024-01-0{day}/a.parquet": parquet(ids(0, ROWS), write_page_index=True)
        for day in (1, 2)
    }
    plan = planned(objects, GROUP // 3 + 1).plan
    assert windows_of_plan(plan, Windowing("ds", "day")) == ["2024-01-01"] * 3 + ["2024-01-02"] * 3
    assert folders_of(plan).to_list() == ["ds=2024-01-01/"] * 3 + ["ds=2024-01-02/"] * 3
    some = plan.take([4, 1])
    assert windows_of_plan(some, Windowing("ds", "day")) == ["2024-01-02", "2024-01-01"]
