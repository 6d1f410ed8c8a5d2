"""What can never be completed counts as vanished, and takes nothing else with it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import AccessDeniedError, ObjectMissingError, StorageError
from pipeline.storage import RetryPolicy, StagedObject, Storage
from pipeline.storage.local_backend import LocalBackend
from pipeline.storage.s3_backend import S3Backend
from tests.servers.launching import BUCKET, Server
from tests.storage.conftest import Place, names
from tests.storage.test_staging import BOTH_WAYS, stage

everywhere = pytest.mark.parametrize("place", BOTH_WAYS, indirect=True)
ETAG = "0" * 32


def is_upload(staged: StagedObject) -> bool:
    return "/" not in staged.upload


def among_others(place: Place, bad: StagedObject) -> None:
    """Completing says that this one is gone, and completes those before and after it."""
    good = [stage(place, f"good/{n}", b"good") for n in range(4)]
    items = [*good[:2], bad, *good[2:]]
    assert place.storage.complete(items) == [bad]
    assert place.storage.complete(items) == [bad]
    assert names(place, place.uri("good/")) == [f"good/{n}" for n in range(4)]


@everywhere
def test_an_upload_that_was_aborted(place: Place) -> None:
    staged = stage(place, "a", b"x")
    place.storage.abort([staged])
    among_others(place, staged)


@everywhere
def test_an_unknown_upload(place: Place) -> None:
    staged = stage(place, "a", b"x")
    place.storage.abort([staged])
    unknown = replace(staged, upload=staged.upload[:-8] + uuid.uuid4().hex[:8])
    assert place.storage.missing([unknown]) == [unknown]
    among_others(place, unknown)


@everywhere
def test_an_upload_that_was_completed_and_replaced(place: Place) -> None:
    staged = stage(place, "a", b"first")
    assert place.storage.complete([staged]) == []
    place.storage.put(staged.uri, b"other")
    assert place.storage.missing([staged]) == [staged]
    if place.name == "ministack" and is_upload(staged):
        pytest.skip("ministack: it says that it completed the upload, and does nothing")
    among_others(place, staged)
    assert place.storage.get(staged.uri).data == b"other"


@everywhere
def test_an_upload_that_was_completed_and_deleted(place: Place) -> None:
    staged = stage(place, "a", b"first")
    assert place.storage.complete([staged]) == []
    place.storage.delete(staged.uri)
    if place.name == "ministack" and is_upload(staged):
        pytest.skip("ministack: it says that it completed the upload, and does nothing")
    among_others(place, staged)
    assert place.storage.get_or_none(staged.uri) is None


@everywhere
@pytest.mark.parametrize(
    "parts",
    [(ETAG,), ("word",), ("",), (), (ETAG, ETAG), ("x" * 3000,)],
    ids=["wrong", "word", "empty", "none", "two", "long"],
)
def test_parts_that_were_never_sent(place: Place, parts: tuple[str, ...]) -> None:
    staged = stage(place, "a", b"x")
    if not is_upload(staged):
        pytest.skip("only uploads are completed from their parts")
    if place.name == "ministack" and not parts:
        pytest.skip("ministack: completes an upload without parts")
    if place.name == "memory":
        pytest.skip("memory: keeps no parts")
    bad = replace(staged, parts=parts)
    among_others(place, bad)
    assert place.storage.get_or_none(bad.uri) is None
    if place.name == "seaweedfs" and parts in ((), ("",)):
        return  # It drops the upload.
    # What was really sent is still there to be completed.
    assert place.storage.complete([staged]) == []


@everywhere
@pytest.mark.parametrize(
    "key",
    ["k" * 1100, "k" * 300, "a/../b", "a//b", "a\nb", "a\0b", "a\ud800b", ""],
    ids=["long", "segment", "dots", "slashes", "newline", "null", "surrogate", "nothing"],
)
def test_a_key_that_the_store_refuses(place: Place, key: str) -> None:
    """Whatever a store makes of such keys: it answers, and the others are completed."""
    other = stage(place, "other", b"x")
    bad = replace(other, uri=place.uri(key), attempt=uuid.uuid4().hex)
    if place.name in ("memory", "moto"):
        pytest.skip(f"{place.name}: completes an upload under whatever key is given")
    good = [stage(place, f"good/{n}", b"good") for n in range(4)]
    items = [*good[:2], bad, *good[2:]]
    gone = place.storage.complete(items)
    assert gone in ([], [bad])
    refuses = place.name in ("local", "seaweedfs") and key[:1] == "k"
    if refuses or (any(char in key for char in "\n\0\ud800") and place.name != "local"):
        assert gone == [bad]
    assert names(place, place.uri("good/")) == [f"good/{n}" for n in range(4)]
    if bad in gone:
        assert place.storage.missing([bad]) in ([], [bad])  # The source of a copy is still there.
    place.storage.abort([bad, other])


@pytest.mark.integration
def test_a_missing_right_is_named_and_is_no_vanished_upload(seaweedfs: Server) -> None:
    at = Storage({"s3": S3Backend(seaweedfs.access, copied_bytes=0)})
    reader = Storage({"s3": S3Backend(seaweedfs.reader, copied_bytes=0)}, RetryPolicy(attempts=1))
    prefix = f"s3://{BUCKET}/{uuid.uuid4().hex}/"
    items = [at.stage(prefix + str(n), memoryview(b"x"), f"attempt-{n}", prefix) for n in range(3)]
    items.insert(1, replace(items[0], upload="never-was", attempt="other"))
    nobody = S3Backend(replace(seaweedfs.access, secret="wrong"), copied_bytes=0)
    for call, action in (
        (reader.complete, "s3:PutObject"),
        (Storage({"s3": nobody}).missing, "s3:ListMultipartUploadParts"),
    ):
        with pytest.raises(AccessDeniedError) as caught:
            call(items)
        assert caught.value.action == action
        assert caught.value.uri in {item.uri for item in items}
    assert at.complete(items) == [items[1]]


ONE_OF_THREE = """
import sys
from pipeline.errors import AccessDeniedError
from pipeline.storage import StagedObject, Storage
from pipeline.storage.local_backend import LocalBackend
root = sys.argv[1]
storage = Storage({"file": LocalBackend()})
stage = lambda n: storage.stage(
    f"file://{root}/{n}", memoryview(b"x"), f"attempt{n}", f"file://{root}/area/"
)
open_, locked, other = stage("open/a"), stage("locked/b"), stage("open/c")
for call in (storage.complete, storage.missing):
    if call == storage.missing:
        import os, pathlib
        pathlib.Path(locked.upload).parent.chmod(0)
    try:
        print(call([open_, locked, other]))
    except AccessDeniedError as error:
        print("denied", error.uri)
