"""A claim that can never be finished is given up, safely against a driver that sleeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, replace

import polars as pl
import pytest

from pipeline.errors import StateError, UsageError
from pipeline.runs.admin.vacuum import discard_run, vacuum
from pipeline.runs.admin.verify import verify_output
from pipeline.runs.driver.commit import draft_commit, files_of
from pipeline.runs.driver.publish import publish_run
from pipeline.storage import Backend, Storage
from pipeline.table.claims import finish_open_claim, release_entry
from pipeline.table.errors import (
    ForeignClaimError,
    ManifestConflictError,
    UploadsVanishedError,
)
from pipeline.table.log import TableLog
from pipeline.table.manifest import FILES, Claim
from pipeline.table.publish import prepare_output, rollback
from pipeline.table.repair import diagnose, repair
from tests.support.faulty_storage import Fault, Faulty, KilledError, Script, dies_at
from tests.support.instants import instants
from tests.support.memory_storage import AT_ONCE, MemoryBackend
from tests.support.outputs import check_settled, copied, keys_of, rows, visible
from tests.support.publishing import APART, OTHER, PLAN, publish, ready
from tests.support.runs_by_hand import OUTPUT, Run, run_of
from tests.table.conftest import Output

MODES = ["append", "overwrite", "overwrite-partitions"]


def table_log_of(backend: Backend) -> TableLog:
    return TableLog(Storage({"s3": backend}, AT_ONCE), OUTPUT)


def claimed(mode: str) -> tuple[MemoryBackend, Run]:
    """A run has claimed, died, and lost an upload."""
    backend, run = ready(mode)
    die_claimed(backend, run)
    del backend.uploads[sorted(backend.uploads)[0]]
    return backend, run


def die_claimed(backend: MemoryBackend, run: Run) -> None:
    counted = Faulty(copied(backend), lambda n, name: None)
    publish(run.again(Storage({"s3": counted}, AT_ONCE)))
    dying = Faulty(backend, dies_at(counted.calls.index("complete"), "before"), KilledError)
    with pytest.raises(KilledError):
        publish(run.again(Storage({"s3": dying}, AT_ONCE)))


def publish_again(backend: MemoryBackend, run: Run) -> None:
    """What a driver does when its job is run again."""
    own, vanished = run.again(backend.storage()), None
    for _ in range(3):
        own.complete(*own.ledger.read().left(len(own.plan)))
        try:
            publish_run(own.storage, own.ledger, vanished)
            return
        except UploadsVanishedError as error:
            own.ledger.void(error.attempts)
            vanished = error
    raise AssertionError("three tries are enough")


@pytest.mark.parametrize("mode", MODES)
def test_it_is_given_up_and_mapped_again(mode: str) -> None:
    backend, run = claimed(mode)
    before = {key: data for key, data in visible(backend).items() if run.ledger.run not in key}
    with pytest.raises(ForeignClaimError, match=run.ledger.run) as refused:
        prepare_output(table_log_of(backend), "append", "0" * 16)
    assert f"chunkmap repair {OUTPUT}" in str(refused.value.hint)
    [problem] = diagnose(table_log_of(backend)).problems
    assert problem.situation == "publish unfinished"
    assert "1 of them have vanished" in problem.message
    assert f"chunkmap retry {run.ledger.run}" in problem.advice
    assert repair(table_log_of(backend))[-1].problems == ()
    assert visible(backend) == before
    assert backend.uploads == {}
    for command in (
        lambda: prepare_output(table_log_of(backend), "append", "0" * 16),
        lambda: vacuum(backend.storage(), OUTPUT),
    ):
        command()
    publish_again(backend, run)
    check_settled(backend)
    own = keys_of(run, visible(backend))
    assert rows({key: visible(backend)[key] for key in own}) == list(range(6))
    publish_again(backend, run)
    check_settled(backend)


def release_others(backend: MemoryBackend) -> None:
    """Store what a repair of another run's commits stores, which has read the pointer before."""
    table_log = table_log_of(backend)
    before = table_log.manifest()
    entry = release_entry(before, before.number + 1, ["another"])
    with suppress(ManifestConflictError):
        table_log.write_manifest(before.number, (*before.commits, entry))


def from_the_claim_on(
    backend: MemoryBackend, work: Callable[[Storage], object]
) -> Iterator[tuple[MemoryBackend, Storage]]:
    """Yield copies of an output, and storages whose n-th request finds the release of others."""
    counted = Faulty(copied(backend), lambda n, name: None)
    work(Storage({"s3": counted}, AT_ONCE))
    claims, *_, ends = [n for n, name in enumerate(counted.calls) if name == "put_if"]
    for number in range(claims, ends + 1):
        shared = copied(backend)

        def script(n: int, name: str, at: int = number, shared: MemoryBackend = shared) -> Fault:
            if n == at:
                release_others(shared)
            return None

        yield shared, Storage({"s3": Faulty(shared, script)}, AT_ONCE)


