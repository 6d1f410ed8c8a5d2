"""Backfills whose files are merged: a window's rows are in files of their own, as Polars has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from pydantic import ValidationError

from pipeline.runs.admin.verify import verify_output
from pipeline.runs.backfill.plan import WindowSelection
from pipeline.runs.backfill.records import BackfillResumeOptions
from pipeline.runs.backfill.status import read_status
from pipeline.runs.backfill.summary import BackfillIncompleteError
from pipeline.runs.driver.run import run_serially
from pipeline.table.log import TableLog
from pipeline.table.replay import window_label
from tests.support.backfills import Days, days

LEAP = days("2024-02-27", 5)
RULE = "ds/day/UTC"
MORE = """
def parted(frame):
    return double(frame).with_columns(part=pl.col("id") % 3)

def some(frame, days, fixed):
    return parted(fails(frame, days, fixed))

def moved(frame):
    late = pl.col("ds") == pl.date(2024, 2, 28)
    return parted(frame).with_columns(
        ds=pl.when(late).then(pl.date(2024, 2, 29)).otherwise(pl.col("ds")))

def empty(frame):
    return parted(frame).filter(pl.col("ds") != pl.date(2024, 2, 28))
"""
BY_DAY = {"partition_by": ["ds", "part"], "file_bytes": 300, "sort_by": ["value"]}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Days:
    monkeypatch.chdir(tmp_path)
    one = Days(tmp_path)
    with (tmp_path / f"{one.module}.py").open("a") as file:
        file.write(MORE)
    one.write(LEAP)
    return one


def job(
    world: Days, function: str = "parted", mode: str = "overwrite-partitions", **more: Any
) -> Any:
    layout = more.pop("layout", BY_DAY)
    return world.job(function, output={"uri": world.output, "mode": mode, **layout}, **more)


def expected(world: Days, factor: float = 2.0) -> pl.DataFrame:
    frame = world.expected(factor).with_columns(part=pl.col("id") % 3)
    return frame.select(sorted(frame.columns))


def files(world: Days) -> pl.DataFrame:
    """The files of the current manifest, with the window of their commit and their `folder`."""
    log = TableLog(world.storage, world.output)
    windows = {entry.name: entry.window for entry in log.manifest().commits}
    return log.snapshot(log.manifest()).with_columns(
        window=pl.col("commit").replace_strict(windows, return_dtype=pl.String),
        folder=pl.col("key").str.replace("/[^/]*$", ""),
    )


def whole(world: Days) -> None:
    """Nothing is left over, and what is stored is what the manifest says."""
    found = verify_output(world.storage, world.output)
    assert (found.problems, found.missing_chunks) == ((), 0)
    state = world.root / "out.chunkmap"
    left = [*state.glob("runs/*/partials/*"), *state.glob("staged/**/*")]
    assert not [path for path in left if path.is_file()]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("per_run", [1, 2, None])
def test_windows_by_partitions_of_the_result(world: Days, per_run: int | None) -> None:
    summary = world.run(job(world), windows_per_run=per_run)
    assert (summary.state, summary.counts["done"]) == ("done", 5)
    assert_frame_equal(world.rows(), expected(world))
    made = files(world)
    assert made["folder"].n_unique() == 15 and made.height > 15
    assert [window_label(RULE, folder) for folder in made["folder"]] == made["window"].to_list()
    for key, folder in made.select("key", "folder").iter_rows():
        values = pl.read_parquet(Path(world.output) / key, hive_partitioning=False)["value"]
        assert values.is_sorted(), folder
    whole(world)


@pytest.mark.parametrize("per_run", [1, None])
def test_windows_in_folders_of_the_input(world: Days, per_run: int | None) -> None:
    layout = {"file_bytes": "1MiB"}
    world.run(job(world, layout=layout), windows_per_run=per_run)
    assert_frame_equal(world.rows(), expected(world))
    assert sorted(files(world)["folder"]) == [f"ds={day}" for day in LEAP]
    whole(world)


def test_windows_that_are_appended_share_folders(world: Days) -> None:
    layout = {"partition_by": ["part"]}
    store = world.create(
        job(world, mode="append", layout=layout), WindowSelection(end="2024-02-29")
    )
    world.drive(store)
    world.run(job(world, mode="append", layout=layout))
    assert_frame_equal(world.rows(), expected(world))
    made = files(world)
    assert made["folder"].n_unique() == 3 and made.height == 15
    whole(world)


def test_a_window_is_replaced_alone(world: Days) -> None:
    world.run(job(world))
    before = files(world)
    world.write(LEAP[2:3], value=7.0)
    summary = world.run(job(world), reprocess="changed")
    assert summary.todo == 1
    assert_frame_equal(world.rows(), expected(world))
    after = files(world)
    kept = before.filter(pl.col("window") != "2024-02-29")["key"].to_list()
    assert set(after["key"]) > set(kept)
    assert not set(after["key"]) & set(before["key"]) - set(kept)
    whole(world)


def test_a_window_is_emptied(world: Days) -> None:
    world.run(job(world))
    (world.root / f"{world.module}.py").write_text(
        (world.root / f"{world.module}.py")
        .read_text()
        .replace("def parted", "def whole")
        .replace("parted(", "whole(")
        .replace("def empty", "def parted")
    )
    assert world.run(job(world), reprocess="changed").state == "done"
    left = expected(world).filter(pl.col("ds") != pl.date(2024, 2, 28))
    assert_frame_equal(world.rows(), left)
    assert "2024-02-28" not in files(world)["window"].to_list()


def test_windows_after_a_run_of_all(world: Days) -> None:
    run_serially(job(world), world.settings, world.storage)
    world.write(LEAP[:1], value=3.0)
    world.run(job(world), WindowSelection(end="2024-02-28"), reprocess="all")
    assert_frame_equal(world.rows(), expected(world))
    assert not verify_output(world.storage, world.output).problems


@pytest.mark.parametrize("together", [False, True])
def test_windows_that_fail_are_merged_later(world: Days, together: bool) -> None:
    params = {"days": ["2024-02-28", "2024-03-01"], "fixed": str(world.root / "fixed")}
    store = world.create(job(world, "some", params=params), all_or_nothing=together)
    with pytest.raises(BackfillIncompleteError) as failed:
        world.drive(store)
    done = 0 if together else 3
    assert failed.value.summary.counts["done"] == done
    assert len(world.windows_held()) == done
    if not together:
        bad = pl.col("ds").cast(pl.String).is_in(params["days"])
        assert_frame_equal(world.rows(), expected(world).filter(~bad))
        assert verify_output(world.storage, world.output).missing_chunks == 4
    (world.root / "fixed").touch()
    assert world.drive(store, BackfillResumeOptions()).state == "done"
    assert_frame_equal(world.rows(), expected(world))
    whole(world)


def test_rows_in_folders_of_another_window(world: Days) -> None:
    """They would replace its rows: the window fails, with the reason, and the others are whole."""
    store = world.create(job(world, "moved"))
    with pytest.raises(BackfillIncompleteError) as failed:
        world.drive(store)
    [note] = failed.value.summary.notes
    assert "window 2024-02-28 has rows in folder ds=2024-02-29/part=0/ of the output" in note
    assert world.windows_held() == [str(day) for day in LEAP if day != LEAP[1]]
    left = expected(world).filter(pl.col("ds") != pl.date(2024, 2, 28))
    assert_frame_equal(world.rows(), left)
    assert read_status(store).counts["failed"] == 1
    # They are harmless where nothing is replaced.
    other = {"uri": str(world.root / "other"), "mode": "append", "partition_by": ["ds", "part"]}
    assert world.run(world.job("moved", output=other)).state == "done"


def test_partitions_that_are_of_no_window(world: Days) -> None:
    with pytest.raises(ValidationError, match="a folder would have rows of several windows"):
        job(world, layout={"partition_by": ["part"]})
