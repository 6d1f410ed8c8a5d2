"""The raw text of a Hive value is what identifies a partition; types are for looking at it."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partitioning import (
    HiveTypeError,
    Plan,
    PlanRequest,
    Term,
    Windowing,
    plan_dataset,
    windows_of_plan,
)
from partitioning.hive import HIVE_TYPES
from partitioning.model import Chunk
from pipeline.runs.ledger.keys import folders_of, former_folders_of, output_uri
from tests.support.examples import fewer
from tests.support.stores import DictReader, ids, parquet

FILE = parquet(ids(0, 3), 1)


def plan_of(*folders: str, base: str = "s3://b/t/", **options: Any) -> Plan:
    objects = {f"{base}{folder}/{n}.parquet": FILE for n, folder in enumerate(folders)}
    return plan_dataset(PlanRequest(base, **options), DictReader(objects)).plan


def folder(chunk: Chunk) -> str:
    return output_uri("", "run", chunk, "a" * 32).rpartition("/")[0]


@pytest.mark.parametrize(
    "raw",
    ["01", "007", "-0", "a b", "a%20b", "a%2Fb", "a%2fb", "%FF", "2024-01-05", "", "=", "a=b",
     "__HIVE_DEFAULT_PARTITION__", "ünï", "%C3%BC", "a+b", "*", "[1]", "?", "#", "~", "'", "\\"],
)  # fmt: skip
def test_an_output_lies_in_a_folder_of_the_same_name(raw: str) -> None:
    plan = plan_of(f"k={raw}")
    assert [folder(chunk) for chunk in plan.chunks()] == [f"k={raw}"]
    assert folders_of(plan).to_list() == [f"k={raw}/"]


SEGMENT = st.text(st.characters(exclude_characters="/", exclude_categories=("Cs", "Cc")))
RAWS = st.one_of(
    SEGMENT, st.from_regex(r"0*[0-9]{1,3}", fullmatch=True), SEGMENT.map(quote)
).filter(lambda raw: "/" not in raw)
NAMES = ["k", "a.b", "x[1]", "*", "ü", "k k", "^k$"]


@settings(max_examples=fewer(200), deadline=None)
@given(
    raws=st.lists(st.tuples(RAWS, RAWS), min_size=1, max_size=6),
    names=st.permutations(NAMES),
    above=st.sampled_from(["t/", "k=9/t/", "*=0/"]),
)
def test_any_raw_text_comes_out_as_it_went_in(
    raws: list[tuple[str, str]], names: list[str], above: str
) -> None:
    first, second = names[:2]
    folders = [f"{first}={a}/{second}={b}" for a, b in raws]
    plan = plan_of(*folders, base=f"s3://b/{above}")
    assert folders_of(plan).to_list() == [folder(chunk) + "/" for chunk in plan.chunks()]
    for chunk in plan.chunks():
        own = {
            part.uri.removeprefix(f"s3://b/{above}").rpartition("/")[0] for part in chunk.fragments
        }
        assert own == {folder(chunk)}, "no chunk holds rows of two folders"
    assert {folder(chunk) for chunk in plan.chunks()} == set(folders)


@pytest.mark.parametrize("options", [{}, {"per_partition": True}, {"per_file": True}])
def test_two_spellings_of_one_value_are_two_partitions(options: dict[str, Any]) -> None:
    plan = plan_of("n=1", "n=01", "n=1", "n=01", **options)
    each = 2 if "per_file" in options else 1
    assert [folder(chunk) for chunk in plan.chunks()] == ["n=01"] * each + ["n=1"] * each
    assert {chunk.partition for chunk in plan.chunks()} == {(("n", 1),)}


def test_two_spellings_below_several_prefixes_are_chunked_once_each() -> None:
    objects = {f"s3://{b}/t/n={n}/x.parquet": FILE for b in "ab" for n in ("1", "01")}
    request = PlanRequest(("s3://a/t/", "s3://b/t/"), per_partition=True)
    plan = plan_dataset(request, DictReader(objects)).plan
    assert [folder(chunk) for chunk in plan.chunks()] == ["n=01", "n=1"]


def test_a_chunk_that_crosses_two_spellings_has_the_plain_one() -> None:
    plan = plan_of("n=1", "n=01", cross_partitions=True)
    assert [folder(chunk) for chunk in plan.chunks()] == ["n=1"]
    assert folders_of(plan).to_list() == ["n=1/"]


def test_a_value_above_the_prefix_is_none_of_the_dataset() -> None:
    objects = {"s3://b/k=7/t/k=01/a.parquet": FILE, "s3://b/k=7/t/b.parquet": FILE}
    request = PlanRequest("s3://b/k=7/t/", schema="union")
    plan = plan_dataset(request, DictReader(objects)).plan
    assert folders_of(plan).to_list() == ["k=01/", "k=__HIVE_DEFAULT_PARTITION__/"]


def test_a_text_next_to_numbers_changes_no_folder() -> None:
    before = folders_of(plan_of("zip=01234", "zip=00001")).to_list()
    after = folders_of(plan_of("zip=01234", "zip=00001", "zip=unknown")).to_list()
    assert sorted(after) == sorted([*before, "zip=unknown/"])


def former(plan: Plan) -> Plan:
    """The plan as an earlier release has stored it."""
    names = ("chunks", "row_groups", "objects", "schemas", "skipped")
    meta = {name: value for name, value in plan._file.meta.items() if name != "raw_folders"}
    return Plan.build({name: plan.table(name) for name in names}, meta)


def test_a_plan_of_an_earlier_release_is_spelled_by_its_objects() -> None:
    plan = plan_of("n=01", "n=2", "n=__HIVE_DEFAULT_PARTITION__")
    old = Plan.from_bytes(former(plan).to_bytes())
    assert [folder(chunk) for chunk in old.chunks()] == [folder(c) for c in plan.chunks()]
    spelled = former_folders_of(old)
    assert spelled is not None
    assert spelled.to_list() == ["n=1/", "n=2/", "n=__HIVE_DEFAULT_PARTITION__/"]
    assert former_folders_of(plan) is None
    assert former_folders_of(former(plan_of("n=1", "n=2"))) is None


# -- declared types -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "raw", "value"),
    [("string", "01234", "01234"), ("int8", "007", 7), ("int64", "-5", -5), ("int32", "1", 1)],
)
def test_a_declared_type_decides(kind: str, raw: str, value: object) -> None:
    plan = plan_of(f"zip={raw}", hive_types=(("zip", kind),))
    assert plan.chunk(0).partition == (("zip", value),)
    assert plan.schema.field("zip").type == getattr(pa, kind)()
    assert plan.input["hive_types"] == {"zip": kind}


def test_a_filter_sees_the_declared_type() -> None:
    folders = ("zip=01234", "zip=1234", "zip=99")
    plan = plan_of(
        *folders, hive_types=(("zip", "string"),), filter=((Term("zip", "==", "01234"),),)
    )
    assert [folder(chunk) for chunk in plan.chunks()] == ["zip=01234"]
    plan = plan_of(*folders, filter=((Term("zip", "==", 1234),),))
    assert [folder(chunk) for chunk in plan.chunks()] == ["zip=01234", "zip=1234"]


@pytest.mark.parametrize(
    ("kind", "raw"),
    [("int64", "x"), ("int64", ""), ("int64", str(2**63)), ("int8", "128"), ("int16", "1.0"),
     ("date", "2024-02-30"), ("date", "20240201"), ("int32", "a%20b")],
)  # fmt: skip
def test_a_value_that_does_not_fit_is_refused_by_name(kind: str, raw: str) -> None:
    with pytest.raises(HiveTypeError, match=rf"declared as {kind}.*: s3://b/t/d={raw}/0\.pa"):
        plan_of(f"d={raw}", hive_types=(("d", kind),))


def test_a_null_fits_every_type() -> None:
    for kind in HIVE_TYPES:
        plan = plan_of("d=__HIVE_DEFAULT_PARTITION__", hive_types=(("d", kind),))
        assert plan.chunk(0).partition == (("d", None),)


def test_a_type_of_no_hive_column_is_refused() -> None:
    with pytest.raises(
        HiveTypeError, match=re.escape("'moth', which is not a Hive column")
    ) as error:
        plan_of("month=01", hive_types=(("moth", "string"),))
    assert "did you mean 'month'?" in str(error.value)
    with pytest.raises(HiveTypeError, match="'id'"):
        plan_of("month=01", hive_types=(("id", "string"),))
    with pytest.raises(HiveTypeError, match="'float' is not a type"):
        plan_of("month=01", hive_types=(("month", "float"),))


def test_windows_of_two_spellings() -> None:
    plan = plan_of("m=1", "m=01", "m=02")
    assert windows_of_plan(plan, Windowing("m", "value")) == ["01", "1", "02"]
