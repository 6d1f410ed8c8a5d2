"""State expires with age, and never what the current or a kept version, or a resumption, needs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.runs.admin.status import list_runs
from pipeline.runs.admin.verify import verify_output
from pipeline.runs.backfill.records import BackfillResumeOptions
from pipeline.runs.backfill.summary import BackfillIncompleteError
from pipeline.runs.backfill.vacuum_state import StateVacuumResult, vacuum_state
from pipeline.runs.driver.plan import ResumeOptions
from pipeline.runs.driver.run import run_serially
from pipeline.runs.driver.summary import RunIncompleteError
from pipeline.table.log import TableLog
from pipeline.table.publish import rollback
from tests.support.backfills import Days, days

DAY = 86_400.0


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Days:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return Days(tmp_path)


def expire(world: Days, days_later: int = 100, **more: Any) -> StateVacuumResult:
    """Vacuum what is older than 90 days, as if this number of days had passed."""
    now = time.time() + days_later * DAY
    return vacuum_state(world.storage, world.output, older_than=90 * DAY, now=now, **more)


def publish(world: Days, value: float) -> str:
    """Publish the input with another value, over what was there; returns the run."""
    world.write(days("2024-03-01", 2), value)
    job = world.job(output={"uri": world.output, "mode": "overwrite", "keep_versions": 1})
    return run_serially(job, world.settings, world.storage).run


def state_of(world: Days, run: str) -> set[str]:
    prefix = f"{world.output}.chunkmap/runs/{run}/"
    return {info.uri.removeprefix(f"file://{prefix}") for info in world.storage.objects(prefix)}


def test_runs_of_versions_that_are_gone_expire(world: Days) -> None:
    first, second, third = (publish(world, value) for value in (1.0, 2.0, 3.0))
    plan = expire(world, dry_run=True)
    assert (plan.runs, set(plan.needed)) == ((first,), {second, third})
    assert "plan.arrow" in state_of(world, first)
    reports = world.settings.state_dir / "reports"
    assert (reports / first).exists()
    done = expire(world, local=world.settings.state_dir)
    assert (done.runs, done.objects, done.bytes) == ((first,), plan.objects, plan.bytes)
    assert done.objects >= 4 and done.bytes > 1000
    assert state_of(world, first) == {"run.json", "job.yaml", "published.json", "expired.json"}
    assert {"plan.arrow", "report.html"} <= state_of(world, second)
    assert not (reports / first).exists() and (reports / second).exists()
    states = {run.run: run.state for run in list_runs(world.storage, world.output)}
    assert states == {first: "expired", second: "done", third: "done"}
    # Everything else works as before: verification, a rollback, the next run.
    assert verify_output(world.storage, world.output).problems == ()
    rollback(TableLog(world.storage, world.output), None)
    assert world.rows().select("value").equals(world.expected().select("value") / 3 * 2)
    assert expire(world).runs == ()
    fourth = publish(world, 4.0)
    assert world.rows().equals(world.expected()) and fourth not in states
    # The input of the run whose state is gone comes again: it is planned again.
    again = publish(world, 1.0)
    assert verify_output(world.storage, world.output).problems == ()
    assert again


def test_young_state_stays(world: Days) -> None:
    runs = {publish(world, value) for value in (1.0, 2.0, 3.0)}
    done = expire(world, days_later=89)
    assert (done.runs, done.needed, done.objects) == ((), (), 0)
    assert all("plan.arrow" in state_of(world, run) for run in runs)


def test_unfinished_runs_stay_and_resume(world: Days) -> None:
    world.write(days("2024-03-01", 2))
    fixed = world.root / "fixed"
    job = world.job("fails", params={"days": ["2024-03-02"], "fixed": str(fixed)})
    with pytest.raises(RunIncompleteError) as failed:
        run_serially(job, world.settings, world.storage)
    run = failed.value.summary.run
    done = expire(world)
    assert (done.runs, done.unfinished) == ((), (run,))
    fixed.touch()
    summary = run_serially(job, world.settings, world.storage, ResumeOptions())
    assert (summary.run, summary.mapped, summary.state) == (run, 2, "done")


def test_backfills_expire_when_they_are_over(world: Days) -> None:
    world.write(days("2024-03-01", 3))
    fixed = world.root / "fixed"
    job = world.job("fails", params={"days": ["2024-03-02"], "fixed": str(fixed)})
    store = world.create(job, windows_per_run=1)
    with pytest.raises(BackfillIncompleteError):
        world.drive(store)
    done = expire(world)
    assert (done.backfills, store.backfill in done.unfinished) == ((), True)
    fixed.touch()
    world.drive(store, BackfillResumeOptions())
    done = expire(world)
    # Its runs are those of the current version.
    assert (done.backfills, done.runs, len(done.needed)) == ((store.backfill,), (), 3)
    names = {info.uri.rpartition("/")[2] for info in world.storage.objects(store.prefix)}
    assert {"backfill.json", "windows.arrow"} <= names and "plan.arrow" not in names
