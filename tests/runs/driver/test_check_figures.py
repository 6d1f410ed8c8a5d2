"""What checks have found, as the history of an output and its verification tell it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.cli import runs as commands
from pipeline.cli.status import verify
from tests.support.small import Small

pytest.importorskip("dataframely", reason="the extra `checks` is not installed")

CODE = """
import dataframely as dy
import polars as pl

def same(lf: pl.LazyFrame) -> pl.LazyFrame:
    return lf

class Sales(dy.Schema):
    id = dy.Int64()

    @dy.rule()
    def not_seven(cls) -> pl.Expr:
        return pl.col("id") % 7 != 0
"""


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Small:
    monkeypatch.chdir(tmp_path)
    small = Small(tmp_path, CODE)
    for number in range(2):
        ids = pl.Series("id", range(number * 10, number * 10 + 10), dtype=pl.Int64)
        small.write(f"{number}.parquet", ids.to_frame())
    rows = {"schema": f"{small.module}:Sales", "severity": "quarantine"}
    checks: list[dict[str, Any]] = [
        {"check": "unique", "columns": ["id"]},
        {"check": "total", "column": "id", "expected": 5, "severity": "warn", "name": "sum"},
    ]
    small.run(small.job(mode="overwrite"))
    small.run(small.job(mode="overwrite", checks={"rows": rows, "run": checks}))
    return small


def test_the_history_has_the_figures(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    commands.history(small.output, None, as_json=False)
    text = capsys.readouterr().out
    assert "checks" in text and "3 made, 1 warned, 3 rows in quarantine" in " ".join(text.split())
    commands.history(small.output, None, as_json=True)
    newest, first = json.loads(capsys.readouterr().out)["manifests"]
    [commit] = newest["commits"]
    assert (commit["checks"], commit["warnings"], commit["rejected"]) == (3, 1, 3)
    found = {each["name"]: each for each in commit["check_results"]}
    assert found["sum"]["outcome"] == "warned" and found["sum"]["figures"]["total"] == 169
    assert found["unique(id)"]["figures"] == {"repeated_keys": 0}
    assert first["commits"][0]["check_results"] == []


def test_without_checks_the_history_is_as_before(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    other = small.job(output={"uri": f"file://{small.root}/other/"})
    small.run(other)
    commands.history(other.output.uri, None, as_json=False)
    assert "checks" not in capsys.readouterr().out


def test_verification_has_the_figures(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert verify(small.output, None) == 0
    text = capsys.readouterr().out
    assert "checks: 3 made, 1 warned, 3 rows in quarantine" in text
    assert "check sum: 169; expected 5" in " ".join(text.split())
    assert verify(small.output, None, as_json=True) == 0
    found = json.loads(capsys.readouterr().out)
    assert [check["outcome"] for check in found["checks"]] == ["quarantined", "passed", "warned"]
    assert found["rejected"] == 3 and len(found["rejected_in"]) == 1


@pytest.mark.parametrize("lost", [True, False])
def test_rows_in_quarantine_are_verified(
    small: Small, capsys: pytest.CaptureFixture[str], lost: bool
) -> None:
    path = next((small.root / "out.chunkmap" / "quarantine" / "rows").rglob("*.parquet"))
    if lost:
        path.unlink()
    else:
        pl.read_parquet(path).clear().write_parquet(path)
    capsys.readouterr()
    assert verify(small.output, None) == 1
    text = " ".join("".join(capsys.readouterr()).split())
    assert ("in quarantine of commit" if lost else "has 0 rows, the commit says") in text


def test_damaged_rows_in_quarantine_are_a_problem_of_their_file(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    path = next((small.root / "out.chunkmap" / "quarantine" / "rows").rglob("*.parquet"))
    path.write_bytes(path.read_bytes()[:-20])
    capsys.readouterr()
    assert verify(small.output, None) == 1
    text = "".join("".join(capsys.readouterr()).split())
    assert f"{path.name}isdamaged" in text
