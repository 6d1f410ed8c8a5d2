"""Windows while somebody dies, sleeps, or loses uploads."""

from __future__ import annotations

import pytest

from pipeline.errors import ConflictError
from pipeline.storage import Storage
from pipeline.table.claims import finish_open_claim
from pipeline.table.errors import ForeignClaimError, UploadsVanishedError
from pipeline.table.log import TableLog
from pipeline.table.publish import commits_of
from tests.support.faulty_storage import Fault, Faulty, KilledError, dies_at
from tests.support.instants import instants
from tests.support.memory_storage import AT_ONCE, MemoryBackend
from tests.support.outputs import check_manifests, check_settled, copied, keys_of, rows, visible
from tests.support.publishing import head
from tests.support.runs_by_hand import OUTPUT, Run
from tests.support.windowing import (
    complete,
    daily,
    days,
    entries,
    publish_days,
    published_days,
    vanish,
    windowed_run,
    windows_of,
)

MODES = ["append", "overwrite-partitions", "error"]


def ready(mode: str) -> tuple[MemoryBackend, Storage]:
    backend = MemoryBackend()
    if mode == "overwrite-partitions":
        published_days(backend, days(1, 2), code="earlier")
    return backend, backend.storage()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("fault", ["before", "after"])
@pytest.mark.parametrize("mode", MODES)
def test_a_driver_that_dies_at_any_request_is_finished_by_the_next(mode: str, fault: Fault) -> None:
    backend, storage = ready(mode)
    run = windowed_run(storage, daily(days(1, 2, 3), chunks=1), mode)
    complete(run)
    run.complete(1)  # a duplicate
    healthy = copied(backend)
    publish_days(run.again(healthy.storage()))
    counted = Faulty(copied(backend), lambda n, name: None)
    publish_days(run.again(Storage({"s3": counted}, AT_ONCE)))
    for number in instants(len(counted.calls), mode, fault):
        broken = copied(backend)
        dying = Faulty(broken, dies_at(number, fault), KilledError)
        with pytest.raises(KilledError):
            publish_days(run.again(Storage({"s3": dying}, AT_ONCE)))
        check_manifests(broken)
        assert len(keys_of(run, visible(broken))) in (0, 1, 2, 3)
        publish_days(run.again(broken.storage()))
        check_settled(broken)
        assert visible(broken) == visible(healthy), dying.calls
        assert head(broken) == head(healthy), "one manifest for all"
        assert broken.uploads == {}


def test_processes_that_publish_other_groups_of_the_same_windows() -> None:
    """One sleeps at any request while the other publishes a group that overlaps its own."""
    backend, storage = ready("overwrite-partitions")
    run = windowed_run(storage, daily(days(1, 2, 3), chunks=1))
    complete(run)
    counted = Faulty(copied(backend), lambda n, name: None)
    publish_days(run.again(Storage({"s3": counted}, AT_ONCE)), *days(1, 2))
    for number in instants(len(counted.calls)):
        shared = copied(backend)
        other = run.again(shared.storage())

        def script(n: int, name: str, number: int = number, other: Run = other) -> Fault:
            if n == number:
                publish_days(other, *days(2, 3))
            return None

        publish_days(run.again(Storage({"s3": Faulty(shared, script)}, AT_ONCE)), *days(1, 2))
        check_settled(shared)
        assert rows(visible(shared)) == list(range(6))
        found = commits_of(TableLog(shared.storage(), OUTPUT), run.ledger.run, 1)
        assert sorted(str(entry.window) for entry in found) == days(1, 2, 3)


def claimed_then_vanished() -> tuple[MemoryBackend, Storage, list[str]]:
    """A driver died once it had claimed three windows; uploads of two of them vanished."""
    backend = MemoryBackend()
    run = windowed_run(backend.storage(), daily(days(1, 2, 3), chunks=1))
    complete(run)
    counted = Faulty(copied(backend), lambda n, name: None)
    publish_days(run.again(Storage({"s3": counted}, AT_ONCE)))
    dying = Faulty(backend, dies_at(counted.calls.index("complete"), "before"), KilledError)
    with pytest.raises(KilledError):
        publish_days(run.again(Storage({"s3": dying}, AT_ONCE)))
    lost = run.ledger.read().completions["attempt"].to_list()[:2]
    vanish(backend, *lost)
    return backend, run.storage, lost


