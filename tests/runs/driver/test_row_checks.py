"""Rows are checked by a dataframely schema: each ends in the output, in quarantine, or nowhere."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.errors import ChecksFailedError, JobError, TransformNotAllowedError
from pipeline.runs.admin.vacuum import vacuum
from pipeline.runs.driver.executor import SerialExecutor
from pipeline.runs.driver.map_stage import MapStage
from pipeline.runs.driver.plan import ResumeOptions, plan_run
from pipeline.runs.driver.publish import check_run, publish_run
from pipeline.runs.driver.summary import RunIncompleteError, RunSummary
from pipeline.runs.ledger.ledger import Ledger
from pipeline.storage import Storage
from pipeline.storage.local_backend import LocalBackend
from pipeline.table.evidence import find_rejected
from pipeline.table.log import TableLog
from tests.support.faulty_storage import Fault, Faulty, KilledError, Script, at, dies_at, lost
from tests.support.instants import instants
from tests.support.memory_storage import AT_ONCE
from tests.support.small import Small

pytest.importorskip("dataframely", reason="the extra `checks` is not installed")

CODE = """
import dataframely as dy
import polars as pl

def same(lf: pl.LazyFrame) -> pl.LazyFrame:
    return lf

def total(lf: pl.LazyFrame) -> pl.LazyFrame:
    return lf.select(pl.len().alias("rows"), pl.col("cents").sum())

def add(frames: list[pl.LazyFrame]) -> pl.LazyFrame:
    return pl.concat(frames)

class Sales(dy.Schema):
    id = dy.Int64(primary_key=True)
    cents = dy.Int64(nullable=True, min=0)

    @dy.rule()
    def not_seven(cls) -> pl.Expr:
        return pl.col("id") % 7 != 0

class Other(dy.Schema):
    id = dy.String()
    missing = dy.Int64()

class Plain:
    pass
