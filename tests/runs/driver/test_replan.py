"""A run that is planned again after another one is the run that it was."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from pipeline.config.job import Job
from pipeline.config.settings import Settings
from pipeline.runs.driver.plan import ResumeOptions, plan_run
from pipeline.runs.driver.run import run_serially
from pipeline.storage import open_storage

pytestmark = pytest.mark.usefixtures("own_folder")


def test_a_run_before_the_last_is_not_new(tmp_path: Path) -> None:
    """Otherwise the request to stop it, which it was once given, would stop it again."""
    settings = Settings()
    storage = open_storage(settings)
    job = Job.model_validate(
        {
            "name": "again",
            "input": {"uri": f"file://{tmp_path}/in/"},
            "transform": "pipeline.examples.stations:partial",
            "output": {"uri": f"file://{tmp_path}/out/", "mode": "overwrite"},
        }
    )
    (tmp_path / "in").mkdir()
    first, second = tmp_path / "in" / "1.parquet", tmp_path / "in" / "2.parquet"
    pl.DataFrame({"station": ["a"], "measure": [1.0]}).write_parquet(first)
    planned = plan_run(job, settings, storage, ResumeOptions())
    assert planned.is_new
    planned.ledger.cancel()

    pl.DataFrame({"station": ["b"], "measure": [2.0]}).write_parquet(second)
    other = plan_run(job, settings, storage, ResumeOptions(replan=True))
    assert other.ledger.run != planned.ledger.run
    second.unlink()

    again = plan_run(job, settings, storage, ResumeOptions(replan=True))
    assert again.ledger.run == planned.ledger.run
    assert not again.is_new
    summary = run_serially(job, settings, storage, ResumeOptions(run=planned.ledger.run))
    assert (summary.state, summary.rows_in) == ("done", 1)
    assert not planned.ledger.is_cancelled()
