"""Rollback: replaced files come back under new keys, also with late and suspended processes."""

from __future__ import annotations

from contextlib import suppress

import pytest

from pipeline.errors import StorageError, UsageError
from pipeline.runs.admin.vacuum import vacuum
from pipeline.runs.admin.verify import verify_output
from pipeline.storage import Storage
from pipeline.table.errors import FilesMissingError
from pipeline.table.keys import (
    MAX_KEY_BYTES,
    MAX_OUTPUT_KEY_BYTES,
    kept_uri,
    original_key,
    restored_key,
    run_of_key,
)
from pipeline.table.log import TableLog
from pipeline.table.manifest import Claim
from pipeline.table.publish import prepare_output, rollback
from pipeline.table.repair import diagnose, repair
from pipeline.table.retention import locate
from tests.support.faulty_storage import Fault, Faulty, KilledError, Script, dies_at
from tests.support.instants import instants
from tests.support.memory_storage import AT_ONCE, MemoryBackend
from tests.support.outputs import check_settled, copied, rows, visible
from tests.support.publishing import OTHER, PLAN, published
from tests.support.runs_by_hand import OUTPUT, plan_of
from tests.table.conftest import Output

RUN = "0123456789abcdef"


def overwritten() -> MemoryBackend:
    backend = MemoryBackend()
    published(backend, PLAN, "overwrite-partitions", "old")
    published(backend, OTHER, "overwrite", "new")
    return backend


def table_log_of(storage: Storage) -> TableLog:
    return TableLog(storage, OUTPUT)


def test_names() -> None:
    key = f"k=1/part-0000001-{RUN}-01234567.parquet"
    assert restored_key(key, 7) == f"k=1/part-0000001-{RUN}-01234567.r7.parquet"
    assert restored_key(restored_key(key, 7), 12) == restored_key(key, 12)
    assert original_key(restored_key(key, 7)) == original_key(key) == key
    assert {run_of_key(name) for name in (key, restored_key(key, 7))} == {RUN}
    assert run_of_key(f"part-0000001-{RUN}.parquet") == RUN
    assert run_of_key("k=1/theirs.parquet") is None


@pytest.mark.parametrize("length", [MAX_OUTPUT_KEY_BYTES - 20, MAX_OUTPUT_KEY_BYTES])
def test_the_longest_keys_can_be_kept_and_restored(length: int) -> None:
    folder = "s3://out/t.chunkmap/replaced/1234567/"
    name = f"/part-0000001-{RUN}-01234567.parquet"
    key = "k=" + "x" * (length - len("t/") - 2 - len(name)) + name
    kept = kept_uri(folder, key)
    assert len(kept.removeprefix("s3://out/")) <= MAX_KEY_BYTES
    assert kept_uri(folder, key.replace("-01234567", "-11234567")) != kept
    assert len("t/" + restored_key(key, 1_234_567)) <= MAX_KEY_BYTES


def test_replaced_files_come_back_under_new_keys(output: Output) -> None:
    output.publish(PLAN, "overwrite-partitions", "old")
    first = output.visible()
    output.publish(OTHER, "overwrite", "new")
    manifest = rollback(output.table_log)
    assert (manifest.number, manifest.rollback_of) == (3, 1)
    assert output.visible() == output.named() == {restored_key(key, 3) for key in first}
    assert verify_output(output.storage, output.uri).problems == ()
    # There and back again: no key comes back.
    seen = set(first) | output.visible()
    rollback(output.table_log, 2)
    rollback(output.table_log, 3)
    assert output.visible() == output.named() == {restored_key(key, 5) for key in first}
    assert seen.isdisjoint(output.visible())
    assert verify_output(output.storage, output.uri).problems == ()
    later = output.publish(PLAN, "append", "later")
    assert later.ledger.published() == 6


def test_each_further_rollback_goes_one_version_further_back(output: Output) -> None:
    for number, plan in enumerate((PLAN, OTHER, plan_of(1)), 1):
        output.publish(plan, "append", f"code {number}")
    assert [rollback(output.table_log).rollback_of for _ in range(2)] == [2, 1]
    output.publish(OTHER, "append", "later")  # Manifest 6, on the files of manifest 1.
    assert [rollback(output.table_log).rollback_of for _ in range(2)] == [5, 0]
    assert output.visible() == output.named() == set()
    with pytest.raises(UsageError, match="no version before that"):
        rollback(output.table_log)
    assert rollback(output.table_log, 7).number == 9  # What the last one replaced is kept.
    assert rollback(output.table_log).rollback_of == 0


def test_what_is_current_stays_where_it_is(output: Output) -> None:
    output.publish(PLAN, "append", "old")
    first = output.visible()
    output.publish(OTHER, "append", "new")
    rollback(output.table_log)
    assert output.visible() == output.named() == first


