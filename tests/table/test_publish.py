"""Publishing: exactly once, in every mode, if drivers die at any request."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest

from partitioning import Plan
from pipeline.errors import ConflictError, OutputNotEmptyError
from pipeline.runs.driver.commit import files_of
from pipeline.runs.driver.publish import publish_run
from pipeline.storage import Storage
from pipeline.table.claims import finish_open_claim
from pipeline.table.errors import CommitsConflictError
from pipeline.table.log import TableLog
from pipeline.table.manifest import Commit, CommitEntry
from pipeline.table.publish import prepare_output, rollback
from pipeline.table.record_file import read_record, write_record
from tests.support.faulty_storage import Fault, Faulty, KilledError, dies_at
from tests.support.instants import instants
from tests.support.memory_storage import AT_ONCE, MemoryBackend
from tests.support.outputs import check_manifests, check_settled, copied, keys_of, rows, visible
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
from tests.support.runs_by_hand import OUTPUT, plan_of, run_of

# -- modes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_what_is_published_is_there_and_nothing_else(mode: str) -> None:
    backend, run = ready(mode)
    before = visible(backend)
    duplicate = run.complete(1)[0]
    chosen = run.ledger.read()
    assert publish(run) == (1 if mode == "error" else 2)
    check_settled(backend)
    own = keys_of(run, visible(backend))
    assert len(own) == 3
    assert rows({key: visible(backend)[key] for key in own}) == list(range(6))
    rest = {key for key in visible(backend) if key not in own}
    kept = {
        "error": set(),
        "append": set(before),
        "overwrite": set(),
        "overwrite-partitions": {key for key in before if not key.startswith(("k=0/", "k=1/"))},
    }[mode]
    assert rest == kept
    assert backend.uploads == {}, "duplicates are aborted"
    assert chosen.duplicates.height == 1
    assert duplicate.index == 1
    assert run.ledger.published() == head(backend)


@pytest.mark.parametrize("mode", MODES)
def test_publishing_twice_is_once(mode: str) -> None:
    backend, run = ready(mode)
    publish(run)
    before = copied(backend).stored
    assert publish(run.again(run.storage)) == head(backend)
    assert backend.stored == before


def test_a_publish_sends_few_requests() -> None:
    """A small run waits for each of them; what was just read or written is not read again."""
    backend, run = ready("error")
    counted = Faulty(copied(backend), lambda n, name: None)
    known = run.again(Storage({"s3": counted}, AT_ONCE))
    known.ledger.record()
    known.ledger.plan()
    known.ledger.read()
    counted.calls.clear()
    publish(known)
    steps = {
        "what is new in the ledger": ["after"],
        "the pointer, and whether it was lost": ["get", "objects"],
        "which manifests are no conflict, and the pointer as it is now": ["get", "get"],
        "what is staged is there, and is frozen": ["missing", "put_new"],
        "the claim, its ETag, and whether the commit was amended": ["put_new", "get", "get"],
        "all is visible, the manifest, and the pointer to it": ["complete", "put_new", "put_if"],
        "the note, unless there is one": ["get", "put"],
    }
    assert counted.calls == [call for calls in steps.values() for call in calls]


def test_the_manifest_adds_up() -> None:
    backend, run = ready("append")
    publish(run)
    table_log = TableLog(backend.storage(), OUTPUT)
    manifest = table_log.manifest()
    assert [(commit.run, commit.files, commit.rows) for commit in manifest.commits][1:] == [
        (run.ledger.run, 3, 6)
    ]
    assert manifest.commits[0].files == 4
    files = table_log.snapshot(manifest)
    assert files["rows"].sum() == sum(commit.rows for commit in manifest.commits) == 14
    assert files["bytes"].sum() == sum(commit.bytes for commit in manifest.commits)


def test_a_commit_comes_back_as_it_was() -> None:
    _, run = ready("error")
    files = files_of(OUTPUT, run.ledger.read().completions)
    entry = CommitEntry(name="n", run="r", mode="append", files=3, rows=6, bytes=9, missing=1)
    commit = Commit(entry, 4, ("chunk",), files, ("k=1",))
    again = read_record(write_record(commit))
    assert (again.entry, again.base, again.missing, again.replaces) == (
        entry,
        4,
        ("chunk",),
        ("k=1",),
    )
    assert again.files.equals(files)


def roll_back(backend: MemoryBackend) -> None:
    rollback(TableLog(backend.storage(), OUTPUT))


def overwrite(backend: MemoryBackend) -> None:
    published(backend, OTHER, "overwrite", "another")


def overwrite_partitions(backend: MemoryBackend) -> None:
    published(backend, OTHER, "overwrite-partitions", "another")


@pytest.mark.parametrize("replace", [roll_back, overwrite, overwrite_partitions])
@pytest.mark.parametrize("mode", MODES)
def test_what_had_failed_is_not_added_to_the_version_of_others(
    mode: str, replace: Callable[[MemoryBackend], None]
) -> None:
    """The run was published without a chunk, and its version was replaced before that was done."""
    backend = MemoryBackend()
    if mode != "error":
        published(backend, APART, "append", "earlier")
    run = run_of(backend.storage(), plan_of(3, folders=(1,)), mode)
    run.complete(0, 2)
    publish_run(run.storage, run.ledger, without_failed=True)
    replace(backend)
    before = visible(backend)
    run.complete(1)
    with pytest.raises(CommitsConflictError, match=r"(replaced|rolled back) since") as caught:
        publish(run.again(run.storage))
    assert "--replan" in (caught.value.hint or "")
    assert visible(backend) == before
    check_settled(backend)
    assert run.ledger.published() is None


def test_without_the_failed_and_with_them_later() -> None:
    backend = MemoryBackend()
    run = run_of(backend.storage(), PLAN)
    run.complete(0, 2)
    assert publish_run(run.storage, run.ledger, without_failed=True) == 1
    check_settled(backend)
    assert rows(visible(backend)) == [0, 1, 4, 5]
    [entry] = TableLog(backend.storage(), OUTPUT).manifest().commits
    assert entry.missing == 1
    assert run.ledger.published() is None
    run.complete(1)
    assert publish(run.again(run.storage)) == 2
    check_settled(backend)
    assert rows(visible(backend)) == list(range(6))
    assert run.ledger.published() == 2


# -- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_an_output_with_an_unknown_file_is_refused(mode: str) -> None:
    backend = MemoryBackend()
    backend.put(OUTPUT + "k=1/theirs.parquet", b"x")
    with pytest.raises(OutputNotEmptyError, match=r"theirs\.parquet"):
        prepare_output(TableLog(backend.storage(), OUTPUT), mode, "run")


def test_mode_error_accepts_its_own_run_only() -> None:
    backend = MemoryBackend()
    run = published(backend, PLAN, "error")
    table_log = TableLog(backend.storage(), OUTPUT)
    assert prepare_output(table_log, "error", run.ledger.run).number == 1
    with pytest.raises(OutputNotEmptyError, match=run.ledger.run):
        prepare_output(table_log, "error", "another")
    assert prepare_output(table_log, "append", "another").number == 1


@pytest.mark.parametrize("theirs", ["append", "overwrite"])
def test_mode_error_accepts_its_own_run_after_other_runs(theirs: str) -> None:
    """Its driver may have died before it noted that it was done."""
    backend = MemoryBackend()
    run = published(backend, PLAN, "error")
    published(backend, OTHER, theirs, "later")
    prepare_output(TableLog(backend.storage(), OUTPUT), "error", run.ledger.run)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("theirs", ["append", "overwrite"])
@pytest.mark.parametrize("plan", [OTHER, APART], ids=["same partitions", "other partitions"])
def test_who_came_in_between(mode: str, theirs: str, plan: Plan) -> None:
    """Appends, and overwrites of other partitions, go on top; the rest is a conflict."""
    backend, run = ready(mode)
    between = published(backend, plan, theirs, "between")
    before = copied(backend)
    if mode == "append" or (mode == "overwrite-partitions" and plan is APART):
        publish(run)
        check_settled(backend)
        assert len(keys_of(run, visible(backend))) == 3
        assert len(keys_of(between, visible(backend))) == len(plan)
        return
    with pytest.raises(ConflictError) as caught:
        publish(run)
    assert caught.value.exit_code == 3
    assert visible(backend) == visible(before)
    assert head(backend) == head(before)
    check_settled(backend)


# -- killed at every request ------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["before", "after"])
@pytest.mark.parametrize("mode", MODES)
def test_a_driver_that_dies_at_any_request_is_finished_by_the_next(mode: str, fault: Fault) -> None:
    backend, run = ready(mode)
    run.complete(1)  # a duplicate
    healthy = copied(backend)
    publish(run.again(healthy.storage()))
    old = set(visible(backend))
    for number in instants(requests(backend, run), mode, fault):
        broken = copied(backend)
        dying = Faulty(broken, dies_at(number, fault), KilledError)
        with pytest.raises(KilledError):
            publish(run.again(Storage({"s3": dying}, AT_ONCE)))
        check_manifests(broken)
        if mode in ("error", "append"):
            assert old <= set(visible(broken)), dying.calls
        publish(run.again(broken.storage()))
        check_settled(broken)
        assert visible(broken) == visible(healthy), dying.calls
        assert head(broken) == head(healthy)
        assert broken.uploads == {}


@pytest.mark.parametrize("mode", ["error", "overwrite"])
def test_a_driver_that_dies_twice_is_finished_by_another(mode: str) -> None:
    """Another run that comes along finishes the claim, and goes on top."""
    backend, run = ready(mode)
    for number in instants(requests(backend, run), mode):
        broken = copied(backend)
        for again in (0, 1):
            dying = Faulty(broken, dies_at(number + again, "after"), KilledError)
            with suppress(KilledError):
                publish(run.again(Storage({"s3": dying}, AT_ONCE)))
        claimed = TableLog(broken.storage(), OUTPUT).head()[0].publishing is not None
        finish_open_claim(TableLog(broken.storage(), OUTPUT))
        check_settled(broken)
        if claimed:
            assert len(keys_of(run, visible(broken))) == 3
        following = published(broken, APART, "append", "following")
        check_settled(broken)
        assert len(keys_of(following, visible(broken))) == 2
