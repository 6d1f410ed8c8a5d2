"""The schema of an output: what comes later fits what is there, or widens it, or is refused."""

from __future__ import annotations

import json
import uuid
from datetime import date
from itertools import product
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from partitioning.table_file import TableFile, pack_tables
from pipeline.errors import SchemaChangedError
from pipeline.runs.admin.verify import verify_output
from pipeline.runs.backfill.plan import WindowSelection
from pipeline.runs.backfill.summary import BackfillIncompleteError
from pipeline.runs.ledger.find import runs_of
from pipeline.table.columns import differences, digest_columns, stored_columns, widen, wider_type
from pipeline.table.log import TableLog
from pipeline.table.publish import rollback
from pipeline.table.scan import scan_output
from tests.support.backfills import Days, days
from tests.support.small import Small

TRANSFORMS = """
import polars as pl

def typed(frame, columns):
    made = (pl.lit(1).cast(getattr(pl, kind)).alias(name) for name, kind in columns.items())
    return frame.with_columns(*made).select(list(columns))

def peeks(frame, columns):
    if frame.select(pl.len()).collect().item():
        return typed(frame, columns)
    return frame.select(pl.lit(1).alias("a"))

def frames(frame):
    def halve(some):
        return some.select(pl.col("v") / 2 if some.height else "v")
    return frame.map_batches(halve, validate_output_schema=False)

def nulls(frame, column):
    return frame.with_columns(pl.lit(None).alias(column)).select(column)

def turned(frame):
    names = ["v", "w"] if frame.select(pl.col("v").sum()).collect().item() < 5 else ["w", "v"]
    return frame.with_columns(w=pl.col("v") * 2).select(names)

def turned_static(frame):
    return frame.with_columns(w=pl.col("v") * 2).select(["w", "v"])

def straight(frame):
    return frame.with_columns(w=pl.col("v") * 2).select(["v", "w"])
"""
WIDEN = {"schema": "widen"}


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Small:
    monkeypatch.chdir(tmp_path)
    made = Small(tmp_path, TRANSFORMS)
    for number in range(3):
        made.write(f"{number}.parquet", pl.DataFrame({"v": [number, number + 1]}))
    return made


def run(small: Small, function: str = "typed", *, mode: str = "append", **more: Any) -> str:
    columns = more.pop("columns", None)
    params = {"params": {"columns": columns}} if columns else {}
    return small.run(small.job(function, mode, **params, **more)).run


def manifest(small: Small) -> int:
    return TableLog(small.storage, small.output).manifest().number


# -- what is refused --------------------------------------------------------------------------


@pytest.mark.sampled(2)
@pytest.mark.parametrize("function", ["typed", "peeks"])
@pytest.mark.parametrize(
    ("new", "words"),
    [
        ({"a": "Int64"}, "a: Int32 / Int64"),
        ({"a": "Float64"}, "a: Int32 / Float64"),
        ({"a": "String"}, "a: Int32 / String"),
        ({"a": "Int32", "b": "String"}, "b: absent / String"),
        ({"b": "Int32"}, "a: Int32 / absent, b: absent / Int32"),
    ],
)
def test_another_schema_is_refused(
    small: Small, function: str, new: dict[str, str], words: str
) -> None:
    run(small, columns={"a": "Int32"})
    with pytest.raises(SchemaChangedError, match=words) as caught:
        run(small, function, columns=new)
    assert "output.mode: overwrite" in str(caught.value.hint)
    assert manifest(small) == 1
    assert small.rows().schema == {"a": pl.Int32}


def test_it_is_refused_before_anything_is_mapped_where_that_can_be_known(small: Small) -> None:
    first = run(small, columns={"a": "Int32"})
    with pytest.raises(SchemaChangedError, match="the job has other columns"):
        run(small, columns={"a": "Int64"})
    assert [record.run for record in runs_of(small.storage, small.output)] == [first]
    with pytest.raises(SchemaChangedError, match=r"run \w{16} has other columns"):
        run(small, "peeks", columns={"a": "Int64"})
    assert len(runs_of(small.storage, small.output)) == 2


