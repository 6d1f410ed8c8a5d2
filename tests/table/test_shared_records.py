"""Commits that share a record: frozen and read with one request, and only once a claim names it."""

from __future__ import annotations

from dataclasses import replace

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import StateError
from pipeline.storage import Storage
from pipeline.table.errors import DamagedStateError, UploadsVanishedError
from pipeline.table.log import TableLog
from pipeline.table.manifest import (
    FILES,
    HEAD_VERSION,
    MANIFEST_VERSION,
    QUARANTINED,
    REJECTED,
    CheckFigures,
    Commit,
    CommitEntry,
)
from pipeline.table.publish import prepare_output
from pipeline.table.record_file import _meta, _pack, read_shared, write_shared
from pipeline.table.repair import diagnose, repair
from tests.support.faulty_storage import Fault, Faulty, KilledError, dies_at
from tests.support.memory_storage import AT_ONCE, MemoryBackend
from tests.support.outputs import check_settled, copied, rows, visible
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
)

HEAD = f"{OUTPUT[:-1]}.chunkmap/HEAD.json"
texts = st.text("ab=/é", max_size=4)


@st.composite
def commits(draw: st.DrawFn) -> Commit:
    """A commit with any number of files, objects in quarantine and rejected chunks."""
    counts = st.integers(0, 3)
    files = [
        {
            "key": draw(texts),
            "rows": draw(st.integers(0, 9)),
            "bytes": 1,
            "sha256": "s",
            "chunk": str(number),
            "index": number,
            "attempt": draw(texts),
            "upload": draw(texts),
            "parts": draw(st.lists(texts, max_size=2)),
        }
        for number in range(draw(counts))
    ]
    quarantined = [{"uri": draw(texts), "row_groups": [0, 1]} for _ in range(draw(counts))]
    rejected = [{"chunk": draw(texts), "rows": 1} for _ in range(draw(counts))]
    entry = CommitEntry(
        name=draw(st.uuids().map(str)),
        run="r",
        mode=draw(st.sampled_from(["append", "overwrite-partitions"])),
        files=len(files),
        rows=0,
        bytes=0,
        window=draw(st.none() | texts),
        quarantined=len(quarantined),
        rejected=len(rejected),
    )
    return Commit(
        entry,
        draw(counts),
        tuple(draw(st.lists(texts, max_size=2))),
        pl.DataFrame(files, FILES),
        tuple(draw(st.lists(texts, max_size=2))),
        columns=draw(st.dictionaries(texts, texts, max_size=2)),
        left_out=tuple(draw(st.lists(texts, max_size=2))),
        quarantined=pl.DataFrame(quarantined, QUARANTINED),
        checks=(CheckFigures("c", "passed", "", {"rows": 1}),) if draw(st.booleans()) else (),
        rejected=pl.DataFrame(rejected, REJECTED),
    )


def parts_of(commit: Commit) -> object:
    frames = (commit.files, commit.quarantined, commit.rejected)
    others = replace(commit, files=None, quarantined=None, rejected=None)  # type: ignore[arg-type]
    return others, [frame.to_dicts() for frame in frames], [frame.schema for frame in frames]


@given(st.lists(commits(), min_size=1, max_size=4, unique_by=lambda commit: commit.entry.name))
def test_commits_come_back_as_they_were(written: list[Commit]) -> None:
    again = read_shared(write_shared(written))
    assert list(map(parts_of, again)) == list(map(parts_of, written))


def one_file() -> Commit:
    entry = CommitEntry(name="a", run="r", mode="append", files=1, rows=1, bytes=1)
    return Commit(entry, 0, (), pl.DataFrame([{"key": "k", "rows": 1}], FILES))


def test_a_record_with_a_commit_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        read_shared(write_shared([one_file(), one_file()]))


@pytest.mark.parametrize("count", [0, 2])
def test_a_record_with_other_rows_than_its_commits_is_refused(count: int) -> None:
    meta = {**_meta(one_file()), "rows": {"files": count}}
    with pytest.raises(ValueError, match="rows"):
        read_shared(_pack([one_file()], {"commits": [meta]}))


# -- publishing ---------------------------------------------------------------------------------


def records(backend: MemoryBackend) -> list[str]:
    folder = f"{OUTPUT[:-1]}.chunkmap/commits/"
    return sorted(u.removeprefix(folder) for u in backend.stored if u.startswith(folder))


def test_windows_that_are_published_together_share_a_record() -> None:
    backend = MemoryBackend()
    run = windowed_run(backend.storage(), daily(days(1, 2, 3, 4)))
    complete(run, *days(1))
    publish_days(run)
    assert records(backend) == [f"{run.ledger.run}-{days(1)[0]}.arrow"], "one has its own"
    assert TableLog(backend.storage(), OUTPUT).head()[0].version == 1
    complete(run)
    publish_days(run)
    [_, shared] = records(backend)
    assert shared.startswith("shared/")
    table_log = TableLog(backend.storage(), OUTPUT)
    manifest = table_log.manifest()
    assert {entry.record for entry in manifest.commits[1:]} == {shared.removesuffix(".arrow")}
    assert table_log.head()[0].version == HEAD_VERSION, "older releases do not find the record"
    assert table_log._read_records([manifest.number])[0].version == MANIFEST_VERSION
    check_settled(backend)


