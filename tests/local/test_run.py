"""Runs on this machine: the same results, failures and files as those of the serial executor."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from pipeline.config.settings import load_settings
from pipeline.local.launch import backfill_locally, run_locally
from pipeline.local.workers import LocalWorkers
from pipeline.processes import record_interrupts
from pipeline.runs.backfill.plan import WindowSelection, create, draft
from pipeline.runs.backfill.records import BackfillResumeOptions, Options
from pipeline.runs.driver.plan import ResumeOptions
from pipeline.runs.driver.run import run_serially
from pipeline.runs.driver.summary import RunIncompleteError, RunSummary
from pipeline.storage import open_storage
from tests.support.small import Small

CODE = """
import os
import polars as pl

def same(lf):
    return lf

def double(lf, *, factor=2):
    return lf.with_columns(n=pl.col("n") * factor)

def _odd(frame):
    if frame["n"].max() == 3:
        raise ValueError("three")
    return frame

def refuse_three(lf):
    return lf.map_batches(_odd)

def _die(frame):
    if frame["n"].max() == 3:
        os._exit(9)
    return frame

def die_at_three(lf):
    return lf.map_batches(_die)

def partial(lf):
    return lf.select(pl.col("n").sum())

def combine(frames):
    return pl.concat(frames).select(pl.col("n").sum())
"""


class Local(Small):
    """Runs with worker processes that all tests of this module share."""

    workers: LocalWorkers

    def run_here(self, job: object, **resume: object) -> RunSummary:
        return run_locally(
            job,  # type: ignore[arg-type]
            self.settings,
            lambda phase, progress: None,
            ResumeOptions(**resume),  # type: ignore[arg-type]
            self.workers,
        )


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    root = tmp_path_factory.mktemp("local")
    local = Local(root, CODE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for number in range(1, 5):
            local.write(f"{number}.parquet", pl.DataFrame({"n": [number]}))
        with LocalWorkers(load_settings(overrides={"dask": {"workers": 2}})) as local.workers:
            yield local


@pytest.fixture
def local(shared: Local, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Local]:
    """The same folder, with another output for each test."""
    monkeypatch.chdir(shared.root)
    monkeypatch.setattr(Local, "output", f"file://{tmp_path}/out/")
    with record_interrupts():  # As a command does; others may have left one behind.
        yield shared


def test_the_output_is_that_of_the_serial_executor(local: Local, tmp_path: Path) -> None:
    job = local.job("double", params={"factor": 3})
    summary = local.run_here(job)
    assert (summary.state, summary.mapped, summary.failed) == ("done", 4, 0)
    other = job.model_copy(
        update={"output": job.output.model_copy(update={"uri": f"{tmp_path}/serial/"})}
    )
    serial = run_serially(other, local.settings, open_storage(local.settings))
    assert summary.rows_out == serial.rows_out
    assert sorted(local.rows()["n"]) == [3, 6, 9, 12]
    again = local.run_here(job)
    assert (again.run, again.mapped) == (summary.run, 0)


def test_a_failed_chunk_is_retried_when_the_job_is_run_again(local: Local) -> None:
    with pytest.raises(RunIncompleteError) as failed:
        local.run_here(local.job("refuse_three"))
    summary = failed.value.summary
    assert (summary.mapped, summary.failed) == (3, 1)
    assert "ValueError: three" in summary.errors[0]
    with pytest.raises(RunIncompleteError) as again:
        local.run_here(local.job("refuse_three"))
    assert again.value.summary.run == summary.run
    assert again.value.summary.mapped == 0


def test_a_chunk_that_kills_its_worker_fails_alone(local: Local) -> None:
    with pytest.raises(RunIncompleteError) as failed:
        local.run_here(local.job("die_at_three", rounds=3))
    summary = failed.value.summary
    assert (summary.mapped, summary.failed) == (3, 1)
    assert "ended with exit code 9" in summary.errors[0]


def test_a_reduce_combines_in_workers(local: Local) -> None:
    reduce = {"combine": f"{local.module}:combine"}
    local.run_here(local.job("partial", "overwrite", reduce=reduce))
    assert local.rows()["n"].to_list() == [10]


def test_the_runs_of_a_backfill_share_the_workers(local: Local) -> None:
    for day in ("2024-01-01", "2024-01-02", "2024-01-03"):
        local.write(f"ds={day}/part.parquet", pl.DataFrame({"n": [1]}), "daily")
    source = {"uri": f"file://{local.root}/daily/"}
    job = local.job("double", "overwrite-partitions", input=source, window={"column": "ds"})
    drafted = draft(job, local.settings, local.storage, WindowSelection(), Options())
    created = create(local.storage, drafted)
    assert created is not None
    done = backfill_locally(
        created[0],
        local.settings,
        lambda progress, phase: None,
        BackfillResumeOptions(),
        local.workers,
    )
    assert (done.state, done.counts["done"]) == ("done", 3)
    assert local.rows()["n"].to_list() == [2, 2, 2]


def test_the_command_runs_a_job_without_services(local: Local, tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(local.job("double").to_yaml())
    program = (
        "import sys\n"
        "from pipeline.cli.app import app\n"
        "app(sys.argv[1:], standalone_mode=False)\n"
        "foreign = {'prefect', 'dask', 'distributed', 'prefect_dask', 'botocore', 'obstore'}\n"
        "print(sorted(foreign & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "run", str(file), "--local", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    result, modules = done.stdout.splitlines()
    assert json.loads(result)["state"] == "done"
    assert json.loads(result)["prefect_ui"] == ""
    assert modules == "[]"
    assert sorted(local.rows()["n"]) == [2, 4, 6, 8]
