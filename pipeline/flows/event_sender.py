"""Send events and log lines of task runs to the Prefect server, many in one request.

A background thread sends them: no batch waits for the server, and a run continues without it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Iterable, Mapping
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from threading import Condition, Lock, Thread
from typing import Any, cast
from uuid import UUID

import httpx
import orjson
from cachetools import LRUCache
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.context import FlowRunContext
from prefect.events.related import related_resources_from_run_context
from prefect.exceptions import PrefectException
from prefect.settings import get_current_settings

from pipeline.flows.server import own_client_options

MAX_IN_REQUEST = 400
"""Maximum events in one request; an event has about 1.5 kB."""
MAX_WAITING = 20_000
"""Maximum events that wait for an unavailable server; of more, the oldest are dropped."""
GATHER_SECONDS = 0.2
"""Seconds that the first event waits for others."""
FLUSH_SECONDS = 3.0
"""Seconds that a flow run waits at its end for Prefect to take its last lines and events."""
IDLE_SECONDS = 10.0
"""Seconds without events after which the thread ends; the next event starts another."""
TRANSIENT_STATUSES = (408, 425, 429, 502, 503, 504)
"""HTTP statuses of a busy or unavailable server; a retry would not change others."""
FIRST_PAUSE, MAX_PAUSE = 0.5, 20.0
"""Seconds between two attempts while the server is unavailable."""

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Origin:
    """The flow run of events, with the resources that each of them names.

    Create it in the context of the flow run.
    """

    context: Context | None = field(default_factory=copy_context)
    """None when they are known: a context holds all that its flow run has in memory."""
    _related: list[dict[str, str]] | None = None

    def related(self) -> list[dict[str, str]]:
        """List flow run, flow, deployment, work pool and tags; reads them once from the server."""
        if self._related is None:
            assert self.context is not None, "it is kept until they are known"
            resources = self.context.copy().run(asyncio.run, _related())
            self._related = [dict(resource.items()) for resource in resources]
            self.context = None
        return self._related


def current_origin() -> Origin:
    """Return the origin of the current flow run: one for all its events, with one request."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return Origin()
    with _lock:
        return _origins.setdefault(context.flow_run.id, Origin())


async def _related() -> list[Any]:
    async with get_client(httpx_settings=own_client_options()) as client:
        return list(await related_resources_from_run_context(client))


