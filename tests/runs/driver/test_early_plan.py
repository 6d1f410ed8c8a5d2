"""A run that is planned before its cluster is there is the run that would be planned on it."""

from pathlib import Path
from threading import Event

import polars as pl
import pytest

from partitioning import NoParquetError
from pipeline.config.job import Job
from pipeline.config.settings import Settings
from pipeline.runs.driver.early_plan import BackgroundPlan, EarlyPlan, plan_early
from pipeline.runs.driver.plan import ResumeOptions, plan_run
from pipeline.storage import open_storage


def settings(threshold: int) -> Settings:
    return Settings.model_validate({"planner": {"map_threshold": threshold}})


def job(folder: Path, source: str = "in") -> Job:
    return Job.model_validate(
        {
            "name": "early",
            "input": {"uri": f"file://{folder}/{source}/"},
            "transform": "pipeline.examples.stations:partial",
            "output": {"uri": f"file://{folder}/out/"},
        }
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for number in range(3):
        frame = pl.DataFrame({"station": ["a", "b"], "measure": [1.0, number]})
        frame.write_parquet(tmp_path / "in" / f"{number}.parquet")
    return tmp_path


def test_it_is_the_run_that_would_be_planned_later(folder: Path) -> None:
    usual, resume = settings(20_000), ResumeOptions()
    early = plan_early(job(folder), usual, open_storage(usual), resume)
    assert early.run is not None
    assert early.run.is_new
    assert early.seconds > 0
    later = plan_run(job(folder), usual, open_storage(usual), resume)
    assert (later.ledger.run, later.plan.id) == (early.run.ledger.run, early.run.plan.id)
    assert not later.is_new


def test_an_input_whose_footers_workers_read_is_left_to_them(folder: Path) -> None:
    few, resume = settings(3), ResumeOptions()
    assert plan_early(job(folder), few, open_storage(few), resume).run is None
    assert not (folder / "out.chunkmap").exists()


def test_an_input_that_is_not_there_is_refused_and_nothing_stored(folder: Path) -> None:
    usual = settings(20_000)
    with pytest.raises(NoParquetError):
        plan_early(job(folder, "nothing"), usual, open_storage(usual), ResumeOptions())
    assert sorted(path.name for path in folder.iterdir()) == ["in"]


def test_a_plan_in_the_background_is_awaited_once(folder: Path) -> None:
    usual = settings(20_000)
    begun = Event()

    def plan() -> EarlyPlan:
        assert begun.wait(10)
        return plan_early(job(folder), usual, open_storage(usual), ResumeOptions())

    background = BackgroundPlan(plan)
    begun.set()
    first = background.result()
    assert first.run is not None
    assert first.run.is_new
    assert background.result() is first


def test_a_bad_input_in_the_background_is_raised_where_it_is_awaited(folder: Path) -> None:
    usual = settings(20_000)
    background = BackgroundPlan(
        lambda: plan_early(job(folder, "nothing"), usual, open_storage(usual), ResumeOptions())
    )
    for _ in range(2):
        with pytest.raises(NoParquetError):
            background.result()
