"""Order of rows within files, and settings of files that name columns of the result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.config.job import parse_job
from pipeline.errors import ChunkmapError, JobError
from pipeline.runs.driver.summary import RunIncompleteError
from pipeline.runs.ledger.ledger import Ledger
from tests.support.small import Small

CODE = """
import polars as pl

def same(frame):
    return frame

def by_data(frame):
    return frame.map_batches(lambda df: df, schema=None, validate_output_schema=False)

def joined(frames):
    return pl.concat(frames)

def objects(frame):
    return frame.select("n", o=pl.col("row").map_elements(lambda n: object(), pl.Object))
"""
FRAME = pl.DataFrame(
    {
        "n": [3, 1, None, 2, 1, 3],
        "^n$": ["f", "e", "d", "c", "b", "a"],
        "row": [0, 1, 2, 3, 4, 5],
    }
)

OBJECTS = "column 'o' has Python objects, not a type of Parquet"


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Small:
    monkeypatch.chdir(tmp_path)
    small = Small(tmp_path, CODE)
    small.write("a.parquet", FRAME)
    small.write("b.parquet", FRAME.with_columns(pl.col("row") + 10))
    return small


def files(small: Small) -> list[pl.DataFrame]:
    return [pl.read_parquet(path) for path in sorted(small.root.glob("out/*.parquet"))]


@pytest.mark.parametrize("keys", [["n"], ["^n$"], ["n", "^n$"]])
def test_the_rows_of_each_file_are_sorted(small: Small, keys: list[str]) -> None:
    small.run(small.job(output={"sort_by": keys}))
    by = [pl.nth(FRAME.columns.index(key)) for key in keys]
    expected = FRAME.sort(by, maintain_order=True)
    first, second = files(small)
    assert first.equals(expected)
    assert second["row"].to_list() == (expected["row"] + 10).to_list()


def test_the_result_of_a_reduce_is_sorted(small: Small) -> None:
    reduce = {"combine": f"{small.module}:joined"}
    small.run(small.job(mode="overwrite", output={"sort_by": ["row"]}, reduce=reduce))
    [file] = files(small)
    assert file["row"].to_list() == sorted(file["row"].to_list())


@pytest.mark.parametrize("key", ["sort_by", "dictionary"])
def test_a_column_that_no_result_has_is_refused_in_planning(small: Small, key: str) -> None:
    with pytest.raises(JobError, match=f"output.{key} names the column 'rows'.*did you mean 'row'"):
        small.run(small.job(output={key: ["rows"]}))
    assert not (small.root / "out.chunkmap").exists()


def test_a_column_that_a_result_lacks_fails_its_chunk(small: Small) -> None:
    with pytest.raises(RunIncompleteError) as raised:
        small.run(small.job("by_data", output={"sort_by": ["day"]}))
    ledger = Ledger(small.storage, small.output, raised.value.summary.run)
    assert "output.sort_by names the column 'day'" in ledger.read().failures["message"][0]
    assert not files(small)


def test_a_column_that_is_named_twice_is_refused() -> None:
    text = """
name: a
input: {uri: s3://a/b/}
transform: a:b
output: {uri: s3://a/c/, sort_by: [x, x]}
"""
    with pytest.raises(JobError, match=r"job.yaml:5: `output.sort_by`: column 'x' is named twice"):
        parse_job(text)


@pytest.mark.parametrize(
    "output",
    [{}, {"page_index": True}, {"dictionary": ["n"]}, {"file_bytes": "1MiB"}],
    ids=str,
)
def test_python_objects_are_not_written(small: Small, output: dict[str, Any]) -> None:
    """As Arrow, they would be the addresses of the objects."""
    with pytest.raises(RunIncompleteError) as raised:
        small.run(small.job("objects", output=output))
    failures = small.ledger(raised.value.summary).read().failures
    assert failures["message"].unique().to_list() == [OBJECTS]
    assert not files(small)


@pytest.mark.parametrize("output", [{}, {"page_index": True}], ids=str)
def test_python_objects_are_not_reduced(small: Small, output: dict[str, Any]) -> None:
    reduce = {"combine": f"{small.module}:joined"}
    with pytest.raises(RunIncompleteError) as raised:
        small.run(small.job("objects", output=output, reduce=reduce))
    failures = small.ledger(raised.value.summary).read().failures
    assert failures["message"].unique().to_list() == [OBJECTS]
    reduce["finalize"] = f"{small.module}:objects"
    with pytest.raises(ChunkmapError, match=OBJECTS):
        small.run(small.job(output=output, reduce=reduce))
    assert not files(small)
