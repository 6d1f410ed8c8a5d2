"""Advice is given where following it would matter, names what shows it, and is absent otherwise."""

from __future__ import annotations

from dataclasses import replace

import polars as pl
import pytest

from pipeline.report import advice, run_figures, run_timeline
from pipeline.report.run_model import FILE_SCHEMA, Pruned, RunReport
from tests.support.report_samples import make


def files(*sizes: int) -> pl.DataFrame:
    rows = [(f"s3://lake/{at}.parquet", size, 10) for at, size in enumerate(sizes)]
    return pl.DataFrame(rows, schema=FILE_SCHEMA, orient="row")


def headlines(report: RunReport) -> list[str]:
    clock = run_timeline.make_clock(report)
    spans = run_timeline.spans(report, clock)
    shares = run_figures.time_shares(report, spans)
    found = advice.advice(report, run_figures.totals(report, clock), shares)
    return [advice.headline for advice in found]


EVEN = make(400, workers=4, error_rate=0)


def slowed(report: RunReport, **seconds: pl.Expr) -> RunReport:
    return replace(report, completions=report.completions.with_columns(**seconds))


def test_a_run_without_faults_gets_no_advice() -> None:
    report = replace(EVEN, inputs=files(*[90_000_000] * 20), outputs=files(*[70_000_000] * 20))
    assert headlines(report) == []


@pytest.mark.parametrize("largest", [205_000_000, 205_000])
def test_one_file_that_is_five_times_the_others(largest: int) -> None:
    sizes = files(*(largest // part for part in (5, 5, 1, 5)))
    for report in (replace(EVEN, inputs=sizes), replace(EVEN, outputs=sizes)):
        found = headlines(report)
        if largest < advice.MIN_SKEWED_BYTES:
            assert found == []  # It matters to nobody.
        else:
            [headline] = found
            assert headline.startswith("One ") and headline.endswith("is 5 times the others")


def test_one_slow_chunk() -> None:
    is_first = pl.col("index") == 0
    took = pl.when(is_first).then(300.0).otherwise(pl.col("seconds"))
    assert "One chunk held up the run" in headlines(slowed(EVEN, seconds=took))


@pytest.mark.parametrize(
    ("part", "headline"),
    [
        ("read", "Reading dominates"),
        ("encode", "Encoding dominates"),
        ("stage", "Uploading dominates"),
    ],
)
def test_the_part_that_dominates(part: str, headline: str) -> None:
    others = {"read_seconds", "compute_seconds", "encode_seconds", "stage_seconds"}
    parts = dict.fromkeys(others, pl.lit(0.0)) | {f"{part}_seconds": pl.col("seconds") * 0.9}
    if part == "encode":
        parts["compute_seconds"] = parts["encode_seconds"]
    assert headlines(slowed(EVEN, **parts)) == [headline]


def test_requests_that_are_refused() -> None:
    assert headlines(slowed(EVEN, retries=pl.lit(1))) == ["Requests to storage fail"]
    throttled = slowed(EVEN, retries=pl.lit(1), throttled=pl.lit(1), request_limit=pl.lit(4))
    assert headlines(throttled) == ["Storage throttles requests"]


def test_memory_near_its_limit() -> None:
    full = replace(EVEN, run=replace(EVEN.run, memory_limit=500_000_000))
    assert headlines(full) == ["A worker nearly ran out of memory"]
    roomy = replace(EVEN, run=replace(EVEN.run, memory_limit=5_000_000_000))
    assert headlines(roomy) == []


def test_a_filter_that_prunes_nothing() -> None:
    rows = int(EVEN.completions["rows_in"].sum())
    run = replace(EVEN.run, filter="qty > 30", rows_done=4 * rows, rows_planned=4 * rows)
    pruned = Pruned(10, 0, 0, 10, 100, 0, 10**9, 10**9)
    report = replace(EVEN, run=run, pruned=pruned)
    assert headlines(report) == ["The filter removes rows that had to be read"]
    assert headlines(replace(report, pruned=replace(pruned, row_groups_pruned=40))) == []


def test_many_small_files() -> None:
    small = replace(EVEN, outputs=files(*[900_000] * 200))
    assert headlines(small) == ["The output has many small files"]
