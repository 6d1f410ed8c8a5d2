"""Map, aggregate, map: unusual days of stations, against a plain loop over all rows."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from pipeline import scan_output
from pipeline.config.job import Job
from pipeline.config.settings import load_settings
from pipeline.runs.driver.run import run_serially
from pipeline.storage import own_storage

pytestmark = pytest.mark.usefixtures("own_state")

NAME = "pipeline.examples.unusual_days"
DAYS, STATIONS = 30, 12


def measures(number: int) -> pl.DataFrame:
    """A quarter of the measures of each station and day; on one day each, they are higher."""
    rows = [
        (station, day, (day * 7 + station * 3 + number * 5) % 4 + 40.0 * (day == 10 + station))
        for station in range(STATIONS)
        for day in range(DAYS)
    ]
    frame = pl.DataFrame(rows, schema=["at", "number", "measure"], orient="row")
    start = pl.lit(date(2024, 1, 1)) + pl.duration(days="number")
    station = pl.format("s{}", "at")
    return frame.select(station=station, day=start.cast(pl.Date), measure=pl.col("measure"))


def oracle(whole: pl.DataFrame, days: int, factor: float) -> list[tuple[str, date]]:
    found = []
    for station in sorted(set(whole["station"])):
        own = whole.filter(pl.col("station") == station)
        by_day = {
            day: own.filter(pl.col("day") == day)["measure"].mean()
            for day in sorted(set(own["day"]))
        }
        means = pl.Series(list(by_day.values()))
        for at, day in enumerate(by_day):
            before = means[at - days : at]
            if at >= days:
                distance = abs(means[at] - before.mean())
                if distance > factor * before.std():  # type: ignore[operator]
                    found.append((station, day))
    return found


def test_unusual_days_are_those_of_a_plain_loop(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(4):
        measures(number).write_parquet(tmp_path / "in" / f"{number}.parquet")
    job = Job.model_validate(
        {
            "name": "unusual-days",
            "input": {"uri": f"{tmp_path}/in/"},
            "chunks": {"per_file": True},
            "transform": f"{NAME}:sums",
            "reduce": {"combine": f"{NAME}:add", "finalize": f"{NAME}:means"},
            "then": {"function": f"{NAME}:unusual", "by": ["station"], "params": {"days": 5}},
            "output": {"uri": f"{tmp_path}/out/"},
        }
    )
    summary = run_serially(job, load_settings(), own_storage())
    assert summary.then is not None and summary.then.pieces == STATIONS
    found = scan_output(f"{tmp_path}/out/").collect().sort("station", "day")
    whole = pl.concat(measures(number) for number in range(4))
    expected = oracle(whole, 5, 3.0)
    assert len(expected) >= STATIONS
    assert_frame_equal(
        found.select("station", "day"),
        pl.DataFrame(expected, schema={"station": pl.String, "day": pl.Date}, orient="row"),
    )
    spike = {f"s{n}": date(2024, 1, 1) + timedelta(days=10 + n) for n in range(STATIONS)}
    assert set(spike.items()) <= set(found.select("station", "day").iter_rows())
