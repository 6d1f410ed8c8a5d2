"""Windows over several Hive columns that make up a date, and what is in no window at all."""

from __future__ import annotations

from datetime import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partitioning import (
    Plan,
    PlanRequest,
    WindowError,
    WindowFilter,
    Windowing,
    inputs_of_listing,
    inputs_of_plan,
    plan_dataset,
    windows_of_plan,
)
from partitioning.listing import Listing, list_objects
from partitioning.window_inputs import OutsideInput, label_of_folder, outside_of_windows
from tests.support.examples import fewer
from tests.support.stores import DictReader, ids, parquet

FILE = parquet(ids(0, 3))
NULL = "__HIVE_DEFAULT_PARTITION__"
DAYS = Windowing("year", "day", "UTC", ("month", "day"))


def reader_of(*folders: str) -> DictReader:
    return DictReader({f"s3://b/t/{folder}/a.parquet": FILE for folder in folders})


def listing_of(*folders: str, schema: str = "identical") -> Listing:
    return list_objects(PlanRequest("s3://b/t/", schema=schema), reader_of(*folders))  # type: ignore[arg-type]


def plan_of(*folders: str, keep: WindowFilter | None = None) -> Plan:
    request = PlanRequest("s3://b/t/", keep=keep)
    return plan_dataset(request, reader_of(*folders)).plan


@pytest.mark.parametrize(
    ("columns", "grain", "folder", "label"),
    [
        (("year", "month", "day"), "day", "year=2024/month=2/day=5", "2024-02-05"),
        (("year", "month", "day"), "day", "year=2024/month=02/day=05", "2024-02-05"),
        (("year", "month", "day"), "month", "year=2024/month=02/day=05", "2024-02"),
        (("year", "month"), "month", "year=2024/month=12", "2024-12"),
        (("y", "m", "d", "h"), "hour", "y=2024/m=2/d=29/h=7", "2024-02-29T07"),
        (("y", "m", "d", "h"), "day", "x=1/y=2024/m=2/d=29/h=7", "2024-02-29"),
        (("ds", "hour"), "hour", "ds=2024-02-29/hour=00", "2024-02-29T00"),
        (("ym", "day"), "day", "ym=202402/day=29", "2024-02-29"),
        (("month", "day"), "day", "day=01/month=2024-03", "2024-03-01"),
    ],
)
def test_several_columns_are_one_date(
    columns: tuple[str, ...], grain: str, folder: str, label: str
) -> None:
    rule = Windowing(columns[0], grain, "UTC", columns[1:])  # type: ignore[arg-type]
    assert label_of_folder(rule, folder) == label
    assert windows_of_plan(plan_of(folder), rule) == [label]
    assert list(inputs_of_listing(listing_of(folder), rule)) == [label]


@settings(max_examples=fewer(60), deadline=None)
@given(
    moment=st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31)),
    width=st.sampled_from(["{}", "{:02d}"]),
    zone=st.sampled_from(["UTC", "Europe/Berlin", "Pacific/Apia"]),
    grain=st.sampled_from(["month", "day", "hour"]),
)
def test_folders_of_parts_are_in_the_window_of_the_whole(
    moment: datetime, width: str, zone: str, grain: str
) -> None:
    parts = [f"{moment.year:04d}"]
    parts += [width.format(part) for part in (moment.month, moment.day, moment.hour)]
    names = ("year", "month", "day", "hour")
    rule = Windowing("year", grain, zone, names[1:])  # type: ignore[arg-type]
    whole = Windowing("ts", grain, zone)  # type: ignore[arg-type]
    found = rule.window_of_raws(dict(zip(names, parts, strict=True)))
    assert found == whole.window_of(moment.strftime("%Y").zfill(4) + moment.strftime("-%m-%dT%H"))


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        ("year=2024/month=13/day=1", "'month' has the value '13'"),
        ("year=2024/month=2/day=30", "'day' has the value '30'"),
        ("year=2024/month=x/day=1", "'month' has the value 'x'"),
        ("year=2024/month=002/day=1", "'month' has the value '002'"),
        ("year=24/month=2/day=1", "'24' is not a date"),
        ("year=2024-02-01/month=2/day=1", "'day' has the value '1'"),
    ],
)
def test_parts_that_are_no_date_are_refused(folder: str, said: str) -> None:
    with pytest.raises(WindowError, match=said):
        windows_of_plan(plan_of(folder), DAYS)


