"""A proxy that counts what goes to S3: requests by kind and status, bytes each way.

It slows what goes through it, so nothing is timed while it is used. Requests are passed on as
they come, the Host header too, so signatures stay valid.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import parse_qs, urlsplit

from benchmarks.suite.record import Traffic

_LIMIT = 2**20
_Headers = list[tuple[bytes, bytes]]


def kind_of(method: str, target: str, headers: dict[str, str]) -> str:
    """What S3 calls a request.

    Args:
        method: Of HTTP.
        target: Path and query, path-style: /bucket/key?query.
        headers: Names in small letters.
    """
    parts = urlsplit(target)
    query = parse_qs(parts.query, keep_blank_values=True)
    has_key = parts.path.strip("/").count("/") > 0
    table = {
        "GET": (
            ("uploads", "ListMultipartUploads"),
            ("uploadId", "ListParts"),
            ("list-type", "ListObjects"),
        ),
        "POST": (
            ("uploads", "CreateMultipartUpload"),
            ("uploadId", "CompleteMultipartUpload"),
            ("delete", "DeleteObjects"),
        ),
        "PUT": (("partNumber", "UploadPart"),),
        "DELETE": (("uploadId", "AbortMultipartUpload"),),
    }
    for name, kind in table.get(method, ()):
        if name in query:
            return kind
    if method == "PUT" and "x-amz-copy-source" in headers:
        return "CopyObject"
    whole = {"GET": "GetObject", "HEAD": "HeadObject", "PUT": "PutObject", "DELETE": "DeleteObject"}
    if has_key:
        return whole.get(method, method)
    return "ListObjects" if method == "GET" else f"{method.capitalize()}Bucket"


@dataclass(slots=True)
class CountingProxy:
    """Listens on a free port of this machine while its block lasts.

    Args:
        upstream: Endpoint of the S3 server, over plain HTTP.
        delay: Seconds that each request waits before it goes on: a server that is far away.
    """

    upstream: str
    delay: float = 0.0
    endpoint: str = ""
    _requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    _read: int = 0
    _written: int = 0
    _loop: asyncio.AbstractEventLoop | None = None
    _thread: threading.Thread | None = None
    _serving: set[asyncio.Task[None] | None] = field(default_factory=set)
    _started: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        if urlsplit(self.upstream).scheme != "http":
            raise ValueError(f"only plain HTTP can be counted, not {self.upstream}")

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run, name="counting-proxy", daemon=True)
        self._thread.start()
        if not self._started.wait(10):
            raise RuntimeError("the counting proxy did not start within 10 s")
        return self

    def __exit__(self, *_: object) -> None:
        if self._loop is not None and self._thread is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def traffic(self) -> Traffic:
        """What has gone through so far."""
        requests: dict[str, dict[str, int]] = {}
        for (kind, status), number in sorted(self._requests.items()):
            requests.setdefault(kind, {})[status] = number
        return Traffic(requests=requests, bytes_read=self._read, bytes_written=self._written)

    def _run(self) -> None:
        loop = self._loop = asyncio.new_event_loop()
        server = loop.run_until_complete(
            asyncio.start_server(self._serve, "127.0.0.1", 0, limit=_LIMIT)
        )
        self.endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._started.set()
        try:
            loop.run_forever()
        finally:
            loop.run_until_complete(_end(server))
            loop.close()

    async def _serve(self, client: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
        parts = urlsplit(self.upstream)
        server, ask = await asyncio.open_connection(parts.hostname, parts.port or 80, limit=_LIMIT)
        # The loop holds its tasks weakly: one that waits for a client that is gone could vanish.
        task = asyncio.current_task()
        self._serving.add(task)
        try:
            while await self._exchange(client, answer, server, ask):
                pass
        except (OSError, asyncio.IncompleteReadError, ValueError):
            pass  # either side hung up; both see it
        finally:
            self._serving.discard(task)
            for writer in (ask, answer):
                writer.close()
                with suppress(OSError):
                    await writer.wait_closed()

    async def _exchange(
        self,
        client: asyncio.StreamReader,
        answer: asyncio.StreamWriter,
        server: asyncio.StreamReader,
        ask: asyncio.StreamWriter,
    ) -> bool:
        """One request and its answer; whether the connection goes on."""
        line, headers = await _head(client)
        if not line:
            return False
        method, target, _ = line.decode("latin-1").split(" ", 2)
        named = _named(headers)
        if named.pop("expect", "").lower() == "100-continue":
            # Answered here: the body is passed on as it comes.
            answer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            headers = [(name, value) for name, value in headers if name.lower() != b"expect"]
        if self.delay:
            await asyncio.sleep(self.delay)
        _write_head(ask, line, headers)
        await _body(client, ask, named, self._wrote, until_close=False)
        status_line, reply_headers = await _head(server)
        status = status_line.decode("latin-1").split(" ", 2)[1]
        # Counted before it is passed on: a client that has the answer finds it counted.
        self._requests[kind_of(method, target, named), status] += 1
        _write_head(answer, status_line, reply_headers)
        reply = _named(reply_headers)
        if method != "HEAD" and status not in ("204", "304"):
            await _body(server, answer, reply, self._came, until_close=True)
        await answer.drain()
        closing = (named.get("connection", ""), reply.get("connection", ""))
        return not any(value.lower() == "close" for value in closing)

    def _wrote(self, count: int) -> None:
        self._written += count

    def _came(self, count: int) -> None:
        self._read += count


async def _end(server: asyncio.Server) -> None:
    """Stop listening, and hang up on everybody."""
    server.close()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def _head(reader: asyncio.StreamReader) -> tuple[bytes, _Headers]:
    line = (await reader.readline()).rstrip(b"\r\n")
    headers: _Headers = []
    while line and (row := (await reader.readline()).rstrip(b"\r\n")):
        name, _, value = row.partition(b":")
        headers.append((name, value.strip()))
    return line, headers


def _named(headers: _Headers) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in headers}


def _write_head(writer: asyncio.StreamWriter, line: bytes, headers: _Headers) -> None:
    rows = [line, *(name + b": " + value for name, value in headers), b"", b""]
    writer.write(b"\r\n".join(rows))


async def _body(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    headers: dict[str, str],
    counted: Callable[[int], None],
    *,
    until_close: bool,
) -> None:
    """Pass a body on; its bytes are counted before they are passed on."""
    if headers.get("transfer-encoding", "").lower() == "chunked":
        while size := int((line := await reader.readline()).split(b";")[0], 16):
            piece = line + await reader.readexactly(size + 2)
            counted(size)
            writer.write(piece)
            await writer.drain()
        writer.write(line)
        while (row := await reader.readline()).rstrip(b"\r\n"):
            writer.write(row)
        writer.write(row)
        return
    left = int(headers.get("content-length", "-1"))
    if left < 0 and not until_close:
        return
    while left != 0:
        data = await reader.read(min(_LIMIT, left) if left > 0 else _LIMIT)
        if not data:
            if left > 0:
                raise asyncio.IncompleteReadError(b"", left)
            break
        counted(len(data))
        writer.write(data)
        await writer.drain()
        left -= len(data) if left > 0 else 0
    await writer.drain()