"""


WITHOUT_OVERRIDE = ("-dac_override", "-dac_read_search")


def test_a_file_that_may_not_be_moved_is_no_vanished_one(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o555)
    command = [sys.executable, "-c", ONE_OF_THREE, str(tmp_path)]
    if os.geteuid() == 0:  # Root may do everything, unless that right is taken away.
        if shutil.which("setpriv") is None:
            pytest.skip("root may do everything")
        less = ",".join(WITHOUT_OVERRIDE)
        command = ["setpriv", f"--bounding-set={less}", f"--inh-caps={less}", *command]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == [f"denied file://{tmp_path}/locked/b"] * 2
    assert {path.name for path in (tmp_path / "open").iterdir()} == {"a", "c"}


def test_a_folder_where_a_file_should_appear(tmp_path: Path) -> None:
    storage = Storage({"file": LocalBackend()})
    (tmp_path / "taken").mkdir()
    (tmp_path / "file").write_bytes(b"")
    for name in ("taken", "file/below"):
        staged = storage.stage(f"file://{tmp_path}/ok", memoryview(b"x"), "a", f"{tmp_path}/s/")
        bad = replace(staged, uri=f"file://{tmp_path}/{name}")
        assert storage.complete([bad]) == [bad]
    with pytest.raises(StorageError):
        storage.get(f"file://{tmp_path}/file/below")
    with pytest.raises(ObjectMissingError):
        storage.get(f"file://{tmp_path}/ok")