def test_the_whole_output_may_be_replaced(small: Small) -> None:
    kept = {"keep_versions": 3}
    run(small, columns={"a": "Int32"}, output=kept)
    run(small, mode="overwrite", columns={"b": "String"}, output=kept)
    assert small.rows().schema == {"b": pl.String}
    # The schema is that of the files that are there, not of what was there once.
    run(small, columns={"b": "String"}, output=kept)
    with pytest.raises(SchemaChangedError):
        run(small, "peeks", columns={"a": "Int32"})
    rollback(TableLog(small.storage, small.output), 1)
    run(small, "peeks", columns={"a": "Int32"})
    assert small.rows().schema == {"a": pl.Int32}


def test_a_result_that_a_function_of_frames_decides_is_not_foretold(small: Small) -> None:
    """For no rows it may give other types than for some: that is no reason to refuse."""
    run(small, "frames")
    small.write("9.parquet", pl.DataFrame({"v": [8]}))
    run(small, "frames")
    assert small.rows()["v"].sort().to_list() == [0, 0.5, 0.5, 1, 1, 1.5, 4]


# -- widening ---------------------------------------------------------------------------------

TYPES = ["Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64", "Float32",
         "Float64", "Null", "String", "Date", "Boolean"]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), list(product(TYPES, TYPES)))
def test_a_wider_type_holds_every_value_of_both(one: str, other: str, tmp_path: Path) -> None:
    """Held against what Polars itself reads: two files with the extreme values of their types."""
    both = wider_type(one, other)
    assert both == wider_type(other, one)
    if both is None:
        assert one != other
        return
    frames = []
    for number, name in enumerate((one, other)):
        values = _extremes(name)
        frame = pl.DataFrame({"c": values}, schema={"c": getattr(pl, name)})
        frame.write_parquet(tmp_path / f"{number}.parquet")
        frames.append(values)
    found = pl.scan_parquet(
        [tmp_path / "0.parquet", tmp_path / "1.parquet"],
        schema={"c": getattr(pl, both)},
        cast_options=pl.ScanCastOptions(integer_cast="upcast", float_cast="upcast"),
    ).collect()
    assert found["c"].to_list() == [*frames[0], *frames[1]]


def _extremes(name: str) -> list[Any]:
    if name in ("Float32", "Float64"):
        return [1.5, -0.25, float("inf"), None]
    if name.startswith(("Int", "UInt")):
        dtype = getattr(pl, name)
        limits = pl.select(low=dtype.min(), high=dtype.max()).row(0)
        return [*limits, None]
    others: dict[str, list[Any]] = {
        "Null": [None, None],
        "String": ["a", None],
        "Date": [date(2024, 2, 29), None],
        "Boolean": [True, None],
    }
    return others[name]


def test_columns_are_widened_when_told(small: Small) -> None:
    run(small, columns={"a": "Int32", "f": "Float32"})
    run(small, columns={"a": "Int64", "f": "Float64", "new": "String"}, output=WIDEN)
    rows = small.rows()
    assert rows.schema == {"a": pl.Int64, "f": pl.Float64, "new": pl.String}
    assert rows["new"].to_list() == [None] * 6 + ["1"] * 6
    assert rows["a"].to_list() == [1] * 12
    assert verify_output(small.storage, small.output).problems == ()
    # Older versions are what they were.
    assert scan_output(small.output, version=1).collect().schema == {"a": pl.Int32, "f": pl.Float32}


def test_narrower_results_come_beside_wider_ones(small: Small) -> None:
    run(small, columns={"a": "Int64"})
    run(small, columns={"a": "Int16"}, output=WIDEN)
    run(small, "nulls", params={"column": "a"}, output=WIDEN)
    assert small.rows().schema == {"a": pl.Int64}
    assert small.rows()["a"].to_list() == [1] * 12 + [None] * 6


