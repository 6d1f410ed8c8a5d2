"""A job that appends never brings an object's rows twice."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from partitioning import PlanningError
from pipeline.config.job import Job
from pipeline.errors import ConflictError, InputError, StateError
from pipeline.runs.driver import plan, publish
from pipeline.runs.driver.plan import ResumeOptions, plan_run
from pipeline.runs.driver.publish import publish_run
from pipeline.runs.driver.summary import RunIncompleteError
from pipeline.runs.ledger.find import runs_of
from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.worker.batch import Batch, map_batch
from pipeline.storage import Storage
from pipeline.table.log import TableLog
from pipeline.table.publish import Published, publish_all, rollback
from tests.support.faulty_storage import Faulty, KilledError, dies_at
from tests.support.instants import instants
from tests.support.memory_storage import AT_ONCE, MemoryBackend
from tests.support.outputs import copied, rows, visible
from tests.support.publishing import requests
from tests.support.runs_by_hand import plan_of, run_of
from tests.support.small import Small

TRANSFORMS = """
import polars as pl

def same(frame):
    return frame

def fails_until(frame):
    import pathlib
    return frame if pathlib.Path("fixed").exists() else fails(frame)

def total(frame):
    return frame.select(pl.col("v").sum())

def add(frames):
    return pl.concat(frames).sum()

def fails(frame):
    def check(series):
        if (series == 13).any():
            raise ValueError("cannot do 13")
        return series
    return frame.with_columns(pl.col("v").map_batches(check, return_dtype=pl.Int64))
