"""HTTP servers in threads of the test, which answer by themselves or forward to another one."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


class Handler(BaseHTTPRequestHandler):
    """Answers requests of connections that stay open, and prints nothing."""

    protocol_version = "HTTP/1.1"

    def body(self) -> bytes:
        """Read the body of the request."""
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class Proxy(Handler):
    """Forwards each request to the server at `behind` and returns what that replies."""

    behind: str

    def forwarded(self, body: bytes) -> tuple[str, Mapping[str, str]]:
        """The path and the headers to send; subclasses look at them or change them."""
        return self.path, dict(self.headers.items())

    def _forward(self) -> None:
        body = self.body()
        path, headers = self.forwarded(body)
        server = http.client.HTTPConnection(urlsplit(self.behind).netloc)
        server.request(self.command, path, body, headers)
        reply = server.getresponse()
        data = reply.read()
        self.send_response_only(reply.status)
        for name, value in reply.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        length = reply.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        self.wfile.write(data)
        server.close()

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _forward


@contextmanager
def serve(handler: type[Handler], **members: Any) -> Iterator[str]:
    """Serve requests with a handler class, which gets these members; yields the address."""
    kind = type(handler.__name__, (handler,), members)
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
