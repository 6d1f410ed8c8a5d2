"""The policies of deploy/policies on a real server: what each role may do, and what it may not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError

from pipeline.flows.doctor import _try_rights
from pipeline.storage import Storage
from pipeline.storage.s3_backend import S3Backend
from tests.servers.roles import Roles, roles

pytestmark = pytest.mark.integration

BUCKET = "lake"
STATE = "out/a.chunkmap/"
RUN = f"{STATE}runs/0123456789abcdef/"
THERE = [
    "in/1.parquet",
    "private/x",
    "tables/t.parquet",
    "out/a/k=1/part.parquet",
    "out/ab/part.parquet",
    "out/ab.chunkmap/HEAD.json",
    f"{STATE}HEAD.json",
    f"{STATE}commits/c.arrow",
    f"{STATE}staged/out/a/part.parquet.0",
    f"{STATE}replaced/1/part.parquet",
    f"{RUN}run.json",
    f"{RUN}job.yaml",
    f"{RUN}plan.arrow",
    f"{RUN}cancel.json",
    f"{RUN}driver.json",
    f"{RUN}completions/b-1.jsonl.zst",
    f"{RUN}partials/b-1.arrow",
    f"{RUN}reduced/0.arrow",
    "many/one/part.parquet",
    "many/one.chunkmap/runs/r/run.json",
]

WORKER_WRITES = [
    f"{RUN}completions/b-2.jsonl.zst",
    f"{RUN}partials/b-2.arrow",
    f"{RUN}reduced/1.arrow",
    f"{RUN}checks/0.parquet",
    f"{STATE}staged/out/a/k=1/part.parquet.0123",
    f"{STATE}doctor/x/note",
    "out/a/k=1/part-0000001-0123456789abcdef.parquet",
    "many/two/k=1/part.parquet",
    "many/two.chunkmap/staged/many/two/part.parquet.0",
    "many/two.chunkmap/runs/r/completions/b-1.jsonl.zst",
]
WORKER_MUST_NOT_WRITE = [
    "in/1.parquet",
    "in/new.parquet",
    "tables/t.parquet",
    "private/x",
    "x.parquet",
    "out/ab/part.parquet",
    "out/ab.chunkmap/HEAD.json",
    "out/ab.chunkmap/staged/x",
    "out/a/HEAD.json",
    "out/a.chunkmap/x.parquet",
    *(
        STATE + name
        for name in (
            "HEAD.json",
            "manifests/1.json",
            "commits/c.arrow",
            "replaced/1/part.parquet",
            "backfills/0/control.json",
            "backfills/0/driver.json",
            "vacuum/x",
        )
    ),
    *(
        RUN + name
        for name in (
            "run.json",
            "job.yaml",
            "plan.arrow",
            "driver.json",
            "accepted.json",
            "cancel.json",
            "published.json",
            "reduce/plan-0001.arrow",
            "report.html",
            "report.json",
            "folded/base-000001.arrow",
            "completions.json",
        )
    ),
    "many/one.chunkmap/HEAD.json",
    "many/one.chunkmap/replaced/1/part.parquet",
    "many/one.chunkmap/runs/r/folded/base-000001.arrow",
]
WORKER_READS = [
    "in/1.parquet",
    "tables/t.parquet",
    *(RUN + name for name in ("run.json", "job.yaml", "plan.arrow", "cancel.json")),
    f"{RUN}completions/b-1.jsonl.zst",
    f"{RUN}partials/b-1.arrow",
    f"{RUN}reduced/0.arrow",
    "many/one.chunkmap/runs/r/run.json",
]
WORKER_MUST_NOT_READ = [
    "private/x",
    "out/ab/part.parquet",
    "out/ab.chunkmap/HEAD.json",
    "out/a/k=1/part.parquet",
    f"{STATE}HEAD.json",
    f"{STATE}commits/c.arrow",
    f"{STATE}staged/out/a/part.parquet.0",
    f"{RUN}driver.json",
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Roles]:
    with roles(
        tmp_path_factory.mktemp("roles"),
        buckets="lake,other",
        inputs="lake/in/",
        outputs="lake/out/a,lake/many/",
        tables="lake/tables/",
    ) as server:
        client = server.admin.client()
        for key in THERE:
            client.put_object(Bucket=BUCKET, Key=key, Body=b"x")
        client.put_object(Bucket="other", Key="x", Body=b"x")
        client.close()
        yield server


@pytest.fixture(scope="module")
def worker(server: Roles) -> Iterator[Any]:
    client = server.worker.client()
    yield client
    client.close()


@pytest.fixture(scope="module")
def driver(server: Roles) -> Iterator[Any]:
    client = server.driver.client()
    yield client
    client.close()


def refused(call: Any, **arguments: Any) -> None:
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403


@pytest.mark.parametrize("key", WORKER_WRITES)
def test_a_worker_writes_what_it_has_to(worker: Any, key: str) -> None:
    worker.put_object(Bucket=BUCKET, Key=key, Body=b"x")


@pytest.mark.parametrize("key", WORKER_MUST_NOT_WRITE)
def test_a_worker_writes_nothing_else(worker: Any, key: str) -> None:
    refused(worker.put_object, Bucket=BUCKET, Key=key, Body=b"x")
    refused(worker.create_multipart_upload, Bucket=BUCKET, Key=key)


@pytest.mark.parametrize("key", WORKER_READS)
def test_a_worker_reads_what_it_has_to(worker: Any, key: str) -> None:
    assert worker.get_object(Bucket=BUCKET, Key=key)["Body"].read() == b"x"


@pytest.mark.parametrize("key", WORKER_MUST_NOT_READ)
def test_a_worker_reads_nothing_else(worker: Any, key: str) -> None:
    refused(worker.get_object, Bucket=BUCKET, Key=key)


def test_a_worker_is_in_no_other_bucket(worker: Any) -> None:
    refused(worker.get_object, Bucket="other", Key="x")
    refused(worker.put_object, Bucket="other", Key="out/a/x.parquet", Body=b"x")
    refused(worker.list_objects_v2, Bucket="other")


@pytest.mark.parametrize("key", THERE)
def test_a_worker_deletes_nothing(worker: Any, key: str) -> None:
    refused(worker.delete_object, Bucket=BUCKET, Key=key)


def test_a_worker_copies_nothing_that_it_may_not_read(worker: Any) -> None:
    for key in WORKER_MUST_NOT_READ:
        source = {"Bucket": BUCKET, "Key": key}
        refused(worker.copy_object, Bucket=BUCKET, Key="out/a/c.parquet", CopySource=source)


@pytest.mark.parametrize("prefix", [f"{RUN}completions/", f"{STATE}doctor/x/", "tables/"])
def test_a_worker_lists_what_it_has_to(worker: Any, prefix: str) -> None:
    worker.list_objects_v2(Bucket=BUCKET, Prefix=prefix)


@pytest.mark.parametrize("prefix", ["", "private/", "out/ab/", f"{STATE}commits/"])
def test_a_worker_lists_nothing_else(worker: Any, prefix: str) -> None:
    refused(worker.list_objects_v2, Bucket=BUCKET, Prefix=prefix)


def test_a_worker_stages_a_large_output(worker: Any) -> None:
    key = "out/a/k=1/part-0000002-0123456789abcdef.parquet"
    upload = worker.create_multipart_upload(Bucket=BUCKET, Key=key)["UploadId"]
    worker.upload_part(Bucket=BUCKET, Key=key, UploadId=upload, PartNumber=1, Body=b"x")


def test_what_is_absent_is_absent_for_a_worker(worker: Any) -> None:
    """A run that nobody cancelled has no cancel.json."""
    with pytest.raises(ClientError) as caught:
        worker.get_object(Bucket=BUCKET, Key="many/one.chunkmap/runs/r/cancel.json")
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] in (403, 404)


@pytest.mark.parametrize("key", ["in/1.parquet", "tables/t.parquet"])
def test_a_driver_reads_inputs_and_deletes_none(driver: Any, key: str) -> None:
    driver.get_object(Bucket=BUCKET, Key=key)
    refused(driver.delete_object, Bucket=BUCKET, Key=key)
    refused(driver.put_object, Bucket=BUCKET, Key=key, Body=b"x")


@pytest.mark.parametrize("key", ["private/x", "out/ab/part.parquet", "out/ab.chunkmap/HEAD.json"])
def test_a_driver_is_in_no_other_output(driver: Any, key: str) -> None:
    refused(driver.get_object, Bucket=BUCKET, Key=key)
    refused(driver.delete_object, Bucket=BUCKET, Key=key)
    refused(driver.put_object, Bucket=BUCKET, Key=key, Body=b"x")
    refused(driver.delete_object, Bucket="other", Key="x")


@pytest.mark.parametrize("key", ["out/a/d.parquet", f"{STATE}d.json", "many/two/d.parquet"])
def test_a_driver_does_all_within_its_outputs(driver: Any, key: str) -> None:
    driver.put_object(Bucket=BUCKET, Key=key, Body=b"x")
    driver.get_object(Bucket=BUCKET, Key=key)
    driver.copy_object(Bucket=BUCKET, Key=key + "2", CopySource={"Bucket": BUCKET, "Key": key})
    upload = driver.create_multipart_upload(Bucket=BUCKET, Key=key)["UploadId"]
    driver.list_parts(Bucket=BUCKET, Key=key, UploadId=upload)
    driver.list_multipart_uploads(Bucket=BUCKET, Prefix=key)
    driver.abort_multipart_upload(Bucket=BUCKET, Key=key, UploadId=upload)
    for name in (key, key + "2"):
        driver.delete_object(Bucket=BUCKET, Key=name)
    driver.list_objects_v2(Bucket=BUCKET, Prefix=key)


def test_the_doctor_is_content_with_both(server: Roles) -> None:
    """It works in a scratch folder of the state, which these rights have room for."""
    folder = f"s3://{BUCKET}/{STATE}doctor/0123/"
    found = {}
    for role in ("worker", "driver"):
        storage = Storage({"s3": S3Backend(getattr(server, role).access)})
        found[role] = _try_rights(lambda storage=storage: storage, folder)  # type: ignore[misc]
    assert not found["worker"].problem and not found["worker"].may_delete
    assert not found["driver"].problem and found["driver"].may_delete