def test_a_delete_that_comes_late_hits_nothing_current(output: Output) -> None:
    output.publish(PLAN, "overwrite", "old")
    late = output.visible()
    output.publish(OTHER, "overwrite", "new")
    rollback(output.table_log)
    for key in late:  # As the publisher of manifest 2 sent it, and the server was slow.
        output.storage.delete(output.uri + key)
    assert verify_output(output.storage, output.uri).problems == ()


def test_a_rollback_that_slept_leaves_nothing_that_stops_later_runs(output: Output) -> None:
    output.publish(PLAN, "overwrite", "old")
    output.publish(OTHER, "overwrite", "new")
    rollback(output.table_log)
    key = sorted(output.visible())[0]
    data = output.storage.get(output.uri + key).data
    rollback(output.table_log, 2)
    rollback(output.table_log, 3)
    output.storage.put(output.uri + key, data)  # Its copy arrives now.
    [problem] = diagnose(output.table_log).problems
    assert problem.situation == "orphan files"
    prepare_output(output.table_log, "append", "0" * 16)
    assert output.visible() == output.named()
    moved = [i.uri for i in output.storage.objects(output.table_log.state + "orphaned/")]
    assert [uri.partition("/orphaned/")[2].partition("/")[2] for uri in moved] == [key]
    vacuum(output.storage, output.uri, older_than=3600.0)
    assert len(list(output.storage.objects(output.table_log.state + "orphaned/"))) == 1
    vacuum(output.storage, output.uri, older_than=-1.0)
    assert list(output.storage.objects(output.table_log.state + "orphaned/")) == []


@pytest.mark.parametrize("fault", ["before", "after", "late"])
def test_a_driver_that_dies_at_any_request_is_finished_by_the_next(fault: Fault) -> None:
    healthy = overwritten()
    counted = Faulty(copied(healthy), lambda n, name: None)
    rollback(table_log_of(Storage({"s3": counted}, AT_ONCE)))
    for number in instants(len(counted.calls), fault):
        backend = copied(healthy)
        dying = Faulty(backend, dies_at(number, fault), KilledError)
        with suppress(KilledError):
            rollback(table_log_of(Storage({"s3": dying}, AT_ONCE)))
        prepare_output(table_log_of(backend.storage()), "append", "0" * 16)
        for late in dying.late:
            with suppress(StorageError):
                late()
        prepare_output(table_log_of(backend.storage()), "append", "0" * 16)
        check_settled(backend)
        assert rows(visible(backend)) in (list(range(6)), list(range(8)))


def cleaned_at(number: int, backend: MemoryBackend) -> Script:
    def script(n: int, name: str) -> Fault:
        if n == number:
            vacuum(backend.storage(), OUTPUT, older_than=-1.0)
        return None

    return script


def test_clean_while_a_rollback_runs_loses_nothing() -> None:
    """Each in the middle of the other, at every request."""
    healthy = overwritten()
    counted = Faulty(copied(healthy), lambda n, name: None)
    rollback(table_log_of(Storage({"s3": counted}, AT_ONCE)))
    for number in instants(len(counted.calls)):
        backend = copied(healthy)

        def script(
            n: int, name: str, number: int = number, backend: MemoryBackend = backend
        ) -> Fault:
            if n == number:
                vacuum(backend.storage(), OUTPUT, older_than=-1.0)
            return None

        rollback(table_log_of(Storage({"s3": Faulty(backend, script)}, AT_ONCE)))
        check_settled(backend)
        assert rows(visible(backend)) == list(range(6))


def test_a_version_that_is_not_kept_is_refused(output: Output) -> None:
    output.publish(PLAN, "overwrite", "a")
    output.publish(OTHER, "overwrite", "b")
    output.publish(plan_of(1), "overwrite", "c")
    with pytest.raises(FilesMissingError, match="manifest 1") as caught:
        rollback(output.table_log, 1)
    assert "output.keep_versions" in str(caught.value.hint)
    assert rollback(output.table_log, 2).number == 4


def test_a_claim_whose_kept_copies_are_gone_is_released(output: Output) -> None:
    """Kept copies were deleted by hand, after a rollback had claimed the output."""
    output.publish(PLAN, "overwrite", "a")
    output.publish(OTHER, "overwrite", "b")
    now, table_log = output.visible(), output.table_log
    head, etag = table_log.head()
    claim = Claim(base=2, rollback=1)
    table_log.move_head(head.model_copy(update={"publishing": claim}), etag)
    for info in output.storage.objects(table_log.state + "replaced/"):
        output.storage.delete(info.uri)
    with pytest.raises(FilesMissingError, match="manifest 1"):
        prepare_output(output.table_log, "append", "0" * 16)
    [problem] = diagnose(output.table_log).problems
    assert problem.situation == "rollback unfinished"
    assert repair(output.table_log)[-1].problems == ()
    assert output.visible() == output.named() == now
    assert locate(output.table_log, output.table_log.manifest())
    assert output.publish(PLAN, "append", "c").ledger.published() == 4