"""


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Small:
    monkeypatch.chdir(tmp_path)
    made = Small(tmp_path, TRANSFORMS)
    for name in "ab":
        write(made, name)
    return made


def write(small: Small, name: str, first: int | None = None, rows: int = 3) -> None:
    start = (ord(name) - ord("a")) * 100 if first is None else first
    small.write(f"{name}.parquet", pl.DataFrame({"v": range(start, start + rows)}))


def values(small: Small) -> list[int]:
    return small.rows()["v"].sort().to_list()


def test_new_objects_are_appended(small: Small) -> None:
    small.run(small.job())
    write(small, "c")
    small.run(small.job())
    assert values(small) == [0, 1, 2, 100, 101, 102, 200, 201, 202]


def test_a_replaced_object_is_refused_and_named(small: Small) -> None:
    first = small.run(small.job())
    write(small, "a", 10)
    write(small, "c")
    with pytest.raises(InputError, match=rf"1 object .*run {first.run}.*/in/a\.parquet") as caught:
        small.run(small.job())
    assert "b.parquet" not in str(caught.value) and "c.parquet" not in str(caught.value)
    assert "overwrite" in str(caught.value.hint)
    assert values(small) == [0, 1, 2, 100, 101, 102]


def test_the_way_on_replaces_the_rows(small: Small) -> None:
    small.run(small.job())
    write(small, "a", 10)
    small.run(small.job(mode="overwrite"))
    assert values(small) == [10, 11, 12, 100, 101, 102]


def test_after_the_way_on_nothing_is_appended_again(small: Small) -> None:
    small.run(small.job())
    write(small, "a", 10)
    write(small, "c")
    small.run(small.job(mode="overwrite"))
    assert small.run(small.job()).mapped == 0
    assert values(small) == [10, 11, 12, 100, 101, 102, 200, 201, 202]
    write(small, "d")
    small.run(small.job())
    assert values(small) == [10, 11, 12, 100, 101, 102, 200, 201, 202, 300, 301, 302]


@pytest.mark.parametrize(
    "more",
    [
        {"output": {"compression": "lz4"}},
        {"output": {"keep_versions": 3}},
        {"chunks": {"target": "1MiB"}},
        {"checks": {"run": [{"check": "not_null", "columns": ["v"]}]}},
        {"window": {"column": "ds"}},
        {"tables": []},
        {"name": "renamed"},
        {"input": {"on_bad_object": "skip", "schema": "union", "verify_checksums": True}},
    ],
)
def test_after_other_settings_nothing_is_appended_again(small: Small, more: dict[str, Any]) -> None:
    small.run(small.job())
    write(small, "c")
    if "input" in more:
        more = {"input": {"uri": small.input, **more["input"]}}
    small.run(small.job(**more))
    assert small.run(small.job(**more)).mapped == 0
    assert small.run(small.job()).mapped == 0
    assert values(small) == [0, 1, 2, 100, 101, 102, 200, 201, 202]


def test_other_patterns_of_the_input_do_not_append_again(small: Small) -> None:
    small.run(small.job(input={"uri": small.input, "include": ["a*"]}))
    small.run(small.job(input={"uri": small.input, "include": ["b*"]}))
    with pytest.raises(InputError, match="2 objects"):
        small.run(small.job())
    assert values(small) == [0, 1, 2, 100, 101, 102]


def test_jobs_with_other_rows_are_appended_side_by_side(small: Small) -> None:
    small.run(small.job())
    small.run(small.job(input={"uri": small.input, "filter": [["v", ">=", 100]]}))
    assert values(small) == [0, 1, 2, 100, 100, 101, 101, 102, 102]


def test_an_unfinished_run_that_the_way_on_has_overtaken(small: Small) -> None:
    write(small, "b", 13)
    with pytest.raises(RunIncompleteError):
        small.run(small.job("fails_until"))
    (small.root / "fixed").touch()
    small.run(small.job("fails_until", mode="overwrite"))
    small.run(small.job("fails_until"))
    assert values(small) == [0, 1, 2, 13, 14, 15]


def test_of_many_objects_some_are_named(small: Small) -> None:
    for name in "cdefgh":
        write(small, name)
    small.run(small.job())
    for name in "abcdefgh":
        write(small, name, 1000)
    with pytest.raises(InputError, match=r"8 objects .*e\.parquet …$"):
        small.run(small.job())


def test_an_object_that_was_removed_and_put_back(small: Small) -> None:
    small.run(small.job())
    (small.root / "in" / "a.parquet").unlink()
    write(small, "c")
    small.run(small.job())  # Its plan does not know the object any more.
    write(small, "a", 10)
    with pytest.raises(InputError, match=r"a\.parquet"):
        small.run(small.job())


def test_planning_again_after_an_unpublished_run(small: Small) -> None:
    """What counts as new is what no published run has, not what the last plan lacked."""
    small.run(small.job("fails"))
    write(small, "c", 13)
    with pytest.raises(RunIncompleteError):
        small.run(small.job("fails"))
    write(small, "c")
    small.run(small.job("fails"), replan=True)
    assert values(small) == [0, 1, 2, 100, 101, 102, 200, 201, 202]


def test_several_runs_are_looked_at(small: Small) -> None:
    small.run(small.job())
    write(small, "c")
    second = small.run(small.job())
    write(small, "d")
    small.run(small.job())
    write(small, "c", 10)
    with pytest.raises(InputError, match=rf"run {second.run}.*c\.parquet"):
        small.run(small.job())


def test_an_object_whose_rows_were_taken_away_may_come_again(small: Small) -> None:
    small.run(small.job())
    write(small, "c")
    small.run(small.job())
    rollback(TableLog(small.storage, small.output))
    write(small, "c", 210)
    small.run(small.job())
    assert values(small) == [0, 1, 2, 100, 101, 102, 210, 211, 212]


def test_objects_whose_rows_were_rolled_back_come_again(small: Small) -> None:
    small.run(small.job())
    write(small, "c")
    small.run(small.job())
    rollback(TableLog(small.storage, small.output))
    write(small, "d")
    small.run(small.job())
    assert values(small) == [0, 1, 2, 100, 101, 102, 200, 201, 202, 300, 301, 302]


def test_everything_comes_again_after_a_rollback_of_everything(small: Small) -> None:
    small.run(small.job())
    rollback(TableLog(small.storage, small.output))
    write(small, "c")
    small.run(small.job())
    assert values(small) == [0, 1, 2, 100, 101, 102, 200, 201, 202]


def test_a_run_that_was_rolled_back_is_not_said_to_be_there(small: Small) -> None:
    small.run(small.job())
    write(small, "c")
    second = small.run(small.job())
    rollback(TableLog(small.storage, small.output))
    summary = small.run(small.job())
    assert summary.run == second.run
    assert not any("already has" in note for note in summary.notes)
    assert any("rolled back since; to restore it" in note for note in summary.notes)


def test_a_bad_object_that_was_repaired_is_new(small: Small) -> None:
    (small.root / "in" / "bad.parquet").write_bytes(b"PAR1 is what it is not")
    source = {"uri": small.input, "on_bad_object": "skip"}
    small.run(small.job(input=source))
    write(small, "c")
    small.run(small.job(input=source))
    small.write("bad.parquet", pl.DataFrame({"v": [7]}))
    small.run(small.job(input=source))
    assert values(small) == [0, 1, 2, 7, 100, 101, 102, 200, 201, 202]


@pytest.mark.parametrize("more", [{}, {"on_bad_object": "skip", "types": {"v": "int64"}}])
def test_an_object_that_was_skipped_is_not_forgotten(small: Small, more: dict[str, Any]) -> None:
    """It may be readable with other settings, or is an error now."""
    (small.root / "in" / "bad.parquet").write_bytes(b"PAR1 is what it is not")
    skips = {"uri": small.input, "on_bad_object": "skip"}
    small.run(small.job(input=skips))
    assert small.run(small.job(input=skips)).mapped == 0
    write(small, "c")
    with pytest.raises((InputError, PlanningError)):
        small.run(small.job(input={"uri": small.input, **more}))
    assert values(small) == [0, 1, 2, 100, 101, 102]


def test_a_reduce_holds_the_rows_of_all_its_objects(small: Small) -> None:
    job = small.job("total", reduce={"combine": f"{small.module}:add"})
    small.run(job)
    write(small, "a", 10)
    with pytest.raises(InputError, match=r"a\.parquet"):
        small.run(job)


# -- changed_only -----------------------------------------------------------------------------


def changed(small: Small, mode: str, function: str = "same") -> Job:
    return small.job(function, mode, input={"uri": small.input, "changed_only": True})


def test_what_did_not_change_is_not_overwritten_away(small: Small) -> None:
    small.run(changed(small, "overwrite"))
    write(small, "a", 10)
    with pytest.raises(InputError, match=r"1 unchanged objects .*b\.parquet") as caught:
        small.run(changed(small, "overwrite"))
    assert "remove input.changed_only" in str(caught.value.hint)
    assert values(small) == [0, 1, 2, 100, 101, 102]


def test_partitions_that_have_changed_are_replaced_whole_or_not_at_all(small: Small) -> None:
    for name in "ab":
        (small.root / "in" / f"{name}.parquet").unlink()
        small.write(f"k=1/{name}.parquet", pl.DataFrame({"v": [ord(name)]}))
    small.write("k=2/c.parquet", pl.DataFrame({"v": [1]}))
    small.run(changed(small, "overwrite-partitions"))
    small.write("k=2/c.parquet", pl.DataFrame({"v": [2, 3]}))
    small.run(changed(small, "overwrite-partitions"))
    assert values(small) == [2, 3, 97, 98]
    small.write("k=1/a.parquet", pl.DataFrame({"v": [4, 5]}))
    with pytest.raises(InputError, match=r"1 unchanged objects .*k=1/b\.parquet"):
        small.run(changed(small, "overwrite-partitions"))
    assert values(small) == [2, 3, 97, 98]


def test_only_what_was_published_counts_as_unchanged(small: Small) -> None:
    write(small, "c", 13)
    with pytest.raises(RunIncompleteError):
        small.run(changed(small, "overwrite", "fails"))
    write(small, "c")
    small.run(changed(small, "overwrite", "fails"), replan=True)
    assert values(small) == [0, 1, 2, 100, 101, 102, 200, 201, 202]


def test_a_run_that_was_published_without_a_chunk(small: Small) -> None:
    """Nothing notes it as published; the output has the rows of its other chunks."""
    write(small, "c", 13)
    with pytest.raises(RunIncompleteError):
        small.run(small.job("fails"))
    [record] = runs_of(small.storage, small.output)
    ledger = Ledger(small.storage, small.output, record.run)
    publish_run(small.storage, ledger, without_failed=True)
    write(small, "c")
    with pytest.raises(InputError, match=rf"2 objects .*run {record.run}") as refused:
        small.run(small.job("fails"), replan=True)
    assert "c.parquet" not in str(refused.value)
    assert values(small) == [0, 1, 2, 100, 101, 102]


@pytest.mark.parametrize("name", ["run.json", "job.yaml", "plan.arrow"])
def test_a_damaged_run_has_appended_its_objects(small: Small, name: str) -> None:
    first = small.run(small.job())
    (small.root / "out.chunkmap" / "runs" / first.run / name).write_bytes(b"")
    write(small, "c")
    with pytest.raises((InputError, StateError)):
        small.run(small.job())
    assert values(small) == [0, 1, 2, 100, 101, 102]


def test_another_run_that_is_published_while_one_plans(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.run(small.job())
    write(small, "c")
    real, others = plan.plan_input, []

    def plan_meanwhile(*args: Any, **options: Any) -> plan.PlannedInput:
        planned = real(*args, **options)
        monkeypatch.setattr(plan, "plan_input", real)
        write(small, "d")
        others.append(small.run(small.job()))
        return planned

    monkeypatch.setattr(plan, "plan_input", plan_meanwhile)
    with pytest.raises(InputError, match=r"c\.parquet"):
        small.run(small.job())
    assert others[0].mapped == 2
    assert values(small) == [0, 1, 2, 100, 101, 102, 200, 201, 202, 300, 301, 302]


def test_a_run_that_was_given_up_for_a_new_plan(small: Small) -> None:
    write(small, "b", 13)
    with pytest.raises(RunIncompleteError):
        small.run(small.job("fails_until"))
    [given_up] = runs_of(small.storage, small.output)
    (small.root / "fixed").touch()
    write(small, "c")
    small.run(small.job("fails_until"), replan=True)
    write(small, "d")
    small.run(small.job("fails_until"))
    expected = [0, 1, 2, 13, 14, 15, 200, 201, 202, 300, 301, 302]
    assert values(small) == expected
    with pytest.raises(ConflictError, match="2 objects"):
        small.run(small.job("fails_until"), run=given_up.run)
    assert values(small) == expected


def test_a_given_up_run_does_not_stop_one_that_replaces(small: Small) -> None:
    write(small, "b", 13)
    with pytest.raises(RunIncompleteError):
        small.run(small.job("fails", mode="error"))
    write(small, "b")
    small.run(small.job("fails", mode="error"), replan=True)
    assert small.run(small.job("fails", mode="error")).mapped == 0
    assert values(small) == [0, 1, 2, 100, 101, 102]


def test_a_run_is_not_published_over_a_newer_plan(small: Small) -> None:
    """It was mapped, and could be published at any time."""
    planned = plan_run(small.job(), small.settings, small.storage, ResumeOptions())
    map_batch(planned.ledger.prefix, planned.fingerprint, Batch("by-hand", "0-2"))
    write(small, "c")
    small.run(small.job(), replan=True)
    with pytest.raises(ConflictError, match="2 objects"):
        publish_run(small.storage, planned.ledger)
    assert values(small) == [0, 1, 2, 100, 101, 102, 200, 201, 202]


def test_a_newer_plan_that_an_older_run_has_overtaken(small: Small) -> None:
    first = plan_run(small.job(), small.settings, small.storage, ResumeOptions()).ledger.run
    write(small, "c")
    plan_run(small.job(), small.settings, small.storage, ResumeOptions(replan=True))
    small.run(small.job(), run=first)
    small.run(small.job())
    assert values(small) == [0, 1, 2, 100, 101, 102, 200, 201, 202]


def test_a_run_that_is_published_between_the_comparison_and_the_claim(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both have the same first chunks; the other driver may die at any instant."""
    backend = MemoryBackend()
    first, second = (run_of(backend.storage(), plan_of(n), "append") for n in (2, 3))
    for run in (first, second):
        run.complete()
    outcomes = set()
    for number in (0, *instants(requests(backend, second)), None):
        copy = copied(backend)

        def publish_meanwhile(
            *args: Any,
            number: int | None = number,
            copy: MemoryBackend = copy,
            **options: Any,
        ) -> Published:
            monkeypatch.setattr(publish, "publish_all", publish_all)
            script = (lambda n, name: None) if number is None else dies_at(number, "after")
            dying = Storage({"s3": Faulty(copy, script, KilledError)}, AT_ONCE)
            with suppress(KilledError):
                publish_run(dying, second.again(dying).ledger)
            return publish_all(*args, **options)

        monkeypatch.setattr(publish, "publish_all", publish_meanwhile)
        storage = copy.storage()
        with suppress(ConflictError):
            publish_run(storage, first.again(storage).ledger)
        outcomes.add(tuple(rows(visible(copy))))
    assert outcomes == {tuple(range(4)), tuple(range(6))}
