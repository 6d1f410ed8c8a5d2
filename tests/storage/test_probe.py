"""A service that ignores conditions on writes is refused, unless there is a single writer."""

from __future__ import annotations

import io
import json
import uuid
from collections.abc import Sequence

import polars as pl
import pytest

from pipeline.config.job import Job
from pipeline.config.settings import Settings
from pipeline.errors import AlreadyExistsError, PreconditionFailedError, UsageError
from pipeline.flows.doctor import _conditions
from pipeline.runs.backfill.plan import WindowSelection, create, draft
from pipeline.runs.backfill.records import Options
from pipeline.runs.driver.plan import ResumeOptions, plan_run
from pipeline.runs.driver.run import run_serially
from pipeline.storage import (
    Storage,
    find_condition_problem,
    join,
    open_storage,
    require_conditional_writes,
)
from pipeline.storage.storage import S3Services
from pipeline.table.log import TableLog
from tests.servers.forgetful import CONDITIONS, forgetful
from tests.servers.launching import BUCKET, Server

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("own_folder")]


def settings_of(server: Server, **s3: object) -> Settings:
    said = {**server.settings().model_dump(), **s3}
    transforms = {"allow": ["tests.storage.test_probe"]}
    return Settings.model_validate({"s3": said, "transforms": transforms})


def same(frame: pl.LazyFrame, note: str = "") -> pl.LazyFrame:
    """A transform."""
    return frame


def job_in(prefix: str, storage: Storage, **more: object) -> Job:
    for day in (1, 2):
        buffer = io.BytesIO()
        pl.DataFrame({"id": [day]}).write_parquet(buffer)
        storage.put(join(prefix, "in", f"ds=2024-01-0{day}", "a.parquet"), buffer.getvalue())
    output = {"uri": join(prefix, "out/"), "mode": "append"}
    said = {"name": "probe", "input": {"uri": join(prefix, "in/")}, "output": output}
    function = "tests.storage.test_probe:same"
    return Job.model_validate({**said, "transform": function, **more})


@pytest.fixture
def prefix() -> str:
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.mark.parametrize(
    ("ignored", "problem"),
    [
        (CONDITIONS, "ignores If-None-Match"),
        (("if-none-match",), "ignores If-None-Match"),
        (("if-match",), "ignores If-Match"),
    ],
)
def test_a_service_that_ignores_conditions_is_refused(
    ignored: Sequence[str], problem: str, prefix: str, seaweedfs: Server
) -> None:
    with forgetful(seaweedfs, ignored) as (server, _):
        settings = settings_of(server)
        storage = open_storage(settings)
        job = job_in(prefix, storage, window={"column": "ds"})
        planned = draft(job, settings, storage, WindowSelection(), Options())
        for begin in (
            lambda: run_serially(job, settings, storage, ResumeOptions()),
            lambda: plan_run(job, settings, storage, ResumeOptions()),
            lambda: create(storage, planned),
        ):
            with pytest.raises(UsageError) as caught:
                begin()
            assert f"{server.endpoint} {problem}" in str(caught.value)
            assert job.output.uri in str(caught.value)
            assert "s3.conditional_writes" in (caught.value.hint or "")
        found = [info.uri for info in storage.objects(prefix) if "/in/" not in info.uri]
        assert found == []
        assert problem in _conditions(storage, prefix + "/doctor/", "it").said


def test_a_single_writer_may_go_on(
    prefix: str,
    seaweedfs: Server,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    with forgetful(seaweedfs) as (server, _):
        settings = settings_of(server, conditional_writes="single-writer")
        monkeypatch.setenv("CHUNKMAP_TRANSFORMS__ALLOW", '["tests.storage.test_probe"]')
        for name, value in settings.s3.environment().items():
            monkeypatch.setenv(name, value)
        storage = open_storage(settings)
        job = job_in(prefix, storage)
        run_serially(job, settings, storage, ResumeOptions())
        other = job.model_copy(update={"name": "other", "params": {"note": "again"}})
        run_serially(other, settings, storage, ResumeOptions())
        table_log = TableLog(storage, job.output.uri)
        assert table_log.manifest().number == 2
        named = {table_log.output + key for key in table_log.keys(table_log.manifest().commits)}
        assert named == {info.uri for info in storage.objects(table_log.output)}
        assert len(named) == 4
        assert _conditions(storage, prefix + "/doctor/", "it").level == "warning"


def test_a_single_writer_still_creates_once(prefix: str, seaweedfs: Server) -> None:
    with forgetful(seaweedfs) as (server, _):
        storage = open_storage(settings_of(server, conditional_writes="single-writer"))
        storage.put_new(join(prefix, "a"), b"one")
        with pytest.raises(AlreadyExistsError):
            storage.put_new(join(prefix, "a"), b"two")
        etag = storage.head(join(prefix, "a")).etag
        storage.put_if(join(prefix, "a"), b"three", etag)
        with pytest.raises(PreconditionFailedError):
            storage.put_if(join(prefix, "a"), b"four", etag)
        with pytest.raises(PreconditionFailedError):
            storage.put_if(join(prefix, "none"), b"five", etag)
        assert storage.get(join(prefix, "a")).data == b"three"


def test_a_service_is_tried_once_per_bucket_and_output(prefix: str, seaweedfs: Server) -> None:
    with forgetful(seaweedfs, ()) as (server, asked):

        def requests(output: str, settings: Settings) -> int:
            asked.clear()
            require_conditional_writes(Storage({"s3": S3Services(settings.s3)}), output)
            return len(asked)

        through, output = settings_of(server), join(prefix, "out/")
        assert requests(output, through) > 5
        record = join(prefix, "out.chunkmap", "probe.json")
        storage = open_storage(through)
        assert [info.uri for info in storage.objects(prefix)] == [record]
        assert requests(output, through) == 1  # Another process reads what was stored.
        require_conditional_writes(storage, output)
        asked.clear()
        # In the same process the whole bucket is known.
        require_conditional_writes(storage, output)
        require_conditional_writes(storage, join(prefix, "other/"))
        assert asked == []
        # Another way to the same store, such as a proxy, is another service.
        assert requests(output, settings_of(seaweedfs)) == 0  # Not through the proxy.
        assert len(json.loads(storage.get(record).data)["passed"]) == 2
        storage.put(record, b"[not JSON")
        assert requests(output, through) > 5


@pytest.mark.parametrize(
    "name", ["seaweedfs", pytest.param("ministack", marks=pytest.mark.long), "moto"]
)
def test_the_servers_of_our_tests_honour_conditions(
    name: str, prefix: str, request: pytest.FixtureRequest
) -> None:
    server: Server = request.getfixturevalue(name)
    settings = settings_of(server)
    storage = open_storage(settings)
    assert find_condition_problem(storage, prefix) is None
    assert _conditions(storage, prefix, "it").level == "ok"
    assert storage.objects(prefix) == []
