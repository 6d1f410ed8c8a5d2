"""Existing files become an output as they are, and nothing but a replacement ever moves them."""

from __future__ import annotations

import io
from contextlib import suppress

import polars as pl
import pytest

from partitioning import PlanningError
from partitioning.errors import TableFormatError
from pipeline.errors import (
    ConflictError,
    InputError,
    OutputNotEmptyError,
    SchemaChangedError,
    StateError,
    UsageError,
)
from pipeline.runs.admin.vacuum import vacuum
from pipeline.runs.admin.verify import verify_output
from pipeline.storage import Storage
from pipeline.table.adopt import Adoption, adopt
from pipeline.table.claims import finish_open_claim, release
from pipeline.table.errors import CommitsConflictError
from pipeline.table.log import TableLog
from pipeline.table.manifest import ADOPT
from pipeline.table.publish import prepare_output, rollback
from pipeline.table.repair import diagnose, repair
from pipeline.table.retention import existing_objects, locate, orphans_among
from tests.support.faulty_storage import Fault, Faulty, KilledError, dies_at
from tests.support.memory_storage import AT_ONCE, MemoryBackend
from tests.support.publishing import publish
from tests.support.runs_by_hand import OUTPUT, plan_of, run_of

STATE = OUTPUT.rstrip("/") + ".chunkmap/"
KEYS = ("k=0/a.parquet", "k=0/b.pq", "k=1/a.parquet")


def parquet(*ids: int, **more: object) -> bytes:
    data = io.BytesIO()
    pl.DataFrame({"id": ids, **more}, schema_overrides={"id": pl.Int64}).write_parquet(data)
    return data.getvalue()


def files(*keys: str) -> MemoryBackend:
    """A prefix that something else has written: 10 rows a file."""
    backend = MemoryBackend()
    for number, key in enumerate(keys or KEYS):
        backend.put(OUTPUT + key, parquet(*range(number * 10, number * 10 + 10)))
    return backend


def visible(backend: MemoryBackend) -> dict[str, bytes]:
    prefix = len(OUTPUT)
    return {u[prefix:]: one.data for u, one in backend.stored.items() if u.startswith(OUTPUT)}


def take(backend: MemoryBackend, **more: bool) -> Adoption:
    return adopt(backend.storage(), OUTPUT, **more)


def log_of(backend: MemoryBackend) -> TableLog:
    return TableLog(backend.storage(), OUTPUT)


def replaced(backend: MemoryBackend, code: str = "code", mode: str = "overwrite") -> None:
    """Publish a run that replaces what is there."""
    run = run_of(backend.storage(), plan_of(2, folders=(0, 1)), mode, code)
    run.complete()
    publish(run)


def test_files_are_a_version_and_are_not_touched() -> None:
    backend = files()
    before = visible(backend)
    done = take(backend)
    assert (done.files, done.rows, done.manifest) == (3, 30, 1)
    assert done.bytes == sum(map(len, before.values()))
    assert done.columns == {"id": "Int64"}
    assert visible(backend) == before
    [entry] = log_of(backend).manifest().commits
    assert (entry.mode, entry.files, entry.rows, entry.keep_versions) == (ADOPT, 3, 30, 1)
    found = log_of(backend).snapshot(log_of(backend).manifest())
    assert found["key"].to_list() == sorted(KEYS)
    assert set(found["upload"]) == set(found["sha256"]) == {""}
    assert found["parts"].to_list() == [[backend.head(OUTPUT + key).etag] for key in sorted(KEYS)]
    verified = verify_output(backend.storage(), OUTPUT)
    assert (verified.problems, verified.notes, verified.adopted) == ((), (), 3)


def test_adopting_twice_changes_nothing() -> None:
    backend = files()
    take(backend)
    before = dict(backend.stored)
    again = take(backend)
    assert (again.files, again.adopted_before, again.manifest) == (0, 3, 1)
    assert backend.stored == before


def test_a_dry_run_writes_nothing() -> None:
    backend = files()
    before = dict(backend.stored)
    assert take(backend, dry_run=True).files == 3
    assert backend.stored == before


def test_new_files_are_taken_by_a_further_version() -> None:
    backend = files()
    take(backend)
    backend.put(f"{OUTPUT}k=2/a.parquet", parquet(7))
    again = take(backend)
    assert (again.files, again.rows, again.adopted_before, again.manifest) == (1, 1, 3, 2)
    assert verify_output(backend.storage(), OUTPUT).problems == ()


