"""What every backend promises: objects by URI, versions, conditional writes."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from partitioning import ObjectInfo
from pipeline.errors import (
    AlreadyExistsError,
    ObjectChangedError,
    ObjectMissingError,
    PreconditionFailedError,
)
from tests.storage.conftest import FOR_MANY_REQUESTS, Place, names, skip_on

ODD_KEYS = [
    "a[1].parquet", "a1.parquet", "star*.parquet", "what?.parquet", "hash#.parquet",
    "per%2Fcent.parquet", "per%25cent", "a b.parquet", "plus+.parquet", "ünïcode-日本.parquet",
    "a&b=c;d,e", "quo'te", 'quo"te', "~tilde", ".hidden", "date=2024-01-01 00%3A00%3A00/part",
    "back\\slash", "less<greater>", "colon:at@", "brace{}", "caret^", "pipe|",
]  # fmt: skip


def race(count: int, call: Callable[[int], None]) -> list[Exception | None]:
    """Call from several threads at once; return what each raised."""
    gate = Barrier(count)

    def one(number: int) -> Exception | None:
        gate.wait()
        try:
            call(number)
        except Exception as error:
            return error
        return None

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


# -- reading ----------------------------------------------------------------------------------


def test_what_is_put_is_there(place: Place) -> None:
    uri = place.uri("a/b.bin")
    place.storage.put(uri, b"one")
    first = place.storage.get(uri)
    assert first.data == b"one"
    assert place.storage.head(uri) == ObjectInfo(uri, first.etag, 3)
    assert list(place.storage.objects(place.prefix)) == [ObjectInfo(uri, first.etag, 3)]
    place.storage.put(uri, b"two!")
    second = place.storage.get(uri)
    assert second.data == b"two!"
    assert second.etag != first.etag
    assert place.storage.head(uri) == ObjectInfo(uri, second.etag, 4)


def test_a_listing_holds_what_begins_as_wanted(place: Place) -> None:
    names = ["a-1", "a-10", "a-2/x", "a-2/y", "a.b", "a", "b%20", "b c", "b/c/d", "z", "ä"]
    uris = [place.uri(f"p/{name}") for name in names]
    for uri in [*uris, place.uri("o"), place.uri("q/a-1")]:
        place.storage.put(uri, b"x")
    for part in ["", "a", "a-", "a-1", "a-10", "a-2/", "a-2/x", "b", "b/c", "c", "ä", "z/"]:
        prefix = place.uri("p/") + part
        found = sorted(info.uri for info in place.storage.objects(prefix))
        assert found == sorted(uri for uri in uris if uri.startswith(prefix))
    flat = [name for name in names if "/" not in name]
    for after in ["", *names, "0", "a-", "b/", "zz"]:
        found = sorted(info.uri for info in place.storage.after(place.uri("p/"), after))
        assert found == sorted(place.uri(f"p/{name}") for name in flat if name > after)


def test_an_etag_has_no_quotes(place: Place) -> None:
    uri = place.uri("a")
    place.storage.put(uri, b"x")
    assert '"' not in place.storage.head(uri).etag + place.storage.get(uri).etag


def test_what_is_not_there_is_missing_by_name(place: Place) -> None:
    place.storage.put(place.uri("there"), b"")
    uri = place.uri("absent")
    for call in (place.storage.head, place.storage.get):
        with pytest.raises(ObjectMissingError) as caught:
            call(uri)
        assert caught.value.uri == uri
    with pytest.raises(ObjectMissingError):
        place.storage.get_ranges(ObjectInfo(uri, "0" * 32, 9), [(0, 1)])
    assert place.storage.get_or_none(uri) is None


def test_zero_bytes_are_an_object(place: Place) -> None:
    uri = place.uri("empty")
    place.storage.put_new(uri, b"")
    assert place.storage.get(uri).data == b""
    assert place.storage.head(uri).size == 0


def test_a_prefix_is_a_prefix_of_uris(place: Place) -> None:
    for key in ("t/a", "t/b/c", "t2/a", "ta"):
        place.storage.put(place.uri(key), b"x")
    assert names(place, place.uri("t/")) == ["t/a", "t/b/c"]
    assert names(place, place.uri("t")) == ["t/a", "t/b/c", "t2/a", "ta"]
    assert names(place, place.uri("t/b")) == ["t/b/c"]
    assert names(place, place.uri("none/")) == []


@pytest.mark.parametrize("place", FOR_MANY_REQUESTS, indirect=True)
def test_a_listing_pages(place: Place) -> None:
    keys = [f"n/{number:04d}" for number in range(1100 if place.name != "moto" else 1010)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: place.backend.put(place.uri(key), b""), keys))
    assert names(place, place.uri("n/")) == keys


def test_odd_keys_are_themselves(place: Place) -> None:
    data = {key: key.encode() for key in ODD_KEYS}
    if place.name == "seaweedfs":
        del data["back\\slash"]  # it becomes back/slash
    for key, content in data.items():
        place.storage.put_new(place.uri(key), content)
    for key, content in data.items():
        uri = place.uri(key)
        blob = place.storage.get(uri)
        assert blob.data == content
        info = place.storage.head(uri)
        assert info == ObjectInfo(uri, blob.etag, len(content))
        assert bytes(place.storage.get_ranges(info, [(1, len(content))])[0]) == content[1:]
    assert names(place, place.prefix) == sorted(data)
    assert names(place, place.uri("a[1]")) == ["a[1].parquet"]
    for key in data:
        place.storage.put_if(place.uri(key), b"new", place.storage.head(place.uri(key)).etag)
        place.storage.copy(place.uri(key), place.uri("copied/" + key))
        place.storage.delete(place.uri(key))
    assert names(place, place.prefix) == sorted("copied/" + key for key in data)


@pytest.mark.parametrize("key", ["double//slash", "/leading", "dot/./dot"])
def test_keys_that_no_path_can_spell(place: Place, key: str) -> None:
    skip_on(place, "local", "a file system has no such names")
    skip_on(place, "seaweedfs", "`a//b` becomes `a/b`")
    if key == "dot/./dot" and place.server is not None:
        pytest.skip(f"{place.name}: HTTP libraries take the dot away")
    uri, data = place.uri(key), b"content"
    place.storage.put_new(uri, data)
    with pytest.raises(AlreadyExistsError):
        place.storage.put_new(uri, b"other")
    info = place.storage.head(uri)
    assert place.storage.get(uri).data == data
    assert bytes(place.storage.get_ranges(info, [(0, 3), (3, 7)])[1]) == b"tent"
    assert names(place, place.prefix) == [key]
    place.storage.put_if(uri, b"second", info.etag)
    with pytest.raises(ObjectChangedError):
        place.storage.get_ranges(info, [(0, 3)])
    place.storage.delete(uri)
    assert names(place, place.prefix) == []


def test_the_mark_of_a_folder_is_an_object_of_its_own(place: Place) -> None:
    skip_on(place, "local", "a folder is no file")
    skip_on(place, "seaweedfs", "a folder is no object")
    place.storage.put_new(place.uri("folder/"), b"mark")
    place.storage.put_new(place.uri("folder"), b"object")
    assert place.storage.get(place.uri("folder/")).data == b"mark"
    assert place.storage.get(place.uri("folder")).data == b"object"
    place.storage.delete(place.uri("folder/"))
    assert place.storage.head(place.uri("folder")).size == 6
    assert place.storage.get_or_none(place.uri("folder/")) is None


def test_ranges_come_in_the_order_asked(place: Place) -> None:
    uri, data = place.uri("r"), bytes(range(256)) * 40
    place.storage.put(uri, data)
    info = place.storage.head(uri)
    spans = [(5000, 5100), (0, 1), (10239, 10240), (0, 10240), (77, 78)]
    assert [bytes(part) for part in place.storage.get_ranges(info, spans)] == [
        data[start:stop] for start, stop in spans
    ]
    assert place.storage.get_ranges(info, []) == []


def test_a_changed_object_is_reported_with_both_etags(place: Place) -> None:
    uri = place.uri("c")
    place.storage.put(uri, b"version one")
    old = place.storage.head(uri)
    place.storage.put(uri, b"version two")
    new = place.storage.head(uri)
    with pytest.raises(ObjectChangedError) as caught:
        place.storage.get_ranges(old, [(0, 4), (4, 8)])
    assert (caught.value.uri, caught.value.planned) == (uri, old.etag)
    assert caught.value.found == new.etag
    assert old.etag in str(caught.value)
    assert new.etag in str(caught.value)
    assert bytes(place.storage.get_ranges(new, [(8, 11)])[0]) == b"two"


def test_a_deleted_object_is_missing_even_for_its_last_version(place: Place) -> None:
    uri = place.uri("d")
    place.storage.put(uri, b"0123456789")
    info = place.storage.head(uri)
    place.storage.delete(uri)
    with pytest.raises(ObjectMissingError):
        place.storage.get_ranges(info, [(0, 4), (4, 8)])


def test_a_cut_object_is_a_changed_object(place: Place) -> None:
    uri = place.uri("cut")
    place.storage.put(uri, b"0123456789")
    info = place.storage.head(uri)
    if place.name == "local":
        os.truncate(uri.removeprefix("file://"), 4)  # in place, as an editor might
    else:
        place.storage.put(uri, b"0123")
    with pytest.raises(ObjectChangedError):
        place.storage.get_ranges(info, [(6, 10)])


# -- writing ----------------------------------------------------------------------------------


def test_put_new_writes_once(place: Place) -> None:
    uri = place.uri("new")
    place.storage.put_new(uri, b"mine")
    with pytest.raises(AlreadyExistsError) as caught:
        place.storage.put_new(uri, b"theirs")
    assert caught.value.uri == uri
    place.storage.put_new(uri, b"mine")  # as after a lost reply
    assert place.storage.get(uri).data == b"mine"


def test_put_if_replaces_one_version(place: Place) -> None:
    uri = place.uri("if")
    place.storage.put_new(uri, b"one")
    first = place.storage.head(uri).etag
    place.storage.put_if(uri, b"two", first)
    assert place.storage.get(uri).data == b"two"
    with pytest.raises(PreconditionFailedError) as caught:
        place.storage.put_if(uri, b"three", first)
    assert caught.value.uri == uri
    place.storage.put_if(uri, b"two", first)  # as after a lost reply
    assert place.storage.get(uri).data == b"two"


def test_put_if_needs_an_object(place: Place) -> None:
    with pytest.raises(PreconditionFailedError):
        place.storage.put_if(place.uri("none"), b"x", "0" * 32)
    assert place.storage.get_or_none(place.uri("none")) is None


def test_one_of_many_creates(place: Place) -> None:
    skip_on(place, "moto", "looks and writes in two steps")
    for turn in range(3):
        uri = place.uri(f"race-{turn}")
        raised = race(5, lambda n, uri=uri: place.storage.put_new(uri, b"writer %d" % n))  # type: ignore[misc]
        winners = [n for n, error in enumerate(raised) if error is None]
        assert len(winners) == 1, raised
        assert all(isinstance(e, AlreadyExistsError) for e in raised if e is not None), raised
        assert place.storage.get(uri).data == b"writer %d" % winners[0]


def test_one_of_many_replaces(place: Place) -> None:
    skip_on(place, "moto", "looks and writes in two steps")
    for turn in range(3):
        uri = place.uri(f"race-{turn}")
        place.storage.put_new(uri, b"before")
        etag = place.storage.head(uri).etag
        raised = race(5, lambda n, uri=uri, etag=etag: place.storage.put_if(uri, b"w%d" % n, etag))  # type: ignore[misc]
        winners = [n for n, error in enumerate(raised) if error is None]
        assert len(winners) == 1, raised
        assert all(isinstance(e, PreconditionFailedError) for e in raised if e is not None), raised
        assert place.storage.get(uri).data == b"w%d" % winners[0]


def test_replacing_back_and_forth_never_fools_a_writer(place: Place) -> None:
    """A version that is replaced and replaced again is another one, however quickly."""
    uri = place.uri("aba")
    place.storage.put_new(uri, b"000")
    for turn in range(1, 30):
        seen = place.storage.head(uri)
        place.storage.put_if(uri, b"%03d" % (2 * turn), seen.etag)
        place.storage.put_if(uri, b"%03d" % (2 * turn + 1), place.storage.head(uri).etag)
        with pytest.raises(PreconditionFailedError):
            place.storage.put_if(uri, b"xxx", seen.etag)


def test_copy_and_delete(place: Place) -> None:
    place.storage.put(place.uri("s"), b"data")
    place.storage.put(place.uri("deep/t"), b"old")
    place.storage.copy(place.uri("s"), place.uri("deep/t"))
    assert place.storage.get(place.uri("deep/t")).data == b"data"
    place.storage.delete(place.uri("s"))
    place.storage.delete(place.uri("s"))
    assert names(place, place.prefix) == ["deep/t"]
    with pytest.raises(ObjectMissingError):
        place.storage.copy(place.uri("s"), place.uri("u"))


def test_a_listing_shows_nothing_half_written(place: Place) -> None:
    """While others create and replace, a listing holds whole objects of the right names only."""
    uris = [place.uri(f"w/{n}") for n in range(60)]
    place.storage.put(place.uri("w/pointer"), b"0")

    def write(number: int) -> None:
        if number:
            for uri in uris:
                place.storage.put_new(uri, b"whole")
                place.storage.put(place.uri("w/pointer"), uri.encode())
            return
        while True:
            found = {info.uri: info.size for info in place.storage.objects(place.uri("w/"))}
            assert found.pop(place.uri("w/pointer"))
            assert found.keys() <= set(uris)
            assert set(found.values()) <= {5}
            if len(found) == len(uris):
                return

    assert race(2, write) == [None, None]