class EventSender:
    """Sends events and log lines to one server, in order."""

    def __init__(self, context: Context) -> None:
        """Create a sender; its thread starts with the first event.

        Args:
            context: A context in which Prefect's settings are those of the server.
        """
        self._context = context
        self._events: deque[tuple[Origin, bytes]] = deque()
        self._lines: deque[Mapping[str, Any]] = deque(maxlen=MAX_WAITING)
        self._changed = Condition()
        self._thread: Thread | None = None
        self._sending = 0
        self._is_hurried = self._is_away = False
        self._dropped = 0

    def send(
        self, origin: Origin, events: Iterable[bytes], lines: Iterable[Mapping[str, Any]] = ()
    ) -> None:
        """Queue events of task runs, and log lines."""
        with self._changed:
            self._events.extend((origin, event) for event in events)
            self._lines.extend(lines)
            while len(self._events) > MAX_WAITING:
                self._events.popleft()
                self._dropped += 1
            if self._thread is None and (self._events or self._lines):
                run = self._context.copy().run
                self._thread = Thread(target=run, args=(self._run,), name="events", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self, seconds: float) -> bool:
        """Wait up to `seconds` until everything is sent; returns whether it is."""
        deadline = time.monotonic() + seconds
        with self._changed:
            self._is_hurried = True
            self._changed.notify_all()
            try:
                while self._events or self._lines or self._sending:
                    if not self._changed.wait(deadline - time.monotonic()):
                        return False
            finally:
                self._is_hurried = False
        return True

    def _run(self) -> None:
        try:
            with get_client(httpx_settings=own_client_options(), sync_client=True) as client:
                self._send_all(client)
        except BaseException:
            with self._changed:
                self._thread = None
            raise

    def _send_all(self, client: SyncPrefectClient) -> None:
        pause = FIRST_PAUSE
        while self._wait():
            events, lines = self._take()
            problem = self._post(client, events, lines)
            with self._changed:
                if problem is None:
                    pause = FIRST_PAUSE
                    self._is_away = False
                else:
                    self._events.extendleft(reversed(events))
                    self._lines.extend(lines)
                self._sending = 0
                self._changed.notify_all()
                if problem is not None:
                    self._note(problem)
                    self._changed.wait_for(lambda: self._is_hurried, pause)
                    pause = min(2 * pause, MAX_PAUSE)
            if problem is not None and self._is_hurried:
                time.sleep(FIRST_PAUSE)

    def _wait(self) -> bool:
        """Wait for something to send, and a moment for more; False after IDLE_SECONDS."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._events or self._lines, IDLE_SECONDS):
                self._thread = None  # Under the lock: the next event starts another.
                return False
            self._changed.wait_for(
                lambda: self._is_hurried or len(self._events) >= MAX_IN_REQUEST, GATHER_SECONDS
            )
            return True

    def _take(self) -> tuple[list[tuple[Origin, bytes]], list[Mapping[str, Any]]]:
        with self._changed:
            count = min(len(self._events), MAX_IN_REQUEST)
            events = [self._events.popleft() for _ in range(count)]
            lines = [self._lines.popleft() for _ in range(min(len(self._lines), MAX_IN_REQUEST))]
            self._sending = len(events) + len(lines)
            return events, lines

    def _post(
        self,
        client: SyncPrefectClient,
        events: list[tuple[Origin, bytes]],
        lines: list[Mapping[str, Any]],
    ) -> Exception | None:
        """Send them; returns a transient problem. Data that the server refuses are dropped."""
        try:
            if events:
                body = b"[%b]" % b",".join(_with_related(*event) for event in events)
                headers = {"content-type": "application/json"}
                client.request("POST", cast(Any, "/events"), content=body, headers=headers)
                events.clear()
            if lines:
                client.create_logs([dict(line) for line in lines])
        except httpx.HTTPStatusError as error:
            if error.response.status_code in TRANSIENT_STATUSES:
                return error
            log.warning("Prefect refuses events of task runs: %s", error)
        except (PrefectException, httpx.HTTPError, OSError, RuntimeError) as error:
            return error
        return None

    def _note(self, problem: Exception) -> None:
        if not self._is_away:
            log.warning("the Prefect UI does not show task runs for now: %s", problem)
        self._is_away = True
        if self._dropped:
            log.warning(
                "Prefect was unavailable for so long that %d events are lost", self._dropped
            )
            self._dropped = 0


def _with_related(origin: Origin, event: bytes) -> bytes:
    """Add the resources of the flow run to those of the event (tags)."""
    key = "prefect.resource.id"
    parsed = orjson.loads(event)
    present = {resource[key] for resource in parsed["related"]} | {parsed["resource"][key]}
    parsed["related"] += [item for item in origin.related() if item[key] not in present]
    return orjson.dumps(parsed)


_senders: dict[tuple[Any, ...], EventSender] = {}
_origins: LRUCache[UUID, Origin] = LRUCache(maxsize=64)
_lock = Lock()


def event_sender() -> EventSender | None:
    """Return the sender to the server of Prefect's current settings; None if they name none."""
    api = get_current_settings().api
    if not api.url:
        return None
    with _lock:
        server = api.url, api.auth_string, api.key
        return _senders.setdefault(server, EventSender(copy_context()))


def flush_events(seconds: float) -> bool:
    """Wait up to `seconds` until all events of this process are sent; returns whether they are."""
    deadline = time.monotonic() + seconds
    with _lock:
        senders = list(_senders.values())
    return all(sender.flush(max(0.0, deadline - time.monotonic())) for sender in senders)
