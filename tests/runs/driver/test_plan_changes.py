"""A plan says what has changed since the published version: objects, windows, bytes, code."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from pipeline.config.job import Job
from pipeline.runs.driver.plan import plan_input
from pipeline.runs.driver.plan_changes import PlanChanges, compare_with_published
from pipeline.runs.driver.run import run_serially
from tests.support.backfills import Days, days

EUROS = """
import polars as pl

RATE = 1.1

def euros(frame):
    return frame.with_columns(euros=pl.col("value") * RATE)

def prices(frame, scale=1.0):
    return euros(frame).with_columns(scaled=pl.col("value") * scale)
"""


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Days:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    world = Days(tmp_path)
    (tmp_path / f"{world.module}.py").write_text(EUROS)
    world.write(days("2024-03-01", 4))
    return world


def changes(world: Days, job: Job) -> PlanChanges | None:
    plan = plan_input(job, world.settings, world.storage).result.plan
    return compare_with_published(world.storage, job, world.settings, plan)


def test_nothing_is_published_yet(world: Days) -> None:
    assert changes(world, world.job("prices")) is None


@pytest.mark.parametrize("as_backfill", [False, True])
def test_objects_and_windows(world: Days, as_backfill: bool) -> None:
    job = world.job("prices")
    if as_backfill:
        world.run(job, windows_per_run=1)
    else:
        run_serially(job, world.settings, world.storage)
    same = changes(world, job)
    assert same is not None and same.text.endswith(": nothing changed")
    world.write([date(2024, 3, 2), date(2024, 3, 9)], value=7.25)
    (world.input / "ds=2024-03-04" / "1.parquet").unlink()
    found = changes(world, job)
    assert found is not None
    assert (found.added, found.changed, found.removed, found.windows) == (2, 2, 1, 2)
    sizes = [p.stat().st_size for day in ("02", "09") for p in world.input.glob(f"ds=*-{day}/*")]
    assert found.bytes == sum(sizes)
    assert "2 objects added, 2 changed, 1 removed, 2 windows, " in found.text
    assert not found.is_new_code


@pytest.mark.parametrize("as_backfill", [False, True])
def test_code_names_what_changed(world: Days, as_backfill: bool) -> None:
    job = world.job("prices")
    if as_backfill:
        world.run(job, windows_per_run=2)
    else:
        run_serially(job, world.settings, world.storage)
    file = world.root / f"{world.module}.py"
    file.write_text(EUROS.replace("* RATE", "* RATE + 1"))
    found = changes(world, job)
    assert found is not None and found.code == ("euros",)
    assert found.text.endswith(": code changed in `euros`")
    file.write_text(EUROS.replace("RATE = 1.1", "RATE = 1.2") + "\ndef unused(frame): ...\n")
    found = changes(world, job)
    assert found is not None and found.code == ("RATE",)
    file.write_text(EUROS)
    found = changes(world, world.job("prices", params={"scale": 2.0}))
    assert found is not None and (found.code, found.params) == ((), ("scale",))
    assert found.text.endswith(": params changed (scale)")
