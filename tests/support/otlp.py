"""A collector on this machine that takes OpenTelemetry's traces by OTLP over HTTP."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Condition, Thread
from typing import Any

SECONDS = 30.0
"""Longest wait for spans, which are sent about once per second."""


@dataclass(frozen=True)
class Span:
    """A span, as it was received."""

    name: str
    trace: bytes
    id: bytes
    parent: bytes
    started: float
    ended: float
    attributes: dict[str, Any]
    error: str | None
    """Message of one that failed."""
    process: int
    """Number of the process that made it."""


def _values(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


class Collector:
    """Keeps what it gets."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.bodies: list[bytes] = []
        self.changed = Condition()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                assert self.path == "/v1/traces", self.path
                collector.take(body)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def take(self, body: bytes) -> None:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
            ExportTraceServiceRequest,
        )

        request = ExportTraceServiceRequest.FromString(body)
        found = [
            Span(
                name=span.name,
                trace=span.trace_id,
                id=span.span_id,
                parent=span.parent_span_id,
                started=span.start_time_unix_nano / 1e9,
                ended=span.end_time_unix_nano / 1e9,
                attributes=_values(span.attributes),
                error=span.status.message if span.status.code == 2 else None,
                process=_values(resource.resource.attributes)["process.pid"],
            )
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        with self.changed:
            self.spans += found
            self.bodies.append(body)
            self.changed.notify_all()

    def named(self, name: str) -> list[Span]:
        """The spans of a name, by their start."""
        with self.changed:
            found = [span for span in self.spans if span.name == name]
        return sorted(found, key=lambda span: span.started)

    def await_some(self, is_enough: Callable[[], bool]) -> None:
        """Wait until there are spans enough."""
        with self.changed:
            assert self.changed.wait_for(is_enough, SECONDS), [span.name for span in self.spans]


@contextmanager
def collecting() -> Iterator[Collector]:
    """Run a collector."""
    collector = Collector()
    thread = Thread(target=collector.server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield collector
    finally:
        collector.server.shutdown()
        collector.server.server_close()
        thread.join()
