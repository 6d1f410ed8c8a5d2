"""Columns of nothing but nulls take the type that they have in other chunks, or in the output."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.errors import SchemaChangedError
from pipeline.runs.backfill.plan import WindowSelection
from pipeline.runs.driver.plan import ResumeOptions
from pipeline.runs.driver.run import run_serially
from pipeline.runs.worker.null_types import fill_types, types_of_frames
from pipeline.table.column_types import merge_dtypes, merge_types, parse_dtype
from pipeline.table.log import TableLog
from pipeline.table.scan import scan_output
from tests.support.backfills import Days, days
from tests.support.small import Small

CODE = """
import polars as pl

def noted(frame):
    # As json_decode, or a frame made of Python's values: the type is what the values are.
    values = frame.collect()["v"].to_list()
    return pl.LazyFrame({"v": values, "note": [NOTES[v] for v in values]}, strict=False)

def other(frame):
    values = frame.collect()["v"].to_list()
    return pl.LazyFrame({"v": values, "note": [len(NOTES[v] or ()) for v in values]})

def add(frames):
    return pl.concat(frames).group_by("k").agg(pl.col("note").sum())

def keyed(frame):
    return noted(frame).select(k=pl.lit(1), note="note")

NOTES = """


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Small:
    monkeypatch.chdir(tmp_path)
    return Small(tmp_path, CODE + "{}")


def fill(small: Small, notes: list[Any], first: int = 0) -> None:
    """Write an object for each note, and a transform that gives it."""
    for number, _ in enumerate(notes, first):
        small.write(f"{number}.parquet", pl.DataFrame({"v": [number]}))
    small.code(CODE + repr(dict(enumerate(notes, first))))


def types_of_files(small: Small) -> set[pl.DataType]:
    return {pl.read_parquet_schema(path)["note"] for path in small.root.rglob("out/**/*.parquet")}


KINDS = [
    ("a", pl.String()),
    (1.5, pl.Float64()),
    ([1, 2], pl.List(pl.Int64)),
    ({"a": 1, "b": ["x"]}, pl.Struct({"a": pl.Int64, "b": pl.List(pl.String)})),
]


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("value", "kind"), KINDS, ids=str)
def test_chunks_without_a_value_take_the_type_of_the_others(
    small: Small, value: Any, kind: pl.DataType
) -> None:
    notes = [None, value, None, None]
    fill(small, notes)
    summary = small.run(small.job("noted", "error"))
    assert (summary.state, summary.failed) == ("done", 0)
    assert types_of_files(small) == {kind}
    assert small.rows().sort("v")["note"].to_list() == notes
    assert list(small.root.glob("out.chunkmap/staged/**/*.parquet*")) == []


@pytest.mark.parametrize(
    ("notes", "kind"),
    [
        ([[None], [1], []], pl.List(pl.Int64)),
        (
            [{"a": None, "b": 1}, {"a": "x", "b": None}],
            pl.Struct({"a": pl.String, "b": pl.Int64}),
        ),
        (
            [[{"a": None}], [{"a": [2.5]}], None, [{"a": []}]],
            pl.List(pl.Struct({"a": pl.List(pl.Float64)})),
        ),
    ],
    ids=str,
)
def test_nulls_within_lists_and_structs_too(
    small: Small, notes: list[Any], kind: pl.DataType
) -> None:
    fill(small, notes)
    small.run(small.job("noted", "error"))
    assert types_of_files(small) == {kind}
    assert small.rows().sort("v")["note"].to_list() == notes


def test_a_column_that_nobody_has_a_type_for_stays_as_it_is(small: Small) -> None:
    fill(small, [None, None])
    summary = small.run(small.job("noted", "error"))
    assert (types_of_files(small), summary.rounds) == ({pl.Null()}, 1)


def test_what_differs_in_more_than_nulls_is_refused(small: Small) -> None:
    fill(small, [None, 1, "x"])
    with pytest.raises(SchemaChangedError, match="note: ") as caught:
        small.run(small.job("noted", "error"))
    assert "cast these columns" in str(caught.value.hint)


def test_only_chunks_without_a_type_are_mapped_again(small: Small) -> None:
    fill(small, [1, None, 3, None])
    summary = small.run(small.job("noted", "error"))
    progress = small.ledger(summary).read()
    known = pl.concat([progress.completions, progress.duplicates])
    assert sorted(known["index"].to_list()) == [0, 1, 1, 2, 3, 3]
    assert (summary.chunks, summary.mapped) == (4, 4)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_driver_that_dies_on_the_way_is_resumed(
    small: Small, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Before the chunks are mapped again, or when they are and nothing is published."""
    notes = [None, 1.5, None]
    fill(small, notes)
    job = small.job("noted", "error")

    def die(*args: Any, **more: Any) -> None:
        raise SystemError("killed")

    places = {
        "before": "map_stage.MapStage._retype_nulls",
        "after": "run.publish_run",
    }
    with monkeypatch.context() as patched:
        patched.setattr(f"pipeline.runs.driver.{places[when]}", die)
        with pytest.raises(SystemError):
            small.run(job)
    summary = small.run(job)
    progress = small.ledger(summary).read()
    assert progress.completions.height + progress.duplicates.height == 5
    assert types_of_files(small) == {pl.Float64()}
    assert small.rows().sort("v")["note"].to_list() == notes


