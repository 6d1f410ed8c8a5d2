"""Receive notifications about new objects over HTTP, and emit a Prefect event per burst.

Notifications that have not been passed on when the receiver dies are found by the next scheduled
run of the job, which compares its input with what it has published.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from socket import socket
from typing import Any
from uuid import uuid4

import uvicorn
from prefect.client.orchestration import get_client
from prefect.events import Event, Resource
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from pipeline.config.deploy_file import OBJECTS_CREATED
from pipeline.flows.object_events import Burst, Debouncer, NotificationError, created_objects

MAX_BYTES = 1 << 20
"""Maximum size of a message; SNS and SQS send at most 1 MiB."""
REQUESTS_PER_SECOND = 200.0
"""Maximum mean speed of requests; a burst may have as many at once."""
RETRY_SECONDS = 5.0
"""Seconds until the next attempt while the Prefect server is away."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class RateLimit:
    """A token bucket.

    Attributes:
        speed: Requests per second.
    """

    speed: float
    _left: float = field(init=False)
    _at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._left = self.speed

    def take(self) -> bool:
        """Take one request; return whether there was one left."""
        now = time.monotonic()
        self._left = min(self.speed, self._left + (now - self._at) * self.speed)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


@dataclass(slots=True)
class Receiver:
    """Takes notifications and passes bursts on.

    Attributes:
        token: What senders must know.
        debouncer: Gathers bursts.
    """

    token: str
    debouncer: Debouncer
    limit: RateLimit = field(default_factory=lambda: RateLimit(REQUESTS_PER_SECOND))
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def app(self) -> Starlette:
        """Return the application: `POST /objects` and `GET /health`."""
        return Starlette(
            routes=[
                Route("/objects", self._objects, methods=["POST"]),
                Route("/health", self._health, methods=["GET"]),
            ],
            lifespan=self._lifespan,
        )

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(self._pass_on())
        yield
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        # What was received is not lost when the receiver is stopped, unless Prefect is away.
        await self._send(self.debouncer.take(time.monotonic(), all_of_them=True))

    async def _health(self, request: Request) -> JSONResponse:
        return JSONResponse({"pending": self.debouncer.pending})

    async def _objects(self, request: Request) -> JSONResponse:
        if not self._is_authorised(request.headers.get("authorization", "")):
            return JSONResponse({"error": "wrong or missing token"}, 401)
        if not self.limit.take():
            return JSONResponse({"error": "too many requests"}, 429, {"Retry-After": "1"})
        body = await _read(request)
        if body is None:
            return JSONResponse({"error": f"more than {MAX_BYTES:,} bytes"}, 413)
        try:
            message = json.loads(body)
            if isinstance(message, dict) and message.get("Type") == "SubscriptionConfirmation":
                # Not opened here: a sender with the token could make the receiver ask any host.
                log.warning("to confirm the subscription, open %s", message.get("SubscribeURL"))
                return JSONResponse({"objects": 0}, 202)
            uris = created_objects(message)
        except NotificationError as error:
            return JSONResponse({"error": str(error)}, 422)
        except (ValueError, RecursionError):
            return JSONResponse({"error": "not JSON"}, 400)
        now = time.monotonic()
        watched = sum(self.debouncer.add(uri, now) for uri in uris)
        self._changed.set()
        return JSONResponse({"objects": watched}, 202)

    def _is_authorised(self, header: str) -> bool:
        """Whether a header has the token: as bearer, or as the password that SNS puts in a URL."""
        scheme, _, value = header.partition(" ")
        if scheme.lower() == "basic":
            with suppress(ValueError):
                value = base64.b64decode(value, validate=True).decode().partition(":")[2]
        elif scheme.lower() != "bearer":
            return False
        return hmac.compare_digest(value.encode(), self.token.encode())

    async def _pass_on(self) -> None:
        while True:
            due = self.debouncer.next_due
            wait = None if due is None else max(0.0, due - time.monotonic())
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), wait)
            self._changed.clear()
            bursts = self.debouncer.take(time.monotonic())
            if not await self._send(bursts):
                await asyncio.sleep(RETRY_SECONDS)

    async def _send(self, bursts: Sequence[Burst]) -> bool:
        """Send an event per burst; return whether all were sent. The others are kept."""
        waiting = list(bursts)
        try:
            while waiting:
                await _emit(waiting[0])
                log.info("%d new objects below %s", waiting[0].count, waiting[0].prefix)
                waiting.pop(0)
        except Exception as error:
            # Whatever the client raises: the burst must not be lost.
            log.warning("the Prefect server takes no event: %s", error)
        finally:
            for burst in waiting:  # Also if the receiver is stopped meanwhile.
                self.debouncer.put_back(burst)
        return not waiting


async def _read(request: Request) -> bytes | None:
    """Return the body; None if it is too large, of which no more than that is read."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BYTES:
            return None
    return body


async def _emit(burst: Burst) -> None:
    payload: dict[str, Any] = {"objects": burst.count, "example": burst.example}
    event = Event(
        id=uuid4(),
        event=OBJECTS_CREATED,
        resource=Resource({"prefect.resource.id": burst.prefix}),
        payload=payload,
    )
    path: Any = "/events"
    async with get_client() as client:
        await client.request("POST", path, json=[event.model_dump(mode="json")])


def serve(receiver: Receiver, host: str, port: int, started: Callable[[int], None]) -> None:
    """Serve until the process is stopped.

    Args:
        receiver: The receiver.
        host: Address to listen at.
        port: Port; 0 for a free one.
        started: Called with the port that is listened at.
    """
    server, listener = make_server(receiver, host, port)
    started(listener.getsockname()[1])
    server.run([listener])


def make_server(receiver: Receiver, host: str, port: int) -> tuple[uvicorn.Server, socket]:
    """Return a server that is not running yet, and the socket at which senders wait for it."""
    config = uvicorn.Config(
        receiver.app(), host, port, log_level="warning", access_log=False, server_header=False
    )
    listener = config.bind_socket()
    listener.listen()
    return uvicorn.Server(config), listener
