"""Files that keep columns, of objects of which the S3 server copies the bytes: each step fails."""

from __future__ import annotations

import pytest

from pipeline.errors import ObjectChangedError
from pipeline.runs.driver.summary import RunIncompleteError
from pipeline.storage.s3_uploads import MIN_COPY_BYTES
from tests.faults.conftest import NewScenario, mostly_long
from tests.faults.invariants import check_everything, read_all, unfinished
from tests.faults.large import FILES, KEEPING, ROWS, large, write
from tests.faults.points import Point
from tests.faults.rules import Act, Rule
from tests.faults.world import World

pytestmark = pytest.mark.faults

STEPS = (
    Point("begin an upload", "CreateMultipartUpload", "/out/"),
    Point("copy the old bytes", "UploadPartCopy", "/out/", 2),
    Point("look whether the source is the same", "HeadObject", "/in/"),
    Point("send the new bytes", "UploadPart", "/out/"),
    Point("confirm an upload", "ListParts", "/out/"),
    Point("complete an upload", "CompleteMultipartUpload", "/out/"),
)


@pytest.fixture(scope="module")
def shared(world: World) -> str:
    """Input of the scenarios that leave it as it is."""
    return write(world)


def test_the_server_copies(new: NewScenario, shared: str) -> None:
    scenario = new(input=shared, **KEEPING)
    summary = scenario.run_here()
    assert (summary.mapped, summary.rows_out) == (FILES, FILES * ROWS)
    assert summary.bytes_in < MIN_COPY_BYTES < summary.bytes_out
    kinds = [request.kind for request, _ in scenario.world.proxy.log]
    assert kinds.count("UploadPartCopy") == FILES
    done = scenario.ledger.read().completions
    assert (done["copied"] > MIN_COPY_BYTES).all()
    check_everything(scenario)
    assert not unfinished(scenario)


ACTS: tuple[Act, ...] = ("refuse", "reset", "500", "503", "truncate", "lose")


@pytest.mark.parametrize("act", mostly_long(ACTS, {"lose"}, longer={"500", "503"}))
def test_every_step_fails_once(new: NewScenario, shared: str, act: Act) -> None:
    scenario = new(input=shared, **KEEPING)
    rules = {step.name: step.rule(act) for step in STEPS if step.writes or act != "lose"}
    scenario.inject(*rules.values())
    scenario.run_here()
    assert [name for name, rule in rules.items() if not rule.happened.is_set()] == []
    check_everything(scenario)


DEATHS: list[tuple[Point, Act]] = [
    (step, act) for step in STEPS for act in ("refuse", "lose") if step.writes or act == "refuse"
]
SHORT, LONGER = {"lose copy the old bytes"}, {"refuse complete an upload"}


def _named(death: tuple[Point, Act]) -> str:
    return f"{death[1]} {death[0].name}"


@pytest.mark.parametrize("death", mostly_long(DEATHS, SHORT, _named, longer=LONGER))
def test_a_serial_driver_dies(new: NewScenario, shared: str, death: tuple[Point, Act]) -> None:
    scenario, (step, act) = new(input=shared, **KEEPING), death
    scenario.inject(rule := step.rule(act))
    driver = scenario.start_serially()
    rule.call = driver.kill
    assert driver.wait().code == -9
    assert rule.happened.wait(5)
    scenario.inject()
    scenario.run_here()
    check_everything(scenario)


CHANGES = {
    "before the copy": Rule("pass", "CreateMultipartUpload", "/out/"),
    "as the copy begins": Rule("pass", "UploadPartCopy", "/out/"),
    "between two tries to copy": Rule("lose", "UploadPartCopy", "/out/"),
    "after the copy": Rule("pass", "HeadObject", "/in/"),
}


@pytest.mark.parametrize(
    "moment", mostly_long(CHANGES, {"as the copy begins"}, longer={"after the copy"})
)
def test_a_source_is_replaced(new: NewScenario, world: World, moment: str) -> None:
    """Its chunk fails, and nothing is published; with the old bytes it resumes."""
    scenario = new(input=write(world), **KEEPING)
    source, other, rule = f"{scenario.input}0.parquet", large(0, seed=1), CHANGES[moment]
    rule.call = lambda request: scenario.storage.put(source, other)
    scenario.inject(rule)
    with pytest.raises(RunIncompleteError):
        scenario.run_here()
    assert rule.happened.is_set()
    failed = scenario.ledger.read().failed()
    assert failed["error"].to_list() == [ObjectChangedError.__name__]
    assert "0.parquet" in failed["message"][0]
    assert not read_all(scenario, scenario.output).keys
    assert len(unfinished(scenario)) == FILES - 1
    scenario.storage.put(source, large(0))
    summary = scenario.run_here()
    assert (summary.state, summary.mapped) == ("done", 1)
    check_everything(scenario)
