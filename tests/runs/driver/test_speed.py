"""The speed of a run is remembered for the next one of the same code."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from pipeline.config.job import Job
from pipeline.config.settings import Settings
from pipeline.runs.driver import run as driving
from pipeline.runs.driver.plan import ResumeOptions, plan_run
from pipeline.runs.driver.run import run_serially
from pipeline.storage import open_storage

pytestmark = pytest.mark.usefixtures("own_folder")


def test_a_run_after_another_knows_its_speed(tmp_path: Path) -> None:
    settings = Settings()
    storage = open_storage(settings)
    job = Job.model_validate(
        {
            "name": "speed",
            "input": {"uri": f"file://{tmp_path}/in/"},
            "transform": "pipeline.examples.stations:partial",
            "output": {"uri": f"file://{tmp_path}/out/", "mode": "overwrite"},
        }
    )
    (tmp_path / "in").mkdir()

    def add(number: int) -> None:
        frame = pl.DataFrame({"station": ["a", "b"], "measure": [1.0, number]})
        frame.write_parquet(tmp_path / "in" / f"{number}.parquet")

    add(1)
    assert plan_run(job, settings, storage, ResumeOptions()).speed == 0
    run_serially(job, settings, storage)
    add(2)
    planned = plan_run(job, settings, storage, ResumeOptions())
    assert planned.is_new
    assert planned.speed > 0
    assert driving._speeds[planned.fingerprint] == pytest.approx(planned.speed)
