"""Jobs that differ in what the transform sees are different runs, also with the same chunks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.runs.driver.plan import ResumeOptions, plan_run
from pipeline.runs.ledger.ledger import Ledger, run_id
from tests.support.small import Small

CODE = """
def same(frame):
    return frame
"""


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Small:
    monkeypatch.chdir(tmp_path)
    small = Small(tmp_path, CODE)
    for number in range(2):
        small.write(f"{number}.parquet", pl.DataFrame({"a": [0, 1, 2], "b": [3, 4, 5]}))
    return small


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("more", "rows", "columns"),
    [
        ({"filter": [["a", "<", 2]]}, 4, ["a", "b"]),
        ({"filter": [["a", ">", 0], ["b", "<", 5]]}, 2, ["a", "b"]),
        ({"columns": ["b"]}, 6, ["b"]),
        ({"object_column": "file"}, 6, ["a", "b", "file"]),
    ],
)
def test_a_filter_that_prunes_nothing_is_another_run(
    small: Small, more: dict[str, Any], rows: int, columns: list[str]
) -> None:
    plain = small.run(small.job("same", mode="overwrite"))
    assert small.rows().shape == (6, 2)
    job = small.job("same", mode="overwrite", input={"uri": small.input, **more})
    other = small.run(job)
    assert other.run != plain.run
    assert small.rows().height == rows
    assert small.rows().columns == columns
    again = small.run(job)
    assert (again.run, again.mapped) == (other.run, 0)


def test_a_run_of_an_earlier_release_is_still_the_same_run(small: Small) -> None:
    job = small.job("same", input={"uri": small.input, "filter": [["a", "<", 2]]})
    ledger = plan_run(job, small.settings, small.storage, ResumeOptions()).ledger
    record, plan = ledger.record(), ledger.plan()
    old = run_id(plan, job, record.fingerprint, tables=record.tables, sees=False)
    assert old != record.run
    # As the release before has stored it: the same record under the old id, not published yet.
    small.storage.delete(ledger.prefix + "run.json")
    Ledger.create(small.storage, job, plan, record.fingerprint, 0, tables=record.tables, sees=False)
    assert small.run(job).run == old
