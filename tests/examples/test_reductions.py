"""Map and reduce, run to a published output: TPC-H against its published answers, and 1TRC."""

import json
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from benchmarks.suite.answers import COUNTS, FORECAST, PRICING
from pipeline import scan_output
from pipeline.config.job import parse_job
from pipeline.config.settings import load_settings
from pipeline.errors import TransformError
from pipeline.examples import stations
from pipeline.runs.driver.dry_run import combine_problem, try_transform
from pipeline.runs.driver.run import run_serially
from pipeline.storage import own_storage
from tests.support import tpch

pytestmark = pytest.mark.usefixtures("own_state")


@pytest.fixture(scope="module")
def lineitem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tpch.lineitem(tmp_path_factory)


def reduced(source: Path, target: Path, transform: str, combine: str, finalize: str = "") -> Path:
    last = f", finalize: {finalize}" if finalize else ""
    job = parse_job(
        f"""
name: reduction
input: {{uri: {source}/}}
chunks: {{target: 32MiB}}
transform: {transform}
reduce: {{combine: {combine}{last}}}
output: {{uri: {target}/}}
"""
    )
    settings = load_settings()
    summary = run_serially(job, settings, own_storage())
    assert summary.state == "done"
    assert summary.chunks > 3
    assert run_serially(job, settings, own_storage()).mapped == 0
    state = Path(f"{target}.chunkmap", "runs", summary.run)
    assert not list(state.glob("partials/*")), "what only the reduce needed is gone"
    return target


@pytest.mark.integration
def test_query_1_is_the_published_answer(lineitem: Path, tmp_path: Path) -> None:
    names = ("pricing", "add_pricing", "report_pricing")
    found = reduced(
        lineitem, tmp_path / "q1", *(f"pipeline.examples.tpch:{name}" for name in names)
    )
    rows = scan_output(str(found)).collect()
    for row, expected, count in zip(rows.iter_rows(), PRICING, COUNTS, strict=True):
        assert row[:2] == expected[:2]
        assert [round(float(value), 2) for value in row[2:9]] == list(expected[2:])
        assert row[9] == count


@pytest.mark.integration
def test_query_6_is_the_published_answer(lineitem: Path, tmp_path: Path) -> None:
    names = ("forecast", "add_forecast")
    found = reduced(
        lineitem, tmp_path / "q6", *(f"pipeline.examples.tpch:{name}" for name in names)
    )
    assert round(float(scan_output(str(found)).collect().item()), 2) == FORECAST


def measurements(number: int) -> pl.DataFrame:
    rows = range(number * 5000, number * 5000 + 5000)
    return pl.DataFrame(
        {
            "station": [f"s{row * 7919 % 40:02d}" for row in rows],
            "measure": [(row * 104729 % 2000 - 1000) / 10 for row in rows],
        }
    )


def test_the_trillion_row_query(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for number in range(6):
        measurements(number).write_parquet(source / f"{number}.parquet")
    names = ("partial", "combine", "finalize")
    found = reduced_per_file(
        source, tmp_path / "out", *(f"pipeline.examples.stations:{n}" for n in names)
    )
    measure = pl.col("measure")
    expected = (
        pl.read_parquet(source / "*.parquet")
        .group_by("station")
        .agg(least=measure.min(), mean=measure.mean(), greatest=measure.max())
        .sort("station")
    )
    assert_frame_equal(scan_output(str(found)).collect(), expected)


def reduced_per_file(source: Path, target: Path, *names: str) -> Path:
    transform, combine, finalize = names
    job = parse_job(
        json.dumps(
            {
                "name": "stations",
                "input": {"uri": f"{source}/"},
                "chunks": {"per_file": True},
                "transform": transform,
                "reduce": {"combine": combine, "finalize": finalize},
                "output": {"uri": f"{target}/"},
            }
        )
    )
    assert run_serially(job, load_settings(), own_storage()).chunks == 6
    return target


def test_a_combine_that_depends_on_groups_is_found_out() -> None:
    partials = [stations.partial(measurements(n).lazy()).collect() for n in range(3)]
    assert combine_problem("good", stations.combine, partials) is None

    def mean_of_means(frames: list[pl.LazyFrame]) -> pl.LazyFrame:
        return pl.concat(frames).group_by("station").agg(pl.all().mean())

    floats = [frame.select("station", pl.col("total")) for frame in partials]
    problem = combine_problem("bad", mean_of_means, floats)
    assert problem is not None
    assert "not associative" in problem


def test_a_combine_that_ends_its_process_is_named() -> None:
    partials = [stations.partial(measurements(n).lazy()).collect() for n in range(3)]

    def leave(frames: list[pl.LazyFrame]) -> pl.LazyFrame:
        raise SystemExit("enough")

    with pytest.raises(TransformError, match="leave raised SystemExit: enough"):
        combine_problem("leave", leave, partials)


@pytest.mark.parametrize(("combine", "problem"), [("combine", None), ("finalize", "columns")])
def test_check_tries_the_combine(tmp_path: Path, combine: str, problem: str | None) -> None:
    (tmp_path / "in").mkdir()
    measurements(0).write_parquet(tmp_path / "in" / "0.parquet")
    reduce = {"combine": f"pipeline.examples.stations:{combine}"}
    said = {
        "name": "checked",
        "input": {"uri": f"{tmp_path}/in/"},
        "transform": "pipeline.examples.stations:partial",
        "reduce": reduce,
        "output": {"uri": f"{tmp_path}/out/"},
    }
    checked = parse_job(json.dumps(said))
    if problem is None:
        trial = try_transform(checked, load_settings(), own_storage(), 5)
        assert trial.differs is None, "a transform that groups is what a reduce is for"
    else:
        with pytest.raises(TransformError, match="finalize"):
            try_transform(checked, load_settings(), own_storage(), 5)
