"""Outputs that are Delta tables: every version has the rows of its manifest, whoever dies."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Barrier
from unittest.mock import patch

import polars as pl
import pytest
from deltalake import DeltaTable, write_deltalake
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import OutputNotEmptyError, UsageError
from pipeline.runs.admin.vacuum import vacuum
from pipeline.runs.admin.verify import verify_output
from pipeline.runs.driver.publish import publish_run
from pipeline.runs.driver.tables import refuse_tables
from pipeline.table.delta.library import LostRaceError
from pipeline.table.delta.log import DeltaLog
from pipeline.table.errors import DamagedTableError, FilesMissingError, TableChangedError
from pipeline.table.publish import prepare_output, rollback
from pipeline.table.repair import diagnose
from tests.support.faulty_storage import Fault, KilledError, dies_at
from tests.support.instants import instants
from tests.support.runs_by_hand import plan_of
from tests.table.delta_output import Calls, DeltaOutput, Rows, delta_rows, scanned

ANYBODY = "0" * 16
PLANS = [plan_of(3, folders=(0, 1)), plan_of(4, folders=(1, 2)), plan_of(2, folders=(7,))]


@pytest.fixture
def output(tmp_path: Path) -> DeltaOutput:
    return DeltaOutput(tmp_path / "o")


def planned_rows(number: int) -> Rows:
    plan = PLANS[number]
    found: Rows = Counter()
    for index in range(len(plan)):
        chunk = plan.chunk(index)
        [(_, value)] = chunk.partition
        found.update((str(value), index * 2 + row) for row in range(chunk.rows))
    return found


def applied(rows: Rows, mode: str, new: Rows) -> Rows:
    """What a commit makes of an output's rows."""
    if mode == "overwrite":
        return new
    if mode == "overwrite-partitions":
        folders = {k for k, _ in new}
        return Counter({row: n for row, n in rows.items() if row[0] not in folders}) + new
    return rows + new


STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from(["append", "overwrite", "overwrite-partitions"]), st.integers(0, 2)
        ),
        st.tuples(st.just("rollback"), st.integers(0, 20)),
    ),
    min_size=1,
    max_size=5,
)


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=STEPS)
def test_every_version_has_the_rows_of_its_manifest(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    output = DeltaOutput(tmp_path_factory.mktemp("d") / "o")
    history: list[Rows] = [Counter()]
    for number, (action, which) in enumerate(steps):
        if action == "rollback":
            if len(history) == 1:
                continue
            target = which % (len(history) - 1)
            rollback(output.table_log, target)
            history.append(history[target])
        else:
            output.publish(PLANS[which], action, f"code {number}")
            history.append(applied(history[-1], action, planned_rows(which)))
    versions = output.versions() if len(history) > 1 else {}
    assert set(versions) == set(range(1, len(history)))
    for manifest, version in versions.items():
        assert delta_rows(output, version) == history[manifest]
        if history[manifest]:
            assert scanned(output.uri, manifest) == history[manifest]
    if versions:
        output.check()
        assert verify_output(output.storage, output.uri).problems == ()


def test_replaced_files_stay_until_deltas_own_vacuum(output: DeltaOutput) -> None:
    output.publish(PLANS[0], "overwrite", "a")
    first = output.visible()
    output.publish(PLANS[1], "overwrite", "b")
    for _ in range(2):  # Neither a next command nor our vacuum moves them.
        prepare_output(output.table_log, "append", ANYBODY)
        assert first < output.visible()
        done = vacuum(output.storage, output.uri, older_than=-1.0)
        assert (done.strays, done.replaced) == ((), 0)
    assert diagnose(output.table_log).problems == ()
    assert verify_output(output.storage, output.uri).problems == ()
    DeltaTable(f"{output.root}/t").vacuum(
        retention_hours=0, dry_run=False, enforce_retention_duration=False
    )
    assert first.isdisjoint(output.visible())
    output.check()
    with pytest.raises(FilesMissingError) as caught:
        rollback(output.table_log)
    assert "vacuum" in str(caught.value.hint)
    output.publish(PLANS[2], "append", "c")
    output.check()


def test_files_of_a_lost_claim_are_still_moved_away(output: DeltaOutput) -> None:
    output.publish(PLANS[0], "append", "a")
    run = output.run(PLANS[1], "append", "b")
    stray = next(iter(run.ledger.read().completions["uri"].to_list()))
    output.storage.put(stray, b"late")
    vacuum(output.storage, output.uri, older_than=-1.0, discard=[run.ledger.run])
    assert stray.removeprefix(output.uri) not in output.visible()
    output.check()


def test_an_output_becomes_a_table_and_stays_one(output: DeltaOutput) -> None:
    plain = output.run(PLANS[0], "append", "a", table=None)
    publish_run(output.storage, plain.ledger)
    replacing = output.run(PLANS[2], "overwrite", "b", table=None)
    publish_run(output.storage, replacing.ledger)
    assert not (output.root / "t" / "_delta_log").exists()
    output.publish(PLANS[1], "append", "c")
    output.check()
    assert output.versions() == {3: 0}
    rollback(output.table_log)  # To a version from before it was a table.
    output.check()
    assert delta_rows(output, 1) == planned_rows(2)
    run = output.run(PLANS[2], "append", "d", table=None)
    with pytest.raises(UsageError, match="is a Delta table"):
        publish_run(output.storage, run.ledger)
    job = output.job("append", PLANS[0], "code", table=None)
    with pytest.raises(UsageError, match="is a Delta table"):
        refuse_tables(output.table_log, output.table_log.manifest(), job, {})


def test_an_older_release_refuses_a_table(output: DeltaOutput) -> None:
    """It would move replaced files away, and not commit to the log."""
    output.publish(PLANS[0], "append", "a")
    head, _ = output.table_log.head()
    assert head.version == 2
    [record] = output.table_log._read_records([1])
    assert record.version == 4


def test_a_log_beside_other_files_is_not_taken_for_ours(output: DeltaOutput) -> None:
    write_deltalake(f"{output.root}/t", pl.DataFrame({"id": [1]}).to_arrow())
    with pytest.raises(OutputNotEmptyError):
        prepare_output(output.table_log, "append", ANYBODY)


# -- deaths ------------------------------------------------------------------------------------


def ready(root: Path, mode: str) -> tuple[DeltaOutput, str]:
    """A table of two versions (none for mode error), and a run that is mapped."""
    output = DeltaOutput(root)
    if mode != "error":
        output.publish(PLANS[0], "append", "a")
        output.publish(PLANS[1], "append", "b")
    run = output.run(PLANS[1], mode, "c")
    return output, run.ledger.run


def publish(output: DeltaOutput, run: str) -> None:
    from pipeline.runs.ledger.ledger import Ledger

    storage = output.storage
    publish_run(storage, Ledger(storage, output.uri, run))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("fault", ["before", "after"])
@pytest.mark.parametrize("mode", ["error", "append", "overwrite-partitions", "rollback"])
def test_a_publisher_dies_at_any_request(tmp_path: Path, mode: str, fault: Fault) -> None:
    output, run = ready(tmp_path / "o", mode if mode != "rollback" else "append")
    output.keep()

    def act(output: DeltaOutput) -> None:
        if mode == "rollback":
            rollback(output.table_log, 1)
        else:
            publish(output, run)

    counted = Calls(lambda number, name: None)
    with counted.around_delta():
        act(DeltaOutput(output.root, counted.request))
    output.check()
    expected = scanned(output.uri, None)
    around = [at for at, name in enumerate(counted.names) if name.startswith("delta ")]
    assert any(name in ("delta commit", "delta create") for name in counted.names)
    others = instants(counted.count, mode, fault)[:: 1 if "CHAOS" in os.environ else 4]
    for number in sorted({*around, *others}):
        output.reset()
        calls = Calls(dies_at(number, fault))
        with calls.around_delta(), suppress(KilledError):
            act(DeltaOutput(output.root, calls.request))
        prepare_output(output.table_log, "append", run)  # The next command, whatever it is.
        if mode == "rollback":
            if output.table_log.manifest().rollback_of is None:
                act(output)
        else:
            publish(output, run)
        output.check(readers=1)
        assert delta_rows(output, None) == expected


@pytest.mark.parametrize("is_lost", [True, False])
def test_the_reply_to_a_commit_is_lost(output: DeltaOutput, is_lost: bool) -> None:
    """The client sends it again, and is told that the version exists: it was its own."""
    output.publish(PLANS[0], "append", "a")
    original = DeltaLog.commit

    def lost(log: DeltaLog, *args: object, **more: object) -> None:
        if is_lost:
            original(log, *args, **more)  # type: ignore[arg-type]
        patcher.stop()
        raise LostRaceError("version 1 exists")

    patcher = patch.object(DeltaLog, "commit", lost)
    patcher.start()
    try:
        output.publish(PLANS[1], "append", "b")
    finally:
        patcher.stop()
    output.check()
    assert output.versions() == {1: 0, 2: 1}


def test_several_processes_commit_what_is_missing(output: DeltaOutput, tmp_path: Path) -> None:
    """All read the log before any of them writes; each manifest is committed once."""
    with patch("pipeline.table.settle.settle"), patch("pipeline.table.delta.commit.settle_table"):
        for number, plan in enumerate(PLANS):
            output.publish(plan, "append", f"code {number}")
    assert not (output.root / "t" / "_delta_log").exists()
    barrier, original = Barrier(4), DeltaLog.read

    def read(log: DeltaLog) -> object:
        found = original(log)
        with suppress(Exception):  # Broken once the others are through.
            barrier.wait(1.0)
        return found

    with patch.object(DeltaLog, "read", read), ThreadPoolExecutor(4) as pool:
        outcomes = [
            pool.submit(prepare_output, output.table_log, "append", ANYBODY) for _ in range(4)
        ]
        assert {outcome.result().number for outcome in outcomes} == {3}
    output.check()
    assert set(output.versions()) == {3}


def test_two_runs_publish_at_once(output: DeltaOutput) -> None:
    output.publish(PLANS[0], "append", "a")
    runs = [output.run(plan, "append", f"code {at}") for at, plan in enumerate(PLANS)]
    with ThreadPoolExecutor(3) as pool:
        for outcome in [pool.submit(publish, output, run.ledger.run) for run in runs]:
            outcome.result()
    output.check()
    assert set(output.versions()) == {1, 2, 3, 4}


def test_versions_that_were_missed_are_made_up_one_by_one(output: DeltaOutput) -> None:
    output.publish(PLANS[0], "append", "a")
    with patch("pipeline.table.delta.commit.settle_table"):
        output.publish(PLANS[1], "overwrite-partitions", "b")
        output.publish(PLANS[2], "append", "c")
    assert output.versions() == {1: 0}
    prepare_output(output.table_log, "append", ANYBODY)
    output.check()
    assert output.versions() == {1: 0, 2: 1, 3: 2}
    rows = applied(planned_rows(0), "overwrite-partitions", planned_rows(1))
    assert delta_rows(output, 1) == rows == scanned(output.uri, 2)


# -- bad tables --------------------------------------------------------------------------------


def test_another_writer_is_refused_before_anything_happens(output: DeltaOutput) -> None:
    output.publish(PLANS[0], "append", "a")
    table = DeltaTable(f"{output.root}/t")
    table.optimize.compact()
    with pytest.raises(TableChangedError, match=r"manifest 1 \(version 1: OPTIMIZE\)"):
        prepare_output(output.table_log, "append", ANYBODY)
    run = output.run(PLANS[1], "append", "b")
    with pytest.raises(TableChangedError):
        publish_run(output.storage, run.ledger)
    DeltaTable(f"{output.root}/t").restore(0)
    publish_run(output.storage, run.ledger)
    output.check()


def test_settings_of_a_table_may_change(output: DeltaOutput) -> None:
    output.publish(PLANS[0], "append", "a")
    table = DeltaTable(f"{output.root}/t")
    table.alter.set_table_properties({"delta.logRetentionDuration": "interval 60 days"})
    output.publish(PLANS[1], "append", "b")
    output.check()


@pytest.mark.parametrize("damage", ["cut", "gone", "other"])
def test_a_damaged_log_is_an_error_and_loses_nothing(output: DeltaOutput, damage: str) -> None:
    output.publish(PLANS[0], "append", "a")
    output.publish(PLANS[1], "append", "b")
    log = output.root / "t" / "_delta_log"
    text = (log / f"{1:020}.json").read_bytes()
    if damage == "cut":
        (log / f"{1:020}.json").write_bytes(text[: len(text) // 2])
    elif damage == "gone":
        (log / f"{0:020}.json").unlink()
    else:
        (log / f"{1:020}.json").write_bytes(b'{"add": 7}\n')
    run = output.run(PLANS[2], "append", "c")
    with pytest.raises(DamagedTableError, match="_delta_log/") as caught:
        publish_run(output.storage, run.ledger)
    assert "\n" not in str(caught.value) and "unknown>" not in str(caught.value)
    assert output.table_log.head()[0].current == 2
    if damage != "gone":
        (log / f"{1:020}.json").write_bytes(text)
        publish_run(output.storage, run.ledger)
        output.check()


def test_a_log_that_is_gone_is_made_anew(output: DeltaOutput) -> None:
    output.publish(PLANS[0], "append", "a")
    shutil.rmtree(output.root / "t" / "_delta_log")
    prepare_output(output.table_log, "append", ANYBODY)
    output.check()


def test_a_pointer_from_a_backup_is_refused(output: DeltaOutput) -> None:
    """The log has a manifest that the output does not know: it must not be written over."""
    output.publish(PLANS[0], "append", "a")
    state = output.root / "t.chunkmap"
    shutil.copytree(state, output.root / "backup")
    output.publish(PLANS[1], "append", "b")
    shutil.rmtree(state)
    shutil.move(output.root / "backup", state)
    with pytest.raises(TableChangedError, match=r"has manifest 2, .* points to manifest 1"):
        prepare_output(output.table_log, "append", ANYBODY)
