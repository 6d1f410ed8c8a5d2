"""Jobs that cannot have the result which they name are refused, with reason and exit code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from deltalake import write_deltalake

from tests.support.forks import give
from tests.support.small import Small

CODE = """
import dataframely as dy

def same(frame):
    return frame

class Other(dy.Schema):
    missing = dy.Int64()
"""


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Small:
    monkeypatch.chdir(tmp_path)
    small = Small(tmp_path, CODE)
    small.write("0.parquet", pl.DataFrame({"id": [1, 2]}))
    return small


def refused(small: Small, **job: Any) -> tuple[int, str]:
    """Plan a job, which is refused; return the exit code and what the command said."""
    (small.root / "job.yaml").write_text(small.job(**job).to_yaml())
    done = give("plan", "job.yaml", cwd=small.root)
    assert not list(small.root.glob("out*")) and "Traceback" not in done.stderr
    return done.returncode, " ".join(done.stderr.split())


def test_a_schema_that_contradicts_the_result(small: Small) -> None:
    pytest.importorskip("dataframely", reason="the extra `checks` is not installed")
    code, said = refused(small, checks=f"{small.module}:Other")
    assert code == 2 and "does not fit the schema" in said


def test_a_partition_column_that_is_missing(small: Small) -> None:
    code, said = refused(small, output={"partition_by": ["ids"]})
    assert code == 2 and "did you mean 'id'?" in said


def test_an_input_table_with_a_damaged_log(small: Small) -> None:
    for number in range(2):
        write_deltalake(small.root / "t", pl.DataFrame({"id": [number]}), mode="append")
    log = small.root / "t" / "_delta_log" / f"{1:020}.json"
    log.write_bytes(log.read_bytes()[:-20])
    source = {"table": f"file://{small.root}/t/"}
    code, said = refused(small, input=source, mode="overwrite")
    assert code == 1 and "_delta_log/ cannot be used: the Delta log is damaged" in said
