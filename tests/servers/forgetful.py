"""A proxy that takes the conditions out of writes: a service that knows nothing of them."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tests.servers.launching import Server

CONDITIONS = ("if-none-match", "if-match")
_UNSIGNED = (
    "authorization", "connection", "content-length", "expect", "host", "x-amz-content-sha256",
    "x-amz-date",
)  # fmt: skip


class _Forgetful(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    behind: Server
    ignored: Sequence[str]
    asked: list[str]

    def _forward(self) -> None:
        self.asked.append(f"{self.command} {self.path.partition('?')[0]}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        left_out = {*_UNSIGNED, *(self.ignored if self.command == "PUT" else ())}
        headers = {k: v for k, v in self.headers.items() if k.lower() not in left_out}
        url = self.behind.endpoint + self.path
        # The signature covers the conditions, so it is made again without them.
        request = AWSRequest(self.command, url, headers, body)
        keys = Credentials(self.behind.key_id, self.behind.secret)
        S3SigV4Auth(keys, "s3", "us-east-1").add_auth(request)
        server = http.client.HTTPConnection(urlsplit(url).netloc)
        server.request(self.command, self.path, body, dict(request.headers.items()))
        reply = server.getresponse()
        data = reply.read()
        self.send_response(reply.status)
        for name, value in reply.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        length = reply.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        self.wfile.write(data)
        server.close()

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _forward

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def forgetful(
    behind: Server, ignored: Sequence[str] = CONDITIONS
) -> Iterator[tuple[Server, list[str]]]:
    """A server like the one behind, but for what it ignores; and what it is asked."""
    asked: list[str] = []
    members = {"behind": behind, "ignored": ignored, "asked": asked}
    handler = type("Handler", (_Forgetful,), members)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield replace(behind, endpoint=f"http://127.0.0.1:{server.server_port}"), asked
        finally:
            server.shutdown()
            thread.join()
