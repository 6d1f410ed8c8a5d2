"""Windows that checks refuse: they fail, whatever is asked for, and no reader sees them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.cli.backfill.show import status as show_status
from pipeline.runs.backfill.plan import WindowSelection
from pipeline.runs.backfill.report import store_report
from pipeline.runs.backfill.status import read_status
from pipeline.runs.backfill.store import BackfillStore
from pipeline.runs.backfill.summary import BackfillIncompleteError
from pipeline.runs.driver.heartbeat import Heartbeat
from tests.support.backfills import Days, days

CHECKS: dict[str, Any] = {"run": [{"check": "row_count", "max": 10}]}
THREE = days("2024-02-28", 3)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Days:
    monkeypatch.chdir(tmp_path)
    one = Days(tmp_path)
    one.write(THREE)
    extra = pl.DataFrame({"id": [1], "value": [1.0]})
    extra.write_parquet(one.input / f"ds={THREE[1]}" / "2.parquet")
    return one


@pytest.mark.parametrize("reprocess", ["missing", "all"])
def test_a_window_that_a_check_refuses_fails(world: Days, reprocess: str) -> None:
    """Once, it counted as skipped, and the backfill as done."""
    store = world.create(world.job(checks=CHECKS), reprocess=reprocess)
    with pytest.raises(BackfillIncompleteError) as failed:
        world.drive(store)
    counts = failed.value.summary.counts
    assert (counts["done"], counts["failed"], counts["skipped"]) == (2, 1, 0)
    assert "row_count: 11 rows; expected at most 10" in failed.value.summary.notes[0]
    assert world.windows_held() == ["2024-02-28", "2024-03-01"]


def test_a_window_that_a_check_refuses_fails_beside_one_in_conflict(world: Days) -> None:
    """Both are found in one publish, of which the conflict is the error."""
    job = world.job(checks=CHECKS, output={"uri": world.output, "mode": "append"})
    store = world.create(job)
    world.run(world.job(output=job.output.model_dump()), WindowSelection(values=(str(THREE[0]),)))
    with pytest.raises(BackfillIncompleteError) as failed:
        world.drive(store)
    counts = failed.value.summary.counts
    assert (counts["done"], counts["failed"], counts["skipped"]) == (1, 1, 1)
    assert "row_count: 11 rows; expected at most 10" in failed.value.summary.notes[0]
    assert world.windows_held() == ["2024-02-28", "2024-03-01"]


def test_no_window_is_published_if_one_is_refused(world: Days) -> None:
    """Once, the others counted as done."""
    store = world.create(world.job(checks=CHECKS), all_or_nothing=True)
    with pytest.raises(BackfillIncompleteError) as failed:
        world.drive(store)
    counts = failed.value.summary.counts
    assert (counts["done"], counts["failed"]) == (0, 3)
    assert not world.windows_held() and not Path(world.output).exists()


WARNS: dict[str, Any] = {
    "run": [*CHECKS["run"], {"check": "row_count", "min": 11, "severity": "warn", "name": "few"}]
}


def killed(store: BackfillStore) -> None:
    """As if its driver had been killed: nothing is saved, and its last word is that it drives."""
    record = store.driver()
    assert record is not None
    record.process_started = -1.0
    Heartbeat(store.storage, store.prefix + "driver.json", record).write("running")
    store.storage.delete(store.prefix + "progress.arrow")


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize("is_killed", [False, True])
def test_figures_of_windows(
    world: Days, capsys: pytest.CaptureFixture[str], is_killed: bool
) -> None:
    """From the commits, whether or not a driver has told them."""
    store = world.create(world.job(checks=WARNS))
    with pytest.raises(BackfillIncompleteError) as failed:
        world.drive(store)
    counts = failed.value.summary.counts
    assert (counts["checks"], counts["warnings"], counts["rejected"]) == (4, 2, 0)
    if is_killed:
        killed(store)
    found = json.loads(json.dumps(read_status(store).to_dict()))
    assert [found["counts"][name] for name in ("checks", "warnings", "rejected")] == [4, 2, 0]
    assert {row["label"]: row["checks"] for row in found["windows"]} == {
        "2024-02-28": 2, "2024-02-29": 0, "2024-03-01": 2}  # fmt: skip
    if is_killed:
        return  # Nobody has said that the window has failed.
    [refused] = found["refused"].pop("2024-02-29")
    assert (refused["name"], refused["outcome"]) == ("row_count", "refused")
    show_status(store.backfill, store.output, None, watch=False, as_json=False)
    text = " ".join(capsys.readouterr().out.split())
    assert "checks 4 made, 2 warned" in text
    assert "window 2024-02-29 is refused: row_count: 11 rows; expected at most 10" in text
    page, _ = store_report(store, world.root / "state")
    assert "row_count: 11 rows; expected at most 10" in store.storage.get(page).data.decode()