def test_only_what_failed_may_be_retried(small: Small) -> None:
    fill(small, [None, 1.5, None])
    text = (small.root / f"{small.module}.py").read_text()
    small.code(text.replace("1: 1.5, ", ""))
    job = small.job("noted", "error")
    with pytest.raises(Exception, match="chunks failed"):
        small.run(job)
    small.code(text)
    small.run(job, accept_code=True, only_failed=True)
    assert types_of_files(small) == {pl.Float64()}


# -- the output's types -----------------------------------------------------------------------


def test_an_output_has_the_type_already(small: Small) -> None:
    fill(small, ["x"])
    small.run(small.job("noted"))
    fill(small, [None, None], first=1)
    summary = small.run(small.job("noted"))
    assert types_of_files(small) == {pl.String()}
    assert summary.rounds == 1  # At once: nothing is mapped twice.
    progress = small.ledger(summary).read()
    assert (progress.completions.height, progress.duplicates.height) == (2, 0)
    assert progress.completions["filled"].to_list() == [["note"], ["note"]]


def test_what_chunks_say_comes_before_what_the_output_says(small: Small) -> None:
    """Its type may be widened: nulls that were given the narrower one are mapped again."""
    fill(small, ["x"])
    small.run(small.job("other"))
    (path,) = small.root.glob("out/*.parquet")
    assert pl.read_parquet_schema(path)["note"] == pl.Int64
    fill(small, ["x", None, "wide"])
    with pytest.raises(SchemaChangedError, match="note: Int64 / String"):
        small.run(small.job("noted"))
    small.run(small.job("noted", "overwrite"))
    assert types_of_files(small) == {pl.String()}


# -- reduce -----------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 3, 100])
def test_a_reduce_brings_together_what_has_a_type(small: Small, most: int) -> None:
    notes = [None, 1.5, None, None, 2.5, None]
    fill(small, notes)
    settings = small.settings.model_copy(
        update={"batches": small.settings.batches.model_copy(update={"max_chunks": most})}
    )
    reduce = {"combine": f"{small.module}:add"}
    job = small.job("keyed", "error", reduce=reduce)
    summary = run_serially(job, settings, small.storage, ResumeOptions())
    assert summary.state == "done"
    assert small.rows().to_dicts() == [{"k": 1, "note": 4.0}]


