"""Small staged outputs: what a server may answer to a copy."""

from __future__ import annotations

import pytest

from pipeline.errors import TransientStorageError
from pipeline.storage import StagedObject
from pipeline.storage.retry import RetryPolicy
from pipeline.storage.s3_backend import S3Backend
from pipeline.storage.s3_connection import Access
from tests.servers.http import Handler, serve

FAILED_LATE = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n'
    b"<Error><Code>InternalError</Code><Message>We encountered an internal error</Message></Error>"
)


class FailsLate(Handler):
    """S3 may say 200 before it has copied, and in the body that it could not."""

    def do_PUT(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(FAILED_LATE)))
        self.end_headers()
        self.wfile.write(FAILED_LATE)


def test_a_copy_that_fails_after_it_said_200_has_failed() -> None:
    staged = StagedObject("s3://b/out/a", "s3://b/out.chunkmap/staged/out/a.1", ("0",), 1, "1")
    with serve(FailsLate) as endpoint:
        backend = S3Backend(Access(endpoint, key_id="a", secret="b"), RetryPolicy(attempts=1))
        with pytest.raises(TransientStorageError):
            backend.complete([staged])
