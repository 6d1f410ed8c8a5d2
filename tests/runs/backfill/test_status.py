"""What can be seen of a backfill from storage alone: states, figures, errors, tries, a forecast."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import RunCancelledError
from pipeline.runs.backfill.attempts import attempts
from pipeline.runs.backfill.plan import WindowSelection
from pipeline.runs.backfill.records import BackfillResumeOptions
from pipeline.runs.backfill.report import store_report
from pipeline.runs.backfill.status import BackfillStatus, read_status
from pipeline.runs.backfill.store import BackfillStore
from pipeline.runs.backfill.summary import BackfillHeldError, BackfillIncompleteError
from pipeline.runs.driver.estimate import forecast
from pipeline.runs.driver.heartbeat import Heartbeat
from tests.support.backfills import Days, days

LEAP = days("2024-02-26", 8)
ALL = [str(day) for day in LEAP]
BAD = ["2024-02-28", "2024-03-01"]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Days]:
    monkeypatch.chdir(tmp_path)
    one = Days(tmp_path)
    one.write(LEAP)
    yield one


def states(status: BackfillStatus) -> dict[str, str]:
    return dict(status.windows.select("label", "state").iter_rows())


def failing(world: Days, **options: Any) -> BackfillStore:
    """A backfill of which two windows have failed."""
    params = {"days": BAD, "fixed": str(world.root / "fixed")}
    store = world.create(world.job("fails", params=params), **options)
    with pytest.raises((BackfillIncompleteError, BackfillHeldError)):
        world.drive(store)
    return store


def kill(store: BackfillStore) -> None:
    """As if its driver had been killed: its last word is that it drives."""
    record = store.driver()
    assert record is not None
    driver = Heartbeat(store.storage, store.prefix + "driver.json", record)
    record.process_started = -1.0
    driver.write("running")


def test_a_new_one(world: Days) -> None:
    status = read_status(world.create(world.job()))
    assert (status.state, status.alive, status.todo) == ("new", False, 8)
    assert set(states(status).values()) == {"waiting"}
    assert (status.counts["waiting"], status.counts["chunks"]) == (8, 16)
    assert status.eta_seconds is None and status.rows_per_second is None


def test_a_done_one(world: Days) -> None:
    store = world.create(world.job())
    world.drive(store)
    status = read_status(store)
    assert status.state == "done"
    assert set(states(status).values()) == {"done"}
    counts = status.counts
    assert (counts["chunks_done"], counts["rows_in"], counts["rows_out"]) == (16, 80, 80)
    assert status.rows_per_second and status.bytes_per_second
    assert status.windows["label"].to_list() == ALL


def test_failures_are_grouped_with_an_example(world: Days) -> None:
    store = failing(world)
    status = read_status(store)
    assert status.state == "failed"
    assert [label for label, state in states(status).items() if state == "failed"] == BAD
    (group,) = status.errors
    assert (group.error, group.chunks, group.windows) == ("TransformError", 4, 2)
    assert group.window == BAD[0]
    assert "cannot do 2024-02-28" in group.message and "Traceback" in group.trace
    found = json.loads(json.dumps(status.to_dict()))
    assert found["counts"]["failed"] == 2
    assert (found["errors_of"], found["errors_in"]) == (1, 1)
    assert set(found["reasons"]) == set(BAD)
    retry = f"chunkmap backfill retry {store.backfill} --output {store.output}"
    assert found["next_command"] == retry


def test_a_killed_driver_is_counted_after(world: Days) -> None:
    """The ledger and the manifests know more than what the driver could still say."""
    store = failing(world)
    before = read_status(store)
    kill(store)
    store.storage.delete(store.prefix + "progress.arrow")
    status = read_status(store)
    assert status.state.startswith("silent since ")
    assert states(status) == states(before)
    assert status.counts == before.counts


def test_mapped_and_not_published_is_staged(world: Days) -> None:
    store = world.create(world.job(), all_or_nothing=True)
    driver = world.driver(store)

    def stop() -> bool:
        return driver.progress.counts()["chunks_done"] >= 6

    driver.desired.is_interrupted = stop
    with pytest.raises(KeyboardInterrupt):
        driver.run()
    assert read_status(store).state == "interrupted"
    kill(store)
    store.storage.delete(store.prefix + "progress.arrow")
    status = read_status(store)
    assert status.counts["done"] == 0
    assert status.counts["staged"] == status.counts["chunks_done"] // 2 >= 3
    assert status.counts["waiting"] + status.counts["staged"] == 8


def test_one_that_is_driven_says_so_itself(world: Days) -> None:
    """While a driver is alive its word counts, and nothing is counted anew."""
    store = world.create(world.job())
    world.drive(store)
    driver = Heartbeat.of(store.storage, store.prefix)
    driver.write("running")
    progress = store.progress()
    assert progress is not None
    store.write_progress(progress.with_columns(state=progress["state"].replace("done", "mapping")))
    assert (read_status(store).state, read_status(store).alive) == ("running", True)
    assert set(states(read_status(store)).values()) == {"mapping"}
    store.change("test", lambda _: {"paused": True})
    assert (read_status(store).state, read_status(store).eta_seconds) == ("paused", None)
    store.change("test", lambda _: {"cancelled": True})
    assert read_status(store).state == "cancelling"


def test_held_and_cancelled(world: Days) -> None:
    held = failing(world, canary=8, canary_limit=1)
    assert read_status(held).state == "held"
    held.change("test", lambda _: {"cancelled": True})
    assert read_status(held).state == "cancelled"
    with pytest.raises(RunCancelledError):
        world.drive(held)


def test_empty_and_skipped_windows(world: Days) -> None:
    world.run(world.job(), WindowSelection("2024-02-27", "2024-02-29"))
    for file in (world.input / "ds=2024-03-02").iterdir():
        file.unlink()
    (world.input / "ds=2024-03-02").rmdir()
    found = states(read_status(world.create(world.job())))
    assert (found["2024-02-27"], found["2024-03-02"]) == ("skipped", "empty")
    assert found["2024-02-29"] == "waiting"


def test_every_try_of_a_window(world: Days) -> None:
    store = failing(world)
    windows = store.windows()
    tries = attempts(store, windows, [BAD[0]])
    assert tries["outcome"].to_list() == ["failed", "failed"]
    assert tries["error"].unique().to_list() == ["TransformError"]
    (world.root / "fixed").touch()
    world.drive(store, BackfillResumeOptions(only_failed=True))
    tries = attempts(store, windows, [BAD[0]])
    assert sorted(tries["outcome"].to_list()) == ["done", "done", "failed", "failed"]
    done = tries.filter(tries["outcome"] == "done")
    assert done["rows_in"].to_list() == [5, 5] and done["seconds"].min() is not None
    assert set(tries["window"].to_list()) == {BAD[0]}


def test_a_forecast_is_told_by_earlier_runs(world: Days) -> None:
    job = world.job()
    first = world.draft(job, WindowSelection("2024-02-26", "2024-02-28"))
    assert first.plan is not None
    unknown = forecast(world.storage, job, world.settings, first.plan)
    assert (unknown.seconds, unknown.runs, unknown.thread_seconds) == (None, (), None)
    assert unknown.suggested_workers >= 1 and unknown.memory_bytes > 0
    world.run(job, WindowSelection("2024-02-26", "2024-02-28"), windows_per_run=1)
    drafted = world.draft(job)
    assert drafted.plan is not None
    told = forecast(world.storage, job, world.settings, drafted.plan)
    assert told.seconds is not None and told.seconds > 0
    assert len(told.runs) == 2 and told.workers_then == 1
    other = forecast(world.storage, world.job("triple"), world.settings, drafted.plan)
    assert other.seconds is None


@pytest.mark.usefixtures("drawn")
def test_the_report_is_stored_and_here(world: Days) -> None:
    store = failing(world)
    uri, local = store_report(store, world.root / ".chunkmap")
    page = Path(local).read_text()
    assert store.storage.get(uri).data.decode() == page
    assert "2 failed" in page and "cannot do 2024-02-28" in page
    assert f"chunkmap backfill retry {store.backfill} --output {store.output}" in page
    said = json.loads(Path(local).with_name("report.json").read_text())
    assert (said["schema"], said["version"]) == ("chunkmap.backfill-report", 1)
    assert [window["label"] for window in said["windows"] if window["state"] == "failed"] == BAD
