"""`adopt`, `history`, `verify`, `head` and `rollback` of local files that something else wrote."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from pipeline.cli import adopt as adopting
from pipeline.cli import runs, status
from pipeline.runs.admin.known_outputs import known_outputs
from pipeline.table.scan import scan_output
from tests.support.small import Small

CODE = """
import polars as pl

def twice(frame):
    return frame.select(twice=pl.col("n") * 2)
"""


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Small:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    small = Small(tmp_path, CODE)
    for day in (1, 2):
        frame = pl.DataFrame({"n": [day, day * 10], "text": ["a", "b"]})
        small.write(f"day={day}/all.parquet", frame, "out")
    return small


def test_files_get_a_column_where_they_are(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    adopting.adopt(small.output, None, dry_run=True, as_json=False)
    assert "2 files, 4 rows" in capsys.readouterr().out
    assert not (small.root / "out.chunkmap").exists()

    adopting.adopt(small.output, None, dry_run=False, as_json=False)
    shown = capsys.readouterr()
    assert "adopted as version 1; none was touched" in shown.out
    assert "n Int64, text String" in shown.out
    assert f"{small.root}/out.chunkmap/replaced/" in shown.err and "deleted for good" in shown.err
    assert known_outputs(small.root / ".chunkmap") == [small.output]

    adopting.adopt(small.output, None, dry_run=False, as_json=True)
    assert json.loads(capsys.readouterr().out)["adopted_before"] == 2

    assert status.verify(small.output, None) == 0
    assert "adopted: 2 files without a digest" in capsys.readouterr().out
    before = scan_output(small.output).sort("n").collect()
    assert before.columns == ["n", "text", "day"]

    output = {"keep": "all"}
    job = small.job("twice", "overwrite", input={"uri": small.output}, output=output)
    small.run(job)
    now = scan_output(small.output).sort("n").collect()
    assert now["twice"].to_list() == [2, 4, 20, 40]
    assert status.verify(small.output, None) == 0
    assert "adopted" not in capsys.readouterr().out

    runs.history(small.output, None, as_json=False)
    _, newest, oldest = capsys.readouterr().out.splitlines()
    assert "overwrite" in newest and "adopt" in oldest
    runs.rollback(small.output, None, None, as_json=False)
    assert_frame_equal(scan_output(small.output).sort("n").collect(), before)
    assert status.verify(small.output, None) == 0


def test_a_touched_file_is_another_version(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    adopting.adopt(small.output, None, dry_run=False, as_json=False)
    small.write("day=1/all.parquet", pl.DataFrame({"n": [1, 10], "text": ["a", "c"]}), "out")
    assert status.verify(small.output, None) == 1
    assert "another version than was adopted" in capsys.readouterr().out