def test_a_shared_record_is_read_once() -> None:
    backend = MemoryBackend()
    published_days(backend, days(*range(1, 10)))
    counted = Faulty(backend, lambda n, name: None)
    table_log = TableLog(Storage({"s3": counted}, AT_ONCE), OUTPUT)
    manifest = table_log.manifest()
    before = len(counted.calls)
    assert table_log.snapshot(manifest).height == 18
    assert len(table_log.keys(manifest.commits)) == 18
    assert [table_log.load(entry).entry.window for entry in manifest.commits] == days(*range(1, 10))
    assert len(counted.calls) == before + 1


def died_after_freezing(*labels: str) -> MemoryBackend:
    """A driver has frozen the commits of some windows, and died before it claimed them."""
    backend = MemoryBackend()
    run = windowed_run(backend.storage(), daily(days(1, 2, 3), chunks=1))
    complete(run)
    for number in range(1, 1000):
        dying = Faulty(copied(backend), dies_at(number, "before"), KilledError)
        with pytest.raises(KilledError):
            publish_days(run.again(Storage({"s3": dying}, AT_ONCE)), *labels)
        dead = dying.inner
        assert isinstance(dead, MemoryBackend)
        if records(dead):
            return dead
    raise AssertionError("it freezes")


def test_a_record_that_no_claim_names_counts_for_nothing() -> None:
    """Another driver groups the windows otherwise, and has attempts of its own."""
    backend = died_after_freezing(*days(1, 2))
    run = windowed_run(backend.storage(), daily(days(1, 2, 3), chunks=1))
    run.complete(1)
    assert publish_days(run, *days(2, 3)) == 1
    assert publish_days(run) == 2
    check_settled(backend)
    assert rows(visible(backend)) == list(range(6))
    assert [window for window, _, _ in entries(backend)] == days(2, 3, 1)


def test_what_others_have_published_meanwhile_is_not_frozen_again() -> None:
    backend = MemoryBackend()
    run = windowed_run(backend.storage(), daily(days(1, 2), chunks=1))
    complete(run)
    counted = Faulty(copied(backend), lambda n, name: None)
    publish_days(run.again(Storage({"s3": counted}, AT_ONCE)))
    before_freezing = counted.calls.index("put_new")
    for number in range(before_freezing):
        shared = copied(backend)
        other = run.again(shared.storage())

        def script(n: int, name: str, number: int = number, other: Run = other) -> Fault:
            if n == number:
                publish_days(other)
            return None

        publish_days(run.again(Storage({"s3": Faulty(shared, script)}, AT_ONCE)))
        check_settled(shared)
        frozen = TableLog(shared.storage(), OUTPUT).readable(
            TableLog(shared.storage(), OUTPUT).stored_records()
        )
        assert len(records(shared)) <= 2
        assert all(name.startswith("shared/") for name in records(shared))
        assert len(frozen) == 2 * len(records(shared)), "no record is empty"


def test_commits_of_a_lost_pointer_are_given_up() -> None:
    """Its windows were claimed and visible when HEAD.json was restored from an old copy."""
    backend = MemoryBackend()
    published_days(backend, days(7), code="earlier")
    old, before = backend.get(HEAD).data, visible(backend)
    run = windowed_run(backend.storage(), daily(days(1, 2, 3), chunks=1))
    complete(run)
    counted = Faulty(copied(backend), lambda n, name: None)
    publish_days(run.again(Storage({"s3": counted}, AT_ONCE)))
    at = counted.calls.index("complete")
    dying = Faulty(backend, dies_at(at, "after"), KilledError)
    with pytest.raises(KilledError):
        publish_days(run.again(Storage({"s3": dying}, AT_ONCE)))
    assert len(visible(backend)) > len(before)
    backend.put(HEAD, old)
    table_log = TableLog(backend.storage(), OUTPUT)
    assert "claim lost" in [problem.situation for problem in diagnose(table_log).problems]
    assert repair(table_log)[-1].problems == ()
    [released] = [e for e in table_log.manifest().commits if e.mode == "release"]
    assert sorted(released.releases) == [f"{run.ledger.run}-{day}" for day in days(1, 2, 3)]
    assert visible(backend) == before
    with pytest.raises(UploadsVanishedError) as caught:
        publish_days(run)
    run.complete()
    publish_days(run, vanished=caught.value)
    check_settled(backend)
    assert len(visible(backend)) == len(before) + 3


