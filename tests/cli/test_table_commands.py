"""`history`, `rollback`, `verify`, `vacuum` and `repair` of an output that is a Delta table."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from deltalake import DeltaTable

from pipeline.cli import runs
from pipeline.runs.admin.verify import verify_output
from pipeline.table.log import TableLog
from pipeline.table.repair import Diagnosis, diagnose, repair
from tests.support.small import Small

CODE = """
def same(frame):
    return frame
"""


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Small:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    small = Small(tmp_path, CODE)
    for number in range(2):
        small.write(f"{number}.parquet", pl.DataFrame({"id": [number]}))
        source = {"uri": small.input, "include": [f"{number}.*"]}
        output = {"table": {"format": "delta"}}
        small.run(small.job(mode="overwrite", input=source, output=output))
    return small


def text(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out


def problems(small: Small) -> str:
    return "; ".join(verify_output(small.storage, small.output).problems)


def diagnosed(small: Small) -> Diagnosis:
    return diagnose(TableLog(small.storage, small.output))


def test_history_has_the_versions(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    runs.history(small.output, None, as_json=False)
    header, newest, oldest = text(capsys).splitlines()[:3]
    assert header.split()[:3] == ["manifest", "delta", "published"]
    assert newest.split()[:2] == ["2", "1"] and oldest.split()[:2] == ["1", "0"]
    runs.history(small.output, None, as_json=True)
    said = json.loads(text(capsys))["manifests"]
    assert [(m["number"], m["table"], m["table_version"]) for m in said] == [
        (2, "delta", 1),
        (1, "delta", 0),
    ]


def test_a_rollback_says_its_version(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    runs.rollback(small.output, None, None, as_json=False)
    assert "it is version 2 of the Delta table" in text(capsys)
    runs.rollback(small.output, 2, None, as_json=True)
    said = json.loads(text(capsys))
    assert (said["number"], said["table_version"]) == (4, 3)
    assert DeltaTable(small.root / "out").to_pyarrow_table()["id"].to_pylist() == [1]


def test_what_is_missing_is_pending_and_repaired(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    (small.root / "out" / "_delta_log" / f"{1:020}.json").unlink()
    runs.history(small.output, None, as_json=False)
    assert text(capsys).splitlines()[1].split()[:2] == ["2", "pending"]
    assert "has manifest 1, the output manifest 2" in problems(small)
    [problem] = diagnosed(small).problems
    assert (problem.situation, problem.action) == (
        "table differs",
        "commit what is missing to the Delta log",
    )
    assert repair(TableLog(small.storage, small.output))[-1].problems == ()
    assert problems(small) == ""
    assert DeltaTable(small.root / "out").version() == 1


def test_changes_of_others_are_named(small: Small) -> None:
    DeltaTable(small.root / "out").delete()
    assert "1 file removed from the table by another writer" in problems(small)
    [problem] = repair(TableLog(small.storage, small.output))[-1].problems
    assert not problem.action and "DeltaTable.restore" in problem.advice
    DeltaTable(small.root / "out").restore(1)
    assert problems(small) == ""


def test_a_damaged_log_hides_no_history(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    log = small.root / "out" / "_delta_log" / f"{1:020}.json"
    log.write_text(log.read_text()[:-30])
    runs.history(small.output, None, as_json=False)
    lines = text(capsys)
    assert "is damaged" in lines and "overwrite" in lines
    assert "is damaged" in problems(small)
    assert not diagnosed(small).can_repair


def test_a_vacuum_says_what_it_keeps(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    runs.vacuum(small.output, None, older_than=-1.0, dry_run=False, discard=[], as_json=False)
    assert "its own vacuum deletes them" in " ".join(text(capsys).split())
    assert len(list((small.root / "out").glob("*.parquet"))) == 2
