"""Serve a small HTTP API on this machine while an example runs."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit


class JsonApi(BaseHTTPRequestHandler):
    """Answers each GET with a JSON document."""

    def document(self, params: dict[str, str]) -> object:
        """Make the document for the parameters of a query."""
        raise NotImplementedError

    def do_GET(self) -> None:
        """Answer."""
        body = json.dumps(self.document(dict(parse_qsl(urlsplit(self.path).query)))).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Write no line per request."""


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # Many clients connect at the same moment.


@contextmanager
def serving(api: type[BaseHTTPRequestHandler], port: int = 0) -> Iterator[str]:
    """Serve an API in threads of this process; yields its address, without a path.

    Args:
        api: What answers a request.
        port: Port; 0 is a free one.
    """
    with _Server(("127.0.0.1", port), api) as server:
        threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
