"""Objects in quarantine: left out, listed by the commit, limited, and mapped once repaired."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.errors import QuarantineLimitError
from pipeline.runs.admin.vacuum import vacuum
from pipeline.runs.admin.verify import verify_output
from pipeline.runs.backfill.plan import WindowSelection
from pipeline.runs.backfill.summary import BackfillIncompleteError
from pipeline.runs.driver.summary import RunIncompleteError
from pipeline.runs.ledger.ledger import run_id
from pipeline.table.log import TableLog
from pipeline.table.publish import rollback
from pipeline.table.scan import scan_output
from tests.support.backfills import Days, days
from tests.support.small import Small

CODE = """
import polars as pl

def same(frame):
    return frame

def total(frame):
    return frame.select(k=pl.lit(1), v=pl.col("v").sum())

def add(frames):
    return pl.concat(frames).group_by("k").agg(pl.col("v").sum())
"""
QUARANTINE = {"on_bad_object": "quarantine"}


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Small:
    monkeypatch.chdir(tmp_path)
    made = Small(tmp_path, CODE)
    for number in range(5):
        made.write(f"{number}.parquet", pl.DataFrame({"v": [number] * 50}))
    return made


def damage(path: Path) -> Path:
    """Damage an object's data; its footer stays."""
    data = bytearray(path.read_bytes())
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    data[4:footer] = b"\xa5" * (footer - 4)
    path.write_bytes(bytes(data))
    return path


def spoil(path: Path) -> Path:
    """Damage an object so that planning sees it."""
    path.write_bytes(b"PAR1 is what it is not")
    return path


def job(small: Small, function: str = "same", mode: str = "append", **more: Any) -> Any:
    source = {"uri": small.input, **QUARANTINE, **more.pop("input", {})}
    return small.job(function, mode, input=source, **more)


def evidence(root: Path) -> list[dict[str, Any]]:
    files = sorted(root.glob("out.chunkmap/quarantine/*/*.jsonl"))
    return [json.loads(line) for path in files for line in path.read_text().splitlines()]


def values(small: Small) -> list[int]:
    return sorted(set(small.rows()["v"].to_list()))


@pytest.mark.usefixtures("drawn")
def test_a_commit_tells_what_it_goes_without(small: Small) -> None:
    bad = damage(small.root / "in" / "1.parquet")
    worse = spoil(small.root / "in" / "3.parquet")
    summary = small.run(job(small))
    assert (values(small), summary.left_out) == ([0, 2, 4], 2)
    found = {row["uri"]: row for row in evidence(small.root)}
    assert sorted(found) == [f"file://{bad}", f"file://{worse}"]
    row = found[f"file://{bad}"]
    objects = {info.uri: info for info in small.storage.objects(small.input)}
    assert (row["etag"], row["size"]) == (objects[row["uri"]].etag, bad.stat().st_size)
    assert (row["row_groups"], row["run"]) == ([0, 1], summary.run)
    assert row["chunk"] in small.ledger(summary).plan().chunk_ids
    assert "column" in row["reason"] and row["at"] > 1.7e9
    assert (found[f"file://{worse}"]["chunk"], found[f"file://{worse}"]["row_groups"]) == ("", [])
    table_log = TableLog(small.storage, small.output)
    [entry] = table_log.manifest().commits
    assert (entry.left_out, entry.quarantined) == (2, 2)
    verified = verify_output(small.storage, small.output)
    assert (verified.left_out, verified.problems) == (2, ())
    [uri] = verified.quarantine
    assert summary.quarantine == (uri,)
    assert uri == f"{small.output[:-1]}.chunkmap/quarantine/1/{entry.name}.jsonl"
    assert any(uri in note for note in summary.notes)
    report = Path(summary.local_report).read_text()
    assert "1.parquet" in report and "3.parquet" in report
    assert small.run(job(small)).run == summary.run  # Nothing is new.


def test_what_planning_could_not_read_is_in_the_commit_with_skip_too(small: Small) -> None:
    path = spoil(small.root / "in" / "3.parquet")
    small.run(job(small, input={"on_bad_object": "skip"}))
    table_log = TableLog(small.storage, small.output)
    [entry] = table_log.manifest().commits
    [named] = table_log.load(entry).left_out
    assert named.startswith(f"file://{path}\t")
    assert (entry.left_out, entry.quarantined, evidence(small.root)) == (1, 0, [])


