"""Objects that turn out to be damaged when they are read: named, or left out and listed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from pipeline.runs.admin.verify import verify_output
from pipeline.runs.driver.summary import RunIncompleteError
from pipeline.table.log import TableLog
from tests.runs.driver.test_run import World
from tests.support import plain

SKIP = {"on_bad_object": "skip"}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FIXED", str(tmp_path / "fixed"))
    yield World(tmp_path)


def damage(world: World, number: int) -> Path:
    """Damage an object's data; its footer stays."""
    path = world.root / "in" / f"day={number % 2 + 1}" / f"{number:02d}.parquet"
    data = bytearray(path.read_bytes())
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    data[4:footer] = b"\xa5" * (footer - 4)
    path.write_bytes(bytes(data))
    return path


def source(world: World, **more: str) -> dict[str, str]:
    return {"uri": f"file://{world.root}/in/", **more}


def test_an_error_names_object_and_columns_and_not_the_transform(world: World) -> None:
    path = damage(world, 3)
    with pytest.raises(RunIncompleteError) as caught:
        world.run(world.job())
    [line] = caught.value.summary.errors
    assert "UnreadableObjectError" in line
    assert f"file://{path} cannot be read: column" in line
    assert world.module not in line
    assert caught.value.summary.failed == 1


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize("chunks", [{"per_file": True}, {"per_partition": True}])
def test_with_skip_it_is_left_out_and_listed(world: World, chunks: dict[str, bool]) -> None:
    path = damage(world, 3)
    path.rename(path.with_name("zz.parquet"))  # The last of its chunk: others were read before it.
    path = path.with_name("zz.parquet")
    summary = world.run(world.job(input=source(world, **SKIP), chunks=chunks))
    assert (summary.state, summary.rows_in, summary.rows_out) == ("done", 90, 90)
    [note] = [note for note in summary.notes if "could not be read" in note]
    assert note.startswith("1 object could not be read, and left out")
    assert f"file://{path}: column" in note
    found = plain.published(world.output)["id"].sort().to_list()
    assert found == [i for i in range(100) if i // 10 != 3]
    table_log = TableLog(world.storage, f"file://{world.output}/")
    [entry] = table_log.manifest().commits
    assert entry.left_out == 1
    commit = table_log.commit(entry.name)
    assert commit is not None
    [named] = commit.left_out
    assert named.startswith(f"file://{path}\t")
    verified = verify_output(world.storage, f"file://{world.output}/")
    assert (verified.left_out, verified.problems) == (1, ())
    assert "could not be read" in Path(summary.local_report).read_text()


def test_names_with_spaces_are_counted_one_by_one(world: World) -> None:
    for number in (1, 3):
        path = damage(world, number)
        path.rename(path.with_name(f"zz {number}.parquet"))
    summary = world.run(world.job(input=source(world, **SKIP)))
    [note] = [note for note in summary.notes if "could not be read" in note]
    assert note.startswith("2 objects")
    table_log = TableLog(world.storage, f"file://{world.output}/")
    assert [entry.left_out for entry in table_log.manifest().commits] == [2]


def test_a_chunk_of_nothing_but_bad_objects_is_empty(world: World) -> None:
    for number in range(1, 10, 2):
        damage(world, number)
    job = world.job("total", input=source(world, **SKIP), chunks={"per_partition": True})
    summary = world.run(job)
    assert summary.state == "done"
    found = plain.published(world.output).sort("rows")
    assert found["rows"].to_list() == [0, 50]


def test_what_a_transform_does_wrong_is_not_skipped(world: World) -> None:
    job = world.job("fails", input=source(world, **SKIP), params={"index": 42})
    with pytest.raises(RunIncompleteError) as caught:
        world.run(job)
    assert "cannot do 42" in caught.value.summary.errors[0]


def test_a_value_that_does_not_fit_is_the_objects_fault(world: World) -> None:
    """`first` takes the first object's type, and what does not fit it is named."""
    path = world.root / "in" / "day=2" / "99.parquet"
    pl.DataFrame({"id": [2**40], "value": [1.0]}).write_parquet(path)
    for first in world.root.glob("in/*/0*.parquet"):
        frame = pl.read_parquet(first, hive_partitioning=False)
        frame.with_columns(pl.col("id").cast(pl.Int32)).write_parquet(first)
    with pytest.raises(RunIncompleteError) as caught:
        world.run(world.job(input=source(world, schema="first")))
    assert f"file://{path} cannot be read" in caught.value.summary.errors[0]
    assert "Int32" in caught.value.summary.errors[0] or "i32" in caught.value.summary.errors[0]


def test_a_completion_too_long_for_the_ledger_fails_alone(world: World) -> None:
    """Objects that are left out are listed in it, with long names and reasons."""
    folder = world.root.joinpath("in", "day=1", *("x" * 250 for _ in range(10)))
    folder.mkdir(parents=True)
    data = damage(world, 1).read_bytes()
    for number in range(400):
        (folder / f"{number}.parquet").write_bytes(data)
    with pytest.raises(RunIncompleteError) as caught:
        world.run(world.job(input=source(world, **SKIP), chunks={"per_partition": True}))
    summary = caught.value.summary
    assert (summary.chunks, summary.mapped, summary.failed) == (2, 1, 1)
    [line] = summary.errors
    assert "StateError" in line
    assert "the completion of chunk 0 has" in line
    assert "smaller chunks.target" in line