def test_columns_that_cannot_be_a_date() -> None:
    with pytest.raises(WindowError, match="the grain cannot be value"):
        Windowing("year", "value", "UTC", ("month",))
    with pytest.raises(WindowError, match="from coarse to fine"):
        Windowing("a", "day", "UTC", ("b", "c", "d", "e"))
    with pytest.raises(WindowError, match="from coarse to fine"):
        Windowing("a", "day", "UTC", ("a",))
    rule = Windowing("year", "day", "UTC", ("month",))
    with pytest.raises(
        WindowError, match="a whole month: it does not fit windows of the grain day"
    ):
        windows_of_plan(plan_of("year=2024/month=2"), rule)


def test_a_column_that_is_not_there() -> None:
    with pytest.raises(WindowError, match="no Hive column 'day'; the input has month, year"):
        inputs_of_listing(listing_of("year=2024/month=2"), DAYS)
    with pytest.raises(WindowError, match="no Hive column 'day'"):
        windows_of_plan(plan_of("year=2024/month=2"), DAYS)
    keep = WindowFilter(DAYS, DAYS.of_values(["2024-02-05"]))
    with pytest.raises(WindowError, match="no Hive column 'day'"):
        plan_of("year=2024/month=2", keep=keep)


def test_only_chosen_windows_are_planned() -> None:
    folders = [f"year=2024/month={m}/day={d:02d}" for m in (1, 2) for d in (5, 6)]
    keep = WindowFilter(DAYS, DAYS.of_values(["2024-02-05", "2024-01-06"]))
    plan = plan_of(*folders, f"year=2024/month={NULL}/day=05", keep=keep)
    assert windows_of_plan(plan, DAYS) == ["2024-01-06", "2024-02-05"]
    assert plan.input["keep"]["further"] == ["month", "day"]
    whole = inputs_of_plan(plan_of(*folders), DAYS)
    assert list(whole) == ["2024-01-05", "2024-01-06", "2024-02-05", "2024-02-06"]


# -- what is in no window -----------------------------------------------------------------------


def test_nulls_are_outside_of_time_windows() -> None:
    found = listing_of("ds=2024-01-01", f"ds={NULL}", f"ds={NULL}/x=1")
    outside = outside_of_windows(found, Windowing("ds", "day"))
    assert outside == OutsideInput(2, 2 * len(FILE), (f"ds={NULL}",))
    assert outside_of_windows(found, Windowing("ds", "value")) == OutsideInput()


def test_any_null_part_is_outside() -> None:
    found = listing_of(
        "year=2024/month=1/day=1",
        f"year={NULL}/month=1/day=1",
        f"year=2024/month=01/day={NULL}",
        "year=2024/month=1",
    )
    outside = outside_of_windows(found, DAYS)
    assert (outside.objects, outside.bytes) == (3, 3 * len(FILE))
    assert outside.folders == (
        f"year=2024/month=01/day={NULL}",
        "year=2024/month=1/no day",
        f"year={NULL}/month=1/day=1",
    )


# -- what is left out for its name --------------------------------------------------------------


def test_objects_left_out_for_their_names_are_reported() -> None:
    objects = {f"s3://b/t/{name}": FILE for name in ("a.parquet", "c.gz", "b.csv", "_SUCCESS")}
    found = plan_dataset(PlanRequest("s3://b/t/"), DictReader(objects, shuffle=3)).explain
    assert (found.objects_unnamed, found.unnamed_example) == (2, "s3://b/t/b.csv")
    [warning] = found.warnings
    assert warning.startswith("2 objects are left out: ")
    assert "s3://b/t/b.csv" in warning
    assert "input.include" in warning
    request = PlanRequest("s3://b/t/", include=("a.*",))
    assert plan_dataset(request, DictReader(objects)).explain.warnings == ()
