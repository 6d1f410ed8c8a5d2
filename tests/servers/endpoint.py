"""An HTTP endpoint that takes rows, and answers as a test says: late, wrongly, or never."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from tests.servers.http import Handler, serve


@dataclass(frozen=True)
class Answer:
    """What is sent instead of 200."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    """Seconds until it is sent."""
    is_lost: bool = False
    """Whether the rows are accepted, and the connection ends without an answer."""


@dataclass(frozen=True)
class Request:
    """A request that the endpoint got."""

    key: str
    body: bytes
    headers: Mapping[str, str]
    at: float

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows in its body."""
        if self.headers["Content-Type"] == "application/json":
            return list(json.loads(self.body))
        return [json.loads(line) for line in self.body.splitlines()]


@dataclass
class Endpoint:
    """Accepts rows once per key."""

    script: Callable[[int], Answer | None] = lambda number: None
    """Returns what is answered to the request with this number, from 1; None accepts it."""
    requests: list[Request] = field(default_factory=list)
    accepted: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Rows by key."""
    url: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def ids(self) -> list[int]:
        """Ids of the rows that it has, in their order."""
        return [row["id"] for rows in self.accepted.values() for row in rows]

    def take(self, request: Request) -> Answer:
        with self._lock:
            self.requests.append(request)
            answer = self.script(len(self.requests)) or Answer()
            if answer.status == 200:
                self.accepted.setdefault(request.key, request.rows)
        time.sleep(answer.seconds)
        return answer


class _Takes(Handler):
    endpoint: Endpoint

    def do_POST(self) -> None:
        headers = dict(self.headers.items())
        request = Request(headers["Idempotency-Key"], self.body(), headers, time.monotonic())
        answer = self.endpoint.take(request)
        with suppress(BrokenPipeError, ConnectionResetError):  # Who asked did not wait.
            if answer.is_lost:
                self.close_connection = True
                return
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)


@contextmanager
def taking(endpoint: Endpoint) -> Iterator[Endpoint]:
    """Serve an endpoint; its address is in `url`."""
    with serve(_Takes, endpoint=endpoint) as address:
        endpoint.url = f"{address}/rows"
        yield endpoint
