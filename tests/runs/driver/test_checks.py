"""Checks of a whole result before it is published: against plain Polars, and what refuses it."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import polars as pl
import pytest

from partitioning.window_inputs import windows_of_plan
from pipeline.config.job import WindowRule
from pipeline.config.job_checks import Checks
from pipeline.errors import ChecksFailedError, JobError
from pipeline.quality.evaluate import Subject, evaluate
from pipeline.quality.results import CheckResult
from pipeline.report.run_json import SCHEMA
from pipeline.runs.driver.check_stage import refuse
from pipeline.runs.driver.drafts import WindowChunks
from pipeline.runs.driver.executor import SerialExecutor
from pipeline.runs.driver.map_stage import MapStage
from pipeline.runs.driver.plan import ResumeOptions, plan_run
from pipeline.runs.driver.publish import check_run, publish_run
from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.ledger.records import Completion
from pipeline.storage import Storage
from pipeline.storage.local_backend import LocalBackend
from pipeline.table.log import TableLog
from tests.support.faulty_storage import Fault, Faulty, KilledError, Script, at, dies_at, lost
from tests.support.instants import instants
from tests.support.memory_storage import AT_ONCE
from tests.support.small import Small

CODE = """
import polars as pl

def same(lf: pl.LazyFrame) -> pl.LazyFrame:
    return lf

def add(frames: list[pl.LazyFrame]) -> pl.LazyFrame:
    return pl.concat(frames)
