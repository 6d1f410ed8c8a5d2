"""Where the tests of the table run: in memory, and on a real S3 server."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

import pytest

from partitioning import Plan
from pipeline.runs.driver.publish import publish_run
from pipeline.runs.ledger.ledger import Ledger
from pipeline.storage import Storage
from pipeline.storage.s3_backend import COPIED_BYTES
from pipeline.table.log import TableLog
from tests.servers.fixtures import moto, seaweedfs  # noqa: F401
from tests.servers.launching import BUCKET, Server, backend_of
from tests.support.memory_storage import AT_ONCE, MemoryBackend
from tests.support.runs_by_hand import Run, job_of_run

PLACES = [
    "memory",
    *(pytest.param(n, marks=pytest.mark.integration) for n in ("copies", "uploads")),
]


@dataclass(frozen=True)
class Output:
    """An output of its own, and ways to fill it."""

    storage: Storage
    uri: str

    @property
    def table_log(self) -> TableLog:
        """As a new process sees it."""
        return TableLog(self.storage, self.uri)

    def run(self, plan: Plan, mode: str, code: str = "code") -> Run:
        """A run on top of what is current; nothing is mapped."""
        base = self.table_log.head()[0].current
        ledger = Ledger.create(
            self.storage, job_of_run(mode, plan, code, self.uri), plan, code, base
        )
        return Run(self.storage, ledger, plan)

    def publish(self, plan: Plan, mode: str, code: str = "code") -> Run:
        run = self.run(plan, mode, code)
        run.complete()
        publish_run(self.storage, run.ledger)
        return run

    def visible(self) -> set[str]:
        """What a plain glob sees."""
        return {info.uri.removeprefix(self.uri) for info in self.storage.objects(self.uri)}

    def named(self) -> set[str]:
        """What the current manifest names."""
        return set(self.table_log.keys(self.table_log.manifest().commits))

    def snapshot(self) -> dict[str, str]:
        """Everything below the output and its state: ETag by URI."""
        return {i.uri: i.etag for i in self.storage.objects(self.uri.rstrip("/"))}


@pytest.fixture(params=PLACES)
def output(request: pytest.FixtureRequest) -> Output:
    name = uuid.uuid4().hex
    if request.param == "memory":
        return Output(Storage({"s3": MemoryBackend()}, AT_ONCE), f"s3://out/{name}/")
    server: Server = request.getfixturevalue("seaweedfs")
    copied = COPIED_BYTES if request.param == "copies" else 0
    backend = backend_of(server.access, copied)
    return Output(Storage({"s3": backend}), f"s3://{BUCKET}/{name}/")