@pytest.mark.parametrize("mode", MODES)
def test_a_release_of_others_keeps_a_claim(mode: str) -> None:
    """It has the number of the claim's manifest; nothing of the claim is mapped again."""
    backend, run = ready(mode)
    for shared, storage in from_the_claim_on(backend, lambda s: publish(run.again(s))):
        own = run.again(storage)
        publish(own)
        check_settled(shared)
        assert run.again(shared.storage()).ledger.read().left(len(run.plan)) == []
        attempts = set(run.ledger.read().completions["attempt"])
        log = table_log_of(shared)
        files = log.snapshot(log.manifest()).filter(pl.col("commit") == run.ledger.run)
        assert set(files["attempt"]) == attempts


def test_a_release_of_others_keeps_a_rollback() -> None:
    backend, run = ready("overwrite")
    before = rows(visible(backend))
    publish(run)
    for shared, storage in from_the_claim_on(backend, lambda s: rollback(TableLog(s, OUTPUT))):
        assert rollback(TableLog(storage, OUTPUT)).rollback_of == 1
        check_settled(shared)
        assert rows(visible(shared)) == before


def test_a_run_is_discarded_beside_an_unfinished_claim() -> None:
    """The claim of another run, whose uploads vanished, is none of its business."""
    backend, run = claimed("append")
    other = run_of(backend.storage(), APART, "append", "another")
    other.complete()
    head = table_log_of(backend).head()
    assert discard_run(other.storage, other.ledger) == len(APART)
    assert table_log_of(backend).head() == head
    publish_again(backend, run)
    check_settled(backend)


def test_a_discarded_run_gives_up_a_claim_that_cannot_be_finished() -> None:
    backend, run = claimed("append")
    before = {key: data for key, data in visible(backend).items() if run.ledger.run not in key}
    discard_run(backend.storage(), run.again(backend.storage()).ledger)
    assert visible(backend) == before
    assert backend.uploads == {}
    check_settled(backend)
    publish_again(backend, run)
    check_settled(backend)


def test_a_run_whose_claim_can_be_finished_is_not_discarded() -> None:
    backend, run = ready("append")
    die_claimed(backend, run)
    with pytest.raises(UsageError, match=f"is published to {OUTPUT}: its driver had begun") as said:
        discard_run(backend.storage(), run.again(backend.storage()).ledger)
    assert f"chunkmap rollback {OUTPUT}" in str(said.value.hint)
    check_settled(backend)
    own = keys_of(run, visible(backend))
    assert rows({key: visible(backend)[key] for key in own}) == list(range(6))


@pytest.mark.parametrize("fault", ["before", "after", "late"])
def test_repair_may_die_at_any_request(fault: Fault) -> None:
    healthy, run = claimed("overwrite")
    counted = Faulty(copied(healthy), lambda n, name: None)
    repair(table_log_of(counted))
    for number in instants(len(counted.calls), fault):
        backend = copied(healthy)
        dying = Faulty(backend, dies_at(number, fault), KilledError)
        with pytest.raises(KilledError):
            repair(table_log_of(dying))
        for late in dying.late:
            late()
        assert repair(table_log_of(backend))[-1].problems == ()
        publish_again(backend, run)
        check_settled(backend)
        assert rows(visible(backend)) == list(range(6))


def repaired_at(number: int, backend: MemoryBackend) -> Script:
    def script(n: int, name: str) -> Fault:
        if n == number:
            repair(table_log_of(backend))
        return None

    return script


@pytest.mark.parametrize("mode", MODES)
def test_a_driver_that_slept_publishes_once_or_maps_again(mode: str) -> None:
    """Repair comes while it is about to send any of its requests."""
    healthy, run = ready(mode)
    counted = Faulty(copied(healthy), lambda n, name: None)
    publish(run.again(Storage({"s3": counted}, AT_ONCE)))
    for number in instants(len(counted.calls), mode):
        backend = copied(healthy)
        sleeper = Faulty(backend, repaired_at(number, backend))
        try:
            publish(run.again(Storage({"s3": sleeper}, AT_ONCE)))
        except UploadsVanishedError:
            publish_again(backend, run)
        repair(table_log_of(backend))
        check_settled(backend)
        own = keys_of(run, visible(backend))
        assert rows({key: visible(backend)[key] for key in own}) == list(range(6))


@pytest.mark.parametrize("mode", MODES)
def test_a_sleeper_meets_its_released_claim(mode: str) -> None:
    """Its uploads are gone, so repair gives the claim up, wherever it sleeps while it finishes."""
    healthy, run = claimed(mode)
    counted = Faulty(copied(healthy), lambda n, name: None)
    with pytest.raises(UploadsVanishedError):
        finish_open_claim(table_log_of(counted))
    for number in instants(len(counted.calls), mode):
        backend = copied(healthy)
        finish_open_claim(table_log_of(Faulty(backend, repaired_at(number, backend))))
        assert repair(table_log_of(backend))[-1].problems == ()
        check_settled(backend)
        assert keys_of(run, visible(backend)) == []