"""
FRAMES = [
    pl.DataFrame(
        {
            "id": [number * 10 + row for row in range(10)],
            "cents": [
                None if row == 3 else -1 if row == 4 and number % 2 else row for row in range(10)
            ],
            "token": ["s3cret"] * 10,
        }
    )
    for number in range(4)
]
WHOLE = pl.concat(FRAMES)
BREAKS_MIN = pl.col("cents").fill_null(0) < 0
BREAKS_SEVEN = pl.col("id") % 7 == 0
FAILING = WHOLE.filter(BREAKS_MIN | BREAKS_SEVEN)
PASSING = WHOLE.filter(~(BREAKS_MIN | BREAKS_SEVEN))


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Small:
    monkeypatch.chdir(tmp_path)
    small = Small(tmp_path, CODE)
    for number, frame in enumerate(FRAMES):
        small.write(f"{number}.parquet", frame)
    return small


def checked(small: Small, severity: str, schema: str = "Sales", **more: Any) -> Any:
    rows = {"schema": f"{small.module}:{schema}", "severity": severity}
    rows |= more.pop("rows", {})
    return small.job(checks={"rows": rows, "run": more.pop("run", [])}, **more)


def rejected(small: Small) -> pl.DataFrame:
    """What readers of the quarantine see."""
    log = TableLog(small.storage, small.output)
    folders = find_rejected(log, log.manifest()).values()
    files = [path for uri in folders for path in Path(uri.removeprefix("file://")).iterdir()]
    return pl.concat([pl.read_parquet(path) for path in files]) if files else pl.DataFrame()


def ids(frame: pl.DataFrame) -> list[int]:
    return sorted(frame["id"].to_list()) if frame.width else []


def test_failing_rows_are_published_beside_the_output(small: Small) -> None:
    summary = small.run(checked(small, "quarantine"))
    assert ids(small.rows()) == ids(PASSING)
    assert small.rows()["cents"].sum() == PASSING["cents"].sum()
    rows = rejected(small).sort("id")
    assert rows.select("id", "cents", "token").equals(FAILING.sort("id"))
    expected = FAILING.sort("id").select(
        pl.concat_list(
            pl.when(BREAKS_SEVEN).then(pl.lit("not_seven")),
            pl.when(BREAKS_MIN).then(pl.lit("cents|min")),
        ).list.drop_nulls()
    )
    assert rows["chunkmap_rules"].to_list() == expected.to_series().to_list()
    plan = small.ledger(summary).plan()
    assert set(rows["chunkmap_chunk"]) <= set(plan.chunk_ids)
    [entry] = TableLog(small.storage, small.output).manifest().commits
    assert (entry.rows, entry.rejected) == (PASSING.height, FAILING.height)
    [note] = [note for note in summary.notes if note.startswith("check ")]
    assert f"{FAILING.height} rows of 40 break rules: not_seven" in note
    assert "s3cret" not in note and "token=****" in note
    assert not small.storage.objects(small.ledger(summary).prefix + "checks/")
    # Readers of the output see nothing of it.
    assert len(list((small.root / "out").rglob("*.parquet"))) == 4


def test_rows_that_only_warn_are_published(small: Small) -> None:
    summary = small.run(checked(small, "warn"))
    assert ids(small.rows()) == ids(WHOLE) and rejected(small).is_empty()
    assert any("break rules: not_seven" in note for note in summary.notes)
    assert TableLog(small.storage, small.output).manifest().commits[0].warnings == 1


@pytest.mark.parametrize("short", [False, True])
def test_a_chunk_with_rows_that_block_fails_for_good(small: Small, short: bool) -> None:
    name = f"{small.module}:Sales"
    job = small.job(checks=name) if short else checked(small, "block")
    with pytest.raises(RunIncompleteError) as failed:
        small.run(job)
    failures = small.ledger(failed.value.summary).read().failed()
    assert set(failures["error"]) == {"RowsRefusedError"} and not failures["transient"].any()
    message = failures.sort("index")["message"][0]
    assert f"2 rows of 10 break rules of {name} (checks.rows): not_seven 2; e.g. id=0" in message
    assert "s3cret" not in message
    assert not (small.root / "out").exists()


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("limit", "passes"), [(7, True), (6, False), ("18%", True), ("17%", False)]
)
def test_too_many_rows_in_quarantine(small: Small, limit: Any, passes: bool) -> None:
    assert FAILING.height == 7
    job = checked(small, "quarantine", rows={"max_quarantined": limit})
    if passes:
        assert small.run(job).state == "done"
        return
    with pytest.raises(ChecksFailedError, match=f"max_quarantined is {limit}"):
        small.run(job)
    assert not (small.root / "out").exists()
    assert not (small.root / "out.chunkmap" / "quarantine").exists()
    # A higher limit publishes what is mapped.
    summary = small.run(checked(small, "quarantine", rows={"max_quarantined": "50%"}))
    assert summary.mapped == 0 and ids(rejected(small)) == ids(FAILING)


def test_another_severity_maps_again(small: Small) -> None:
    with pytest.raises(ChecksFailedError):
        small.run(checked(small, "quarantine", rows={"max_quarantined": 0}))
    assert small.run(checked(small, "warn")).mapped == 4
    assert ids(small.rows()) == ids(WHOLE)


def test_rows_are_checked_before_they_are_reduced(small: Small) -> None:
    reduce = {"combine": f"{small.module}:add"}
    small.run(checked(small, "quarantine", reduce=reduce))
    assert ids(small.rows()) == ids(PASSING)
    assert ids(rejected(small)) == ids(FAILING)


def test_rows_are_checked_before_they_are_merged(small: Small) -> None:
    run = [{"check": "unique", "columns": ["id"]}, {"check": "row_count", "max": PASSING.height}]
    output = {"file_bytes": "1MiB"}
    summary = small.run(checked(small, "quarantine", run=run, output=output))
    assert len(list((small.root / "out").rglob("*.parquet"))) == 1
    assert ids(small.rows()) == ids(PASSING)
    assert ids(rejected(small)) == ids(FAILING)
    assert not small.storage.objects(small.ledger(summary).prefix + "checks/")


def test_the_whole_is_checked_without_what_is_in_quarantine(small: Small) -> None:
    run = [{"check": "row_count", "max": PASSING.height}, {"check": "unique", "columns": ["id"]}]
    assert small.run(checked(small, "quarantine", run=run)).state == "done"


def test_the_schema_is_a_part_of_the_code(small: Small) -> None:
    job = checked(small, "warn", mode="overwrite")
    small.run(job)
    small.code(CODE.replace("% 7 != 0", "% 7 != 9"))
    summary = small.run(job)
    assert summary.mapped == 4 and not any("not_seven" in note for note in summary.notes)


MAYBE = """
def maybe(lf):
    frame = lf.collect()
    return (frame.with_columns(cents=pl.lit(None)) if frame["id"][0] == 8 else frame).lazy()
