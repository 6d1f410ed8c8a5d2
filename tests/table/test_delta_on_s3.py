"""The commit to a Delta log on S3: replies are lost, requests fail, several processes race."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

import polars as pl
import pytest
from deltalake import DeltaTable

from partitioning import Plan
from pipeline.config.job import Table
from pipeline.errors import AccessDeniedError, UsageError
from pipeline.runs.driver.publish import publish_run
from pipeline.runs.ledger.ledger import Ledger
from pipeline.storage import Storage
from pipeline.table.delta.log import DeltaLog
from pipeline.table.log import TableLog
from pipeline.table.publish import prepare_output
from tests.faults.conftest import mostly_long
from tests.faults.proxy import Proxy, running_proxy
from tests.faults.rules import Act, Rule
from tests.servers.fixtures import moto, seaweedfs  # noqa: F401
from tests.servers.launching import BUCKET, Server, backend_of
from tests.support.runs_by_hand import Run, job_of_run, plan_of

PLAN, OTHER = plan_of(3, folders=(0, 1)), plan_of(4, folders=(1, 2))


@dataclass(frozen=True)
class S3Output:
    """An output of its own behind a proxy."""

    server: Server
    proxy: Proxy
    uri: str

    def storage(self, client: str = "driver") -> Storage:
        access = replace(self.server.access, endpoint=self.proxy.endpoint(client))
        return Storage({"s3": backend_of(access)})

    def run(self, plan: Plan, mode: str, code: str) -> Run:
        storage, job = self.storage(), job_of_run(mode, plan, code, self.uri)
        table = job.output.model_copy(update={"table": Table(format="delta")})
        base = TableLog(storage, self.uri).head()[0].current
        job = job.model_copy(update={"output": table})
        ledger = Ledger.create(storage, job, plan, code, base)
        run = Run(storage, ledger, plan)
        run.complete()
        return run

    def check(self, manifest: int) -> None:
        """Each manifest was committed once, and the table has the files of the last."""
        storage = Storage({"s3": backend_of(self.server.access)})
        options = storage.client_options(self.uri)
        table = DeltaTable(self.uri, storage_options=options)
        numbers = [int(commit["chunkmap.manifest"]) for commit in table.history()]
        assert numbers == list(range(manifest, 0, -1))
        table_log = TableLog(storage, self.uri)
        named = table_log.keys(table_log.manifest().commits)
        assert {uri.removeprefix(self.uri) for uri in table.file_uris()} == set(named)
        rows = pl.scan_delta(self.uri, storage_options=options).collect().height
        assert rows == table_log.snapshot(table_log.manifest())["rows"].sum()


@pytest.fixture(
    params=[
        pytest.param("moto", marks=pytest.mark.long),
        pytest.param("seaweedfs", marks=pytest.mark.integration),
    ],
    scope="module",
)
def served(request: pytest.FixtureRequest) -> Iterator[tuple[Server, Proxy]]:
    server: Server = request.getfixturevalue(request.param)
    with running_proxy(urlsplit(server.endpoint).port or 0) as proxy:
        yield server, proxy


@pytest.fixture
def output(served: tuple[Server, Proxy]) -> S3Output:
    served[1].reset()
    return S3Output(*served, f"s3://{BUCKET}/{uuid.uuid4().hex}/")


ACTS: tuple[Act, ...] = ("lose", "503", "reset", "late")


@pytest.mark.sampled(3)
@pytest.mark.parametrize("act", mostly_long(ACTS, {"lose"}))
def test_a_request_of_the_commit_fails_or_loses_its_reply(output: S3Output, act: Act) -> None:
    rules = [
        output.proxy.add(Rule(act, "PutObject", rf"_delta_log/0+{version}\.json", seconds=0.3))
        for version in (0, 1)
    ]
    for code, (plan, mode) in enumerate([(PLAN, "append"), (OTHER, "overwrite-partitions")]):
        run = output.run(plan, mode, str(code))
        publish_run(run.storage, run.ledger)
    assert all(rule.happened.is_set() for rule in rules)
    output.proxy.await_late()
    output.check(2)


def test_processes_that_race_commit_once(output: S3Output) -> None:
    runs = [output.run(plan, "append", str(code)) for code, plan in enumerate([PLAN, OTHER] * 2)]

    def publish(run: Run) -> None:
        publish_run(run.storage, run.again(output.storage(run.ledger.run)).ledger)

    with ThreadPoolExecutor(len(runs)) as pool:
        list(pool.map(publish, runs))
    prepare_output(TableLog(output.storage(), output.uri), "append", "0" * 16)
    storage = Storage({"s3": backend_of(output.server.access)})
    table = DeltaTable(output.uri, storage_options=storage.client_options(output.uri))
    numbers = [int(commit["chunkmap.manifest"]) for commit in table.history()]
    assert sorted(set(numbers)) == sorted(numbers)
    assert table.transaction_version("chunkmap") == 4
    assert table.count() == 2 * (PLAN.rows + OTHER.rows)


def test_errors_name_the_log_and_no_secret(output: S3Output) -> None:
    if output.server.name == "moto":
        pytest.skip("moto checks no signatures")
    secret = "not-the-secret-of-this-server"
    access = replace(output.server.access, secret=secret)
    with pytest.raises(AccessDeniedError, match="_delta_log/") as caught:
        DeltaLog(Storage({"s3": backend_of(access)}), output.uri).read()
    assert secret not in str(caught.value)


def test_a_token_of_other_credentials_is_not_mixed_in(
    output: S3Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of somebody else")
    with pytest.raises(UsageError, match="AWS_SESSION_TOKEN"):
        DeltaLog(output.storage(), output.uri).read()
