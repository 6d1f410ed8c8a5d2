"""A small S3 proxy on loopback that does to requests what rules say.

The Host header goes through as it came, because the signature covers it. Each client process has
a port of its own, so that rules can tell them apart.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from tests.faults.rules import Request, Rule, request_of, struck

HOST = "127.0.0.1"
HEAD_BYTES = 1 << 20
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER of zero seconds: closing sends a TCP reset."""
ERRORS = {
    "500": ("500 Internal Server Error", "InternalError"),
    "503": ("503 Slow Down", "SlowDown"),
}

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Gone(Exception):
    """A connection ended; the other side's must end, too."""


@dataclass(frozen=True, slots=True)
class Message:
    """The head of a request or a reply, as it came."""

    first: str
    raw: bytes
    headers: dict[str, str]
    """Names in small letters."""


@dataclass(slots=True)
class Proxy:
    """Forwards to one server; runs in a thread with an event loop of its own."""

    upstream: int
    """The server's port; a server that is started again at it is reached again."""
    rules: list[Rule] = field(default_factory=list)
    log: list[tuple[Request, str]] = field(default_factory=list)
    """Every request, with what came of it: an HTTP status, or the rule's act."""
    ports: dict[str, int] = field(default_factory=dict)
    capacity: int | None = None
    """Maximum number of concurrent requests; SlowDown is the answer to any more. None: no limit."""
    service_seconds: float = 0.0
    """Least seconds that a request takes."""
    forwarding: int = 0
    """Requests that are being served."""
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    _servers: list[asyncio.Server] = field(default_factory=list)
    _serving: set[asyncio.Task[None] | None] = field(default_factory=set)
    _late: set[asyncio.Task[None]] = field(default_factory=set)

    def endpoint(self, client: str) -> str:
        """The address for one client process."""
        if client not in self.ports:
            opening = asyncio.run_coroutine_threadsafe(self._open(client), self._loop)
            self.ports[client] = opening.result(10)
        return f"http://{HOST}:{self.ports[client]}"

    def reset(self, *rules: Rule) -> None:
        """Begin a scenario."""
        self.rules = list(rules)
        self.log = []

    def add(self, rule: Rule) -> Rule:
        """Add a rule now."""
        self.rules = [*self.rules, rule]
        return rule

    def send_later(self, seconds: float, raw: bytes) -> None:
        """Forward a request after a while; nobody waits for its reply."""

        async def send() -> None:
            await asyncio.sleep(seconds)
            with suppress(OSError, asyncio.IncompleteReadError):
                reader, writer = await asyncio.open_connection(HOST, self.upstream)
                writer.write(raw)
                await _head(reader)
                writer.close()

        self._late.add(self._loop.create_task(send()))

    def await_late(self) -> None:
        """Wait until every late request has arrived."""

        async def arrived() -> None:
            await asyncio.gather(*self._late)
            self._late.clear()

        asyncio.run_coroutine_threadsafe(arrived(), self._loop).result(60)

    async def _open(self, client: str) -> int:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            # The loop holds its tasks weakly: one that waits for a client that is gone would be
            # collected in the middle of it.
            task = asyncio.current_task()
            self._serving.add(task)
            try:
                await Connection(self, client, reader, writer).serve()
            finally:
                self._serving.discard(task)

        server = await asyncio.start_server(serve, HOST, 0, limit=HEAD_BYTES, backlog=1000)
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    async def _close(self) -> None:
        for server in self._servers:
            server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._loop.shutdown_default_executor()


@contextmanager
def running_proxy(upstream: int) -> Iterator[Proxy]:
    """A proxy in a thread, stopped at the end."""
    proxy = Proxy(upstream)
    thread = threading.Thread(target=proxy._loop.run_forever, name="proxy")
    thread.start()
    try:
        yield proxy
    finally:
        asyncio.run_coroutine_threadsafe(proxy._close(), proxy._loop).result(30)
        proxy._loop.call_soon_threadsafe(proxy._loop.stop)
        thread.join()
        proxy._loop.close()