@pytest.mark.parametrize(
    ("key", "data", "error", "text"),
    [
        ("_SUCCESS", b"", InputError, "_SUCCESS"),
        ("notes.txt", b"x", InputError, "Parquet files only"),
        ("k=0/c.parquet", b"PAR1 no", PlanningError, "k=0/c.parquet"),
        ("k=0/c.parquet", parquet(1, other=[1]), PlanningError, "other"),
        ("k=0/c.r3.parquet", parquet(1), InputError, "rename"),
        ("k=0/" + "x" * 1010 + ".parquet", parquet(1), InputError, "1,008 bytes"),
        ("_delta_log/0.json", b"{}", TableFormatError, "Delta"),
        ("x/y/part.parquet", parquet(1), PlanningError, ""),
    ],
)
def test_what_cannot_be_adopted(key: str, data: bytes, error: type[Exception], text: str) -> None:
    backend = files()
    backend.put(OUTPUT + key, data)
    before = dict(backend.stored)
    with pytest.raises(error) as caught:
        take(backend)
    assert text in f"{caught.value} {getattr(caught.value, 'hint', '')}"
    assert backend.stored == before


def test_places_that_cannot_be_adopted() -> None:
    backend = files()
    take(backend)
    storage = backend.storage()
    with pytest.raises(UsageError, match="which is an output of chunkmap already"):
        adopt(storage, f"{OUTPUT}k=0/")
    with pytest.raises(UsageError, match="the state folder of another output"):
        adopt(storage, f"{STATE}replaced/1/")
    with pytest.raises(InputError, match="there are no files"):
        adopt(storage, "s3://out/nothing/")


def test_new_files_with_other_columns_are_refused() -> None:
    backend = files()
    take(backend)
    backend.put(f"{OUTPUT}k=2/a.parquet", parquet(7, other=[1]))
    with pytest.raises(SchemaChangedError, match="chunkmap adopt has other columns"):
        take(backend)


def test_changed_files_are_found_and_neither_adopted_nor_replaced() -> None:
    backend = files()
    take(backend)
    run = run_of(backend.storage(), plan_of(2, folders=(0, 1)), "overwrite")
    run.complete()
    changed = parquet(1, 2)
    backend.put(f"{OUTPUT}k=0/a.parquet", changed)
    [problem] = verify_output(backend.storage(), OUTPUT).problems
    assert "k=0/a.parquet" in problem
    with pytest.raises(ConflictError, match=r"1 adopted file .* k=0/a\.parquet"):
        take(backend)
    with pytest.raises(ConflictError, match=r"1 adopted file .* k=0/a\.parquet"):
        publish(run)
    assert visible(backend)["k=0/a.parquet"] == changed
    assert log_of(backend).manifest().number == 1


def test_a_change_of_equal_size_is_found() -> None:
    backend = files()
    take(backend)
    other = bytearray(visible(backend)["k=0/a.parquet"])
    other[10] ^= 1
    backend.put(f"{OUTPUT}k=0/a.parquet", bytes(other))
    [problem] = verify_output(backend.storage(), OUTPUT).problems
    assert "another version than was adopted" in problem


def test_runs_refuse_files_that_are_not_adopted() -> None:
    backend = files()
    take(backend)
    backend.put(f"{OUTPUT}k=2/a.parquet", parquet(7))
    with pytest.raises(OutputNotEmptyError) as caught:
        prepare_output(log_of(backend), "overwrite", "0" * 16)
    assert f"chunkmap adopt {OUTPUT}" in str(caught.value.hint)


# -- files that are replaced -------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["overwrite", "overwrite-partitions"])
def test_replaced_files_are_kept_and_rolled_back_to(mode: str) -> None:
    backend = files()
    before = visible(backend)
    take(backend)
    replaced(backend, mode=mode)
    assert not set(before).intersection(visible(backend))
    places = locate(log_of(backend), log_of(backend).manifest(1))
    assert places == {key: f"{STATE}replaced/2/{key}" for key in KEYS}
    vacuum(backend.storage(), OUTPUT, older_than=0.0)
    assert rollback(log_of(backend)).rollback_of == 1
    restored = {key.replace(".r3.", "."): data for key, data in visible(backend).items()}
    assert restored == before
    assert verify_output(backend.storage(), OUTPUT).problems == ()
    assert diagnose(log_of(backend)).problems == ()
    replaced(backend, "other", mode)
    assert rollback(log_of(backend)).number == 5
    assert sorted(visible(backend).values()) == sorted(before.values())


def test_files_are_deleted_with_the_last_kept_version_that_has_them() -> None:
    backend = files()
    take(backend)
    replaced(backend)
    vacuum(backend.storage(), OUTPUT, older_than=0.0)
    assert list(backend.objects(f"{STATE}replaced/2/"))
    replaced(backend, "other")
    assert not list(backend.objects(f"{STATE}replaced/2/"))


def test_a_rollback_to_before_the_adoption_is_refused() -> None:
    backend = files()
    before = visible(backend)
    take(backend)
    for to in (None, 0):
        with pytest.raises(UsageError, match="would move them away"):
            rollback(log_of(backend), to)
    assert visible(backend) == before
    replaced(backend)
    with pytest.raises(UsageError, match="would move them away"):
        rollback(log_of(backend), 0)


