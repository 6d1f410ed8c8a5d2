"""What every backend promises about outputs that start with the bytes of another object."""

from __future__ import annotations

import os
import uuid

import pytest

from partitioning import ObjectInfo
from pipeline.errors import InvalidUriError, ObjectChangedError, ObjectMissingError
from pipeline.storage import StagedObject, Storage, s3_uploads
from pipeline.storage.backend import ObjectStart
from pipeline.storage.local_backend import LocalBackend
from pipeline.storage.s3_uploads import MIN_COPY_BYTES, copied_spans
from tests.storage.conftest import PLACES, Place, names

at_all_places = pytest.mark.parametrize("place", PLACES, indirect=True)
SIZE = 2 * MIN_COPY_BYTES + 4321


def extend(place: Place, info: ObjectInfo, size: int, tail: bytes) -> StagedObject:
    start, attempt = ObjectStart(info, size), uuid.uuid4().hex
    return place.storage.extend(start, memoryview(tail), place.uri("out"), attempt, place.area)


@at_all_places
def test_an_output_starts_with_another_object(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_uploads, "COPY_PART_BYTES", MIN_COPY_BYTES)
    data = os.urandom(SIZE)
    place.storage.put(place.uri("in"), data)
    staged = extend(place, place.storage.head(place.uri("in")), SIZE - 99, b"tail")
    assert staged.size == SIZE - 95
    assert names(place, place.prefix) == ["in"]
    assert place.storage.missing([staged]) == []
    place.storage.delete(place.uri("in"))
    assert place.storage.complete([staged]) == []
    assert place.storage.get(staged.uri).data == data[: SIZE - 99] + b"tail"


@at_all_places
def test_another_version_is_refused(place: Place) -> None:
    place.storage.put(place.uri("in"), os.urandom(SIZE))
    before = place.storage.head(place.uri("in"))
    place.storage.put(place.uri("in"), os.urandom(SIZE))
    with pytest.raises(ObjectChangedError, match="in"):
        extend(place, before, SIZE, b"tail")
    assert place.storage.staged_under(place.prefix, place.area) == []


@at_all_places
def test_a_missing_object_is_named(place: Place) -> None:
    info = ObjectInfo(place.uri("in"), "0" * 32, SIZE)
    with pytest.raises((ObjectMissingError, ObjectChangedError), match="in"):
        extend(place, info, SIZE, b"tail")
    assert place.storage.staged_under(place.prefix, place.area) == []


def test_only_services_that_have_both_can_copy() -> None:
    storage = Storage({"file": LocalBackend(), "s3": lambda bucket: LocalBackend()})
    assert not storage.can_extend("s3://a/in", "file:///out", SIZE)
    info = ObjectInfo("s3://a/in", "0" * 32, SIZE)
    with pytest.raises(InvalidUriError, match="different services"):
        storage.extend(ObjectStart(info, SIZE), memoryview(b""), "file:///out", "0" * 32, "/tmp/")


@pytest.mark.parametrize(
    "size", [MIN_COPY_BYTES, 64 << 20, (200 << 20) + 7, s3_uploads.MAX_COPY_BYTES]
)
def test_parts_are_as_s3_takes_them(size: int) -> None:
    spans = copied_spans(size)
    assert (spans[0][0], spans[-1][1]) == (0, size)
    assert [end for _, end in spans[:-1]] == [start for start, _ in spans[1:]]
    assert all(MIN_COPY_BYTES <= end - start <= 5 << 30 for start, end in spans)
    assert len(spans) < 10_000
