"""Whole backfills through the serial engine on local files, held against plain Polars."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from shutil import rmtree
from threading import Event, Thread
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from typing_extensions import override

from partitioning import ObjectInfo
from partitioning.errors import WindowError
from pipeline.config.job import Job
from pipeline.errors import ConflictError, InputError, RunCancelledError, UsageError
from pipeline.runs.backfill.driver import BackfillDriver
from pipeline.runs.backfill.orchestrator import NoBackfillOrchestrator
from pipeline.runs.backfill.plan import WindowSelection, create
from pipeline.runs.backfill.progress import WindowProgress
from pipeline.runs.backfill.records import BackfillResumeOptions, Control, Options, State
from pipeline.runs.backfill.selection import digest_inputs, group_into_runs
from pipeline.runs.backfill.store import BackfillStore, backfills_of, find_backfill
from pipeline.runs.backfill.summary import BackfillHeldError, BackfillIncompleteError
from pipeline.runs.driver.commit import files_of
from pipeline.runs.driver.plan import PlannedInput, ResumeOptions, plan_input, plan_run
from pipeline.runs.driver.publish import publish_run
from pipeline.runs.driver.run import run_serially
from pipeline.runs.driver.summary import RunIncompleteError
from pipeline.runs.ledger.find import runs_of
from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.worker.batch import Batch, map_batch
from pipeline.storage import Storage
from pipeline.table.claims import staged_of
from pipeline.table.errors import CommitsConflictError, FilesMissingError, UploadsVanishedError
from pipeline.table.log import TableLog
from tests.support.backfills import Days, days

LEAP = days("2024-02-26", 8)
"""Over the end of a leap year's February."""


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Days]:
    monkeypatch.chdir(tmp_path)
    one = Days(tmp_path)
    one.write(LEAP)
    yield one


def states(world: Days, store: BackfillStore) -> dict[str, str]:
    progress = store.progress()
    assert progress is not None
    return dict(progress.select("label", "state").iter_rows())


def test_windows_keep_columns(world: Days) -> None:
    kept = {"uri": world.output, "mode": "overwrite-partitions", "keep": "all"}
    job = world.job("only_double", output=kept)
    assert world.run(job, canary="1").counts["done"] == len(LEAP)
    assert_frame_equal(world.rows(), world.expected())
    replaced = world.job("only_double", output={**kept, "keep": ["id", "value"]})
    world.run(replaced, reprocess="all", all_or_nothing=True)
    assert_frame_equal(world.rows(), world.expected())


