"""A proxy that takes the conditions out of writes: a service that knows nothing of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tests.servers.http import Proxy, serve
from tests.servers.launching import Server

CONDITIONS = ("if-none-match", "if-match")
_UNSIGNED = (
    "authorization", "connection", "content-length", "expect", "host", "x-amz-content-sha256",
    "x-amz-date",
)  # fmt: skip


class _Forgetful(Proxy):
    keys: Credentials
    ignored: Sequence[str]
    asked: list[str]

    def forwarded(self, body: bytes) -> tuple[str, Mapping[str, str]]:
        self.asked.append(f"{self.command} {self.path.partition('?')[0]}")
        left_out = {*_UNSIGNED, *(self.ignored if self.command == "PUT" else ())}
        headers = {k: v for k, v in self.headers.items() if k.lower() not in left_out}
        # The signature covers the conditions, so it is made again without them.
        request = AWSRequest(self.command, self.behind + self.path, headers, body)
        S3SigV4Auth(self.keys, "s3", "us-east-1").add_auth(request)
        return self.path, dict(request.headers.items())


@contextmanager
def forgetful(
    behind: Server, ignored: Sequence[str] = CONDITIONS
) -> Iterator[tuple[Server, list[str]]]:
    """A server like the one behind, but for what it ignores; and what it is asked."""
    asked: list[str] = []
    keys = Credentials(behind.key_id, behind.secret)
    with serve(
        _Forgetful, behind=behind.endpoint, keys=keys, ignored=ignored, asked=asked
    ) as endpoint:
        yield replace(behind, endpoint=endpoint), asked
