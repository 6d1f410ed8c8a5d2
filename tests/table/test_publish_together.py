"""Several publish at once, sleep over each other, and roll back in between."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest

from partitioning import Plan
from pipeline.errors import ConflictError
from pipeline.storage import Storage
from pipeline.table.claims import finish_open_claim
from pipeline.table.log import TableLog
from pipeline.table.publish import prepare_output, rollback
from tests.support.faulty_storage import Fault, Faulty, KilledError, Script, dies_at
from tests.support.instants import instants
from tests.support.memory_storage import AT_ONCE, MemoryBackend
from tests.support.outputs import check_settled, copied, keys_of, rows, visible
from tests.support.publishing import (
    APART,
    MODES,
    OTHER,
    PLAN,
    head,
    publish,
    published,
    ready,
    requests,
)
from tests.support.runs_by_hand import OUTPUT, Run, run_of


def stalled_at(number: int, meanwhile: Callable[[], object]) -> Script:
    """Stop before one request, while somebody else does something, and go on."""

    def script(n: int, name: str) -> Fault:
        if n == number:
            meanwhile()
        return None

    return script


@pytest.mark.parametrize("mode", MODES)
def test_two_drivers_publish_one_run(mode: str) -> None:
    backend, run = ready(mode)
    healthy = copied(backend)
    publish(run.again(healthy.storage()))
    for number in instants(requests(backend, run), mode):
        shared = copied(backend)
        other = run.again(shared.storage())
        slow = Faulty(shared, stalled_at(number, lambda other=other: publish(other)))  # type: ignore[misc]
        publish(run.again(Storage({"s3": slow}, AT_ONCE)))
        check_settled(shared)
        assert visible(shared) == visible(healthy)
        assert head(shared) == head(healthy)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("theirs", MODES[1:])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("plan", [OTHER, APART], ids=["same partitions", "other partitions"])
def test_two_runs_publish_at_once(mode: str, theirs: str, plan: Plan) -> None:
    """Both are published, or the loser has a conflict and nothing of it is to be seen."""
    backend, run = ready(mode)
    theirs_of = run_of(backend.storage(), plan, theirs, "theirs")
    theirs_of.complete()
    for number in instants(requests(backend, run), mode, theirs, plan is OTHER):
        shared = copied(backend)
        other = theirs_of.again(shared.storage())
        lost: list[Run] = []

        def meanwhile(other: Run = other, lost: list[Run] = lost) -> None:
            try:
                publish(other)
            except ConflictError:
                lost.append(other)

        slow = Faulty(shared, stalled_at(number, meanwhile))
        mine = run.again(Storage({"s3": slow}, AT_ONCE))
        try:
            publish(mine)
        except ConflictError:
            lost.append(mine)
        finish_open_claim(TableLog(shared.storage(), OUTPUT))
        check_settled(shared)
        assert len(lost) < 2, "one of them wins"
        for result, plan_ in ((mine, PLAN), (other, plan)):
            found = keys_of(result, visible(shared))
            if result in lost:
                assert not found
            elif result is other and mine not in lost and mode.startswith("overwrite"):
                continue  # Mine may have replaced it, in whole or in part, and knew of it.
            elif result is mine and other not in lost and theirs.startswith("overwrite"):
                continue
            else:
                assert len(found) == len(plan_)


def test_a_driver_that_was_asleep_disturbs_nothing() -> None:
    """It claimed and slept; meanwhile its run was finished, and replaced by another one."""
    backend, run = ready("append")
    for number in instants(requests(backend, run)):
        shared = copied(backend)
        other = run.again(shared.storage())

        def meanwhile(other: Run = other, shared: MemoryBackend = shared) -> None:
            publish(other)
            published(shared, APART, "overwrite", "later")

        slow = Faulty(shared, stalled_at(number, meanwhile))
        publish(run.again(Storage({"s3": slow}, AT_ONCE)))
        check_settled(shared)
        assert rows(visible(shared)) == [0, 1, 2, 3]
        assert keys_of(run, visible(shared)) == []


def test_a_run_that_was_replaced_is_not_published_again() -> None:
    """Its driver died before it noted that it was done."""
    backend, run = ready("append")
    publish(run)
    backend.delete(run.ledger.prefix + "published.json")
    published(backend, APART, "overwrite", "later")
    before = visible(backend)
    publish(run.again(backend.storage()))
    check_settled(backend)
    assert visible(backend) == before


def test_a_rollback_at_any_moment_of_another_publish() -> None:
    backend, run = ready("append")
    for number in instants(requests(backend, run)):
        shared = copied(backend)
        table_log = TableLog(shared.storage(), OUTPUT)
        slow = Faulty(shared, stalled_at(number, lambda table_log=table_log: rollback(table_log)))  # type: ignore[misc]
        publish(run.again(Storage({"s3": slow}, AT_ONCE)))
        finish_open_claim(table_log)
        check_settled(shared)


def test_preparing_while_another_run_publishes() -> None:
    """What is becoming visible just then is no stranger."""
    backend, run = ready("append")
    counted = Faulty(copied(backend), lambda n, name: None)
    prepare_output(TableLog(Storage({"s3": counted}, AT_ONCE), OUTPUT), "append", "mine")
    steps = requests(backend, run)
    for number in instants(len(counted.calls)):
        for step in range(0, steps, 3):
            shared = copied(backend)
            dying = Storage({"s3": Faulty(shared, dies_at(step, "after"), KilledError)}, AT_ONCE)

            def meanwhile(dying: Storage = dying) -> None:
                with suppress(KilledError):
                    publish(run.again(dying))

            slow = Storage({"s3": Faulty(shared, stalled_at(number, meanwhile))}, AT_ONCE)
            assert prepare_output(TableLog(slow, OUTPUT), "append", "mine").number in (1, 2)


@pytest.mark.parametrize("theirs", ["overwrite", "overwrite-partitions"])
def test_replaced_files_that_were_left_are_moved_by_the_next_publisher(theirs: str) -> None:
    """They died once their manifest was current; mine was about to go on top of the one before."""
    backend, run = ready("append", APART)
    other = run_of(backend.storage(), PLAN, theirs, "theirs")
    other.complete()
    counted = Faulty(copied(backend), lambda n, name: None)
    publish(other.again(Storage({"s3": counted}, AT_ONCE)))
    moved = [number for number, name in enumerate(counted.calls) if name == "put_if"][-1]
    for number in instants(requests(backend, run), theirs):
        shared = copied(backend)
        dying = Storage({"s3": Faulty(shared, dies_at(moved, "after"), KilledError)}, AT_ONCE)

        def meanwhile(dying: Storage = dying) -> None:
            with suppress(KilledError, ConflictError):  # Mine may have been first.
                publish(other.again(dying))

        slow = Faulty(shared, stalled_at(number, meanwhile))
        publish(run.again(Storage({"s3": slow}, AT_ONCE)))
        finish_open_claim(TableLog(shared.storage(), OUTPUT))
        check_settled(shared)
