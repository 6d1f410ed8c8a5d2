"""The proxy passes everything on, byte for byte, and counts it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from moto.server import ThreadedMotoServer

from benchmarks.suite.proxy import CountingProxy, kind_of

BODY = os.urandom(300_000)


@pytest.mark.parametrize(
    ("method", "target", "kind"),
    [
        ("GET", "/b?list-type=2&prefix=x", "ListObjects"),
        ("GET", "/b/?prefix=x", "ListObjects"),
        ("GET", "/b?uploads", "ListMultipartUploads"),
        ("GET", "/b/k/e/y", "GetObject"),
        ("GET", "/b/k?uploadId=1", "ListParts"),
        ("HEAD", "/b/k", "HeadObject"),
        ("HEAD", "/b", "HeadBucket"),
        ("PUT", "/b", "PutBucket"),
        ("PUT", "/b/k", "PutObject"),
        ("PUT", "/b/k?partNumber=1&uploadId=x", "UploadPart"),
        ("POST", "/b/k?uploads", "CreateMultipartUpload"),
        ("POST", "/b/k?uploadId=x", "CompleteMultipartUpload"),
        ("POST", "/b?delete", "DeleteObjects"),
        ("DELETE", "/b/k", "DeleteObject"),
        ("DELETE", "/b/k?uploadId=x", "AbortMultipartUpload"),
    ],
)
def test_kinds_of_requests(method: str, target: str, kind: str) -> None:
    assert kind_of(method, target, {}) == kind


def test_a_copy_is_told_from_a_write() -> None:
    assert kind_of("PUT", "/b/k", {"x-amz-copy-source": "/b/other"}) == "CopyObject"


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@contextmanager
def client(endpoint: str) -> Iterator[Any]:
    made = boto3.client(
        "s3",
        aws_access_key_id="key",
        aws_secret_access_key="secret",
        endpoint_url=endpoint,
        region_name="us-east-1",
    )
    try:
        yield made
    finally:
        made.close()


def test_requests_and_bytes_are_counted(upstream: str) -> None:
    with CountingProxy(upstream) as proxy, client(proxy.endpoint) as s3:
        s3.create_bucket(Bucket="counted")
        s3.put_object(Bucket="counted", Key="key", Body=BODY)
        assert s3.get_object(Bucket="counted", Key="key")["Body"].read() == BODY
        part = s3.get_object(Bucket="counted", Key="key", Range="bytes=10-19")["Body"].read()
        assert part == BODY[10:20]
        assert s3.list_objects_v2(Bucket="counted")["Contents"][0]["Key"] == "key"
        with pytest.raises(ClientError):
            s3.head_object(Bucket="counted", Key="nothing")
        traffic = proxy.traffic()
    # The same through no proxy: nothing was lost or changed on the way.
    with client(upstream) as s3:
        assert s3.get_object(Bucket="counted", Key="key")["Body"].read() == BODY
    assert traffic.requests == {
        "GetObject": {"200": 1, "206": 1},
        "HeadObject": {"404": 1},
        "ListObjects": {"200": 1},
        "PutBucket": {"200": 1},
        "PutObject": {"200": 1},
    }
    assert len(BODY) + 10 <= traffic.bytes_read < len(BODY) + 10_000
    assert len(BODY) <= traffic.bytes_written < len(BODY) + 10_000
    assert traffic.total == 6


def test_a_large_upload_is_counted_by_part(upstream: str) -> None:
    with CountingProxy(upstream) as proxy, client(proxy.endpoint) as s3:
        s3.create_bucket(Bucket="parts")
        upload = s3.create_multipart_upload(Bucket="parts", Key="key")["UploadId"]
        named = {"Bucket": "parts", "Key": "key", "UploadId": upload}
        parts = []
        for number in (1, 2):
            tag = s3.upload_part(**named, PartNumber=number, Body=bytes(5 * 2**20))["ETag"]
            parts.append({"PartNumber": number, "ETag": tag})
        s3.complete_multipart_upload(**named, MultipartUpload={"Parts": parts})
        assert s3.head_object(Bucket="parts", Key="key")["ContentLength"] == 10 * 2**20
        traffic = proxy.traffic()
    assert traffic.requests["CreateMultipartUpload"] == {"200": 1}
    assert traffic.requests["UploadPart"] == {"200": 2}
    assert traffic.requests["CompleteMultipartUpload"] == {"200": 1}
    assert traffic.bytes_written > 10 * 2**20


def test_nothing_is_lost_when_many_ask_at_once(upstream: str) -> None:
    with CountingProxy(upstream) as proxy, client(proxy.endpoint) as s3:
        s3.create_bucket(Bucket="many")

        def both(number: int) -> bool:
            s3.put_object(Bucket="many", Key=f"key-{number}", Body=BODY)
            found = s3.get_object(Bucket="many", Key=f"key-{number}")["Body"].read()
            return bool(found == BODY)

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(both, range(24)))
        traffic = proxy.traffic()
    assert traffic.requests["PutObject"] == traffic.requests["GetObject"] == {"200": 24}
    assert traffic.bytes_read >= 24 * len(BODY)
    assert traffic.bytes_written >= 24 * len(BODY)


def test_https_cannot_be_counted() -> None:
    with pytest.raises(ValueError, match="only plain HTTP"):
        CountingProxy("https://s3.example.invalid")