def restored_after_claim(*, late: bool = False) -> tuple[MemoryBackend, Run, set[str]]:
    """Two windows were claimed and one became visible when HEAD.json was restored.

    Args:
        late: Whether another attempt is stored then, which the ledger prefers.

    Returns:
        Also what was visible before.
    """
    backend = MemoryBackend()
    published_days(backend, days(7), code="earlier")
    before, old = set(visible(backend)), backend.get(HEAD).data
    run = windowed_run(backend.storage(), daily(days(1, 2), chunks=1), "append")
    # The ledger prefers the smallest attempt.
    run.store(run.completion(0, attempt="f" * 32))
    killed_at("put_new", backend, run, days(1)[0])  # Its window has a record of its own.
    vanish(backend, "f" * 32)
    complete(run)
    other = run.completion(0, attempt="0" * 32)
    killed_at("complete", backend, run)
    assert set(visible(backend)) > before
    backend.put(HEAD, old)
    if late:
        run.store(other)
    return backend, run, before


def killed_at(name: str, backend: MemoryBackend, run: Run, *labels: str) -> None:
    """Publish windows, and die after the first request of a name."""
    counted = Faulty(copied(backend), lambda n, name: None)
    publish_days(run.again(Storage({"s3": counted}, AT_ONCE)), *labels)
    dying = Faulty(backend, dies_at(counted.calls.index(name), "after"), KilledError)
    with pytest.raises(KilledError):
        publish_days(run.again(Storage({"s3": dying}, AT_ONCE)), *labels)


def publish_at_last(run: Run) -> None:
    """Publish all windows; map again what has vanished."""
    vanished = None
    for _ in range(4):
        try:
            publish_days(run, vanished=vanished)
        except UploadsVanishedError as error:
            vanished = error
            run.complete()
        else:
            return
    raise AssertionError("uploads vanish again and again")


@pytest.mark.parametrize("prepares", [True, False])
def test_a_lost_claim_is_given_up_before_other_attempts_are_published(*, prepares: bool) -> None:
    """Once, the rows of both attempts were visible, and repair saw no problem."""
    backend, run, before = restored_after_claim(late=True)
    if prepares:
        prepare_output(TableLog(backend.storage(), OUTPUT), "append", run.ledger.run)
    publish_at_last(run)
    check_settled(backend)
    assert len(visible(backend)) == len(before) + 2
    assert repair(TableLog(backend.storage(), OUTPUT))[-1].problems == ()


def test_a_record_of_its_own_hides_no_shared_one() -> None:
    """Once, repair left a file of the shared record, and no other run could use the output."""
    backend, run, before = restored_after_claim()
    assert repair(TableLog(backend.storage(), OUTPUT))[-1].problems == ()
    assert set(visible(backend)) == before
    prepare_output(TableLog(backend.storage(), OUTPUT), "append", "f" * 16)
    publish_at_last(run)
    check_settled(backend)
    assert not {e.name for e in TableLog(backend.storage(), OUTPUT).manifest().commits} & {
        f"{run.ledger.run}-{day}" for day in days(1, 2)
    }, "a released name is not used again"


def test_uploads_that_are_known_to_be_gone_are_not_claimed() -> None:
    backend = MemoryBackend()
    run = windowed_run(backend.storage(), daily(days(1, 2), chunks=1))
    complete(run, days(1)[0])
    killed_at("put_new", backend, run, days(1)[0])
    vanish(backend, *run.ledger.read().completions["attempt"].to_list())
    complete(run, days(2)[0])
    with pytest.raises(UploadsVanishedError) as caught:
        publish_days(run)
    assert caught.value.commits == ()
    assert TableLog(backend.storage(), OUTPUT).head()[0].publishing is None
    run.complete(0)
    publish_days(run, vanished=caught.value)
    check_settled(backend)


def test_a_late_record_of_a_released_commit_voids_nothing_that_is_published() -> None:
    """Its publisher was asleep; meanwhile the commit was released, and published again."""
    backend, run, _ = restored_after_claim()
    repair(TableLog(backend.storage(), OUTPUT))
    publish_at_last(run)
    table_log = TableLog(backend.storage(), OUTPUT)
    own = [e for e in table_log.manifest().commits if e.run == run.ledger.run]
    names = (f"{run.ledger.run}-{day}" for day in days(1, 2))
    late = [
        replace(commit, entry=commit.entry.model_copy(update={"name": name}))
        for commit, name in zip(table_log.load_all(own), names, strict=True)
    ]
    table_log.write_commits(late)
    assert publish_days(run) is None
    check_settled(backend)


def test_an_entry_whose_record_lacks_it_is_named() -> None:
    backend = MemoryBackend()
    published_days(backend, days(1, 2))
    table_log = TableLog(backend.storage(), OUTPUT)
    entry = table_log.manifest().commits[0]
    with pytest.raises(DamagedStateError, match="lacks commit other") as caught:
        table_log.load(entry.model_copy(update={"name": "other"}))
    assert entry.record in caught.value.uri
    uri = f"{OUTPUT[:-1]}.chunkmap/commits/{entry.record}.arrow"
    backend.put(uri, b"CMPLAN01")
    with pytest.raises(StateError) as damaged:
        TableLog(backend.storage(), OUTPUT).load(entry)
    assert damaged.value.uri == uri