@pytest.mark.sampled(3)
@pytest.mark.parametrize("per_run", [None, 1, 3, 100])
@pytest.mark.parametrize("backwards", [False, True])
def test_every_window_is_a_commit(world: Days, per_run: int | None, backwards: bool) -> None:
    summary = world.run(world.job(), windows_per_run=per_run, backwards=backwards)
    assert (summary.state, summary.todo, summary.counts["done"]) == ("done", 8, 8)
    assert_frame_equal(world.rows(), world.expected())
    assert world.windows_held() == [str(day) for day in LEAP]
    assert summary.runs == -(-8 // (per_run or 8))


@pytest.mark.parametrize(
    ("target", "backwards", "runs"),
    [
        (1, False, ["a", "b", "c", "de"]),
        (10, False, ["ab", "c", "de"]),
        (10, True, ["edc", "ba"]),
        (100, False, ["abcde"]),
    ],
)
def test_a_run_takes_windows_until_it_has_the_bytes(
    target: int, backwards: bool, runs: list[str]
) -> None:
    sizes = {"a": 5, "b": 5, "c": 10, "d": 0, "e": 3}
    assert group_into_runs(sizes, [], target, backwards=backwards) == list(map(list, runs))
    sample, *rest = group_into_runs(sizes, ["d", "a"], target, backwards=backwards)
    assert sorted(sample) == ["a", "d"]
    assert sorted(label for run in rest for label in run) == ["b", "c", "e"]


def test_runs_are_cut_by_the_bytes_that_are_asked_for(world: Days) -> None:
    assert world.run(world.job(), bytes_per_run=1).runs == 8


def test_a_range_is_half_open(world: Days) -> None:
    world.run(world.job(), WindowSelection("2024-02-28", "2024-03-01"))
    assert world.windows_held() == ["2024-02-28", "2024-02-29"]


def test_exclude(world: Days) -> None:
    world.run(world.job(), WindowSelection("2024-02-28", "2024-03-02", exclude=("2024-02-29",)))
    assert world.windows_held() == ["2024-02-28", "2024-03-01"]


def test_months(world: Days) -> None:
    summary = world.run(world.job(window={"column": "ds", "grain": "month"}))
    assert world.windows_held() == ["2024-02", "2024-03"]
    assert summary.counts["chunks_done"] == 16
    assert_frame_equal(world.rows(), world.expected())


def test_values(world: Days) -> None:
    job = world.job(window={"column": "ds", "grain": "value"})
    world.run(job, WindowSelection(values=("2024-02-29", "2024-02-26")))
    assert world.windows_held() == ["2024-02-26", "2024-02-29"]


def test_the_same_backfill_twice_is_one(world: Days) -> None:
    first, second = world.create(world.job()), world.create(world.job())
    assert first.backfill == second.backfill
    world.drive(first)
    drafted = world.draft(world.job())
    assert drafted.up_to_date == "all requested windows are up to date (8: done)"
    assert create(world.storage, drafted) is None
    assert len(backfills_of(world.storage, world.output)) == 1


@pytest.mark.parametrize(
    ("more", "options", "named"),
    [
        ({}, {"all_or_nothing": True}, "--all-or-nothing"),
        ({}, {"canary": 1, "max_active": 2}, "--max-active, --canary"),
        ({"chunk_timeout": 600, "retries": 3}, {}, "`retries` of the job, `chunk_timeout` of the"),
        ({"resources": {"gpu": 1}}, {"priority": 1}, "--priority, `resources` of the job"),
    ],
)
def test_options_that_an_unfinished_backfill_would_ignore_are_refused(
    world: Days, more: dict[str, Any], options: dict[str, Any], named: str
) -> None:
    store = world.create(world.job())
    with pytest.raises(UsageError, match=f"unfinished .*: {named}.* no effect") as refused:
        world.draft(world.job(**more), **options)
    assert f"backfill cancel {store.backfill}" in str(refused.value.hint)
    store.change("test", lambda _: {"cancelled": True})
    assert world.create(world.job(**more), **options).backfill != store.backfill


def test_the_same_request_may_leave_its_options_out(world: Days) -> None:
    options: dict[str, Any] = {
        "windows_per_run": 2,
        "max_active": 2,
        "canary": "25%",
        "priority": 5,
    }
    store = world.create(world.job(chunk_timeout=60), **options)
    job = world.job(chunk_timeout=60)
    assert world.create(job, **options).backfill == world.create(job).backfill == store.backfill
    with pytest.raises(UsageError, match="--max-active would have no effect") as refused:
        world.create(job, max_active=3)
    assert refused.value.hint is not None
    assert refused.value.hint.endswith(f"backfill set {store.backfill} --max-active 3")
    store.change("test", lambda _: {"max_active": 3})
    for active in (2, 3, 4):
        assert world.create(job, max_active=active).backfill == store.backfill


def test_files_deleted_by_hand_are_reported(world: Days) -> None:
    world.run(world.job())
    uri = TableLog(world.storage, world.output).output
    gone = min(info.uri for info in world.storage.objects(uri))
    world.storage.delete(gone)
    with pytest.raises(FilesMissingError, match=gone.removeprefix(uri)):
        world.create(world.job())


def test_another_key_is_another_backfill(world: Days) -> None:
    job = world.job()
    ids = {world.create(job, idempotency_key=key).backfill for key in ("", "a", "b")}
    assert len(ids) == 3


def test_missing_maps_what_the_output_lacks(world: Days) -> None:
    world.run(world.job(), WindowSelection("2024-02-26", "2024-02-28"))
    summary = world.run(world.job())
    assert (summary.windows, summary.todo) == (8, 6)
    assert_frame_equal(world.rows(), world.expected())


def test_changed_maps_what_has_other_input(world: Days) -> None:
    world.run(world.job())
    world.write([LEAP[3]], value=7.0)
    assert world.draft(world.job()).up_to_date is not None
    summary = world.run(world.job(), reprocess="changed")
    assert summary.todo == 1
    assert_frame_equal(world.rows(), world.expected())


def test_changed_maps_what_other_code_has_made(world: Days) -> None:
    world.run(world.job())
    assert world.draft(world.job(), reprocess="changed").record.todo == 0
    assert world.draft(world.job("triple"), reprocess="changed").record.todo == 8


def test_changed_maps_what_other_options_of_the_job_have_made(world: Days) -> None:
    world.run(world.job())
    some_rows = [["value", ">", 5]]
    filtered = world.job(input={"uri": str(world.input), "filter": some_rows})
    assert world.draft(filtered, reprocess="changed").record.todo == 8
    world.run(filtered, reprocess="changed")
    assert world.draft(filtered, reprocess="changed").up_to_date is not None
    assert world.draft(world.job(), reprocess="changed").record.todo == 8


@pytest.mark.parametrize("function", ["triple", "nothing"])
def test_changed_maps_what_windows_of_another_rule_have_replaced(
    world: Days, function: str
) -> None:
    world.run(world.job())
    month = {"column": "ds", "grain": "month"}
    march = WindowSelection("2024-03", "2024-04")
    world.run(world.job(function, window=month), march, reprocess="all")
    drafted = world.draft(world.job(), reprocess="changed")
    todo = drafted.windows.filter(pl.col("skipped").is_null())["label"].to_list()
    assert todo == [str(day) for day in LEAP if day.month == 3]
    world.run(world.job(), reprocess="changed")
    assert_frame_equal(world.rows(), world.expected())
    assert world.draft(world.job(), reprocess="changed").up_to_date is not None


@pytest.mark.parametrize(
    ("more", "changes_rows"),
    [
        ({"input": {"filter": [["value", ">", 5]]}}, True),
        ({"input": {"columns": ["id", "value"]}}, True),
        ({"input": {"types": {"value": "float32"}}}, True),
        ({"input": {"hive_types": {"ds": "string"}}}, True),
        ({"input": {"int96": "ns"}}, True),
        ({"input": {"object_column": "object"}}, True),
        ({"input": {"schema": "union"}}, True),
        ({"output": {"keep": "all"}}, True),
        ({"output": {"keep": "all", "rename": {"id": "key"}}}, True),
        ({"checks": {"rows": {"schema": "m:Rows", "severity": "quarantine"}}}, True),
        ({"checks": {"rows": {"schema": "m:Rows", "severity": "block"}}}, False),
        ({"input": {"verify_checksums": True}}, False),
        ({"output": {"compression": "lz4", "keep_versions": 3}}, False),
        ({"retries": 9}, False),
        ({}, False),
    ],
)
def test_options_that_change_rows_count_as_inputs(
    world: Days, more: dict[str, Any], changes_rows: bool
) -> None:
    plain = world.job().model_dump(by_alias=True, exclude_unset=True)
    parts = {
        key: {**plain.get(key, {}), **value} if isinstance(value, dict) else value
        for key, value in more.items()
    }
    job = Job.model_validate({**plain, **parts})
    digest = digest_inputs(job, "0" * 32)
    assert (digest != "0" * 32) == changes_rows
    assert digest != digest_inputs(job, "1" * 32), "the objects count, too"


def test_code_of_another_scheme_is_not_known_to_have_changed(
    world: Days, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.runs.transforms.fingerprint.SCHEME", "v0")
        world.run(world.job())
        unfinished = world.create(world.job(), reprocess="all")
    drafted = world.draft(world.job(), reprocess="changed")
    assert drafted.record.todo == 8
    assert "the code of 8 windows was fingerprinted by another scheme" in drafted.notes[0]
    assert world.draft(world.job(), reprocess="changed", accept_code=True).record.todo == 0
    world.write([LEAP[3]], value=7.0)
    assert world.draft(world.job(), reprocess="changed", accept_code=True).record.todo == 1
    with pytest.raises(ConflictError, match=r"scheme v0 .*cannot tell") as caught:
        world.draft(world.job(), reprocess="all")
    assert f"resume {unfinished.backfill} --accept-code" in str(caught.value.hint)


def test_all_maps_everything_again(world: Days) -> None:
    world.run(world.job())
    before = world.rows()
    summary = world.run(world.job(), reprocess="all")
    assert (summary.todo, summary.counts["done"]) == (8, 8)
    assert_frame_equal(world.rows(), before)


def test_a_window_that_loses_its_rows_is_emptied(world: Days) -> None:
    world.run(world.job())
    one = WindowSelection(values=(), start="2024-02-29", end="2024-03-01")
    world.run(world.job("nothing"), one, reprocess="all")
    left = world.expected().filter(pl.col("ds") != pl.date(2024, 2, 29))
    assert_frame_equal(world.rows(), left)


def test_windows_whose_objects_are_gone_are_named(world: Days) -> None:
    world.run(world.job())
    rmtree(world.input / "ds=2024-02-28")
    drafted = world.draft(world.job(), reprocess="changed")
    [note] = drafted.notes
    assert "1 window (for example 2024-02-28) of the output has no rows" in note
    [reason] = drafted.windows.filter(label="2024-02-28")["skipped"]
    assert "the output keeps those from before" in reason


@pytest.mark.parametrize("grain", ["day", "value"])
def test_windows_beyond_what_is_left_of_the_input_are_named(world: Days, grain: str) -> None:
    job = world.job(window={"column": "ds", "grain": grain})
    world.run(job)
    for gone in ("2024-02-26", "2024-02-28", "2024-03-04"):
        rmtree(world.input / f"ds={gone}")
    [note] = world.draft(job, reprocess="all").notes
    assert "3 windows (for example 2024-02-26) of the output have no rows" in note
    missing = world.draft(job).notes
    assert ["1 window (for example 2024-02-28)" in note for note in missing] == (
        [True] if grain == "day" else []
    )


def test_windows_outside_of_a_bound_are_not_named(world: Days) -> None:
    world.run(world.job())
    for gone in ("2024-02-26", "2024-03-04"):
        rmtree(world.input / f"ds={gone}")
    drafted = world.draft(world.job(), WindowSelection("2024-02-27"), reprocess="all")
    [note] = drafted.notes
    assert "1 window (for example 2024-03-04)" in note


def failing(world: Days, *bad: str, **more: object) -> Job:
    params = {"days": list(bad), "fixed": str(world.root / "fixed")}
    return world.job("fails", params=params, **more)


def test_one_bad_window_fails_alone_and_is_retried(world: Days) -> None:
    store = world.create(failing(world, "2024-02-29", "2024-03-01"))
    with pytest.raises(BackfillIncompleteError, match="2 of 8 windows failed") as failure:
        world.drive(store)
    assert failure.value.summary.counts["done"] == 6
    found = states(world, store)
    assert [w for w, state in found.items() if state == "failed"] == ["2024-02-29", "2024-03-01"]
    (world.root / "fixed").touch()
    assert world.drive(store).state == "done"


def test_retry_of_one_window_leaves_the_other(world: Days) -> None:
    store = world.create(failing(world, "2024-02-29", "2024-03-01"))
    with pytest.raises(BackfillIncompleteError):
        world.drive(store)
    (world.root / "fixed").touch()
    with pytest.raises(BackfillIncompleteError, match="7 are published"):
        world.drive(store, BackfillResumeOptions(only=("2024-02-29",)))
    assert world.drive(store, BackfillResumeOptions(only_failed=True)).state == "done"
    assert world.windows_held() == [str(day) for day in LEAP]


def test_failed_maps_what_failed_before(world: Days) -> None:
    store = world.create(failing(world, "2024-02-29"))
    with pytest.raises(BackfillIncompleteError):
        world.drive(store)
    store.change("test", lambda _: {"cancelled": True})
    drafted = world.draft(failing(world, "2024-02-29"), reprocess="failed")
    todo = drafted.windows.filter(pl.col("skipped").is_null())["label"].to_list()
    assert todo == ["2024-02-29"]


def test_too_many_failures_stop_it(world: Days) -> None:
    job = failing(world, *map(str, LEAP[:4]))
    store = world.create(job, windows_per_run=1, max_active=1, max_failures="20%")
    with pytest.raises(BackfillIncompleteError) as failure:
        world.drive(store)
    summary = failure.value.summary
    assert any("--max-failures is 20%" in note for note in summary.notes)
    assert (summary.counts["failed"], summary.counts["waiting"]) == (2, 6)


def test_all_or_nothing_publishes_nothing_when_one_window_fails(world: Days) -> None:
    store = world.create(failing(world, "2024-02-29"), all_or_nothing=True)
    with pytest.raises(BackfillIncompleteError):
        world.drive(store)
    assert world.manifest_numbers() == 0
    (world.root / "fixed").touch()
    assert world.drive(store).state == "done"
    assert world.manifest_numbers() == 1
    assert world.rows().height == 80


@pytest.mark.parametrize(
    "resume",
    [BackfillResumeOptions(only_failed=True), BackfillResumeOptions(only=("2024-02-29",))],
    ids=["failed", "window"],
)
def test_all_or_nothing_publishes_all_when_one_window_is_retried(
    world: Days, resume: BackfillResumeOptions
) -> None:
    store = world.create(failing(world, "2024-02-29"), all_or_nothing=True)
    with pytest.raises(BackfillIncompleteError):
        world.drive(store)
    (world.root / "fixed").touch()
    assert world.drive(store, resume).state == "done"
    assert world.manifest_numbers() == 1
    assert world.rows().height == 80


def test_all_or_nothing_waits_for_windows_that_are_not_retried(world: Days) -> None:
    store = world.create(failing(world, "2024-02-28", "2024-02-29"), all_or_nothing=True)
    with pytest.raises(BackfillIncompleteError):
        world.drive(store)
    (world.root / "fixed").touch()
    with pytest.raises(BackfillIncompleteError):
        world.drive(store, BackfillResumeOptions(only=("2024-02-29",)))
    assert world.manifest_numbers() == 0
    assert world.drive(store, BackfillResumeOptions(only_failed=True)).state == "done"
    assert world.manifest_numbers() == 1
    assert world.rows().height == 80


def test_a_canary_that_fails_holds_the_rest(world: Days) -> None:
    store = world.create(failing(world, str(LEAP[4])), canary=1)
    with pytest.raises(BackfillHeldError, match="canary failed") as held:
        world.drive(store)
    counts = held.value.summary.counts
    assert (counts["failed"], counts["waiting"]) == (1, 7)
    (world.root / "fixed").touch()
    assert world.drive(store).state == "done"


def test_a_canary_that_is_held_waits_to_be_told(world: Days) -> None:
    store = world.create(world.job(), canary="25%", canary_hold=True)
    with pytest.raises(BackfillHeldError, match="its canary is done") as held:
        world.drive(store)
    assert held.value.summary.counts["done"] == 2
    store.change("test", lambda _: {"approved": True})
    assert world.drive(store).state == "done"
    assert_frame_equal(world.rows(), world.expected())


@pytest.mark.parametrize("limit", [0, "50%"])
def test_a_canary_of_all_or_nothing_publishes_nothing(world: Days, limit: int | str) -> None:
    store = world.create(world.job(), canary=2, canary_limit=limit, canary_hold=True,
                         all_or_nothing=True)  # fmt: skip
    with pytest.raises(BackfillHeldError) as held:
        world.drive(store)
    assert held.value.summary.counts["staged"] == 2
    assert world.manifest_numbers() == 0
    store.change("test", lambda _: {"approved": True})
    world.drive(store)
    assert_frame_equal(world.rows(), world.expected())


def test_cancelling_stops_it_and_keeps_what_is_published(world: Days) -> None:
    store = world.create(world.job(), windows_per_run=1, max_active=1)
    driver = world.driver(store)

    def cancel_at_three(progress: object, phase: str) -> None:
        if driver.progress.counts()["done"] >= 3:
            store.change("test", lambda _: {"cancelled": True})
            driver.desired.read_at = 0.0

    driver.listen = cancel_at_three
    with pytest.raises(RunCancelledError):
        driver.run()
    assert 3 <= len(world.windows_held()) < 8
    # A cancelled one is over: the same request is another backfill.
    again = world.create(world.job())
    assert again.backfill != store.backfill
    world.drive(again)
    assert_frame_equal(world.rows(), world.expected())


def test_a_cancelled_one_starts_no_run(world: Days) -> None:
    store = world.create(world.job())
    store.change("test", lambda _: {"cancelled": True})
    with pytest.raises(RunCancelledError):
        world.drive(store)
    assert runs_of(world.storage, world.output) == []


def test_what_a_driver_has_read_at_its_start_is_not_read_again_at_once(
    world: Days, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.runs.backfill.desired_state.CONTROL_SECONDS", 600.0)

    class Host(NoBackfillOrchestrator):
        calls = 0

        @override
        def sync_control(self, control: Control) -> Control | None:
            self.calls += 1
            return None

    host = Host()
    assert BackfillDriver(world.create(world.job()), world.settings, host).run().state == "done"
    assert host.calls == 0


def test_pausing_holds_it(world: Days) -> None:
    store = world.create(world.job(), windows_per_run=1, max_active=1)
    store.change("test", lambda _: {"paused": True})
    driver, paused = world.driver(store), Event()

    def listen(progress: object, phase: str) -> None:
        driver.desired.read_at = 0.0
        if phase == "paused":
            paused.set()

    driver.listen = listen
    thread = Thread(target=driver.run)
    thread.start()
    assert paused.wait(20)
    assert world.manifest_numbers() == 0
    store.change("test", lambda _: {"paused": False})
    thread.join(60)
    assert_frame_equal(world.rows(), world.expected())


def test_a_driver_that_is_killed_is_followed_by_another(world: Days) -> None:
    store = world.create(world.job(), windows_per_run=3, max_active=1)
    driver = world.driver(store)

    def die(progress: object, phase: str) -> None:
        if driver.progress.counts()["done"] >= 3:
            raise KeyboardInterrupt

    driver.listen = die
    with pytest.raises(KeyboardInterrupt):
        driver.run()
    assert 3 <= len(world.windows_held()) < 8
    store.write_progress(
        driver.progress.frame().with_columns(done=pl.lit(0, pl.Int64), rows_in=pl.lit(0, pl.Int64))
    )
    summary = world.drive(store)
    assert (summary.state, summary.counts["done"]) == ("done", 8)
    assert (summary.counts["chunks_done"], summary.counts["rows_in"]) == (16, 80)
    assert_frame_equal(world.rows(), world.expected())
    assert len(runs_of(world.storage, world.output)) == 3


def test_a_window_whose_input_comes_later(world: Days) -> None:
    more = days("2024-03-05", 3)
    world.write(more[2:])
    asked = WindowSelection("2024-02-26", "2024-03-08")
    first = world.run(world.job(), asked)
    assert (first.counts["done"], first.counts["empty"]) == (9, 2)
    world.write(more)
    second = world.run(world.job(), asked)
    assert (second.todo, second.counts["done"]) == (2, 2)
    assert_frame_equal(world.rows(), world.expected())


def test_a_backfill_lists_its_input_once(world: Days, monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[str] = []
    objects = Storage.objects

    def counted(storage: Storage, prefix: str) -> list[ObjectInfo]:
        listed.append(prefix)
        return objects(storage, prefix)

    monkeypatch.setattr(Storage, "objects", counted)
    assert world.draft(world.job()).record.todo == len(LEAP)
    assert len([prefix for prefix in listed if prefix.startswith(world.input.as_uri())]) == 1


def test_two_backfills_that_overlap(world: Days) -> None:
    """Whoever is second at a window finds it done, and says so; nothing is there twice."""
    job = world.job(output={"uri": world.output, "mode": "append"})
    first = world.create(job, WindowSelection("2024-02-26", "2024-03-01"))
    second = world.create(job, WindowSelection("2024-02-28", "2024-03-05"))
    world.drive(first)
    counts = world.drive(second).counts
    assert (counts["done"], counts["skipped"]) == (4, 2)
    assert_frame_equal(world.rows(), world.expected())


def test_two_backfills_that_do_the_same_windows_again(world: Days) -> None:
    """Of two that replace the same windows, the second is told that the first was there."""
    first = world.create(world.job(), reprocess="all", idempotency_key="a")
    second = world.create(world.job(), reprocess="all", idempotency_key="b")
    world.drive(first)
    with pytest.raises(BackfillIncompleteError, match="8 of 8 windows failed") as failure:
        world.drive(second)
    assert "has published" in failure.value.summary.notes[0]
    assert_frame_equal(world.rows(), world.expected())


def test_windows_are_not_scanned_once_for_each_window(
    world: Days, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans: list[tuple[str, ...]] = []
    scan = WindowProgress.in_state

    def counted(progress: WindowProgress, *states: State) -> list[str]:
        scans.append(states)
        return scan(progress, *states)

    monkeypatch.setattr(WindowProgress, "in_state", counted)
    store = world.create(failing(world, "2024-02-29"), all_or_nothing=True)
    with pytest.raises(BackfillIncompleteError):
        world.drive(store)
    assert scans.count(("done",)) < len(LEAP)
    assert scans.count(("mapping", "staged")) < len(LEAP)


def test_windows_in_progress_are_told(world: Days) -> None:
    store = world.create(world.job())
    world.drive(store)
    progress = store.progress()
    assert progress is not None
    assert progress["done"].to_list() == [2] * 8
    assert progress["rows_in"].sum() == progress["rows_out"].sum() == 80
    assert progress["started"].min() <= time.time()  # type: ignore[operator]


def test_what_cannot_be_is_refused_before_anything_is_written(world: Days) -> None:
    job = world.job()
    with pytest.raises(UsageError, match="3 of 6 windows lie outside the input"):
        world.draft(job, WindowSelection("2024-03-02", "2024-03-08"))
    with pytest.raises(WindowError, match="empty range"):
        world.draft(job, WindowSelection("2024-03-02", "2024-03-01"))
    with pytest.raises(WindowError, match="did you mean 'ds'"):
        world.draft(world.job(window={"column": "dss", "grain": "day"}))
    with pytest.raises(WindowError, match="does not fit"):
        world.draft(world.job(window={"column": "ds", "grain": "hour"}))
    with pytest.raises(UsageError, match="has no windows"):
        world.draft(world.job(window=None))
    for mode, why in (
        ("error", "its windows one after the other"),
        ("overwrite", "one after the other"),
    ):
        with pytest.raises(UsageError, match=why):
            world.draft(world.job(output={"uri": world.output, "mode": mode}))
    with pytest.raises(UsageError, match="duplicate rows"):
        world.draft(world.job(output={"uri": world.output, "mode": "append"}), reprocess="all")
    assert not (world.root / "out").exists()
    assert not (world.root / "out.chunkmap").exists()


@pytest.mark.parametrize("day", [date.min, date.max])
def test_a_window_that_stands_for_no_date_is_no_bound(world: Days, day: date) -> None:
    """From or to it a range would have millions of windows, of which nobody has typed a bound."""
    world.write([day])
    before, later = WindowSelection(end="2024-02-28"), WindowSelection(start="2024-02-28")
    open_range, known = (before, later) if day == date.min else (later, before)
    for selection in (None, open_range):
        with pytest.raises(UsageError, match=f"the window {day}") as refused:
            world.draft(world.job(), selection)
        assert "--from and --to" in str(refused.value.hint)
    assert world.draft(world.job(), known).record.windows
    assert world.draft(world.job(), WindowSelection(values=(str(day),))).record.windows == 1


def test_an_id_that_does_not_exist(world: Days) -> None:
    store = world.create(world.job())
    wrong = ("0" if store.backfill[0] != "0" else "1") + store.backfill[1:]
    with pytest.raises(UsageError) as failure:
        find_backfill(world.storage, [world.output], wrong)
    assert store.backfill in str(failure.value.hint)
    found = find_backfill(world.storage, [world.output], store.backfill[:5])
    assert found.backfill == store.backfill


def test_other_code_stops_a_resume(world: Days) -> None:
    store = world.create(world.job())
    source = world.root / f"{world.module}.py"
    source.write_text(source.read_text().replace("* 2", "* 5"))
    with pytest.raises(ConflictError, match="has changed since"):
        world.create(world.job())
    assert Options().reprocess == "missing"
    assert store.record().todo == 8


def test_a_run_does_not_append_what_a_backfill_has_appended(world: Days) -> None:
    job = world.job(output={"uri": world.output, "mode": "append"})
    world.run(job, WindowSelection("2024-02-26", "2024-02-28"))
    before = world.manifest_numbers()
    with pytest.raises(UsageError, match="contains 2 windows"):
        run_serially(job, world.settings, world.storage)
    assert world.manifest_numbers() == before
    world.run(job)
    assert_frame_equal(world.rows(), world.expected())


def test_a_backfill_does_not_append_what_a_run_has_appended_since(world: Days) -> None:
    job = world.job(output={"uri": world.output, "mode": "append"})
    store = world.create(job)
    run_serially(job, world.settings, world.storage)
    assert world.drive(store).counts["skipped"] == len(LEAP)
    assert_frame_equal(world.rows(), world.expected())


def test_what_is_appended_while_a_backfill_is_planned_is_not_appended_again(
    world: Days, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = world.job(output={"uri": world.output, "mode": "append"})
    other = world.create(job, WindowSelection("2024-02-26", "2024-02-28"))

    def plan_slowly(*args: Any, **options: Any) -> PlannedInput:
        planned = plan_input(*args, **options)
        world.drive(other)
        return planned

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.runs.backfill.plan.plan_input", plan_slowly)
        store = world.create(job)
    counts = world.drive(store).counts
    assert (counts["done"], counts["skipped"]) == (6, 2)
    assert_frame_equal(world.rows(), world.expected())


def test_a_run_is_not_resumed_over_what_a_backfill_has_appended(world: Days) -> None:
    job = world.job(output={"uri": world.output, "mode": "append"})
    planned = plan_run(job, world.settings, world.storage, ResumeOptions())
    world.run(job)
    with pytest.raises(ConflictError, match="8 windows that backfills have"):
        run_serially(job, world.settings, world.storage)
    with pytest.raises(ConflictError, match="8 windows that backfills have"):
        resume = ResumeOptions(run=planned.ledger.run)
        run_serially(job, world.settings, world.storage, resume)
    assert_frame_equal(world.rows(), world.expected())


def test_a_run_that_a_backfill_overtakes_is_a_conflict(world: Days) -> None:
    """Both are mapped, and only one is published."""
    job = world.job(output={"uri": world.output, "mode": "append"})
    planned = plan_run(job, world.settings, world.storage, ResumeOptions())
    ledger = planned.ledger
    map_batch(ledger.prefix, planned.fingerprint, Batch("by-hand", f"0-{len(planned.plan)}"))
    world.run(job)
    with pytest.raises(CommitsConflictError):
        publish_run(world.storage, ledger)
    assert_frame_equal(world.rows(), world.expected())


def test_a_run_is_resumed_after_a_backfill_of_other_windows(world: Days) -> None:
    kept = {"uri": world.output, "mode": "append"}
    early = {"uri": str(world.input), "filter": [["ds", "<", "2024-02-28"]]}
    job, part = world.job(output=kept), world.job(output=kept, input=early)
    planned = plan_run(part, world.settings, world.storage, ResumeOptions())
    world.run(job, WindowSelection("2024-02-28", "2024-03-05"))
    run_serially(part, world.settings, world.storage, ResumeOptions(run=planned.ledger.run))
    assert_frame_equal(world.rows(), world.expected())


def test_windows_of_another_rule_are_not_appended_over_those_of_a_backfill(world: Days) -> None:
    kept = {"uri": world.output, "mode": "append"}
    by_day = world.create(world.job(output=kept))
    world.run(world.job(output=kept, window={"column": "ds", "grain": "month"}))
    with pytest.raises(BackfillIncompleteError, match="8 of 8 windows failed"):
        world.drive(by_day)
    assert_frame_equal(world.rows(), world.expected())


def failed_run(world: Days, job: Job) -> str:
    """Let a backfill of a job fail, and then fix what its transform lacks; return its run."""
    with pytest.raises(BackfillIncompleteError):
        world.run(job)
    [own] = [record.run for record in runs_of(world.storage, world.output) if record.backfill]
    (world.root / "fixed").touch()
    return own


def test_a_run_of_a_backfill_is_not_appended_over_a_whole_run(world: Days) -> None:
    job = failing(world, *map(str, LEAP), output={"uri": world.output, "mode": "append"})
    own = failed_run(world, job)
    run_serially(job, world.settings, world.storage)
    with pytest.raises(ConflictError, match="already, which run"):
        run_serially(job, world.settings, world.storage, ResumeOptions(run=own))
    assert world.rows().height == 10 * len(LEAP)


def test_a_whole_run_is_not_appended_over_a_run_of_a_backfill(world: Days) -> None:
    job = failing(world, *map(str, LEAP), output={"uri": world.output, "mode": "append"})
    own = failed_run(world, job)
    run_serially(job, world.settings, world.storage, ResumeOptions(run=own))
    with pytest.raises(InputError, match=own):
        run_serially(job, world.settings, world.storage)
    assert world.rows().height == 10 * len(LEAP)


def test_windows_are_not_appended_where_folders_do_not_name_them(world: Days) -> None:
    job = world.job(output={"uri": world.output, "mode": "append", "partition_by": ["id"]})
    run_serially(job, world.settings, world.storage)
    for same in (job, job.model_copy(update={"name": "renamed"})):
        with pytest.raises(UsageError, match="do not name their windows"):
            world.draft(same)


@pytest.mark.parametrize("name", ["run.json", "job.yaml"])
def test_windows_are_not_appended_after_a_damaged_run(world: Days, name: str) -> None:
    job = world.job(output={"uri": world.output, "mode": "append", "partition_by": ["id"]})
    run = run_serially(job, world.settings, world.storage).run
    (world.root / "out.chunkmap" / "runs" / run / name).write_bytes(b"")
    with pytest.raises(UsageError, match="do not name their windows"):
        world.draft(job)


def test_windows_of_a_run_that_lacks_chunks_say_so(world: Days) -> None:
    job = failing(world, "2024-02-29")
    with pytest.raises(RunIncompleteError) as caught:
        run_serially(job, world.settings, world.storage)
    run = caught.value.summary.run
    ledger = Ledger(world.storage, world.output, run)
    publish_run(world.storage, ledger, without_failed=True)
    reasons = dict(world.draft(job).windows.select("label", "skipped").iter_rows())
    assert reasons["2024-02-28"] == f"done by run {run} without 2 chunks: chunkmap retry {run}"
    (world.root / "fixed").touch()
    run_serially(job, world.settings, world.storage, ResumeOptions(run=run))
    reasons = dict(world.draft(job).windows.select("label", "skipped").iter_rows())
    assert set(reasons.values()) == {f"done by run {run}"}


def test_failed_does_not_append_what_was_published_since(world: Days) -> None:
    """The one that failed was created later than the one that published the window after that."""
    job = failing(world, "2024-02-29", output={"uri": world.output, "mode": "append"})
    other = world.create(job, WindowSelection(values=("2024-02-29",)))
    failed = world.create(job)
    with pytest.raises(BackfillIncompleteError):
        world.drive(failed)
    failed.change("test", lambda _: {"cancelled": True})
    (world.root / "fixed").touch()
    world.drive(other)
    assert world.rows().height == 10 * len(LEAP)
    drafted = world.draft(job, reprocess="failed")
    assert drafted.windows["skipped"].null_count() == 0
    assert drafted.up_to_date is not None


def test_windows_of_another_rule_are_not_appended_again(world: Days) -> None:
    kept = {"uri": world.output, "mode": "append"}
    world.run(world.job(output=kept))
    by_month = {"column": "ds", "grain": "month"}
    with pytest.raises(UsageError, match="windows of another rule"):
        world.draft(world.job(output=kept, window=by_month))
    # Where they are replaced, all of them are done by the new rule.
    world.run(world.job(window=by_month))
    assert_frame_equal(world.rows(), world.expected())


def test_what_another_run_has_replaced_has_changed(world: Days) -> None:
    world.run(world.job())
    assert world.draft(world.job(), reprocess="changed").up_to_date is not None
    run_serially(world.job("triple", window=None), world.settings, world.storage)
    drafted = world.draft(world.job(), reprocess="changed")
    assert drafted.windows["skipped"].null_count() == len(LEAP)
    assert world.draft(world.job()).up_to_date is not None, "it is not missing"
    world.run(world.job(), reprocess="changed")
    assert_frame_equal(world.rows(), world.expected())
    assert world.draft(world.job(), reprocess="changed").up_to_date is not None


def test_a_window_without_rows_that_the_output_has_is_named(world: Days) -> None:
    world.run(world.job())
    for path in (world.input / "ds=2024-02-28").iterdir():
        pl.read_parquet(path).clear().write_parquet(path)
    drafted = world.draft(world.job(), reprocess="changed")
    [note] = drafted.notes
    assert "1 window (for example 2024-02-28)" in note
    reasons = dict(drafted.windows.select("label", "skipped").iter_rows())
    assert "the output keeps those from before" in reasons["2024-02-28"]


def test_uploads_that_vanish_when_all_is_mapped_are_mapped_again(
    world: Days, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are missed by a publish while others are mapped, after which nothing is left to map."""
    monkeypatch.setattr("pipeline.runs.backfill.run.PUBLISH_SECONDS", 0.0)
    lost: list[str] = []

    def publish(
        storage: Storage, ledger: Ledger, vanished: UploadsVanishedError | None, **more: Any
    ) -> int:
        completions = ledger.read().completions
        if completions.height == len(ledger.plan()) and not lost and more["windows"]:
            chunk = next(iter(more["windows"].values())).chunks[0]
            done = files_of(ledger.output, completions.filter(pl.col("chunk") == chunk))
            storage.abort(staged_of(ledger.output, done))
            lost.extend(done["attempt"])
        return publish_run(storage, ledger, vanished, **more)

    driver = world.driver(world.create(world.job()))
    driver.publish = publish
    assert driver.run().state == "done"
    assert lost
    assert_frame_equal(world.rows(), world.expected())


def spoil(world: Days, day: date, parts: int = 2) -> None:
    for part in range(parts):
        (world.input / f"ds={day}" / f"{part}.parquet").write_bytes(b"garbage" * 10)


@pytest.mark.parametrize("action", ["skip", "quarantine"])
@pytest.mark.parametrize("is_published", [False, True])
def test_a_window_without_readable_objects_says_so(
    world: Days, action: str, is_published: bool
) -> None:
    job = world.job(input={"uri": str(world.input), "on_bad_object": action})
    if is_published:
        world.run(job)
    spoil(world, LEAP[3])
    drafted = world.draft(job, reprocess="all")
    skipped = drafted.windows.filter(pl.col("skipped").is_not_null())
    assert skipped["label"].to_list() == [str(LEAP[3])]
    [reason] = skipped["skipped"].to_list()
    assert reason.startswith("none of its 2 objects can be read: ")
    assert f"ds={LEAP[3]}/0.parquet: " in reason
    [note] = drafted.notes
    assert f"nothing of 1 window (for example {LEAP[3]}) can be read" in note
    summary = world.run(job, reprocess="all")
    assert (summary.counts["done"], summary.counts["skipped"]) == (7, 1)
    assert note in summary.notes
    assert world.rows().height == (80 if is_published else 70)
    world.write([LEAP[3]], value=7.0)
    assert world.draft(job, reprocess="changed").record.todo == 1


def test_a_window_with_some_readable_objects_is_done(world: Days) -> None:
    spoil(world, LEAP[3], parts=1)
    job = world.job(input={"uri": str(world.input), "on_bad_object": "quarantine"})
    drafted = world.draft(job)
    assert (drafted.record.todo, drafted.notes) == (8, ())


def test_a_window_whose_readable_objects_have_no_rows_says_what_cannot_be_read(
    world: Days,
) -> None:
    spoil(world, LEAP[3], parts=1)
    other = world.input / f"ds={LEAP[3]}" / "1.parquet"
    pl.read_parquet(other).clear().write_parquet(other)
    job = world.job(input={"uri": str(world.input), "on_bad_object": "quarantine"})
    drafted = world.draft(job)
    [reason] = drafted.windows["skipped"].drop_nulls().to_list()
    assert reason.startswith("1 of its 2 objects cannot be read, and there are no other rows: ")
    assert len(drafted.notes) == 1