"""


def test_columns_that_are_all_null_fit(small: Small) -> None:
    small.code(CODE + MAYBE)
    small.write("4.parquet", pl.DataFrame({"id": [8], "cents": [5], "token": ["x"]}))
    small.run(checked(small, "quarantine", function="maybe"))
    found = small.rows()
    assert found.schema["cents"] == pl.Int64 and 8 in found["id"].to_list()


@pytest.mark.parametrize(
    ("schema", "error", "message"),
    [
        ("Other", JobError, "does not fit the schema"),
        ("Plain", JobError, "is no dataframely schema"),
        ("Nothing", JobError, "is no dataframely schema"),
        ("pl", TransformNotAllowedError, "is polars, which is not defined in a file of an allowed"),
    ],
)
def test_a_schema_that_contradicts_the_result(
    small: Small, schema: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as refused:
        small.run(checked(small, "warn", schema))
    assert getattr(refused.value, "exit_code", 0) == 2
    assert not (small.root / "out.chunkmap").exists()


def test_a_schema_outside_of_the_allowed_modules(small: Small) -> None:
    job = small.job(checks="dataframely:Schema")
    with pytest.raises(TransformNotAllowedError, match="not allowed"):
        small.run(job)


def test_rollback_and_expiry_take_the_rows_along(small: Small) -> None:
    job = checked(small, "quarantine", mode="overwrite")
    small.run(job)
    for number in range(4, 8):
        small.write(f"{number}.parquet", FRAMES[1].with_columns(pl.col("id") + number * 10))
        small.run(job)
    folder = small.root / "out.chunkmap" / "quarantine" / "rows"
    before = {path.name for path in folder.iterdir()}
    vacuum(small.storage, small.output, older_than=0.0)
    assert {path.name for path in folder.iterdir() if any(path.rglob("*.parquet"))} == {"4", "5"}
    assert before >= {"4", "5"}
    later = [FRAMES[1].with_columns(pl.col("id") + number * 10) for number in range(4, 8)]
    failing = pl.concat([*FRAMES, *later]).filter(BREAKS_MIN | BREAKS_SEVEN)
    assert ids(rejected(small)) == ids(failing)


@pytest.mark.parametrize("fault", ["before", "after"])
def test_death_while_rows_are_put_in_quarantine(small: Small, fault: Fault) -> None:
    """At any request of checking and publishing: nothing is lost and nothing twice."""
    job = checked(small, "quarantine", run=[{"check": "unique", "columns": ["id"]}])
    planned = plan_run(job, small.settings, small.storage, ResumeOptions())
    MapStage(
        ledger=planned.ledger,
        plan=planned.plan,
        job=job,
        limits=small.settings.batches,
        executor=SerialExecutor(planned.ledger.prefix, planned.fingerprint),
    ).run()
    kept = small.root / "kept"
    shutil.copytree(small.root / "out.chunkmap", kept, copy_function=os.link)

    def begin() -> None:
        for name in ("out", "out.chunkmap"):
            shutil.rmtree(small.root / name, ignore_errors=True)
        shutil.copytree(kept, small.root / "out.chunkmap", copy_function=os.link)

    def drive(script: Script, error: Any = KilledError) -> Faulty:
        faulty = Faulty(LocalBackend(), script, error)
        storage = Storage({"file": faulty}, AT_ONCE)
        ledger = Ledger(storage, small.output, planned.ledger.run)
        with suppress(KilledError):
            check_run(storage, ledger)
            publish_run(storage, ledger)
        return faulty

    def verify(number: int) -> None:
        assert ids(small.rows()) == ids(PASSING), number
        assert ids(rejected(small)) == ids(FAILING), number

    requests = len(drive(lambda n, name: None).calls)
    verify(-1)
    for number in instants(requests, fault):
        begin()
        drive(dies_at(number, fault))
        drive(lambda n, name: None)
        verify(number)
    for number in instants(requests, "lost", fault):
        begin()
        drive(at(number, fault), lost)
        verify(number)


def test_rows_that_are_lost_before_the_commit_are_made_again(small: Small) -> None:
    def summary_of(limit: Any) -> RunSummary:
        return small.run(checked(small, "quarantine", rows={"max_quarantined": limit}))

    with pytest.raises(ChecksFailedError):
        summary_of(0)
    files = sorted((small.root / "out.chunkmap").glob("runs/*/checks/*.rejected.parquet"))
    files[0].unlink()
    assert summary_of("50%").state == "done"
    assert ids(rejected(small)) == ids(FAILING) and ids(small.rows()) == ids(PASSING)
