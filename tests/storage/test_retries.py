"""What may pass is tried again, and a write whose reply was lost is not done twice."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pipeline.errors import (
    AlreadyExistsError,
    ObjectMissingError,
    PreconditionFailedError,
    StorageError,
    TransientStorageError,
)
from pipeline.storage import Storage
from tests.support.faulty_storage import Fault, Faulty, KilledError, at, each
from tests.support.memory_storage import AT_ONCE, MemoryBackend

URI = "s3://b/key"
AREA = "s3://b.staged/"


def faulty(inner: MemoryBackend, name: str, times: int, fault: Fault) -> tuple[Storage, Faulty]:
    backend = Faulty(inner, each(name, times, fault))
    return Storage({"s3": backend}, AT_ONCE), backend


@pytest.mark.parametrize("fault", ["before", "after"])
@pytest.mark.parametrize("times", [1, AT_ONCE.attempts - 1])
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("objects", lambda s: s.objects("s3://b/")),
        ("head", lambda s: s.head(URI)),
        ("get", lambda s: s.get(URI)),
        ("get_ranges", lambda s: s.get_ranges(s.head(URI), [(0, 1)])),
        ("put", lambda s: s.put(URI, b"new")),
        ("put_new", lambda s: s.put_new("s3://b/other", b"new")),
        ("put_if", lambda s: s.put_if(URI, b"new", s.head(URI).etag)),
        ("copy", lambda s: s.copy(URI, "s3://b/copy")),
        ("delete", lambda s: s.delete(URI)),
        ("stage", lambda s: s.stage(URI, memoryview(b"x"), "a", AREA)),
        ("staged_under", lambda s: s.staged_under("s3://b/", AREA)),
    ],
)
def test_an_operation_outlives_broken_connections(
    name: str, call: Callable[[Storage], object], times: int, fault: Fault
) -> None:
    alone, broken = MemoryBackend(), MemoryBackend()
    for inner in (alone, broken):
        inner.put(URI, b"there")
    expected = call(alone.storage())
    storage, backend = faulty(broken, name, times, fault)
    found = call(storage)
    # A conditional write whose reply was lost is found done when it is tried again.
    found_done = fault == "after" and name in ("put_new", "put_if")
    assert backend.calls.count(name) == (2 if found_done else times + 1)
    assert broken.stored == alone.stored
    if name != "stage":  # a staging tried again leaves an orphan, and has an id of its own
        assert found == expected


@pytest.mark.parametrize("fault", ["before", "after"])
@pytest.mark.parametrize("name", ["missing", "complete", "abort"])
def test_staged_outputs_outlive_broken_connections(name: str, fault: Fault) -> None:
    inner = MemoryBackend()
    staged = inner.stage(URI, memoryview(b"x"), "a", AREA)
    storage, backend = faulty(inner, name, 2, fault)
    assert not getattr(storage, name)([staged])
    assert backend.calls == [name] * 3
    assert (URI in inner.stored) == (name == "complete")
    assert bool(inner.uploads) == (name == "missing")


def test_patience_ends() -> None:
    storage, backend = faulty(MemoryBackend(), "head", 99, "before")
    with pytest.raises(TransientStorageError):
        storage.head(URI)
    assert len(backend.calls) == AT_ONCE.attempts


@pytest.mark.parametrize("error", [StorageError("no"), ObjectMissingError(URI)])
def test_what_cannot_pass_is_not_tried_again(error: StorageError) -> None:
    backend = Faulty(MemoryBackend(), at(0, "before"), lambda: error)
    with pytest.raises(StorageError) as caught:
        Storage({"s3": backend}, AT_ONCE).head(URI)
    assert caught.value is error
    assert backend.calls == ["head"]


def test_a_killed_process_does_not_go_on() -> None:
    backend = Faulty(MemoryBackend(), at(0, "after"), KilledError)
    with pytest.raises(KilledError):
        Storage({"s3": backend}, AT_ONCE).put_new(URI, b"x")
    assert backend.calls == ["put_new"]


def test_a_lost_reply_does_not_hide_another_writer() -> None:
    inner = MemoryBackend()
    inner.put(URI, b"theirs")
    storage, _ = faulty(inner, "put_new", 1, "before")
    with pytest.raises(AlreadyExistsError):
        storage.put_new(URI, b"mine")
    etag = inner.head(URI).etag
    inner.put(URI, b"theirs, too")
    storage, _ = faulty(inner, "put_if", 1, "before")
    with pytest.raises(PreconditionFailedError):
        storage.put_if(URI, b"mine", etag)
    assert inner.get(URI).data == b"theirs, too"


def test_a_race_without_a_winner_is_retried() -> None:
    """S3 answers 409 to writers that meet, also when the other one gives up then."""
    inner = MemoryBackend()
    script = each("put_new", 1, "before")
    storage = Storage({"s3": Faulty(inner, script, lambda: AlreadyExistsError(URI))}, AT_ONCE)
    storage.put_new(URI, b"first")
    script = each("put_if", 2, "before")
    refusing = Faulty(inner, script, lambda: PreconditionFailedError(URI))
    Storage({"s3": refusing}, AT_ONCE).put_if(URI, b"second", inner.head(URI).etag)
    assert inner.get(URI).data == b"second"


def test_a_pointer_that_is_gone_is_a_lost_race() -> None:
    inner = MemoryBackend()
    with pytest.raises(PreconditionFailedError):
        inner.storage().put_if(URI, b"x", "etag")
    assert inner.stored == {}
