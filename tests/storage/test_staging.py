"""What every backend promises about outputs that are written and not yet visible."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pipeline.errors import ObjectMissingError
from pipeline.metrics import RequestTally, counting
from pipeline.storage import StagedObject, s3_copies, s3_uploads
from pipeline.storage.s3_backend import COPIED_BYTES
from pipeline.storage.s3_uploads import PART_BYTES
from tests.storage.conftest import PLACES, UPLOADS, Place, many, names

BOTH_WAYS = [
    *PLACES,
    *["external" + UPLOADS for place in PLACES if place == "external"],
    "moto" + UPLOADS,
    pytest.param("seaweedfs" + UPLOADS, marks=pytest.mark.integration),
    pytest.param("ministack" + UPLOADS, marks=[pytest.mark.integration, pytest.mark.long]),
]
pytestmark = pytest.mark.parametrize("place", BOTH_WAYS, indirect=True)


def stage(place: Place, key: str, data: bytes, attempt: str | None = None) -> StagedObject:
    attempt = attempt or uuid.uuid4().hex
    return place.storage.stage(place.uri(key), memoryview(data), attempt, place.area)


def test_what_is_staged_is_invisible_until_completed(place: Place) -> None:
    data = os.urandom(3000)
    staged = stage(place, "k=1/part.parquet", data)
    assert (staged.uri, staged.size) == (place.uri("k=1/part.parquet"), 3000)
    assert names(place, place.prefix) == []
    assert place.storage.missing([staged]) == []
    assert place.storage.complete([staged]) == []
    assert place.storage.get(staged.uri).data == data
    assert names(place, place.prefix) == ["k=1/part.parquet"]


def test_completing_twice_changes_nothing(place: Place) -> None:
    staged = [stage(place, f"{n}.parquet", b"data %d" % n) for n in range(3)]
    assert place.storage.complete(staged[:2]) == []
    before = place.storage.head(staged[0].uri)
    assert place.storage.missing(staged) == []
    assert place.storage.complete(staged) == []
    assert place.storage.complete(staged) == []
    assert place.storage.head(staged[0].uri) == before
    assert names(place, place.prefix) == ["0.parquet", "1.parquet", "2.parquet"]


def test_what_was_made_visible_once_never_comes_back(place: Place) -> None:
    """Publishers that slept must not bring back what others have since replaced and removed."""
    staged = stage(place, "a", b"x")
    place.storage.complete([staged])
    place.storage.delete(staged.uri)
    if place.name == "ministack" and not staged.upload.startswith("s3://"):
        pytest.skip("ministack: an upload can be completed again")
    assert place.storage.complete([staged]) == [staged]
    with pytest.raises(ObjectMissingError):
        place.storage.head(staged.uri)
    assert place.storage.staged_under(place.prefix, place.area) == []


def test_an_aborted_one_has_vanished(place: Place) -> None:
    kept, dropped = stage(place, "kept", b"x"), stage(place, "dropped", b"x")
    place.storage.abort([dropped])
    place.storage.abort([dropped])
    assert place.storage.missing([kept, dropped]) == [dropped]
    assert place.storage.complete([kept, dropped]) == [dropped]
    assert names(place, place.prefix) == ["kept"]


def test_aborting_after_completion_leaves_the_object(place: Place) -> None:
    staged = stage(place, "a", b"x")
    place.storage.complete([staged])
    place.storage.abort([staged])
    assert place.storage.get(staged.uri).data == b"x"


def test_another_object_of_the_same_name_and_size_is_not_ours(place: Place) -> None:
    staged = stage(place, "a", b"ours")
    place.storage.abort([staged])
    place.storage.put(staged.uri, b"thei")
    assert place.storage.missing([staged]) == [staged]
    assert place.storage.complete([staged]) == [staged]
    assert place.storage.get(staged.uri).data == b"thei"


def test_attempts_of_one_key_are_apart(place: Place) -> None:
    first, second = stage(place, "a", b"the first"), stage(place, "a", b"the second")
    assert place.storage.missing([first, second]) == []
    assert place.storage.complete([second]) == []
    place.storage.abort([first])
    assert place.storage.get(place.uri("a")).data == b"the second"
    assert place.storage.missing([first, second]) == [first]
    assert place.storage.complete([second]) == []


def test_all_that_is_staged_below_a_prefix_is_found(place: Place) -> None:
    staged = [stage(place, key, b"x") for key in ("t/a.parquet", "t/k=1/b.parquet", "u/c.parquet")]
    done = stage(place, "t/done", b"x")
    place.storage.complete([done])
    found = place.storage.staged_under(place.uri("t/"), place.area)
    assert {(upload.uri, upload.upload) for upload in found} == {
        (s.uri, s.upload) for s in staged[:2]
    }
    place.storage.abort(found)
    assert place.storage.staged_under(place.uri("t/"), place.area) == []
    assert place.storage.missing(staged) == staged[:2]


def test_large_outputs_are_staged_in_parts(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_uploads, "ONE_PART_BYTES", PART_BYTES)
    data = os.urandom(PART_BYTES + 12345)
    staged = stage(place, "large", data)
    if place.server is not None:
        assert len(staged.parts) == 2
    assert place.storage.complete([staged]) == []
    info = place.storage.head(staged.uri)
    assert info.size == len(data)
    edge = (PART_BYTES - 5, PART_BYTES + 5)
    assert bytes(place.storage.get_ranges(info, [edge])[0]) == data[slice(*edge)]
    place.storage.copy(staged.uri, place.uri("copy"))
    assert place.storage.get(place.uri("copy")).data == data


@pytest.mark.parametrize("digest", [hashlib.sha256, None], ids=["known", "unknown"])
def test_a_part_is_sent_with_a_digest(place: Place, digest: Callable[[bytes], Any] | None) -> None:
    data = os.urandom(COPIED_BYTES + 1)
    sha256 = digest(data).hexdigest() if digest else None
    uri = place.uri("digest")
    staged = place.storage.stage(
        uri, memoryview(data), uuid.uuid4().hex, place.uri("area/"), sha256
    )
    assert len(staged.parts) <= 1
    assert place.storage.complete([staged]) == []
    assert place.storage.get(uri).data == data


@pytest.mark.parametrize("size", [COPIED_BYTES, COPIED_BYTES + 1])
def test_outputs_of_any_size_are_staged(place: Place, size: int) -> None:
    data = os.urandom(size)
    staged = stage(place, "a", data)
    assert (staged.size, place.storage.missing([staged])) == (size, [])
    assert place.storage.complete([staged]) == []
    assert place.storage.get(staged.uri).data == data


def test_long_keys_can_be_staged(place: Place) -> None:
    key = "/".join("k" * 100 for _ in range(6))
    staged = stage(place, key, b"x")
    assert place.storage.complete([staged]) == []
    assert names(place, place.prefix) == [key]


def test_zero_bytes_can_be_staged(place: Place) -> None:
    staged = stage(place, "nothing", b"")
    assert place.storage.complete([staged]) == []
    assert place.storage.get(staged.uri).data == b""


@pytest.mark.parametrize("key", ["a[1]*?#.parquet", "per%2Fcent b+.parquet", "ü/日本.parquet"])
def test_odd_keys_can_be_staged(place: Place, key: str) -> None:
    staged = stage(place, key, b"x")
    [found] = place.storage.staged_under(place.uri(key), place.area)
    assert (found.uri, found.upload) == (staged.uri, staged.upload)
    assert place.storage.complete([staged]) == []
    assert names(place, place.prefix) == [key]


def test_many_are_completed_at_once(place: Place) -> None:
    with ThreadPoolExecutor(4) as pool:
        numbers = many(place, 300)
        staged = list(pool.map(lambda n: stage(place, f"{n:03d}", b"%d" % n), numbers))
    assert place.storage.missing(staged) == []
    assert place.storage.complete(staged) == []
    assert names(place, place.prefix) == [f"{n:03d}" for n in numbers]


def test_many_are_found_by_few_requests(place: Place) -> None:
    """By listings, in which others lie between them; lost ones are told from those of others."""
    keys = [f"t/ds={day:03d}/{day}.parquet" for day in many(place, 200)]
    with ThreadPoolExecutor(4) as pool:
        staged = list(pool.map(lambda key: stage(place, key, b"x"), keys))
    lost, rest = staged[::7], staged[len(staged) // 10 :]
    place.storage.abort(lost)
    tally = RequestTally()
    with counting(tally):
        assert place.storage.missing(rest) == [item for item in lost if item in rest]
    if place.server is not None:
        assert tally.counts().reads + tally.counts().writes < 80, (
            "two checks for each of 26 lost, and a listing"
        )


def test_a_listing_is_given_up_where_others_lie_between(place: Place) -> None:
    """Each is found all the same."""
    many = [stage(place, f"t/{number:04d}", b"x") for number in range(80)]
    some = many[:20] + many[-20:]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(s3_copies, "PAGE_KEYS", 30)
        patched.setattr(s3_uploads, "PAGE", 30)
        assert place.storage.missing(some) == []


def test_all_of_many_are_dropped(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_copies, "DELETED_KEYS", 3)
    staged = [stage(place, f"{n}", b"x") for n in range(8)]
    kept = stage(place, "kept", b"x")
    place.storage.abort(staged)
    assert place.storage.missing([*staged, kept]) == staged
    assert [item.uri for item in place.storage.staged_under(place.prefix, place.area)] == [kept.uri]
