"""A small HTTP API with pages, which answers as a test says: late, wrongly, in part, or never."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tests.servers.http import Handler, serve


@dataclass(frozen=True)
class Reply:
    """What is sent instead of a page."""

    status: int = 200
    body: bytes = b'{"data": []}'
    kind: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    missing: int = 0
    """Bytes at the end of the body that are not sent, although they are announced."""
    seconds: float = 0.0
    """Seconds until it is sent."""


Script = Callable[[str, int], Reply | None]
"""Given the query and how often it was asked for, from 1, what is sent instead of the page."""


def as_it_is(query: str, times: int) -> None:
    """Answer with pages."""


@dataclass
class Api:
    """Records in pages of `size`, by `page`, `offset`, `cursor` or `link`."""

    records: Sequence[Mapping[str, Any]]
    size: int = 10
    by: str = "page"
    script: Script = as_it_is
    endless: bool = False
    """Whether each page leads to another, for ever."""
    only: Callable[[Mapping[str, str]], Sequence[Mapping[str, Any]]] | None = None
    """The records that a query asks for; default all."""
    queries: list[str] = field(default_factory=list)
    """Query of each request, in their order."""
    headers: list[dict[str, str]] = field(default_factory=list)
    url: str = ""
    at_once: int = 0
    """The largest number of requests at a time."""
    _now: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, query: str, headers: Mapping[str, str]) -> Reply:
        with self._lock:
            self.queries.append(query)
            self.headers.append(dict(headers))
            times = self.queries.count(query)
            self._now += 1
            self.at_once = max(self.at_once, self._now)
        try:
            reply = self.script(query, times) or self._page(dict(parse_qsl(query)))
            time.sleep(reply.seconds)
            return reply
        finally:
            with self._lock:
                self._now -= 1

    def twice(self) -> list[str]:
        """Queries that were asked more than once."""
        return [query for query, times in Counter(self.queries).items() if times > 1]

    def _page(self, params: dict[str, str]) -> Reply:
        records = list(self.records if self.only is None else self.only(params))
        start = int(params.get("offset") or params.get("after", "c0")[1:] or 0)
        if "page" in params:
            start = (int(params["page"]) - 1) * self.size
        end = start + self.size
        some = records[start % max(1, len(records)) :][: self.size] if self.endless else None
        page = records[start:end] if some is None else some
        has_more = self.endless or end < len(records)
        meta: dict[str, Any] = {"total": len(records), "pages": -(-len(records) // self.size)}
        headers = {}
        if self.by == "cursor" and (has_more or start == 0):  # The last of several has no key.
            meta["next"] = f"c{end}" if has_more else None
        if self.by == "link" and has_more:
            rest = "".join(f"{k}={v}&" for k, v in params.items() if k != "page")
            headers["Link"] = f'<{self.url}?{rest}page={end // self.size + 1}>; rel="next"'
        body = json.dumps({"data": page, "meta": meta}).encode()
        return Reply(body=body, headers=headers)


class _Answers(Handler):
    api: Api

    def do_GET(self) -> None:
        reply = self.api.answer(urlsplit(self.path).query, dict(self.headers.items()))
        self.send_response(reply.status)
        if reply.kind:
            self.send_header("Content-Type", reply.kind)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply.body)))
        if reply.missing:
            self.send_header("Connection", "close")
            self.close_connection = True
        with suppress(BrokenPipeError, ConnectionResetError):  # Who asked has died.
            self.end_headers()
            self.wfile.write(reply.body[: len(reply.body) - reply.missing])


@contextmanager
def serving(api: Api) -> Iterator[Api]:
    """Serve an API; its address is in `url`."""
    with serve(_Answers, api=api) as address:
        api.url = f"{address}/api/orders"
        yield api
