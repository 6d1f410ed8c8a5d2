"""Windows published on every kind of storage, with any characters in their labels."""

from __future__ import annotations

import pytest

from pipeline.runs.admin.verify import verify_output
from pipeline.storage import StagedObject
from pipeline.table.errors import UploadsVanishedError
from pipeline.table.log import TableLog
from pipeline.table.publish import rollback
from tests.storage.conftest import Place
from tests.support.windowing import complete, daily, days, publish_days, windowed_run

HOURS = ["2024-10-27T00:30Z", "2024-10-27T01:30Z"]
VALUES = ["a b", "1.5", "süd"]


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("column", "grain", "values", "labels"),
    [
        ("h", "hour", HOURS, ["2024-10-27T02", "2024-10-27T02+0100"]),
        ("v", "value", VALUES, ["1%2E5", "a%20b", "s%C3%BCd"]),
        ("ds", "day", days(1, 2, 3), days(1, 2, 3)),
    ],
)
def test_windows_are_published_and_rolled_back(
    place: Place, column: str, grain: str, values: list[str], labels: list[str]
) -> None:
    output = place.uri("out/")
    rule = {"column": column, "grain": grain, "timezone": "Europe/Berlin"}
    plan = daily(values, column=column)
    first = windowed_run(place.storage, plan, rule=rule, output=output)
    complete(first)
    assert publish_days(first, labels[0]) == 1
    assert publish_days(first) == 2
    second = windowed_run(place.storage, plan, code="new", rule=rule, output=output)
    complete(second, labels[-1])
    assert publish_days(second) == 3
    table_log = TableLog(place.storage, output)
    entries = table_log.manifest().commits
    assert sorted(str(entry.window) for entry in entries[:-1]) == labels
    assert entries[-1].window == labels[-1]
    assert keys(table_log, second.ledger.run) == 2
    assert not verify_output(place.storage, output).problems
    assert rollback(table_log).rollback_of == 2
    assert keys(table_log, second.ledger.run) == 0
    assert keys(table_log, first.ledger.run) == len(plan)
    assert not verify_output(place.storage, output).problems


def keys(table_log: TableLog, run: str) -> int:
    """Visible files of a run, all of which the manifest names."""
    there = {
        i.uri.removeprefix(table_log.output) for i in table_log.storage.objects(table_log.output)
    }
    assert there == set(table_log.keys(table_log.manifest().commits))
    return sum(run in key for key in there)


def test_a_vanished_upload_of_one_window(place: Place) -> None:
    output = place.uri("out/")
    run = windowed_run(place.storage, daily(days(1, 2)), output=output)
    complete(run)
    one = run.ledger.read().completions.row(0, named=True)
    staged = StagedObject(
        one["uri"], one["upload"], tuple(one["parts"]), one["bytes_out"], one["attempt"]
    )
    place.storage.abort([staged])
    with pytest.raises(UploadsVanishedError) as caught:
        publish_days(run)
    assert publish_days(run) == 1
    run.complete(0)
    assert publish_days(run, vanished=caught.value) == 2
    found = verify_output(place.storage, output)
    assert (found.files, found.problems, found.missing_chunks) == (4, (), 0)
