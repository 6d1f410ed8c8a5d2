"""A failed chunk names its objects, rows and partition, and the user's own lines before ours."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from pipeline.runs.driver.driver_failures import DriverFailures
from pipeline.runs.driver.summary import RunIncompleteError
from pipeline.runs.ledger.records import Failure
from pipeline.runs.worker.failures import failure_of, where_of
from tests.support.memory_storage import MemoryBackend
from tests.support.runs_by_hand import plan_of, run_of
from tests.support.small import Small

CODE = """
import polars as pl

def check(values):
    if values.max() > 2:
        raise ValueError("too many")
    return values

def at_run_time(frame):
    return frame.with_columns(pl.col("id").map_batches(check, return_dtype=pl.Int64))

def at_once(frame):
    if frame.select(pl.col("id").max()).collect().item() == 5:
        raise KeyError("five")
    return frame

def by_polars(frame):
    return frame.with_columns(pl.col("id").cast(pl.String).str.to_integer(base=4))
"""


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Small:
    monkeypatch.chdir(tmp_path)
    small = Small(tmp_path, CODE)
    for day, ids in ((1, [1, 2]), (2, [3, 4, 5])):
        small.write(f"day={day}/a.parquet", pl.DataFrame({"id": ids}))
    return small


def failed(small: Small, function: str) -> tuple[RunIncompleteError, Failure]:
    with pytest.raises(RunIncompleteError) as caught:
        small.run(small.job(function))
    [row] = small.ledger(caught.value.summary).read().failures.iter_rows(named=True)
    return caught.value, Failure(**row)


@pytest.mark.parametrize(
    ("function", "line", "frames"),
    [
        ("at_run_time", "6 in check", ["6 in check"]),
        ("at_once", "14 in at_once", ["14 in at_once"]),
    ],
)
def test_the_users_frames_come_first(
    small: Small, function: str, line: str, frames: list[str]
) -> None:
    error, failure = failed(small, function)
    assert failure.where == f"{small.input}day=2/a.parquet, rows 0 to 2 (day=2)"
    assert failure.line.endswith(f"/{small.module}.py:{line}")
    theirs, _, whole = failure.trace.partition("\n\nAll frames:\n")
    head, *places = theirs.splitlines()
    assert head == "Your code (most recent call last):"
    assert [place.partition(".py:")[2] for place in places if ".py:" in place] == frames
    assert {"ValueError: too many", "KeyError: 'five'"} & set(places)
    assert "/polars/" in whole or "pipeline/runs" in whole
    [shown] = error.summary.errors
    first, chunk, at = shown.splitlines()
    assert first.startswith("1 chunk failed: TransformError: ")
    assert chunk == f"e.g. chunk 1: {failure.where}"
    assert at == f"at {failure.line}"


def test_a_query_that_fails_in_polars_names_the_function_that_returned_it(small: Small) -> None:
    _, failure = failed(small, "by_polars")
    assert failure.line.startswith("in the query of ")
    assert failure.line.endswith(f"/{small.module}.py:17 in by_polars")


def test_a_chunk_of_several_objects_names_the_first_and_counts_the_others() -> None:
    first, *others = plan_of(3).chunks([0, 1, 2])
    whole = replace(
        first, fragments=tuple(f for chunk in (first, *others) for f in chunk.fragments)
    )
    uri = first.fragments[0].uri
    assert where_of(whole) == f"{uri}, rows 0 to 1, and 4 rows of 2 more objects"


def test_texts_that_are_no_utf_8_are_escaped() -> None:
    """Python's names of files may hold lone surrogates, which no segment can."""
    run = run_of(MemoryBackend().storage(), plan_of(2))
    code = compile("raise ValueError('caf\\udce9')", "/folder/\udcff.py", "exec")
    with pytest.raises(ValueError) as caught:
        exec(code, {"__name__": "examples.odd"})
    run.store(failure_of(run.plan.chunk(0), caught.value, "b", "w", allow=["examples"]))
    DriverFailures(run.ledger, run.plan).record([1], "BatchError", "\ud800", transient=False)
    first, second = run.ledger.read().failed().iter_rows(named=True)
    assert first["message"] == "caf\\udce9"
    assert first["trace"].startswith("Your code (most recent call last):\n  folder/\\udcff.py:1 in")
    assert first["line"] == "folder/\\udcff.py:1 in <module>"
    assert second["message"] == "\\ud800"