def test_adopting_uses_up_no_kept_version() -> None:
    backend = files()
    take(backend)
    replaced(backend)
    # The columns of a run by hand are unknown, so any file may join it.
    backend.put(f"{OUTPUT}k=2/a.parquet", parquet(7))
    assert take(backend).manifest == 3
    vacuum(backend.storage(), OUTPUT, older_than=0.0)
    assert set(locate(log_of(backend), log_of(backend).manifest(1))) == set(KEYS)


def test_a_file_written_over_a_replaced_one_stays() -> None:
    """It is data of others at a key that an old version names: no orphan, and never moved."""
    backend = files()
    take(backend)
    replaced(backend)
    theirs = parquet(99)
    backend.put(f"{OUTPUT}k=0/a.parquet", theirs)
    assert orphans_among(log_of(backend), ["k=0/a.parquet"]) == []
    repair(log_of(backend))
    with pytest.raises(OutputNotEmptyError):
        prepare_output(log_of(backend), "overwrite", "0" * 16)
    vacuum(backend.storage(), OUTPUT, older_than=0.0)
    assert visible(backend)["k=0/a.parquet"] == theirs
    with pytest.raises(InputError, match="keys of files of earlier versions"):
        take(backend)


def test_a_replaced_file_that_a_late_request_left_is_an_orphan() -> None:
    backend = files()
    before = visible(backend)["k=0/a.parquet"]
    take(backend)
    replaced(backend)
    backend.put(f"{OUTPUT}k=0/a.parquet", before)
    assert orphans_among(log_of(backend), ["k=0/a.parquet"]) == ["k=0/a.parquet"]


def test_a_file_changed_after_the_claim_is_left_in_place() -> None:
    """Between the check and the move, others may still write: their file is not taken for ours."""
    backend = files()
    take(backend)
    run = run_of(backend.storage(), plan_of(2, folders=(0, 1)), "overwrite")
    run.complete()
    theirs, calls = parquet(99), []

    def script(number: int, name: str) -> Fault:
        calls.append(name)
        if name == "put_if":  # The claim, and then the pointer.
            backend.put(f"{OUTPUT}k=0/a.parquet", theirs)
        return None

    publish(run.again(Storage({"s3": Faulty(backend, script)}, AT_ONCE)))
    assert "put_if" in calls
    assert visible(backend)["k=0/a.parquet"] == theirs
    assert not backend.stored.get(f"{STATE}replaced/2/k=0/a.parquet")


# -- processes that end, or run at once --------------------------------------------------------


@pytest.mark.parametrize("fault", ["before", "after"])
def test_any_request_may_be_the_last(fault: Fault) -> None:
    counted = Faulty(files(), lambda n, name: None)
    adopt(Storage({"s3": counted}, AT_ONCE), OUTPUT)
    for number in range(len(counted.calls)):
        backend = files()
        before = visible(backend)
        with pytest.raises(KilledError):
            faulty = Faulty(backend, dies_at(number, fault), KilledError)
            adopt(Storage({"s3": faulty}, AT_ONCE), OUTPUT)
        with suppress(UsageError):  # Another command may come first.
            repair(log_of(backend))
            vacuum(backend.storage(), OUTPUT, older_than=0.0)
        assert visible(backend) == before
        take(backend)
        assert visible(backend) == before
        manifest = log_of(backend).manifest()
        assert (manifest.number, len(manifest.commits)) == (1, 1)
        assert verify_output(backend.storage(), OUTPUT).problems == ()


def frozen(backend: MemoryBackend) -> None:
    """An adoption that died before its claim."""
    with pytest.raises(KilledError):
        adopt(Storage({"s3": _Dying(backend, 2)}, AT_ONCE), OUTPUT)


class _Dying(Faulty):
    """Ends at the n-th creation of an object: the commit record is the first, the claim next."""

    def __init__(self, backend: MemoryBackend, creations: int) -> None:
        left = [creations]

        def script(number: int, name: str) -> Fault:
            left[0] -= name == "put_new"
            return None if left[0] > 0 else "before"

        super().__init__(backend, script, KilledError)


def test_an_adoption_without_a_claim_is_not_given_up() -> None:
    """A repair would move its files away as if they were those of a run that lost its claim."""
    backend = files()
    before = visible(backend)
    frozen(backend)
    assert [u for u in backend.stored if "/commits/adopt-" in u]
    assert diagnose(log_of(backend)).problems == ()
    repair(log_of(backend))
    assert visible(backend) == before
    with pytest.raises(OutputNotEmptyError) as caught:
        prepare_output(log_of(backend), "overwrite", "0" * 16)
    assert "chunkmap adopt" in str(caught.value.hint)
    assert take(backend).manifest == 1


