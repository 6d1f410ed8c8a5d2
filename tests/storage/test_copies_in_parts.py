"""Copies of large objects: of one version, and nothing is left behind when they fail."""

from __future__ import annotations

import os
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from pipeline.errors import ObjectChangedError, StorageError
from pipeline.storage import RetryPolicy, Storage
from pipeline.storage.s3_backend import S3Backend
from tests.servers.launching import BUCKET, Server

pytestmark = pytest.mark.integration
COPY_BYTES = 25 << 20
"""Larger objects are copied in parts here, each of the least size that S3 takes."""
SIZE = COPY_BYTES + 1000
OTHER = b"other" * (SIZE // 5)


class Interrupted(S3Backend):
    """Something happens before the third part is copied."""

    def __init__(self, server: Server, act: Callable[[], Awaitable[object]] | None = None) -> None:
        super().__init__(server.access, RetryPolicy(attempts=1))
        self.copy_bytes = COPY_BYTES
        self.asked: list[str] = []
        self._act = act

    async def request(self, action: str, uri: str, **arguments: Any) -> Any:
        self.asked.append(action)
        if self._act is not None and self.asked.count("upload_part_copy") == 3:
            act, self._act = self._act, None
            await act()
        return await super().request(action, uri, **arguments)


@pytest.fixture
def folder(seaweedfs: Server) -> str:
    return f"s3://{BUCKET}/{uuid.uuid4().hex}/"


def copy(backend: Interrupted, folder: str) -> None:
    Storage({"s3": backend}, RetryPolicy(attempts=1)).copy(folder + "large", folder + "copy")


def test_a_large_object_is_copied_in_parts(folder: str, seaweedfs: Server) -> None:
    backend, data = Interrupted(seaweedfs), os.urandom(SIZE)
    backend.put(folder + "large", data)
    copy(backend, folder)
    assert backend.asked.count("upload_part_copy") == 6
    assert backend.get(folder + "copy").data == data


def test_a_copy_that_fails_is_aborted(folder: str, seaweedfs: Server) -> None:
    async def fail() -> None:
        raise StorageError("the third part cannot be copied")

    backend = Interrupted(seaweedfs, fail)
    backend.put(folder + "large", os.urandom(SIZE))
    with pytest.raises(StorageError, match="third part"):
        copy(backend, folder)
    assert list(backend.staged_under(folder, folder)) == []
    assert [info.uri for info in backend.objects(folder)] == [folder + "large"]


def test_a_source_that_is_replaced_is_not_mixed(folder: str, seaweedfs: Server) -> None:
    client = seaweedfs.client()
    key = folder.removeprefix(f"s3://{BUCKET}/") + "large"

    async def replace() -> None:
        client.put_object(Bucket=BUCKET, Key=key, Body=OTHER)

    backend = Interrupted(seaweedfs, replace)
    backend.put(folder + "large", os.urandom(SIZE))
    with pytest.raises(ObjectChangedError) as caught:
        copy(backend, folder)
    assert caught.value.uri == folder + "large"
    assert list(backend.staged_under(folder, folder)) == []
    assert [info.uri for info in backend.objects(folder)] == [folder + "large"]
    client.close()


def test_a_small_copy_is_of_the_version_that_was_seen(folder: str, seaweedfs: Server) -> None:
    class Replacing(S3Backend):
        def head(self, uri: str) -> Any:
            info = super().head(uri)
            self.put(uri, b"replaced")
            return info

    backend = Replacing(seaweedfs.access, RetryPolicy(attempts=1))
    backend.put(folder + "small", b"first")
    with pytest.raises(ObjectChangedError):
        backend.copy(folder + "small", folder + "copy")
    assert not list(backend.objects(folder + "copy"))