def test_a_column_of_nulls_takes_the_type_that_comes_later(small: Small) -> None:
    run(small, "nulls", params={"column": "a"})
    run(small, columns={"a": "String"}, output=WIDEN)
    assert small.rows()["a"].to_list() == [None] * 6 + ["1"] * 6


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "new", [{"a": "String"}, {"a": "UInt32"}, {"b": "Int32"}, {"a": "Int32", "b": "Int8"}]
)
def test_what_is_no_widening_is_refused_all_the_same(small: Small, new: dict[str, str]) -> None:
    run(small, columns={"a": "Int32", "b": "String"})
    with pytest.raises(SchemaChangedError) as caught:
        run(small, columns=new, output=WIDEN)
    assert "widen" not in str(caught.value.hint)


def test_a_run_that_was_refused_is_published_once_it_may_widen(small: Small) -> None:
    """What is mapped is not mapped again for another rule."""
    run(small, columns={"a": "Int32"})
    job = small.job("peeks", params={"columns": {"a": "Int64"}})
    with pytest.raises(SchemaChangedError):
        small.run(job)
    told = small.job("peeks", params={"columns": {"a": "Int64"}}, output=WIDEN)
    summary = small.run(told)
    assert (summary.mapped, summary.manifest) == (0, 2)
    assert small.rows().schema == {"a": pl.Int64}


def test_the_rule_is_no_part_of_a_job_that_appends(small: Small) -> None:
    """Otherwise the same input would be appended again."""
    first = run(small, columns={"a": "Int32"})
    assert run(small, columns={"a": "Int32"}, output=WIDEN) == first
    assert small.rows().height == 6


# -- order ------------------------------------------------------------------------------------


def test_chunks_whose_columns_are_in_another_order_are_put_in_one(small: Small) -> None:
    run(small, "turned")
    names = {tuple(pl.read_parquet_schema(path)) for path in small.root.rglob("out/*.parquet")}
    assert names == {("v", "w")}  # As the transform gives it for no rows.
    assert small.rows().sort("v")["w"].to_list() == [0, 2, 2, 4, 4, 6]


def test_runs_whose_columns_are_in_another_order_come_together(small: Small) -> None:
    run(small, "straight")
    run(small, "turned_static")
    assert small.rows().sort("v")["w"].to_list() == sorted([0, 2, 2, 4, 4, 6] * 2)


# -- what was published before columns were noted ----------------------------------------------


def test_commits_that_say_nothing_are_known_by_their_ledger(small: Small) -> None:
    run(small, columns={"a": "Int32"})
    _forget_columns(small)
    assert small.rows().schema == {"a": pl.Int32}
    with pytest.raises(SchemaChangedError, match="a: Int32 / Int64"):
        run(small, columns={"a": "Int64"})
    run(small, columns={"a": "Int64"}, output=WIDEN)
    assert small.rows().schema == {"a": pl.Int64}


def test_commits_that_cannot_be_known_stop_nothing(small: Small) -> None:
    first = run(small, columns={"a": "Int32"})
    _forget_columns(small)
    for path in small.root.glob(f"out/*{first}*.parquet"):
        path.write_bytes(b"damaged")
    run(small, columns={"a": "Int32", "b": "String"})
    assert manifest(small) == 2


def _forget_columns(small: Small) -> None:
    """Make the output look as if an earlier release had published it."""
    [path] = small.root.glob("out.chunkmap/manifests/*.json")
    stored = json.loads(path.read_text())
    del stored["sha256"]  # The checksum, which documents need not have.
    for entry in stored["commits"]:
        del entry["columns"]
    path.write_text(json.dumps(stored))
    [path] = small.root.glob("out.chunkmap/commits/*.arrow")
    file = TableFile(path.read_bytes())
    meta = {key: value for key, value in file.meta.items() if key != "columns"}
    del meta["entry"]["columns"]
    path.write_bytes(pack_tables({"files": file.table("files")}, meta))


