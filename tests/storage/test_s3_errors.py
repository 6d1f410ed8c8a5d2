"""Foreign errors become ours: from real servers, and from a server that answers by script."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Callable, Iterator
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from partitioning import ObjectInfo
from pipeline.cluster.local.processes import HOST
from pipeline.errors import (
    AccessDeniedError,
    AlreadyExistsError,
    BucketMissingError,
    ObjectMissingError,
    ObjectRefusedError,
    PreconditionFailedError,
    StorageError,
    Transient,
    TransientStorageError,
)
from pipeline.storage import Backend, StagedObject
from pipeline.storage.local_backend import LocalBackend
from pipeline.storage.s3_backend import S3Backend
from pipeline.storage.s3_connection import Access
from tests.servers.launching import BUCKET, Server
from tests.storage.conftest import QUICK

Call = Callable[[Backend, str], object]


@cache
def backend(access: Access) -> S3Backend:
    """One of each: making the clients takes longer than any call here."""
    return S3Backend(access, QUICK)


def staged(prefix: str) -> StagedObject:
    return StagedObject(prefix + "st", "no-such-upload", ("00",), 1, "attempt")


ETAG = "0" * 32
READS: dict[str, tuple[str, Call]] = {
    "list": ("s3:ListBucket", lambda b, p: list(b.objects(p))),
    "head": ("s3:GetObject", lambda b, p: b.head(p + "key")),
    "head-odd": ("s3:GetObject", lambda b, p: b.head(p + "a//key")),
    "get": ("s3:GetObject", lambda b, p: b.get(p + "key")),
    "get-odd": ("s3:GetObject", lambda b, p: b.get(p + "a//key")),
    "ranges": (
        "s3:GetObject",
        lambda b, p: b.get_ranges(ObjectInfo(p + "key", ETAG, 9), [(0, 1)]),
    ),
}
WRITES: dict[str, tuple[str, Call]] = {
    "put": ("s3:PutObject", lambda b, p: b.put(p + "new", b"x")),
    "put-odd": ("s3:PutObject", lambda b, p: b.put(p + "a//new", b"x")),
    "put_new": ("s3:PutObject", lambda b, p: b.put_new(p + "new", b"x")),
    "put_new-odd": ("s3:PutObject", lambda b, p: b.put_new(p + "a//new", b"x")),
    "put_if": ("s3:PutObject", lambda b, p: b.put_if(p + "key", b"x", ETAG)),
    "delete": ("s3:DeleteObject", lambda b, p: b.delete(p + "key")),
    "stage": ("s3:PutObject", lambda b, p: b.stage(p + "s", memoryview(b"x"), "a", p)),
    "complete": ("s3:PutObject", lambda b, p: b.complete([staged(p)])),
    "abort": ("s3:AbortMultipartUpload", lambda b, p: b.abort([staged(p)])),
}
UPLOADS: dict[str, tuple[str, Call]] = {
    "missing": ("s3:ListMultipartUploadParts", lambda b, p: b.missing([staged(p)])),
    "staged_under": ("s3:ListBucketMultipartUploads", lambda b, p: list(b.staged_under(p, p))),
}
ALL = READS | WRITES | UPLOADS


@pytest.mark.parametrize("call", ALL.values(), ids=ALL)
@pytest.mark.parametrize(
    "name",
    [
        "moto",
        pytest.param("seaweedfs", marks=pytest.mark.integration),
        pytest.param("ministack", marks=[pytest.mark.integration, pytest.mark.long]),
    ],
)
def test_a_missing_bucket(
    name: str, call: tuple[str, Call], request: pytest.FixtureRequest
) -> None:
    server: Server = request.getfixturevalue(name)
    with pytest.raises(StorageError) as caught:
        call[1](backend(server.access), "s3://no-such-bucket/")
    error = caught.value
    # An answer to HEAD has no body that could tell a missing bucket from a missing key, and a
    # pointer in a bucket that is gone is gone; a listing comes first, and names the bucket.
    if isinstance(error, ObjectMissingError):
        assert request.node.callspec.id.split("-")[1] in ("head", "ranges")
    elif not isinstance(error, PreconditionFailedError):
        assert isinstance(error, BucketMissingError)
        assert error.bucket == "no-such-bucket"
        assert error.exit_code == 2


@pytest.mark.integration
@pytest.mark.parametrize("who", ["wrong secret", "unknown key"])
@pytest.mark.parametrize("call", ALL.values(), ids=ALL)
def test_wrong_credentials(who: str, call: tuple[str, Call], seaweedfs: Server) -> None:
    change: dict[str, Any] = {"secret": "wrong"} if who == "wrong secret" else {"key_id": "NOBODY"}
    _denied(backend(dataclasses.replace(seaweedfs.access, **change)), call)


@pytest.mark.integration
@pytest.mark.parametrize("call", WRITES.values(), ids=WRITES)
def test_a_reader_learns_which_permission_is_missing(
    call: tuple[str, Call], seaweedfs: Server
) -> None:
    backend(seaweedfs.access).put(f"s3://{BUCKET}/denied/key", b"x")
    assert backend(seaweedfs.reader).get(f"s3://{BUCKET}/denied/key").data == b"x"
    _denied(backend(seaweedfs.reader), call)
    assert backend(seaweedfs.access).get(f"s3://{BUCKET}/denied/key").data == b"x"


def _denied(at: Backend, call: tuple[str, Call]) -> None:
    with pytest.raises(AccessDeniedError) as caught:
        call[1](at, f"s3://{BUCKET}/denied/")
    assert caught.value.action == call[0]
    assert f"s3://{BUCKET}/denied/" in caught.value.uri
    assert caught.value.exit_code == 2
    assert caught.value.hint is not None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may do everything")
def test_files_that_may_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(AccessDeniedError):
        LocalBackend().put_new(f"file://{tmp_path}/locked/file", b"x")


def test_a_folder_in_the_place_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        LocalBackend().get(f"file://{tmp_path}")
    assert not isinstance(caught.value, Transient)


@pytest.mark.parametrize("call", ALL.values(), ids=ALL)
def test_an_address_that_does_not_respond_is_transient(call: tuple[str, Call]) -> None:
    # Port 9 is "discard", and nobody listens there.
    dead = backend(Access(f"http://{HOST}:9", key_id="a", secret="b"))
    with pytest.raises(TransientStorageError):
        call[1](dead, f"s3://{BUCKET}/")


# -- a server that answers by script ----------------------------------------------------------


class Scripted(ThreadingHTTPServer):
    """Answers every request the same way."""

    daemon_threads = True
    answer: tuple[int, bytes, int] = (200, b"", 0)
    """Status, body, and how many bytes of it are never sent."""

    def backend(self) -> S3Backend:
        return backend(Access(f"http://{HOST}:{self.server_port}", key_id="a", secret="b"))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _reply(self) -> None:
        assert isinstance(self.server, Scripted)
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, body, cut = self.server.answer
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{ETAG}"')
        self.send_header("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT")
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) - cut])

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _reply

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def scripted() -> Iterator[Scripted]:
    server = Scripted((HOST, 0), _Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def code(name: str) -> bytes:
    return f"<Error><Code>{name}</Code><Message>said so</Message></Error>".encode()


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (503, "SlowDown"), (500, "InternalError"), (502, ""), (504, ""), (429, "TooManyRequests"),
        (400, "RequestTimeout"), (503, "ServiceUnavailable"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("call", ALL.values(), ids=ALL)
def test_a_busy_server_may_pass(
    call: tuple[str, Call], status: int, said: str, scripted: Scripted
) -> None:
    if status == 400 and call in (READS["head"], READS["head-odd"]):
        pytest.skip("an answer to HEAD has no body that could tell why")
    scripted.answer = (status, code(said), 0)
    with pytest.raises(TransientStorageError):
        call[1](scripted.backend(), f"s3://{BUCKET}/")


@pytest.mark.parametrize("call", [c for n, c in READS.items() if n[:3] in ("get", "ran", "lis")])
def test_a_body_that_ends_early_may_pass(call: tuple[str, Call], scripted: Scripted) -> None:
    scripted.answer = (206 if call is READS["ranges"] else 200, b"x" * 4000, 2000)
    with pytest.raises(TransientStorageError):
        call[1](scripted.backend(), f"s3://{BUCKET}/")


def test_an_error_inside_an_answer_of_200_is_an_error(scripted: Scripted) -> None:
    """S3 may find out that completing fails after it has begun to answer."""
    scripted.answer = (200, code("InternalError"), 0)
    with pytest.raises(TransientStorageError):
        scripted.backend().complete([staged(f"s3://{BUCKET}/")])


@pytest.mark.parametrize(
    ("status", "said"), [(412, "PreconditionFailed"), (409, "ConditionalRequestConflict")]
)
def test_lost_races_are_reported_as_412_or_409(status: int, said: str, scripted: Scripted) -> None:
    scripted.answer = (status, code(said), 0)
    at, prefix = scripted.backend(), f"s3://{BUCKET}/"
    for key in ("new", "a//new"):
        with pytest.raises(AlreadyExistsError):
            at.put_new(prefix + key, b"x")
        with pytest.raises((AlreadyExistsError, PreconditionFailedError)):
            at.put_if(prefix + key, b"x", ETAG)


@pytest.mark.parametrize("said", ["EntityTooSmall", "KeyTooLongError", "WhatIsThis"])
def test_a_refusal_is_terminal_and_quoted(said: str, scripted: Scripted) -> None:
    scripted.answer = (400, code(said), 0)
    with pytest.raises(ObjectRefusedError, match=said) as caught:
        scripted.backend().put(f"s3://{BUCKET}/key", b"x")
    assert not isinstance(caught.value, Transient)


def test_what_the_service_lacks_does_not_pass(scripted: Scripted) -> None:
    scripted.answer = (501, code("NotImplemented"), 0)
    with pytest.raises(StorageError, match="NotImplemented") as caught:
        scripted.backend().complete([staged(f"s3://{BUCKET}/")])
    assert not isinstance(caught.value, Transient)
    assert caught.value.hint is not None


@pytest.mark.parametrize("said", ["ExpiredToken", "InvalidToken", "AuthorizationHeaderMalformed"])
@pytest.mark.parametrize("call", ["missing", "complete", "put"])
def test_credentials_that_have_expired_are_no_refusal_of_an_object(
    said: str, call: str, scripted: Scripted
) -> None:
    """Amazon answers 400 to them."""
    scripted.answer = (400, code(said), 0)
    with pytest.raises(AccessDeniedError) as caught:
        ALL[call][1](scripted.backend(), f"s3://{BUCKET}/")
    assert said in (caught.value.hint or "")


def test_an_operation_that_another_one_holds_up_may_pass(scripted: Scripted) -> None:
    scripted.answer = (409, code("OperationAborted"), 0)
    at, prefix = scripted.backend(), f"s3://{BUCKET}/"
    copy = dataclasses.replace(staged(prefix), upload=prefix + "source")
    for item in (staged(prefix), copy):
        with pytest.raises(TransientStorageError):
            at.complete([item])