def test_uploads_of_several_claimed_windows_vanish() -> None:
    backend, _, lost = claimed_then_vanished()
    run = windowed_run(backend.storage(), daily(days(1, 2, 3), chunks=1))
    with pytest.raises(UploadsVanishedError) as caught:
        publish_days(run, *days(3))
    assert sorted(caught.value.attempts) == sorted(lost)
    assert caught.value.commits == tuple(f"{run.ledger.run}-{day}" for day in days(1, 2))
    assert run.ledger.read().left(3) == [0, 1]
    run.complete(0, 1)
    assert publish_days(run, vanished=caught.value) == 1, "the claim was all of it"
    check_settled(backend)
    assert head(backend) == 1
    assert rows(visible(backend)) == list(range(6))
    assert [e.amendments for e in TableLog(backend.storage(), OUTPUT).manifest().commits] == [
        1, 1, 1]  # fmt: skip


def test_what_nobody_has_mapped_again_is_asked_for_again() -> None:
    """Once, an amendment without it was written, and then another, for ever."""
    backend, _, lost = claimed_then_vanished()
    run = windowed_run(backend.storage(), daily(days(1, 2, 3), chunks=1))
    with pytest.raises(UploadsVanishedError) as caught:
        publish_days(run, *days(3))
    assert caught.value.chunks_of(run.ledger.run) == set(run.plan.chunk_ids[:2])
    assert caught.value.chunks_of("another") == set()
    run.complete(0)
    with pytest.raises(UploadsVanishedError) as again:
        publish_days(run, *days(3), vanished=caught.value)
    assert sorted(again.value.attempts) == sorted(lost)
    assert not [key for key in backend.stored if ".a1" in key]
    run.complete(1)
    # Another process has not heard of what is void; the error tells it.
    assert publish_days(run.again(backend.storage()), *days(3), vanished=again.value) == 1
    check_settled(backend)
    assert rows(visible(backend)) == list(range(6))


def test_another_run_meets_the_claim() -> None:
    backend, _, _ = claimed_then_vanished()
    run = windowed_run(backend.storage(), daily(days(1, 2, 3), chunks=1))
    other = windowed_run(backend.storage(), daily(days(5)), code="other")
    complete(other)
    with pytest.raises(ForeignClaimError) as caught:
        publish_days(other)
    assert caught.value.run == run.ledger.run
    assert isinstance(caught.value, ConflictError)
    assert not keys_of(other, visible(backend))


def test_uploads_that_vanish_before_anything_is_frozen() -> None:
    backend = MemoryBackend()
    run = windowed_run(backend.storage(), daily(days(1, 2), chunks=1))
    complete(run)
    lost = run.ledger.read().completions["attempt"].to_list()[1]
    vanish(backend, lost)
    with pytest.raises(UploadsVanishedError) as caught:
        publish_days(run)
    assert (caught.value.attempts, caught.value.commits) == ([lost], ())
    assert publish_days(run) == 1, "the other window needs nothing"
    run.complete(1)
    assert publish_days(run, vanished=caught.value) == 2
    check_settled(backend)


def test_runs_that_are_all_or_nothing_are_one_manifest() -> None:
    backend = MemoryBackend()
    run = windowed_run(backend.storage(), daily(days(*range(1, 21)), chunks=1))
    complete(run, *days(*range(1, 20)))
    assert len(windows_of(run)) == 20
    complete(run)
    assert publish_days(run) == 1
    finish_open_claim(TableLog(backend.storage(), OUTPUT))
    check_settled(backend)
    assert len(entries(backend)) == 20