def test_a_repaired_object_is_new(small: Small) -> None:
    for number, harm in ((1, damage), (3, spoil)):
        harm(small.root / "in" / f"{number}.parquet")
    first = small.run(job(small))
    small.write("1.parquet", pl.DataFrame({"v": [11] * 50}))
    second = small.run(job(small))
    assert (values(small), second.chunks) == ([0, 2, 4, 11], 1)
    small.write("3.parquet", pl.DataFrame({"v": [33] * 50}))
    third = small.run(job(small))
    assert (values(small), third.chunks) == ([0, 2, 4, 11, 33], 1)
    assert len({first.run, second.run, third.run}) == 3
    # An object whose rows the output has is no such one.
    small.write("1.parquet", pl.DataFrame({"v": [12] * 50}))
    with pytest.raises(Exception, match=r"1\.parquet"):
        small.run(job(small))


def test_an_object_of_which_a_part_could_be_read_is_not_new(small: Small) -> None:
    path = small.root / "in" / "0.parquet"
    pl.DataFrame({"v": range(100_000)}).write_parquet(path, row_group_size=50_000)
    data = bytearray(path.read_bytes())
    data[4 : len(data) // 3] = b"\xa5" * (len(data) // 3 - 4)
    path.write_bytes(bytes(data))
    summary = small.run(job(small, chunks={"target": "200KiB"}))
    assert summary.left_out == 1
    small.write("0.parquet", pl.DataFrame({"v": range(100_000)}))
    with pytest.raises(Exception, match=r"0\.parquet"):
        small.run(job(small, chunks={"target": "200KiB"}))


def test_a_reduce_tells_it_too(small: Small) -> None:
    damage(small.root / "in" / "1.parquet")
    small.run(job(small, "total", "error", reduce={"combine": f"{small.module}:add"}))
    assert small.rows()["v"].to_list() == [50 * (0 + 2 + 3 + 4)]
    assert [Path(row["uri"]).name for row in evidence(small.root)] == ["1.parquet"]


@pytest.mark.parametrize("way", ["skip", "quarantine"])
def test_a_run_that_failed_goes_on_without_the_object_once_told(small: Small, way: str) -> None:
    damage(small.root / "in" / "1.parquet")
    failed = small.job("same", input={"uri": small.input})
    with pytest.raises(RunIncompleteError):
        small.run(failed)
    told = job(small, input={"on_bad_object": way})
    summary = small.run(told)
    assert values(small) == [0, 2, 3, 4]
    assert small.run(told).run == summary.run


# -- the limit --------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, "20%", "39.9%"])
def test_too_many_are_refused_before_anything_is_published(small: Small, limit: Any) -> None:
    damage(small.root / "in" / "1.parquet")
    damage(small.root / "in" / "3.parquet")
    with pytest.raises(QuarantineLimitError, match=r"2 of 5 objects .* is ") as caught:
        small.run(job(small, input={"max_quarantined": limit}))
    assert str(limit) in str(caught.value) and "1.parquet" in str(caught.value)
    assert TableLog(small.storage, small.output).manifest().number == 0
    assert evidence(small.root) == []
    # The same run goes on with another limit.
    summary = small.run(job(small, input={"max_quarantined": 2}))
    assert (summary.mapped, values(small)) == (0, [0, 2, 4])


def test_as_many_as_are_allowed_are_published(small: Small) -> None:
    damage(small.root / "in" / "1.parquet")
    spoil(small.root / "in" / "3.parquet")
    small.run(job(small, input={"max_quarantined": "40%"}))
    assert values(small) == [0, 2, 4]


def test_what_planning_sees_is_refused_before_mapping(small: Small) -> None:
    spoil(small.root / "in" / "1.parquet")
    with pytest.raises(QuarantineLimitError, match="1 of 5 objects"):
        small.run(job(small, input={"max_quarantined": 0}))
    assert list(small.root.glob("out.chunkmap/runs/*/completions/*")) == []


def test_a_limit_is_of_a_quarantine(small: Small) -> None:
    for source, words in (
        ({"max_quarantined": 1, "on_bad_object": "skip"}, "needs `on_bad_object: quarantine`"),
        ({"max_quarantined": "101%"}, "above 100%"),
        ({"max_quarantined": "few"}, "neither a number of objects"),
    ):
        with pytest.raises(ValueError, match=words):
            job(small, input=source)


# -- versions ---------------------------------------------------------------------------------


def test_records_live_as_long_as_their_versions(small: Small) -> None:
    damage(small.root / "in" / "1.parquet")
    kept = {"keep_versions": 1}
    small.run(job(small, mode="overwrite", output=kept))
    small.write("1.parquet", pl.DataFrame({"v": [11] * 50}))
    small.run(job(small, mode="overwrite", output=kept))
    assert values(small) == [0, 2, 3, 4, 11]
    vacuum(small.storage, small.output, older_than=0)
    assert len(evidence(small.root)) == 1  # A rollback could bring its version back.
    rollback(TableLog(small.storage, small.output))
    vacuum(small.storage, small.output, older_than=0)
    assert len(evidence(small.root)) == 1
    for value in (5, 6):
        small.write("5.parquet", pl.DataFrame({"v": [value]}))
        small.run(job(small, mode="overwrite", output=kept))
    vacuum(small.storage, small.output, older_than=0, dry_run=True)
    vacuum(small.storage, small.output, older_than=0)
    assert evidence(small.root) == []
    assert values(small) == [0, 2, 3, 4, 6, 11]


def test_a_driver_that_dies_while_it_publishes_is_finished_with_its_record(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(small.root / "in" / "1.parquet")

    def die(*args: Any) -> None:
        raise SystemError("killed")

    with monkeypatch.context() as patched:
        patched.setattr("pipeline.table.claims._make_visible", die)
        with pytest.raises(SystemError):
            small.run(job(small))
    assert evidence(small.root) == []
    summary = small.run(job(small))
    assert (len(evidence(small.root)), summary.mapped) == (1, 0)
    # Another one that wrote it after all changes nothing.
    assert verify_output(small.storage, small.output).problems == ()


def test_ids_of_other_jobs_are_what_they_were(small: Small) -> None:
    """`max_quarantined` is no part of them, and `quarantine` is where it is said."""
    summary = small.run(small.job("same"))
    ledger = small.ledger(summary)
    plan, record = ledger.plan(), ledger.record()
    ids = {
        run_id(plan, made, record.fingerprint)
        for made in (small.job("same"), job(small, input={"on_bad_object": "skip"}))
    }
    assert ids == {summary.run}
    limits = (job(small), job(small, input={"max_quarantined": 3}))
    assert len({run_id(plan, made, record.fingerprint) for made in limits} - ids) == 1


# -- windows ----------------------------------------------------------------------------------

DAILY = """
import polars as pl

def same(frame):
    return frame
"""


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Days:
    monkeypatch.chdir(tmp_path)
    made = Days(tmp_path, module=f"transforms_{uuid.uuid4().hex[:8]}")
    (tmp_path / f"{made.module}.py").write_text(DAILY)
    made.write(days("2024-02-27", 3))
    return made


def of_days(world: Days, **source: Any) -> Any:
    source = {"uri": f"file://{world.root}/in/", **QUARANTINE, **source}
    return world.job("same", input=source)


def inputs(world: Days) -> list[Path]:
    return sorted(world.root.glob("in/**/*.parquet"))


def test_each_window_tells_what_it_goes_without(world: Days) -> None:
    paths, whole = inputs(world), world.expected().height
    damage(paths[0])
    extra = paths[-1].with_name("zz.parquet")
    spoil(extra)
    world.run(of_days(world), windows_per_run=2)
    commits = TableLog(world.storage, world.output).manifest().commits
    assert {e.window: e.quarantined for e in commits} == {
        "2024-02-27": 1,
        "2024-02-28": 0,
        "2024-02-29": 1,
    }
    found = [(Path(row["uri"]).name, row["run"]) for row in evidence(world.root)]
    assert sorted(name for name, _ in found) == sorted([paths[0].name, "zz.parquet"])
    assert scan_output(world.output).collect().height == whole - 5


def test_a_window_that_is_done_again_takes_its_record_along(world: Days) -> None:
    path = inputs(world)[0]
    good = path.read_bytes()
    damage(path)
    world.run(of_days(world))
    path.write_bytes(good)
    world.run(of_days(world), WindowSelection("2024-02-27", "2024-02-28"), reprocess="changed")
    assert scan_output(world.output).collect().height == world.expected().height
    vacuum(world.storage, world.output, older_than=0)
    assert len(evidence(world.root)) == 1
    world.run(of_days(world), WindowSelection("2024-02-28", "2024-02-29"), reprocess="all")
    vacuum(world.storage, world.output, older_than=0)
    assert evidence(world.root) == []


def test_a_backfill_has_the_limit_too(world: Days) -> None:
    damage(inputs(world)[0])
    with pytest.raises(BackfillIncompleteError) as caught:
        world.run(of_days(world, max_quarantined=0), windows_per_run=3)
    assert "input.max_quarantined is 0" in " ".join(caught.value.summary.notes)
    assert world.windows_held() == []