# -- windows ----------------------------------------------------------------------------------

DAILY = """
import polars as pl

def typed(frame, kind):
    return frame.select("ds", a=pl.col("id").cast(getattr(pl, kind)))

def peeks(frame, kind):
    frame.select(pl.len()).collect()
    return typed(frame, kind)
"""


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Days:
    monkeypatch.chdir(tmp_path)
    made = Days(tmp_path, module=f"transforms_{uuid.uuid4().hex[:8]}")
    (tmp_path / f"{made.module}.py").write_text(DAILY)
    made.write(days("2024-02-27", 3))
    return made


def test_another_window_of_another_type_is_refused(world: Days) -> None:
    world.run(
        world.job("typed", params={"kind": "Int32"}), WindowSelection("2024-02-27", "2024-02-28")
    )
    later = WindowSelection("2024-02-28", "2024-02-29")
    with pytest.raises(SchemaChangedError, match=r"the job has other columns .*a: Int32 / Int64"):
        world.draft(world.job("typed", params={"kind": "Int64"}), later)
    with pytest.raises(BackfillIncompleteError) as caught:
        world.run(world.job("peeks", params={"kind": "Int64"}), later)
    assert "a: Int32 / Int64" in " ".join(caught.value.summary.notes)
    assert scan_output(world.output).collect().schema["a"] == pl.Int32
    assert world.windows_held() == ["2024-02-27"]


def test_a_window_widens_the_output_when_told(world: Days) -> None:
    world.run(
        world.job("typed", params={"kind": "Int32"}), WindowSelection("2024-02-27", "2024-02-28")
    )
    output = {"uri": world.output, "mode": "overwrite-partitions", "schema": "widen"}
    job = world.job("typed", params={"kind": "Int64"}, output=output)
    world.run(job, WindowSelection("2024-02-28", "2024-02-29"))
    assert scan_output(world.output).collect().schema == {"a": pl.Int64, "ds": pl.Date}
    assert scan_output(world.output).collect().height == 20
    only = scan_output(world.output, window="2024-02-27").collect()
    assert only.schema["a"] == pl.Int32


@pytest.mark.parametrize("function", ["typed", "peeks"])
def test_all_windows_together_may_change_the_schema(world: Days, function: str) -> None:
    world.run(world.job("typed", params={"kind": "Int32"}))
    other = world.job(function, params={"kind": "String"})
    world.run(other, reprocess="all", all_or_nothing=True)
    assert scan_output(world.output).collect().schema["a"] == pl.String


def test_the_only_window_may_change_the_schema(world: Days) -> None:
    asked = WindowSelection("2024-02-27", "2024-02-28")
    world.run(world.job("typed", params={"kind": "Int32"}), asked)
    world.run(world.job("typed", params={"kind": "String"}), asked, reprocess="all")
    assert scan_output(world.output).collect().schema["a"] == pl.String


# -- the rules, alone -------------------------------------------------------------------------


def test_what_differs_is_told_by_name() -> None:
    held, new = {"a": "Int32", "b": "String"}, {"b": "Date", "c": "Null"}
    assert list(map(str, differences(held, new))) == [
        "a: Int32 / absent",
        "b: String / Date",
        "c: absent / Null",
    ]
    assert [change.is_safe for change in differences(held, new)] == [False, False, True]
    assert widen(held, new) is None
    assert widen(held, {"c": "Null", "a": "Int8"}) == {**held, "c": "Null"}


def test_hive_columns_are_no_columns_of_a_file() -> None:
    text = json.dumps({"ds": "Date", "a": "Int64"})
    assert stored_columns(text, "ds=2024-02-29") == {"a": "Int64"}
    assert stored_columns(text) == {"ds": "Date", "a": "Int64"}
    assert stored_columns("") == {}
    assert digest_columns({"a": "x", "b": "y"}) == digest_columns({"b": "y", "a": "x"}) != ""