"""


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Small:
    monkeypatch.chdir(tmp_path)
    small = Small(tmp_path, CODE)
    for number in range(4):
        ids = range(number * 10, number * 10 + 10)
        frame = pl.DataFrame({"id": ids, "cents": [5] * 10}, schema_overrides={"id": pl.Int64})
        small.write(f"{number}.parquet", frame)
    return small


def visible(small: Small) -> list[Path]:
    return list((small.root / "out").rglob("*.parquet"))


def checked(small: Small, *checks: dict[str, Any], **more: Any) -> Any:
    return small.job(checks={"run": list(checks)}, **more)


UNIQUE = {"check": "unique", "columns": ["id"]}


def test_checks_that_pass_are_in_the_manifest(small: Small) -> None:
    summary = small.run(
        checked(
            small,
            UNIQUE,
            {"check": "row_count", "min": 40, "max": 40},
            {"check": "total", "column": "cents", "expected": 200},
            {"check": "not_null", "columns": ["id", "cents"]},
        )
    )
    assert summary.state == "done" and small.rows().height == 40
    log = TableLog(small.storage, small.output)
    commit = log.load(log.manifest().commits[-1])
    assert [(c.name, c.outcome) for c in commit.checks] == [
        ("unique(id)", "passed"),
        ("row_count", "passed"),
        ("total(cents)", "passed"),
        ("not_null(id, cents)", "passed"),
    ]
    assert commit.checks[2].figures["total"] == 200
    assert not small.storage.objects(small.ledger(summary).prefix + "checks/")


@pytest.mark.parametrize("reduce", [False, True])
def test_nothing_that_a_check_refuses_is_visible(small: Small, reduce: bool) -> None:
    small.write("4.parquet", pl.DataFrame({"id": [3, 3, 77], "cents": [5, 5, 5]}))
    more = {"reduce": {"combine": f"{small.module}:add"}} if reduce else {}
    job = checked(small, UNIQUE, {"check": "row_count", "max": 1}, **more)
    with pytest.raises(ChecksFailedError) as refused:
        small.run(job)
    text = str(refused.value)
    assert "unique(id): 1 key more than once, e.g. id=3 (3 rows)" in text
    assert "row_count: 43 rows; expected at most 1" in text
    assert "nothing of it was published" in text and "severity: warn" in str(refused.value.hint)
    assert not visible(small)
    # Nor by publishing it by hand.
    [run] = [path.name for path in (small.root / "out.chunkmap" / "runs").iterdir()]
    with pytest.raises(ChecksFailedError):
        publish_run(small.storage, Ledger(small.storage, small.output, run))
    assert not visible(small)
    # Its limits may change; nothing is mapped again.
    warns = checked(small, UNIQUE | {"severity": "warn"}, **more)
    summary = small.run(warns)
    assert (summary.mapped, summary.run, small.rows().height) == (0, run, 43)
    assert any("unique(id): 1 key more than once" in note for note in summary.notes)
    log = TableLog(small.storage, small.output)
    assert log.manifest().commits[-1].warnings == 1


def test_a_check_that_needs_more_of_the_chunks_is_another_run(small: Small) -> None:
    with pytest.raises(ChecksFailedError):
        small.run(checked(small, {"check": "row_count", "max": 1}))
    summary = small.run(checked(small, UNIQUE))
    assert (summary.mapped, small.rows().height) == (4, 40)


def test_a_job_without_checks_is_another_run(small: Small) -> None:
    with pytest.raises(ChecksFailedError) as refused:
        small.run(checked(small, {"check": "row_count", "max": 1}))
    summary = small.run(small.job())
    assert summary.run not in str(refused.value) and summary.mapped == 4


def test_rows_are_compared_with_those_that_they_replace(small: Small) -> None:
    share = {"check": "row_count", "of_last": "90%"}
    job = checked(small, share, mode="overwrite")
    assert small.run(job).state == "done"  # There is nothing to compare with.
    (small.root / "in" / "3.parquet").unlink()
    expected = r"30 rows; expected at least 36 \(90% of the last 40\)"
    with pytest.raises(ChecksFailedError, match=expected):
        small.run(job)
    assert small.rows().height == 40
    assert small.run(checked(small, share | {"of_last": "75%"}, mode="overwrite")).mapped == 0
    assert small.rows().height == 30


def test_totals_are_compared_with_the_last(small: Small) -> None:
    total = {"check": "total", "column": "cents", "tolerance": "10%"}
    job = checked(small, total, mode="overwrite")
    small.run(job)
    small.write("4.parquet", pl.DataFrame({"id": [900], "cents": [19]}))
    small.run(job)
    small.write("5.parquet", pl.DataFrame({"id": [901], "cents": [1000]}))
    with pytest.raises(ChecksFailedError, match=r"1,219; expected 219, at most 21.9 \(10%\)"):
        small.run(job)


def test_lost_and_damaged_columns_are_made_again(small: Small) -> None:
    job = checked(small, UNIQUE, {"check": "row_count", "max": 1})
    with pytest.raises(ChecksFailedError):
        small.run(job)
    [folder] = small.root.glob("out.chunkmap/runs/*/checks")
    first, second, *_ = sorted(folder.iterdir())
    first.unlink()
    second.write_bytes(b"PAR1 damaged")
    summary = small.run(checked(small, UNIQUE))
    assert (summary.state, small.rows().height) == ("done", 40)
    assert set(small.rows()["id"]) == set(range(40))


def test_results_are_stored_with_the_run(small: Small, monkeypatch: Any) -> None:
    job = checked(small, UNIQUE)
    calls: list[Subject] = []

    def counted(checks: Checks, subject: Subject) -> list[CheckResult]:
        calls.append(subject)
        return evaluate(checks, subject)

    monkeypatch.setattr("pipeline.runs.driver.check_stage.evaluate", counted)
    summary = small.run(job)
    assert len(calls) == 1, "publishing takes what was found"
    [result] = small.ledger(summary).check_results()
    assert (result.name, result.outcome) == ("unique(id)", "passed")
    data = json.loads(small.storage.get(small.ledger(summary).prefix + "check_results.json").data)
    assert data["results"][0]["figures"] == {"repeated_keys": 0}


@pytest.mark.parametrize(
    ("check", "message"),
    [
        ({"check": "unique", "columns": ["nope"]}, "the result has no column 'nope'"),
        ({"check": "freshness", "column": "id", "within": "1d"}, "neither a date nor a time"),
    ],
)
def test_checks_that_contradict_the_result_are_refused_in_planning(
    small: Small, check: dict[str, Any], message: str
) -> None:
    with pytest.raises(JobError, match=message):
        small.run(checked(small, check))
    assert not (small.root / "out.chunkmap").exists()


def test_sql_finds_what_is_wrong(small: Small) -> None:
    pytest.importorskip("duckdb", reason="the extra `checks` is not installed")
    sql = {"check": "sql", "columns": ["id"], "name": "ids"}
    query = "SELECT id FROM result WHERE id >= 38 ORDER BY id"
    with pytest.raises(ChecksFailedError, match=r"ids: the query finds 2 rows, e\.g\. id=38"):
        small.run(checked(small, sql | {"query": query}))
    summary = small.run(checked(small, sql | {"query": query.replace("38", "40")}))
    assert (summary.state, summary.mapped) == ("done", 0)


EMPTY = "SELECT 'empty' AS result_is WHERE (SELECT count(*) FROM result) = 0"
NEGATIVE = "SELECT id FROM result WHERE cents < 0"


def sql_check(query: str, **more: Any) -> dict[str, Any]:
    pytest.importorskip("duckdb", reason="the extra `checks` is not installed")
    return {"check": "sql", "name": "rows", "query": query, **more}


def pruned(small: Small) -> dict[str, Any]:
    """An input of which no row is planned."""
    return {"uri": small.input, "filter": [["id", ">", 1000]]}


@pytest.mark.parametrize("columns", [None, ["cents", "id"]])
def test_sql_finds_that_a_result_without_chunks_is_empty(
    small: Small, columns: list[str] | None
) -> None:
    more: dict[str, Any] = {"input": pruned(small), "mode": "overwrite"}
    with pytest.raises(ChecksFailedError, match=r"rows: the query finds 1 row, e\.g\. result_is"):
        small.run(checked(small, sql_check(EMPTY, columns=columns), **more))
    assert not visible(small)
    summary = small.run(checked(small, sql_check(NEGATIVE, columns=columns), **more))
    assert (summary.state, summary.mapped) == ("done", 0)
    assert not visible(small)


UNKNOWN = "rows: the query cannot be run: the result has no chunk, and its columns are unknown"


def test_without_columns_a_query_refuses_a_result_without_chunks(small: Small) -> None:
    """A reduce may return any columns."""
    more: dict[str, Any] = {"mode": "overwrite", "reduce": {"combine": f"{small.module}:add"}}
    with pytest.raises(ChecksFailedError, match=UNKNOWN):
        small.run(checked(small, sql_check(NEGATIVE), input=pruned(small), **more))
    warns = sql_check(NEGATIVE, severity="warn")
    summary = small.run(checked(small, warns, input=pruned(small), **more))
    assert summary.state == "done" and any(UNKNOWN in note for note in summary.notes)


def test_a_reduce_without_chunks_is_checked_with_the_columns_of_the_output(small: Small) -> None:
    more: dict[str, Any] = {"mode": "overwrite", "reduce": {"combine": f"{small.module}:add"}}
    assert small.run(checked(small, sql_check(NEGATIVE), **more)).state == "done"
    more["input"] = pruned(small)
    with pytest.raises(ChecksFailedError, match="rows: the query finds 1 row"):
        small.run(checked(small, sql_check(EMPTY), **more))
    assert small.rows().height == 40
    assert small.run(checked(small, sql_check(NEGATIVE), **more)).state == "done"
    assert not visible(small)


def test_a_query_that_cannot_be_run_is_refused_in_planning(small: Small) -> None:
    pytest.importorskip("duckdb", reason="the extra `checks` is not installed")
    sql = {"check": "sql", "query": "SELECT nope FROM result"}
    with pytest.raises(JobError, match='column "nope" not found'):
        small.run(checked(small, sql))
    assert not (small.root / "out.chunkmap").exists()


def windowed(
    small: Small, *checks: dict[str, Any], **more: Any
) -> tuple[Ledger, dict[str, WindowChunks]]:
    """A mapped run of three days, the second of which has a key twice, and its windows."""
    for path in (small.root / "in").iterdir():
        path.unlink()
    for day in range(1, 4):
        rows = [day, day] if day == 2 else [day]
        small.write(f"ds=2024-01-0{day}/a.parquet", pl.DataFrame({"id": rows}))
    job = checked(small, *checks, window={"column": "ds"}, **more)
    planned = plan_run(job, small.settings, small.storage, ResumeOptions())
    ledger = planned.ledger
    MapStage(
        ledger=ledger,
        plan=planned.plan,
        job=job,
        limits=small.settings.batches,
        executor=SerialExecutor(ledger.prefix, planned.fingerprint),
    ).run()
    labels = windows_of_plan(planned.plan, WindowRule(column="ds").windowing())
    windows = {
        label: WindowChunks([chunk])
        for label, chunk in zip(labels, planned.plan.chunk_ids, strict=True)
    }
    return ledger, windows


@pytest.mark.parametrize("together", [False, True])
def test_windows_are_checked_one_by_one(small: Small, together: bool) -> None:
    ledger, windows = windowed(small, UNIQUE)
    with pytest.raises(ChecksFailedError) as refused:
        publish_run(small.storage, ledger, windows=windows, together=together)
    assert refused.value.windows == ("2024-01-02",)
    assert "the result of window 2024-01-02 of run" in str(refused.value)
    days = {path.parent.name for path in visible(small)}
    assert days == (set() if together else {"ds=2024-01-01", "ds=2024-01-03"})


def test_an_empty_window_that_a_query_refuses_empties_no_partition(small: Small) -> None:
    small.write("ds=2024-01-04/a.parquet", pl.DataFrame({"id": [4]}), "before")
    before: dict[str, Any] = {
        "input": {"uri": f"file://{small.root}/before/"},
        "mode": "overwrite-partitions",
    }
    small.run(small.job(**before))
    by_day = sql_check("SELECT 'empty' AS day_is WHERE (SELECT count(ds) FROM result) = 0")
    ledger, windows = windowed(small, by_day, mode="overwrite-partitions")
    windows["2024-01-04"] = WindowChunks([])
    with pytest.raises(ChecksFailedError, match="the query finds 1 row") as refused:
        publish_run(small.storage, ledger, windows=windows)
    assert refused.value.windows == ("2024-01-04",)
    assert sorted(small.rows()["id"]) == [1, 2, 2, 3, 4]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("fault", ["before", "after"])
def test_a_driver_that_dies_while_checking(small: Small, fault: Fault) -> None:
    """At any request: the next one publishes what passes, once, and nothing that is refused."""
    job = checked(small, UNIQUE, {"check": "row_count", "of_last": "90%"})
    planned = plan_run(job, small.settings, small.storage, ResumeOptions())
    stage = MapStage(
        ledger=planned.ledger,
        plan=planned.plan,
        job=job,
        limits=small.settings.batches,
        executor=SerialExecutor(planned.ledger.prefix, planned.fingerprint),
    )
    stage.run()
    kept = small.root / "kept"
    shutil.copytree(small.root / "out.chunkmap", kept, copy_function=os.link)

    def checked_and_published(script: Script, error: Any = KilledError) -> Faulty:
        faulty = Faulty(LocalBackend(), script, error)
        storage = Storage({"file": faulty}, AT_ONCE)
        ledger = Ledger(storage, small.output, planned.ledger.run)
        with suppress(KilledError):
            refuse(ledger.run, {None: check_run(storage, ledger)})
            publish_run(storage, ledger)
        return faulty

    def whole() -> list[int]:
        return sorted(small.rows()["id"].to_list())

    requests = len(checked_and_published(lambda n, name: None).calls)
    assert whole() == list(range(40))
    for number in instants(requests, fault):
        for name in ("out", "out.chunkmap"):
            shutil.rmtree(small.root / name, ignore_errors=True)
        shutil.copytree(kept, small.root / "out.chunkmap", copy_function=os.link)
        checked_and_published(dies_at(number, fault))
        checked_and_published(lambda n, name: None)
        assert whole() == list(range(40)), number
        # A lost reply is no death: the request is made again.
    for number in instants(requests, "lost", fault):
        for name in ("out", "out.chunkmap"):
            shutil.rmtree(small.root / name, ignore_errors=True)
        shutil.copytree(kept, small.root / "out.chunkmap", copy_function=os.link)
        checked_and_published(at(number, fault), lost)
        assert whole() == list(range(40)), number


def completion_of(row: dict[str, Any]) -> Completion:
    lists = {name: tuple(value) for name, value in row.items() if isinstance(value, list)}
    return Completion(**row | lists)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("text", ["", "{", "[]", '{"rows": 10}', '{"rows": 9, "kept": ["0", 1]}'])
def test_a_chunk_without_its_figures_does_not_count(small: Small, text: str) -> None:
    """Otherwise it would pass the checks as if nothing were wrong with it."""
    job = checked(small, UNIQUE)
    planned = plan_run(job, small.settings, small.storage, ResumeOptions())
    stage = MapStage(
        ledger=planned.ledger,
        plan=planned.plan,
        job=job,
        limits=small.settings.batches,
        executor=SerialExecutor(planned.ledger.prefix, planned.fingerprint),
    )
    progress = stage.run()
    segments = list((small.root / "out.chunkmap").glob("runs/*/completions/*"))
    for path in segments:
        path.unlink()
    entries = [completion_of(row) for row in progress.completions.to_dicts()]
    entries[1] = replace(entries[1], checked=text)
    ledger = Ledger(small.storage, small.output, planned.ledger.run)
    ledger.write_segment("b-1-0001", entries, progress.schemas.values())
    found = ledger.read()
    assert found.left(4) == [1] and "lacks the figures" in found.problems[0]
    assert small.run(job).mapped == 1 and small.rows().height == 40


@pytest.mark.usefixtures("drawn")
def test_the_report_of_a_refused_run_says_why(small: Small) -> None:
    small.write("4.parquet", pl.DataFrame({"id": [3], "cents": [5]}))
    with pytest.raises(ChecksFailedError):
        small.run(checked(small, UNIQUE, {"check": "row_count", "min": 1}))
    [prefix] = (small.root / "out.chunkmap" / "runs").iterdir()
    page = (prefix / "report.html").read_text()
    assert "checks refuse the result" in page and "unique(id)" in page and "id=3 (2 rows)" in page
    document = json.loads((prefix / "report.json").read_text())
    outcomes = {check["name"]: check["outcome"] for check in document["checks"]}
    assert outcomes == {"unique(id)": "refused", "row_count": "passed"}
    jsonschema.validate(document, SCHEMA)
