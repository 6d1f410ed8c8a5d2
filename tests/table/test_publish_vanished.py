"""Uploads that vanish before they are published, at any moment."""

from __future__ import annotations

import polars as pl
import pytest

from pipeline.runs.driver.publish import publish_run
from pipeline.storage import Storage
from pipeline.table.errors import ForeignClaimError, UploadsVanishedError
from pipeline.table.log import TableLog
from pipeline.table.publish import prepare_output
from tests.support.faulty_storage import Faulty, KilledError, dies_at
from tests.support.memory_storage import AT_ONCE, MemoryBackend
from tests.support.outputs import check_settled, copied, keys_of, rows, visible
from tests.support.publishing import (
    MODES,
    PLAN,
    publish,
    ready,
)
from tests.support.runs_by_hand import OUTPUT, Run, run_of
from tests.support.windowing import vanish


def test_uploads_that_vanished_before_anything_was_frozen() -> None:
    backend, run = ready("error")
    lost = run.ledger.read().completions["attempt"].to_list()[1]
    vanish(backend, lost)
    with pytest.raises(UploadsVanishedError) as caught:
        publish(run)
    assert (caught.value.attempts, caught.value.commit) == ([lost], None)
    assert visible(backend) == {}
    assert run.ledger.read().left(3) == [1]
    run.complete(1)
    publish_run(run.storage, run.ledger, caught.value)
    check_settled(backend)
    assert rows(visible(backend)) == list(range(6))


def test_all_that_vanished_is_found_out_at_once() -> None:
    """An emptied server leaves many completions of a chunk without their uploads."""
    backend, run = ready("error")
    for _ in range(4):
        run.complete(1)
    kept = run.ledger.read().completions.filter(pl.col("index") != 1)["attempt"]
    lost = [a for _, _, a in backend.uploads.values() if a not in set(kept)]
    vanish(backend, *lost)
    with pytest.raises(UploadsVanishedError) as caught:
        publish(run)
    assert sorted(caught.value.attempts) == sorted(lost)
    assert run.ledger.read().left(3) == [1]
    run.complete(1)
    assert publish_run(run.storage, run.ledger, caught.value) == 1


def frozen_then_vanished(mode: str = "error") -> tuple[MemoryBackend, Run, str]:
    """A run that claimed, died, and lost an upload then."""
    backend, run = ready(mode)
    lost = str(run.ledger.read().completions["attempt"].to_list()[1])
    counted = Faulty(copied(backend), lambda n, name: None)
    publish(run.again(Storage({"s3": counted}, AT_ONCE)))
    dying = Faulty(backend, dies_at(counted.calls.index("complete"), "before"), KilledError)
    with pytest.raises(KilledError):
        publish(run.again(Storage({"s3": dying}, AT_ONCE)))
    vanish(backend, lost)
    return backend, run, lost


@pytest.mark.parametrize("mode", MODES)
def test_uploads_that_vanished_after_the_claim_are_amended(mode: str) -> None:
    backend, run, lost = frozen_then_vanished(mode)
    run = run.again(backend.storage())
    with pytest.raises(UploadsVanishedError) as caught:
        publish(run)
    assert (caught.value.attempts, caught.value.commit) == ([lost], run.ledger.run)
    run.ledger.void(caught.value.attempts)
    assert run.ledger.read().left(3) == [1]
    new = run.complete(1)[0]
    publish_run(run.storage, run.ledger, caught.value)
    check_settled(backend)
    files = TableLog(backend.storage(), OUTPUT).snapshot(
        TableLog(backend.storage(), OUTPUT).manifest()
    )
    own = files.filter(pl.col("key").str.contains(run.ledger.run)).sort("index")
    assert own["attempt"].to_list()[1] == new.attempt
    assert own.height == 3


def test_a_run_whose_claimed_uploads_vanished_can_be_taken_up_again() -> None:
    """Its own job is the only one that can finish it: preparing must not stop it."""
    backend, run, _ = frozen_then_vanished()
    table_log = TableLog(backend.storage(), OUTPUT)
    assert prepare_output(table_log, "error", run.ledger.run).number == 0


def test_another_run_meets_a_claim_whose_uploads_vanished() -> None:
    """It must neither finish it with its own files nor be told that its own are gone."""
    backend, run, lost = frozen_then_vanished("append")
    other = run_of(backend.storage(), PLAN, "append", "another")
    other.complete()
    before = visible(backend)
    for _ in range(2):
        with pytest.raises(ForeignClaimError) as caught:
            publish(other)
        assert caught.value.run == run.ledger.run
    assert keys_of(other, visible(backend)) == []
    assert set(visible(backend)) >= set(before)
    frozen = TableLog(backend.storage(), OUTPUT).commit(run.ledger.run)
    assert frozen is not None
    assert lost in frozen.files["attempt"].to_list()
    assert all(run.ledger.run in key for key in frozen.files["key"])


def test_two_drivers_amend_one_commit() -> None:
    """Each mapped the lost chunk again; the second must not change what the first published."""
    backend, run, _ = frozen_then_vanished()
    drivers = [run.again(backend.storage()) for _ in range(2)]
    errors = []
    for driver in drivers:
        with pytest.raises(UploadsVanishedError) as caught:
            publish(driver)
        driver.ledger.void(caught.value.attempts)
        errors.append(caught.value)
    for driver, error in zip(drivers, errors, strict=True):
        driver.complete(1)
        publish_run(driver.storage, driver.ledger, error)
        check_settled(backend)
    assert rows(visible(backend)) == list(range(6))