@dataclass(slots=True)
class Connection:
    """One client's connection, and one to the server behind it."""

    proxy: Proxy
    client: str
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    server: Streams | None = None

    async def serve(self) -> None:
        """Forward requests until either side has had enough."""
        with suppress(_Gone, OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = await _head(self.reader)
                if head.headers.get("expect", "").lower() == "100-continue":
                    self.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                body = await _body(self.reader, head)
                method, target, _ = head.first.split(" ", 2)
                request = request_of(self.client, method, target, head.headers)
                await self._answer(request, head, body)
        self.writer.close()
        self._forget_server()

    async def _answer(self, request: Request, head: Message, body: bytes) -> None:
        if self.proxy.forwarding == self.proxy.capacity:
            self._say_error("503", request)
            self.proxy.log.append((request, "503"))
            return
        self.proxy.forwarding += 1
        try:
            await asyncio.sleep(self.proxy.service_seconds)
            await self._answer_by_rule(request, head, body)
        finally:
            self.proxy.forwarding -= 1

    async def _answer_by_rule(self, request: Request, head: Message, body: bytes) -> None:
        rule = struck(self.proxy.rules, request)
        act: str = "pass" if rule is None else rule.act
        try:
            if act != "lose":
                await self._call(rule, request)
            if act in ERRORS:
                self._say_error(act, request)
                return
            if act == "late" and rule is not None:
                self.proxy.send_later(rule.seconds, _without_expect(head) + body)
                self._say_error("503", request)
                return
            if act == "reset":
                sock: socket.socket = self.writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            if act in ("reset", "refuse"):
                raise _Gone
            if act == "delay" and rule is not None:
                await asyncio.sleep(rule.seconds)
            reply, data = await self._forwarded(request, head, body)
            if act == "lose":
                await self._call(rule, request)
                raise _Gone
            act = reply.first.split(" ")[1] if act in ("pass", "delay") else act
            self.writer.write(reply.raw + (data[: len(data) // 2] if act == "truncate" else data))
            await self.writer.drain()
            if act == "truncate" or reply.headers.get("connection", "").lower() == "close":
                raise _Gone
        finally:
            self.proxy.log.append((request, act))

    async def _call(self, rule: Rule | None, request: Request) -> None:
        if rule is None:
            return
        if rule.call is not None:
            await asyncio.to_thread(rule.call, request)
        rule.happened.set()

    def _say_error(self, act: str, request: Request) -> None:
        status, code = ERRORS[act]
        body = b"" if request.method == "HEAD" else f"<Error><Code>{code}</Code></Error>".encode()
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\n"
        self.writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    async def _forwarded(
        self, request: Request, head: Message, body: bytes
    ) -> tuple[Message, bytes]:
        for fresh in (self.server is None, True):
            try:
                reader, writer = await self._connected()
                writer.write(_without_expect(head) + body)
                await writer.drain()
                reply = await _head(reader)
                while reply.first.split(" ")[1] == "100":
                    reply = await _head(reader)
                has_body = request.method != "HEAD" and reply.first.split(" ")[1] not in (
                    "204",
                    "304",
                )
                return reply, await _body(reader, reply) if has_body else b""
            except (OSError, asyncio.IncompleteReadError, _Gone):
                # A connection that was kept may have been closed meanwhile.
                self._forget_server()
                if fresh:
                    raise _Gone from None
        raise AssertionError("the second connection is a fresh one")

    async def _connected(self) -> Streams:
        if self.server is None:
            self.server = await asyncio.open_connection(HOST, self.proxy.upstream, limit=HEAD_BYTES)
        return self.server

    def _forget_server(self) -> None:
        if self.server is not None:
            self.server[1].close()
        self.server = None


def _without_expect(head: Message) -> bytes:
    """The head of a request whose body is sent along at once."""
    lines = head.raw.split(b"\r\n")
    return b"\r\n".join(line for line in lines if not line.lower().startswith(b"expect:"))


async def _head(reader: asyncio.StreamReader) -> Message:
    raw = await reader.readuntil(b"\r\n\r\n")
    first, *lines = raw.decode("latin-1").rstrip("\r\n").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    return Message(first, raw, {name.strip().lower(): value.strip() for name, _, value in pairs})


async def _body(reader: asyncio.StreamReader, head: Message) -> bytes:
    """The body as it is on the wire."""
    if head.headers.get("transfer-encoding", "").lower() != "chunked":
        return await reader.readexactly(int(head.headers.get("content-length", 0)))
    data = bytearray()
    while True:
        line = await reader.readuntil(b"\r\n")
        size = int(line.split(b";")[0], 16)
        data += line + await reader.readexactly(size + 2)
        if size == 0:
            return bytes(data)
