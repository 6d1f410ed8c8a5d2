"""The same job twice at once, two drivers publishing one run, two jobs with one output."""

from __future__ import annotations

from threading import Event

import polars as pl
import pytest

from pipeline.runs.driver.plan import ResumeOptions
from tests.faults.conftest import NewScenario, mostly_long
from tests.faults.invariants import check_everything, check_output, oracle
from tests.faults.points import PUBLISHING, Point
from tests.faults.rules import Rule
from tests.faults.world import CHUNKS, GROUPS, ROWS, Scenario, parquet, rows

pytestmark = pytest.mark.faults

HOLD_SECONDS = 60.0
TAKE_OVER = ResumeOptions(take_over=True)


def _named(point: Point) -> str:
    return point.name


class Held:
    """Holds the requests of one process at a point until it is let go."""

    def __init__(self, point: Point, client: str) -> None:
        self.arrived, self._go = Event(), Event()
        self.rule: Rule = point.rule("pass", client=client)
        self.rule.call = self._wait

    def _wait(self, _: object) -> None:
        self.arrived.set()
        assert self._go.wait(HOLD_SECONDS), "nobody let go"

    def let_go(self) -> None:
        self._go.set()


def test_the_same_job_twice_at_once(new: NewScenario) -> None:
    scenario = new()
    drivers = [scenario.start_serially(client) for client in ("first", "second")]
    ends = [driver.wait() for driver in drivers]
    assert [end.code for end in ends] == [0, 0], ends
    assert {end.summary["run"] for end in ends} == {scenario.ledger.run}
    check_everything(scenario, redone=CHUNKS)


@pytest.mark.long
def test_the_second_driver_watches_the_first(new: NewScenario) -> None:
    scenario = new()
    held = Held(Point("in the middle", "PutObject", "completions/", 3), "first")
    scenario.inject(held.rule)
    first = scenario.start_serially("first")
    assert held.arrived.wait(HOLD_SECONDS)
    second = scenario.start_serially("second")
    watching = scenario.world.proxy.add(
        Rule("pass", "GetObject", "driver.json", client="second", nth=2)
    )
    assert watching.happened.wait(HOLD_SECONDS)
    held.let_go()
    ends = [first.wait(), second.wait()]
    assert [(end.code, end.summary["mapped"]) for end in ends] == [(0, CHUNKS), (0, 0)], ends
    check_everything(scenario)


@pytest.mark.long
@pytest.mark.parametrize("point", mostly_long(PUBLISHING, {"complete an upload"}, _named))
def test_two_drivers_publish_one_run(new: NewScenario, point: Point) -> None:
    scenario = new()
    held = Held(point, "first")
    scenario.inject(held.rule)
    first = scenario.start_serially("first")
    try:
        assert held.arrived.wait(HOLD_SECONDS)
        summary = scenario.run_here(TAKE_OVER)
        assert summary.state == "done"
    finally:
        held.let_go()
    ended = first.wait()
    assert ended.code == 0, ended
    check_everything(scenario)


def _two_jobs(new: NewScenario, mode: str) -> tuple[Scenario, Scenario]:
    """Two jobs over different rows, with one output."""
    one, other = new(mode=mode), new(mode=mode, input="")
    other.input = f"s3://demo/{other.name}/in/"
    other.output = one.output
    for number in range(2):
        first = 500_000 + number * GROUPS * ROWS
        uri = f"{other.input}{number}.parquet"
        one.storage.put(uri, parquet(rows(first, GROUPS * ROWS)))
    return one, other


RACES = [point for point in PUBLISHING if point.name in ("freeze the commit", "claim the output")]


@pytest.mark.long
@pytest.mark.parametrize("point", mostly_long(RACES, {"claim the output"}, _named))
def test_two_appends_at_once(new: NewScenario, point: Point) -> None:
    one, other = _two_jobs(new, "append")
    held = Held(point, "first")
    one.inject(held.rule)
    first = one.start_serially("first")
    try:
        assert held.arrived.wait(HOLD_SECONDS)
        assert other.run_here().state == "done"
    finally:
        held.let_go()
    ended = first.wait()
    assert ended.code == 0, ended
    check_output(one, pl.concat([oracle(one), oracle(other)]).sort("id"))
    assert one.run_here().mapped == other.run_here().mapped == 0
    check_output(one, pl.concat([oracle(one), oracle(other)]).sort("id"))


@pytest.mark.parametrize("point", mostly_long(RACES, {"claim the output"}, _named))
def test_two_overwrites_at_once(new: NewScenario, point: Point) -> None:
    one, other = _two_jobs(new, "overwrite")
    held = Held(point, "first")
    one.inject(held.rule)
    first = one.start_serially("first")
    try:
        assert held.arrived.wait(HOLD_SECONDS)
        assert other.run_here().state == "done"
    finally:
        held.let_go()
    ended = first.wait()
    assert ended.code == 3, ended
    assert "has published" in ended.said
    check_output(one, oracle(other))

    # The loser may be run again, and then it wins.
    assert one.run_here(ResumeOptions(replan=True)).state == "done"
    check_output(one, oracle(one))
