"""Input that is replaced, deleted or cut while a run reads it, and input of odd shapes."""

from __future__ import annotations

import polars as pl
import pytest

from pipeline.errors import AccessDeniedError
from pipeline.runs.driver.summary import RunIncompleteError
from tests.faults.conftest import NewScenario
from tests.faults.invariants import check_everything, check_output, read_all
from tests.faults.rules import Rule
from tests.faults.world import GROUPS, ROWS, Scenario, parquet, rows

pytestmark = pytest.mark.faults

LAST = "in-011.parquet"


def _replace(scenario: Scenario) -> None:
    scenario.storage.put(scenario.input + LAST, parquet(rows(900_000, GROUPS * ROWS)))


def _delete(scenario: Scenario) -> None:
    scenario.storage.delete(scenario.input + LAST)


def _cut(scenario: Scenario) -> None:
    data = scenario.storage.get(scenario.input + LAST).data
    scenario.storage.put(scenario.input + LAST, data[: len(data) // 2])


@pytest.mark.sampled(3)
@pytest.mark.parametrize("change", [_replace, _delete, _cut])
def test_the_input_changes_during_the_run(new: NewScenario, change: object) -> None:
    scenario = new(own_input=True)
    before = parquet(rows(11 * GROUPS * ROWS, GROUPS * ROWS))
    rule = Rule("pass", "PutObject", "completions/", call=lambda _: change(scenario))  # type: ignore[operator]
    scenario.inject(rule)
    with pytest.raises(RunIncompleteError):
        scenario.run_here()
    failed = scenario.ledger.read().failed()
    assert failed["index"].to_list() == [22, 23]
    assert set(failed["error"]) <= {"ObjectChangedError", "ObjectMissingError"}
    assert all(LAST in message for message in failed["message"])
    assert not failed["transient"].any()
    assert not read_all(scenario, scenario.output).keys

    # The very bytes that were planned are back: the run can go on.
    scenario.storage.put(scenario.input + LAST, before)
    summary = scenario.run_here()
    assert (summary.state, summary.mapped) == ("done", 2)
    check_everything(scenario)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("sizes", "group"),
    [([1], ROWS), ([0], ROWS), ([0, 1, 0], ROWS), ([200_000], 200_000)],
    ids=["one row", "no rows", "one row among none", "a row group far above the target"],
)
def test_input_of_odd_sizes(new: NewScenario, sizes: list[int], group: int) -> None:
    scenario = new(input="", changes={"chunks": {"target": "100KiB"}})
    scenario.input = f"s3://demo/{scenario.name}/in/"
    for number, size in enumerate(sizes):
        frame = rows(number * 1000, size)
        scenario.storage.put(f"{scenario.input}{number}.parquet", parquet(frame, group))
    summary = scenario.run_here()
    assert (summary.state, summary.rows_out) == ("done", sum(sizes))
    if sum(sizes):
        check_everything(scenario)


ODD = "a b+c%20=d&é☃/x=1,2/[1]*?{a}'\"#~;:@!$()^|<>"


def test_keys_of_every_odd_character(new: NewScenario) -> None:
    scenario = new(input="")
    scenario.input = f"s3://demo/{scenario.name}/{ODD}/in/"
    for number, name in enumerate(["%2e%2e", "a b", "a+b", "ä?", "[1]", "1", "#", "x.y=z,"]):
        scenario.storage.put(f"{scenario.input}{name}.parquet", parquet(rows(number * 1000, 10)))
    scenario.output = f"s3://demo/{scenario.name}/{ODD}/out/"
    summary = scenario.run_here()
    assert (summary.state, summary.rows_out) == ("done", 80)
    check_everything(scenario)


def test_partition_values_of_every_odd_character(new: NewScenario) -> None:
    scenario = new(input="")
    scenario.input = f"s3://demo/{scenario.name}/in/"
    values = ["a%2Fb", "a%20b", "a+b", "ä☃", "%C3%A4", "x%3Dy", "__HIVE_DEFAULT_PARTITION__", "0"]
    for number, value in enumerate(values):
        uri = f"{scenario.input}key={value}/data.parquet"
        scenario.storage.put(uri, parquet(rows(number * 1000, 10)))
    summary = scenario.run_here()
    assert (summary.state, summary.rows_out) == ("done", 80)
    seen = read_all(scenario, scenario.output)
    expected = pl.concat([rows(n * 1000, 10) for n in range(8)])
    check_output(scenario, expected.with_columns(doubled=pl.col("value") * 2).sort("id"))
    assert len({key.partition("/")[0] for key in seen.keys}) >= 7


def test_an_output_that_may_not_be_written(new: NewScenario) -> None:
    scenario = new()
    with pytest.raises(AccessDeniedError, match="s3:PutObject"):
        scenario.run_read_only()
    assert not read_all(scenario, scenario.output).keys