def claimed(backend: MemoryBackend) -> None:
    """An adoption that died after its claim, before its manifest."""
    with pytest.raises(KilledError):
        adopt(Storage({"s3": _Dying(backend, 3)}, AT_ONCE), OUTPUT)
    assert log_of(backend).head()[0].publishing is not None


def test_a_claim_is_finished_by_anybody() -> None:
    backend = files()
    before = visible(backend)
    claimed(backend)
    [problem] = diagnose(log_of(backend)).problems
    assert "adopt 3 files" in problem.message
    with pytest.raises(ConflictError, match="is being published to"):
        take(backend, dry_run=True)
    assert finish_open_claim(log_of(backend)).number == 1
    assert visible(backend) == before


def test_a_released_claim_leaves_the_files() -> None:
    """Giving up a commit aborts what it has staged, and moves its visible files away."""
    backend = files()
    before = visible(backend)
    claimed(backend)
    table_log = log_of(backend)
    release(table_log, *table_log.head())
    assert visible(backend) == before
    assert orphans_among(log_of(backend), KEYS) == []
    assert log_of(backend).manifest().adopted, "older releases would move them"
    assert take(backend).files == 3
    assert verify_output(backend.storage(), OUTPUT).problems == ()


def test_two_adoptions_at_once() -> None:
    """At each request of the first, another one runs from start to end."""
    counted = Faulty(files(), lambda n, name: None)
    adopt(Storage({"s3": counted}, AT_ONCE), OUTPUT)
    for number in range(len(counted.calls)):
        backend = files()
        before = visible(backend)

        def script(at: int, name: str, number: int = number, backend: object = backend) -> Fault:
            if at == number:
                take(backend)  # type: ignore[arg-type]
            return None

        adopt(Storage({"s3": Faulty(backend, script)}, AT_ONCE), OUTPUT)
        assert visible(backend) == before
        table_log = log_of(backend)
        assert sorted(table_log.keys(table_log.manifest().commits)) == sorted(KEYS)


def test_two_adoptions_that_see_other_files() -> None:
    """The second lists again: no file is in two commits."""
    counted = Faulty(files(), lambda n, name: None)
    adopt(Storage({"s3": counted}, AT_ONCE), OUTPUT)
    for number in range(1, len(counted.calls)):
        backend = files()

        def script(at: int, name: str, number: int = number, backend: object = backend) -> Fault:
            assert isinstance(backend, MemoryBackend)
            if at == number:
                backend.put(f"{OUTPUT}k=2/a.parquet", parquet(7))
                take(backend)
            return None

        adopt(Storage({"s3": Faulty(backend, script)}, AT_ONCE), OUTPUT)
        take(backend)
        table_log = log_of(backend)
        named = table_log.keys(table_log.manifest().commits)
        assert sorted(named) == sorted([*KEYS, "k=2/a.parquet"])


def test_a_run_that_began_before_does_not_replace_adopted_files() -> None:
    backend = MemoryBackend()
    run = run_of(backend.storage(), plan_of(2, folders=(0, 1)), "overwrite")
    run.complete()
    for key, one in files().stored.items():
        backend.stored[key] = one
    take(backend)
    with pytest.raises(CommitsConflictError, match="chunkmap adopt has published"):
        publish(run)


# -- formats -----------------------------------------------------------------------------------


def test_older_releases_refuse_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = files()
    claimed(backend)
    monkeypatch.setattr("pipeline.table.head.HEAD_VERSION", 2)
    with pytest.raises(StateError, match="format 3"):
        log_of(backend).head()
    monkeypatch.undo()
    take(backend)
    replaced(backend)
    monkeypatch.setattr("pipeline.table.log.MANIFEST_VERSION", 4)
    assert log_of(backend).head()[0].version == 3
    with pytest.raises(StateError, match="format 5"):
        log_of(backend).manifest()


def test_outputs_without_adopted_files_keep_their_formats() -> None:
    backend = MemoryBackend()
    replaced(backend)
    manifest = log_of(backend).manifest()
    assert log_of(backend).head()[0].version == 1
    assert b'"version": 3' in backend.get(f"{STATE}manifests/1.json").data
    assert not manifest.adopted


def test_an_attempt_that_fails_is_repeated() -> None:
    backend = files()
    seen: list[str] = []

    def script(number: int, name: str) -> Fault:
        seen.append(name)
        return "after" if name in ("put_new", "put_if") and seen.count(name) == 1 else None

    adopt(Storage({"s3": Faulty(backend, script)}, AT_ONCE), OUTPUT)
    assert log_of(backend).manifest().number == 1
    assert existing_objects(log_of(backend), KEYS).keys() == set(KEYS)
