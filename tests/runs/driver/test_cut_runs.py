"""Whole runs over a row group that is cut, held against plain Polars."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from polars.testing import assert_frame_equal

from pipeline.runs.driver.plan import plan_input
from pipeline.runs.driver.summary import RunIncompleteError
from tests.support.small import Small

CODE = """
import os
from pathlib import Path
import polars as pl

def double(frame):
    return frame.select("id", twice=pl.col("value") * 2)

def fails(frame):
    def check(series):
        if not Path(os.environ["FIXED"]).exists() and (series == 1_500_000).any():
            raise ValueError("cannot do it")
        return series
    return double(frame.with_columns(pl.col("id").map_batches(check, return_dtype=pl.Int64)))

def total(frame):
    return frame.select(pl.col("id").sum(), pl.len().alias("rows"))

def add(frames):
    return pl.concat(frames).sum()
"""
ROWS = 4_000_000
CUT: dict[str, Any] = {"target": "16MiB"}
PARTS = 3


@pytest.fixture(scope="module")
def frame() -> pl.DataFrame:
    return pl.DataFrame({"id": np.arange(ROWS), "value": np.arange(ROWS) / 4, "more": "x"})


@pytest.fixture(scope="module")
def stored(frame: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One row group of 64 MB of what is read, with a page index, and a small one without."""
    folder = tmp_path_factory.mktemp("input")
    (folder / "day=1").mkdir()
    (folder / "day=2").mkdir()
    path = folder / "day=1" / "a.parquet"
    pq.write_table(frame.to_arrow(), path, row_group_size=ROWS, write_page_index=True)
    frame.head(10).write_parquet(folder / "day=2" / "b.parquet")
    return folder


@pytest.fixture
def small(tmp_path: Path, stored: Path, monkeypatch: pytest.MonkeyPatch) -> Small:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FIXED", str(tmp_path / "fixed"))
    for path in stored.glob("*/*.parquet"):
        target = tmp_path / "in" / path.parent.name / path.name
        target.parent.mkdir(parents=True)
        os.link(path, target)
    return Small(tmp_path, CODE)


def expected(frame: pl.DataFrame) -> pl.DataFrame:
    both = pl.concat([frame.with_columns(day=1), frame.head(10).with_columns(day=2)])
    return both.select("id", twice=pl.col("value") * 2, day=pl.col("day").cast(pl.Int64))


def test_parts_are_mapped_and_published_as_chunks_are(small: Small, frame: pl.DataFrame) -> None:
    job = small.job("double", chunks=CUT)
    planned = plan_input(job, small.settings, small.storage).result
    assert (planned.explain.row_groups_cut, planned.explain.parts) == (1, PARTS)
    summary = small.run(job)
    assert (summary.chunks, summary.failed, summary.rows_in) == (PARTS + 1, 0, ROWS + 10)
    found = small.rows()
    assert_frame_equal(found, expected(frame).select(found.columns))
    assert small.run(job).mapped == 0


def test_a_part_that_fails_is_all_that_is_mapped_later(small: Small, frame: pl.DataFrame) -> None:
    job = small.job("fails", chunks=CUT)
    with pytest.raises(RunIncompleteError) as caught:
        small.run(job)
    summary = caught.value.summary
    assert (summary.failed, summary.mapped, summary.manifest) == (1, PARTS, None)
    (small.root / "fixed").touch()
    fixed = small.run(job)
    assert (fixed.run, fixed.mapped, fixed.failed) == (summary.run, 1, 0)
    found = small.rows()
    assert_frame_equal(found, expected(frame).select(found.columns))


def test_filters_and_reduces_see_each_row_once(small: Small, frame: pl.DataFrame) -> None:
    source = {"uri": small.input, "filter": [["id", ">=", 1_000_000], ["day", "==", 1]]}
    reduce = {"combine": f"{small.module}:add"}
    small.run(small.job("total", chunks=CUT, input=source, reduce=reduce))
    left = frame.filter(pl.col("id") >= 1_000_000)
    assert small.rows().select("id", "rows").row(0) == (left["id"].sum(), left.height)
