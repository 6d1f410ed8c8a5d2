"""Publishing: exactly once, whoever dies at whatever request, and however many publish at once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import polars as pl
import pytest

from partitioning import Plan
from pipeline.catalog import Catalog
from pipeline.driver import publish_run
from pipeline.errors import ConflictError, OutputNotEmptyError
from pipeline.manifest import Commit, CommitEntry, files_of
from pipeline.publish import UploadsVanishedError, prepare_output, rollback, settle
from pipeline.storage import Storage
from tests.pipeline.outputs import check_manifests, check_settled, copied, keys_of, rows, visible
from tests.pipeline.runs import OUTPUT, Run, plan_of, run_of
from tests.pipeline.storage.faulty import Fault, Faulty, KilledError, Script, dies_at
from tests.pipeline.storage.memory import AT_ONCE, MemoryBackend

PLAN = plan_of(3, folders=(0, 1))
OTHER = plan_of(4, folders=(1, 2))
APART = plan_of(2, folders=(7,))
MODES = ["error", "append", "overwrite", "overwrite-partitions"]


def publish(run: Run) -> int:
    return publish_run(run.storage, run.ledger)


def published(backend: MemoryBackend, plan: Plan, mode: str, code: str = "code") -> Run:
    """A run, mapped and published."""
    run = run_of(backend.storage(), plan, mode, code)
    run.complete()
    publish(run)
    return run


def ready(mode: str, plan: Plan = PLAN) -> tuple[MemoryBackend, Run]:
    """An output (published before, where the mode allows it), and a run that is mapped."""
    backend = MemoryBackend()
    if mode != "error":
        published(backend, OTHER, "append", "earlier")
    run = run_of(backend.storage(), plan, mode)
    run.complete()
    return backend, run


def head(backend: MemoryBackend) -> int:
    return Catalog(backend.storage(), OUTPUT).head()[0].current


# -- modes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_what_is_published_is_there_and_nothing_else(mode: str) -> None:
    backend, run = ready(mode)
    before = visible(backend)
    spare = run.complete(1)[0]
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
    assert backend.uploads == {}, "spares are aborted"
    assert chosen.spares.height == 1
    assert spare.index == 1
    assert run.ledger.published() == head(backend)


@pytest.mark.parametrize("mode", MODES)
def test_publishing_twice_is_once(mode: str) -> None:
    backend, run = ready(mode)
    publish(run)
    before = copied(backend).stored
    assert publish(run.again(run.storage)) == head(backend)
    assert backend.stored == before


def test_the_manifest_adds_up() -> None:
    backend, run = ready("append")
    publish(run)
    catalog = Catalog(backend.storage(), OUTPUT)
    manifest = catalog.manifest()
    assert [(one.run, one.files, one.rows) for one in manifest.commits][1:] == [
        (run.ledger.run, 3, 6)
    ]
    assert manifest.commits[0].files == 4
    files = catalog.snapshot(manifest)
    assert files["rows"].sum() == sum(one.rows for one in manifest.commits) == 14
    assert files["bytes"].sum() == sum(one.bytes for one in manifest.commits)


def test_a_commit_comes_back_as_it_was() -> None:
    _, run = ready("error")
    files = files_of(OUTPUT, run.ledger.read().completions)
    entry = CommitEntry(name="n", run="r", mode="append", files=3, rows=6, bytes=9, missing=1)
    commit = Commit(entry, 4, ("chunk",), files, ("k=1",))
    again = Commit.from_bytes(commit.to_bytes())
    assert (again.entry, again.base, again.missing, again.replaces) == (
        entry,
        4,
        ("chunk",),
        ("k=1",),
    )
    assert again.files.equals(files)


def test_without_the_failed_and_with_them_later() -> None:
    backend = MemoryBackend()
    run = run_of(backend.storage(), PLAN)
    run.complete(0, 2)
    assert publish_run(run.storage, run.ledger, without_failed=True) == 1
    check_settled(backend)
    assert rows(visible(backend)) == [0, 1, 4, 5]
    [entry] = Catalog(backend.storage(), OUTPUT).manifest().commits
    assert entry.missing == 1
    assert run.ledger.published() is None
    run.complete(1)
    assert publish(run.again(run.storage)) == 2
    check_settled(backend)
    assert rows(visible(backend)) == list(range(6))
    assert run.ledger.published() == 2


# -- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_an_output_with_a_stranger_is_refused(mode: str) -> None:
    backend = MemoryBackend()
    backend.put(OUTPUT + "k=1/theirs.parquet", b"x")
    with pytest.raises(OutputNotEmptyError, match=r"theirs\.parquet"):
        prepare_output(Catalog(backend.storage(), OUTPUT), mode, "run")


def test_mode_error_accepts_its_own_run_only() -> None:
    backend = MemoryBackend()
    run = published(backend, PLAN, "error")
    catalog = Catalog(backend.storage(), OUTPUT)
    assert prepare_output(catalog, "error", run.ledger.run).number == 1
    with pytest.raises(OutputNotEmptyError, match=run.ledger.run):
        prepare_output(catalog, "error", "another")
    assert prepare_output(catalog, "append", "another").number == 1


@pytest.mark.parametrize("theirs", ["append", "overwrite"])
def test_mode_error_accepts_its_own_run_whoever_came_after_it(theirs: str) -> None:
    """Its driver may have died before it noted that it was done."""
    backend = MemoryBackend()
    run = published(backend, PLAN, "error")
    published(backend, OTHER, theirs, "later")
    prepare_output(Catalog(backend.storage(), OUTPUT), "error", run.ledger.run)


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


def requests(backend: MemoryBackend, run: Run) -> int:
    counted = Faulty(copied(backend), lambda n, name: None)
    publish(run.again(Storage({"s3": counted}, AT_ONCE)))
    return len(counted.calls)


@pytest.mark.parametrize("fault", ["before", "after"])
@pytest.mark.parametrize("mode", MODES)
def test_whoever_dies_at_whatever_request_the_next_one_finishes(mode: str, fault: Fault) -> None:
    backend, run = ready(mode)
    run.complete(1)  # a spare
    healthy = copied(backend)
    publish(run.again(healthy.storage()))
    old = set(visible(backend))
    for number in range(requests(backend, run)):
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
def test_whoever_dies_twice_is_finished_by_a_stranger(mode: str) -> None:
    """Another run that comes along finishes the claim, and goes on top."""
    backend, run = ready(mode)
    for number in range(0, requests(backend, run), 2):
        broken = copied(backend)
        for again in (0, 1):
            dying = Faulty(broken, dies_at(number + again, "after"), KilledError)
            with suppress(KilledError):
                publish(run.again(Storage({"s3": dying}, AT_ONCE)))
        claimed = Catalog(broken.storage(), OUTPUT).head()[0].publishing is not None
        settle(Catalog(broken.storage(), OUTPUT))
        check_settled(broken)
        if claimed:
            assert len(keys_of(run, visible(broken))) == 3
        following = published(broken, APART, "append", "following")
        check_settled(broken)
        assert len(keys_of(following, visible(broken))) == 2


# -- several at once --------------------------------------------------------------------------


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
    for number in range(requests(backend, run)):
        shared = copied(backend)
        other = run.again(shared.storage())
        slow = Faulty(shared, stalled_at(number, lambda other=other: publish(other)))  # type: ignore[misc]
        publish(run.again(Storage({"s3": slow}, AT_ONCE)))
        check_settled(shared)
        assert visible(shared) == visible(healthy)
        assert head(shared) == head(healthy)


@pytest.mark.parametrize("theirs", MODES[1:])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("plan", [OTHER, APART], ids=["same partitions", "other partitions"])
def test_two_runs_publish_at_once(mode: str, theirs: str, plan: Plan) -> None:
    """Both are published, or the loser has a conflict and nothing of it is to be seen."""
    backend, run = ready(mode)
    theirs_of = run_of(backend.storage(), plan, theirs, "theirs")
    theirs_of.complete()
    # Every request where they meet in the same partitions, every third one otherwise.
    for number in range(0, requests(backend, run), 1 if plan is OTHER else 3):
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
        settle(Catalog(shared.storage(), OUTPUT))
        check_settled(shared)
        assert len(lost) < 2, "one of them wins"
        for one, plan_ in ((mine, PLAN), (other, plan)):
            found = keys_of(one, visible(shared))
            if one in lost:
                assert not found
            elif one is other and mine not in lost and mode.startswith("overwrite"):
                continue  # Mine may have replaced it, in whole or in part, and knew of it.
            elif one is mine and other not in lost and theirs.startswith("overwrite"):
                continue
            else:
                assert len(found) == len(plan_)


def test_a_driver_that_was_asleep_disturbs_nothing() -> None:
    """It claimed and slept; meanwhile its run was finished, and replaced by another one."""
    backend, run = ready("append")
    for number in range(requests(backend, run)):
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
    for number in range(requests(backend, run)):
        shared = copied(backend)
        catalog = Catalog(shared.storage(), OUTPUT)
        slow = Faulty(shared, stalled_at(number, lambda catalog=catalog: rollback(catalog)))  # type: ignore[misc]
        publish(run.again(Storage({"s3": slow}, AT_ONCE)))
        settle(catalog)
        check_settled(shared)


def test_preparing_while_another_run_publishes() -> None:
    """What is becoming visible just then is no stranger."""
    backend, run = ready("append")
    counted = Faulty(copied(backend), lambda n, name: None)
    prepare_output(Catalog(Storage({"s3": counted}, AT_ONCE), OUTPUT), "append", "mine")
    steps = requests(backend, run)
    for number in range(len(counted.calls)):
        for step in range(0, steps, 3):
            shared = copied(backend)
            dying = Storage({"s3": Faulty(shared, dies_at(step, "after"), KilledError)}, AT_ONCE)

            def meanwhile(dying: Storage = dying) -> None:
                with suppress(KilledError):
                    publish(run.again(dying))

            slow = Storage({"s3": Faulty(shared, stalled_at(number, meanwhile))}, AT_ONCE)
            assert prepare_output(Catalog(slow, OUTPUT), "append", "mine").number in (1, 2)


# -- uploads that vanish ----------------------------------------------------------------------


def vanish(backend: MemoryBackend, *attempts: str) -> None:
    for upload, (_, _, attempt) in list(backend.uploads.items()):
        if attempt in attempts:
            del backend.uploads[upload]


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
    files = Catalog(backend.storage(), OUTPUT).snapshot(
        Catalog(backend.storage(), OUTPUT).manifest()
    )
    own = files.filter(pl.col("key").str.contains(run.ledger.run)).sort("index")
    assert own["attempt"].to_list()[1] == new.attempt
    assert own.height == 3


def test_a_run_whose_claimed_uploads_vanished_can_be_taken_up_again() -> None:
    """Its own job is the only one that can finish it: preparing must not stop it."""
    backend, run, _ = frozen_then_vanished()
    catalog = Catalog(backend.storage(), OUTPUT)
    assert prepare_output(catalog, "error", run.ledger.run).number == 0


def test_another_run_meets_a_claim_whose_uploads_vanished() -> None:
    """It must neither finish it with its own files nor be told that its own are gone."""
    backend, run, lost = frozen_then_vanished("append")
    other = run_of(backend.storage(), PLAN, "append", "another")
    other.complete()
    before = visible(backend)
    with pytest.raises(UploadsVanishedError) as caught:
        publish(other)
    assert caught.value.commit == run.ledger.run
    with pytest.raises((UploadsVanishedError, ConflictError)):
        publish_run(other.storage, other.ledger, caught.value)
    assert keys_of(other, visible(backend)) == []
    assert set(visible(backend)) >= set(before)
    frozen = Catalog(backend.storage(), OUTPUT).commit(run.ledger.run)
    assert frozen is not None
    assert lost in frozen.files["attempt"].to_list()
    assert all(run.ledger.run in key for key in frozen.files["key"])


def test_two_drivers_amend_one_commit() -> None:
    """Each mapped the lost chunk anew; the second must not change what the first published."""
    backend, run, _ = frozen_then_vanished()
    drivers = [run.again(backend.storage()) for _ in range(2)]
    errors = []
    for one in drivers:
        with pytest.raises(UploadsVanishedError) as caught:
            publish(one)
        one.ledger.void(caught.value.attempts)
        errors.append(caught.value)
    for one, error in zip(drivers, errors, strict=True):
        one.complete(1)
        publish_run(one.storage, one.ledger, error)
        check_settled(backend)
    assert rows(visible(backend)) == list(range(6))
