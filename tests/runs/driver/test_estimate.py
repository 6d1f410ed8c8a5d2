"""What a plan is expected to take, before and after a run of the same transform."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipeline.report.run_model import Estimated
from pipeline.runs.driver.bytes_to_read import bytes_to_read
from pipeline.runs.driver.estimate import (
    MIN_OVERHEAD_SECONDS,
    WORKER_BYTES,
    estimate,
    forecast,
)
from pipeline.runs.driver.heartbeat import read_driver
from pipeline.runs.driver.plan import plan_input
from pipeline.runs.driver.report import collect, report_of
from tests.support.small import Small

CODE = """
import polars as pl

def same(frame):
    return frame

def one(frame):
    return frame.select(x=pl.col("a") * 2)
"""


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Small:
    monkeypatch.chdir(tmp_path)
    small = Small(tmp_path, CODE)
    for number in range(6):
        small.write(f"{number}.parquet", pl.DataFrame({"a": range(1000), "b": range(1000)}))
    return small


def test_an_earlier_run_tells_the_time_and_what_a_worker_needs(small: Small) -> None:
    job = small.job("same")
    plan = plan_input(job, small.settings, small.storage).result.plan
    before = estimate(small.storage, job, plan)
    assert (before.seconds, before.workers, before.run) == (None, None, None)
    chunks = list(plan.chunks())
    largest = max(c.decoded_bytes for c in chunks), max(c.stored_bytes for c in chunks)
    assert before.memory_bytes == WORKER_BYTES + 3 * largest[0] + largest[1]
    more = estimate(small.storage, job, plan, threads=4)
    assert more.memory_bytes - WORKER_BYTES == 4 * (before.memory_bytes - WORKER_BYTES)

    summary = small.run(job)
    after = estimate(small.storage, job, plan)
    assert (after.run, after.workers) == (summary.run, 1)
    assert after.seconds is not None
    assert after.seconds > after.overhead_seconds >= MIN_OVERHEAD_SECONDS
    measured = int(small.ledger(summary).read().completions["memory"].max())  # type: ignore[arg-type]
    assert after.memory_bytes == max(WORKER_BYTES, measured)
    fewer = small.job("same", input={"uri": small.input, "exclude": ["[345].parquet"]})
    half = estimate(
        small.storage, fewer, plan_input(fewer, small.settings, small.storage).result.plan
    )
    assert half.seconds is not None
    mapping = after.seconds - after.overhead_seconds
    assert half.seconds - half.overhead_seconds == pytest.approx(mapping / 2)
    record = small.ledger(summary).record()
    assert estimate(small.storage, job, plan, before=record.created).run is None
    assert estimate(small.storage, small.job("one"), plan).seconds is None


def test_a_forecast_counts_the_overhead_of_each_run(small: Small) -> None:
    job = small.job("same")
    small.run(job)
    plan = plan_input(job, small.settings, small.storage).result.plan
    alone = forecast(small.storage, job, small.settings, plan)
    several = forecast(small.storage, job, small.settings, plan, runs=9, max_active=2)
    assert alone.seconds is not None
    assert several.seconds is not None
    assert several.seconds - alone.seconds >= 4 * MIN_OVERHEAD_SECONDS
    assert alone.memory_bytes >= WORKER_BYTES


@pytest.mark.sampled(3)
@pytest.mark.parametrize("rows", [100, 60_000])
@pytest.mark.parametrize("function", ["same", "one"])
def test_the_bytes_to_read_are_those_that_a_run_reads(
    small: Small, rows: int, function: str
) -> None:
    noise = np.random.default_rng(1)
    for number in range(6):
        frame = pl.DataFrame({"a": noise.random(rows), "b": noise.random(rows)})
        small.write(f"{number}.parquet", frame)
    job = small.job(function)
    plan = plan_input(job, small.settings, small.storage).result.plan
    summary = small.run(job)
    assert bytes_to_read(plan) == pytest.approx(summary.bytes_in, rel=0.01)


@pytest.mark.usefixtures("drawn")
def test_the_report_holds_estimates_against_the_run(small: Small) -> None:
    small.run(small.job("same", mode="overwrite"))
    small.write("7.parquet", pl.DataFrame({"a": range(1000), "b": range(1000)}))
    second = small.run(small.job("same", mode="overwrite"))
    page = Path(second.local_report).read_text()
    assert "Actual / estimate" in page
    ledger = small.ledger(second)
    parts = collect(ledger)
    driver = read_driver(small.storage, ledger.prefix)
    assert report_of(parts, driver, "done").estimates == ()
    expected = estimate(small.storage, parts.job, parts.plan, before=parts.record.created)
    assert expected.run is not None
    report = report_of(replace(parts, estimate=expected), driver, "done")
    names = {each.name: each for each in report.estimates}
    assert isinstance(names["Read"], Estimated)
    assert names["Read"].actual == pytest.approx(names["Read"].expected, rel=0.01)
    assert names["Duration"].expected == expected.seconds
    assert names["Duration"].actual is not None
    assert (names["Memory of a worker"].actual or 0) > 0
