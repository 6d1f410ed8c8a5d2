"""A backfill makes as many runs as its plan says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.runs.backfill.plan import WindowSelection
from pipeline.runs.ledger.find import runs_of
from tests.support.backfills import Days, days


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"windows_per_run": 2},
        {"windows_per_run": 2, "canary": 2},
        {"canary": 1},
        {"canary": "50%", "backwards": True, "windows_per_run": 3},
        {"all_or_nothing": True},
        {"all_or_nothing": True, "canary": 2},
    ],
)
def test_as_many_runs_are_made_as_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    world = Days(tmp_path)
    world.write(days("2024-02-27", 7))
    # The filter leaves nothing of one window, and another is done already.
    world.run(world.job(), WindowSelection("2024-02-28", "2024-02-29"))
    before = len(runs_of(world.storage, world.output))
    source = {"uri": str(world.input), "filter": [["ds", "!=", "2024-03-01"]]}
    store = world.create(
        world.job(input=source), WindowSelection("2024-02-27", "2024-03-05"), **options
    )
    world.drive(store)
    made = [run for run in runs_of(world.storage, world.output) if run.backfill == store.backfill]
    assert len(runs_of(world.storage, world.output)) - before == len(made)
    assert store.record().runs == len(made)