@pytest.mark.sampled(5)
@pytest.mark.parametrize("damage", ["missing", "damaged", "a foreign source", "a foreign key"])
def test_a_claim_whose_record_cannot_be_believed_is_given_up(output: Output, damage: str) -> None:
    """By hand, or by an earlier release that believed what a worker wrote."""
    output.publish(OTHER, "append", "a")
    theirs = output.uri.rstrip("/") + "-theirs/x.parquet"
    output.storage.put(theirs, b"theirs")
    first, run = output.visible(), output.run(PLAN, "append", "b")
    files = files_of(output.uri, pl.DataFrame([asdict(done) for done in run.complete()]))
    column = {"a foreign source": "upload", "a foreign key": "key"}.get(damage)
    value = theirs if column == "upload" else "../" + theirs.rpartition("/")[0]
    files = files.with_columns(pl.lit(value).alias(column)) if column else files
    record = draft_commit(run.record, run.ledger.read().completions)
    table_log = output.table_log
    table_log.write_commit(replace(record, files=files.cast(FILES)))
    head, etag = table_log.head()
    claim = Claim(base=head.current, commits=(record.entry.name,))
    table_log.move_head(head.model_copy(update={"publishing": claim}), etag)
    uri = f"{table_log.state}commits/{record.entry.name}.arrow"
    if damage == "missing":
        output.storage.delete(uri)
    if damage == "damaged":
        output.storage.put(uri, b"CMPLAN01")
    # A key that climbs is one of its own to S3, at which nothing was staged.
    with pytest.raises((StateError, ForeignClaimError)):
        prepare_output(output.table_log, "append", "0" * 16)
    assert [p.situation for p in diagnose(output.table_log).problems] == ["publish unfinished"]
    assert repair(output.table_log)[-1].problems == ()
    assert output.visible() == output.named() == first
    assert output.storage.get(theirs).data == b"theirs"
    later = output.publish(APART, "append", "c")
    assert later.ledger.published() == output.table_log.head()[0].current


def test_others_publish_on_top_and_versions_stay(output: Output) -> None:
    """On a real server: an upload is aborted after the claim, and the claim given up."""
    output.publish(OTHER, "append", "a")
    first = output.visible()
    run = output.run(PLAN, "overwrite", "b")
    staged = run.complete()
    stop = RuntimeError("the driver dies here")

    def die(*_: object) -> None:
        raise stop

    complete, output.storage.complete = output.storage.complete, die  # type: ignore[method-assign,assignment]
    with pytest.raises(RuntimeError):
        publish_run(output.storage, run.ledger)
    output.storage.complete = complete  # type: ignore[method-assign]
    [lost] = [item for item in output.storage.staged_under(*area_of(output)) if is_of(item.uri, 1)]
    output.storage.abort([lost])
    with pytest.raises(ForeignClaimError):
        prepare_output(output.table_log, "append", "0" * 16)
    assert repair(output.table_log)[-1].problems == ()
    assert output.visible() == output.named() == first
    assert output.storage.staged_under(*area_of(output)) == []
    output.publish(APART, "append", "c")
    rollback(output.table_log)
    assert output.visible() == output.named() == first
    assert verify_output(output.storage, output.uri).problems == ()
    assert len(staged) == 3


def area_of(output: Output) -> tuple[str, str]:
    return output.uri, output.table_log.state + "staged/"


def is_of(uri: str, index: int) -> bool:
    return f"/part-{index:07d}-" in uri


def test_files_deleted_by_hand_are_reported(output: Output) -> None:
    output.publish(PLAN, "append", "a")
    gone = sorted(output.visible())[0]
    output.storage.delete(output.uri + gone)
    [problem] = diagnose(output.table_log).problems
    assert (problem.situation, problem.action) == ("files missing", "")
    assert gone in problem.message
    assert repair(output.table_log)[-1].problems == (problem,)
    kept = f"{output.table_log.state}orphaned/1/{gone}"
    some = sorted(output.visible())[0]
    output.storage.copy(output.uri + some, kept)
    assert diagnose(output.table_log).problems[0].action.startswith("copy 1 ")
    assert repair(output.table_log)[-1].problems == ()
    assert output.visible() == output.named()


def test_nothing_is_wrong(output: Output) -> None:
    assert diagnose(output.table_log).problems == ()
    output.publish(PLAN, "append", "a")
    before = output.snapshot()
    assert repair(output.table_log)[-1].problems == ()
    assert output.snapshot() == before
