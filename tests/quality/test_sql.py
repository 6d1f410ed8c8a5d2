"""Queries see the result and nothing else."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from pipeline.errors import CheckError
from pipeline.quality.sql import rows_of

pytest.importorskip("duckdb", reason="the extra `checks` is not installed")


@pytest.fixture
def result(tmp_path: Path) -> Path:
    folder = tmp_path / "it's a result"
    folder.mkdir()
    for number in range(3):
        frame = pl.DataFrame(
            {"id": range(number * 10, number * 10 + 10), "odd name": [number] * 10}
        )
        frame.write_parquet(folder / f"{number}.parquet")
    return folder


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("SELECT * FROM result WHERE id < 0", 0),
        ('SELECT "odd name", count(*) AS n FROM result GROUP BY ALL HAVING n <> 10;', 0),
        ("SELECT id FROM result WHERE id >= 5 -- a comment", 25),
        ("WITH big AS (SELECT * FROM result WHERE id > 28) SELECT * FROM big", 1),
    ],
)
def test_rows_are_counted(result: Path, query: str, count: int) -> None:
    found = rows_of(query, result)
    assert found.count == count and len(found.examples) == min(count, 3)


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("SELECT * FROM read_csv('/etc/passwd')", "cannot be run"),
        ("SELECT * FROM read_parquet('s3://bucket/key')", "cannot be run"),
        ("COPY result TO '/tmp/stolen.csv'", "not a single SELECT"),
        ("SELECT 1; DROP VIEW result", "not a single SELECT"),
        ("INSTALL httpfs", "not a single SELECT"),
        ("SET enable_external_access = true", "not a single SELECT"),
        ("SELECT nope FROM result", 'column "nope" not found'),
        ("SELEKT", "syntax error"),
    ],
)
def test_what_is_no_query_of_the_result_is_refused(result: Path, query: str, problem: str) -> None:
    with pytest.raises(CheckError, match=problem):
        rows_of(query, result)