@pytest.mark.parametrize(
    "at", ["map_stage.MapStage._retype_nulls", "orchestrator.NoOrchestrator.reduce"]
)
def test_a_reduce_that_dies_on_the_way_is_resumed(
    small: Small, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    fill(small, [None, None, None, *range(20), None])
    settings = small.settings.model_copy(
        update={"batches": small.settings.batches.model_copy(update={"max_chunks": 2})}
    )
    job = small.job("keyed", "error", reduce={"combine": f"{small.module}:add"})

    def die(*args: Any, **more: Any) -> None:
        raise SystemError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(f"pipeline.runs.driver.{at}", die)
        with pytest.raises(SystemError):
            run_serially(job, settings, small.storage, ResumeOptions())
    run_serially(job, settings, small.storage, ResumeOptions())
    assert small.rows().to_dicts() == [{"k": 1, "note": sum(range(20))}]


# -- windows ----------------------------------------------------------------------------------

DAILY = """
import polars as pl
from datetime import date

def noted(frame):
    day = frame.select("ds").collect()["ds"].to_list()
    has = any(d >= date(2024, 2, 28) for d in day)
    return frame.select("ds", "id", note=pl.lit("x") if has else pl.lit(None))
"""


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Days:
    monkeypatch.chdir(tmp_path)
    made = Days(tmp_path, module=f"transforms_{uuid.uuid4().hex[:8]}")
    (tmp_path / f"{made.module}.py").write_text(DAILY)
    made.write(days("2024-02-27", 3))
    return made


@pytest.mark.parametrize("eager", [False, True])
def test_windows_of_a_run_have_one_schema(
    world: Days, monkeypatch: pytest.MonkeyPatch, eager: bool
) -> None:
    """Also where each is published as soon as it is done."""
    if eager:
        monkeypatch.setattr("pipeline.runs.backfill.run.PUBLISH_SECONDS", 0.0)
        monkeypatch.setattr("pipeline.runs.driver.ledger_counter.COUNT_SECONDS", 0.0)
        monkeypatch.setattr("pipeline.runs.driver.ledger_counter.COUNT_PAUSE_FACTOR", 0)
        with (world.root / "conf" / "base.yaml").open("a") as file:
            file.write("batches: {max_chunks: 1}\n")
    world.run(world.job("noted"), windows_per_run=3)
    rows = scan_output(world.output).collect()
    assert rows.schema["note"] == pl.String
    assert world.windows_held() == ["2024-02-27", "2024-02-28", "2024-02-29"]
    assert rows.group_by("ds").agg(pl.col("note").count()).sort("ds")["note"].to_list() == [
        0, 10, 10,
    ]  # fmt: skip


def test_a_later_window_takes_the_type_of_those_before(world: Days) -> None:
    world.run(world.job("noted"), WindowSelection("2024-02-28", "2024-02-29"))
    world.run(world.job("noted"), WindowSelection("2024-02-27", "2024-02-28"))
    table_log = TableLog(world.storage, world.output)
    assert len({entry.columns for entry in table_log.manifest().commits}) == 1
    assert scan_output(world.output).collect().schema["note"] == pl.String


# -- types, alone -----------------------------------------------------------------------------

SPELLED = [
    pl.Datetime("us", "UTC"),
    pl.Datetime("ns"),
    pl.Duration("ms"),
    pl.Decimal(10, 2),
    pl.Enum(["a", 'b,"']),
    pl.Categorical(),
    pl.Array(pl.Int8, (2, 3)),
    pl.Int128(),
    pl.Struct({"a": pl.List(pl.Null), "it's": pl.Struct({"b": pl.Date})}),
    pl.Struct([]),
]


@pytest.mark.parametrize("kind", SPELLED, ids=str)
def test_a_type_is_read_as_it_is_spelled(kind: pl.DataType) -> None:
    assert parse_dtype(str(kind)) == kind


@pytest.mark.parametrize(
    "text",
    ["", "Nul", "__import__('os').system('true')", "List(", "List()", "Struct(1)", "(" * 10_000,
     "List(" * 2_000 + "Null" + ")" * 2_000, "Datetime(time_unit='h')", "Int64(1)",
     "Array(Int8, shape=(100000, 100000))", "x" * 10**6],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_what_is_no_type_is_none(text: str) -> None:
    assert parse_dtype(text) is None


@pytest.mark.parametrize("kind", [*SPELLED, *(kind for _, kind in KINDS)], ids=str)
def test_nulls_may_be_anything(kind: pl.DataType) -> None:
    frame = pl.DataFrame({"a": [None, None], "l": [[None], []]})
    found, names = fill_types(frame, {"a": kind, "l": pl.List(kind)})
    assert found.schema == {"a": kind, "l": pl.List(kind)}
    assert found["a"].null_count() == 2
    assert found["l"].to_list() == [[None], []]
    assert sorted(names) == ["a", "l"]


def test_what_has_a_type_keeps_it() -> None:
    frame = pl.DataFrame({"a": [1], "b": [None]})
    same, names = fill_types(frame, {"a": pl.String(), "c": pl.Int8()})
    assert (same.schema, names) == (frame.schema, ())
    assert merge_types("Int32", "Int64") is None
    assert merge_dtypes(pl.Struct({"a": pl.Null}), pl.Struct({"b": pl.Null})) is None


def test_frames_tell_each_other_their_types() -> None:
    some = [pl.DataFrame({"a": [None]}), pl.DataFrame({"a": [[None]]}), pl.DataFrame({"a": [[1]]})]
    assert types_of_frames(some) == {"a": pl.List(pl.Int64)}
    assert types_of_frames([*some, pl.DataFrame({"a": ["x"]})]) == {}
