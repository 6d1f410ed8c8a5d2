"""The places that the storage contract is held against."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.storage import Backend, RetryPolicy, Storage
from pipeline.storage.local_backend import LocalBackend
from pipeline.storage.s3_backend import COPIED_BYTES, S3Backend
from tests.servers.fixtures import external, ministack, moto, seaweedfs  # noqa: F401
from tests.servers.launching import Server
from tests.support.memory_storage import MemoryBackend

QUICK = RetryPolicy(attempts=3, seconds=30.0, wait_initial=0.01, wait_max=0.05)
PLACES: list[Any] = [
    "memory",
    "local",
    "moto",
    pytest.param("seaweedfs", marks=pytest.mark.integration),
    pytest.param("ministack", marks=[pytest.mark.integration, pytest.mark.long]),
]
if "CONTRACT_S3" in os.environ:
    # Also on a service that runs already: CONTRACT_S3=http://… AWS_ACCESS_KEY_ID=… pytest
    PLACES.append("external")
FOR_MANY_REQUESTS = [pytest.param(p, marks=pytest.mark.long) if p == "moto" else p for p in PLACES]
"""The same for tests of a thousand requests, of which moto takes a hundred per second."""
UPLOADS = "-uploads"
"""After a server's name: all outputs are staged as multipart uploads, small ones too."""


@dataclass(frozen=True)
class Place:
    """A prefix of its own on one kind of storage."""

    name: str
    backend: Backend
    storage: Storage
    prefix: str
    server: Server | None = None

    @property
    def area(self) -> str:
        return self.prefix.rstrip("/") + ".staged/"

    def uri(self, key: str) -> str:
        return self.prefix + key


@pytest.fixture(scope="session")
def backends() -> dict[str, Backend]:
    """Backends by place, made once."""
    return {}


@pytest.fixture(scope="session")
def moto_client(moto: Server) -> Iterator[Any]:  # noqa: F811
    """A client that deletes many objects at once."""
    client = moto.client()
    yield client
    client.close()


@pytest.fixture(params=PLACES)
def place(
    request: pytest.FixtureRequest, backends: dict[str, Backend], tmp_path: Path
) -> Iterator[Place]:
    param: str = request.param
    name = param.removesuffix(UPLOADS)
    if name in ("memory", "local"):
        backend: Backend = MemoryBackend() if name == "memory" else LocalBackend()
        scheme = "s3" if name == "memory" else "file"
        prefix = f"file://{tmp_path}/data/" if name == "local" else "s3://memory/data/"
        yield Place(name, backend, Storage({scheme: backend}, QUICK), prefix)
        return
    server: Server = request.getfixturevalue(name)
    copied = 0 if param.endswith(UPLOADS) else COPIED_BYTES
    backend = backends.setdefault(param, S3Backend(server.access, copied_bytes=copied))
    prefix = f"s3://{server.bucket}/{uuid.uuid4().hex}/"
    place = Place(name, backend, Storage({"s3": backend}, QUICK), prefix, server)
    client = request.getfixturevalue("moto_client") if name == "moto" else None
    yield place
    if client is not None:  # Moto keeps everything in memory.
        root = f"s3://{server.bucket}/"
        keys = [info.uri.removeprefix(root) for info in place.storage.objects(prefix)]
        for start in range(0, len(keys), 1000):
            some = [{"Key": key} for key in keys[start : start + 1000]]
            client.delete_objects(Bucket=server.bucket, Delete={"Objects": some, "Quiet": True})


def many(place: Place, count: int) -> range:
    """Numbers of that many objects; a tenth on moto, a third on a server, unless LONG is set."""
    if place.server is None or "LONG" in os.environ:
        return range(count)
    return range(count // (10 if place.name == "moto" else 3))


def skip_on(place: Place, name: str, reason: str) -> None:
    """Leave out what one server is known to do wrong."""
    if place.name == name:
        pytest.skip(f"{name}: {reason}")


def names(place: Place, prefix: str) -> list[str]:
    found = [info.uri.removeprefix(place.prefix) for info in place.storage.objects(prefix)]
    assert len(found) == len(set(found))
    return sorted(found)
