"""Small staged outputs: what a server may answer to a copy."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pipeline.errors import TransientStorageError
from pipeline.storage import StagedObject
from pipeline.storage.retry import RetryPolicy
from pipeline.storage.s3_backend import S3Backend
from pipeline.storage.s3_connection import Access

FAILED_LATE = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n'
    b"<Error><Code>InternalError</Code><Message>We encountered an internal error</Message></Error>"
)


class FailsLate(BaseHTTPRequestHandler):
    """S3 may say 200 before it has copied, and in the body that it could not."""

    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(FAILED_LATE)))
        self.end_headers()
        self.wfile.write(FAILED_LATE)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def endpoint() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), FailsLate) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_copy_that_fails_after_it_said_200_has_failed(endpoint: str) -> None:
    access = Access(endpoint=endpoint, key_id="key", secret="secret")
    backend = S3Backend(access, RetryPolicy(attempts=1))
    staged = StagedObject("s3://b/out/a", "s3://b/out.chunkmap/staged/out/a.1", ("0",), 1, "1")
    with pytest.raises(TransientStorageError):
        backend.complete([staged])
