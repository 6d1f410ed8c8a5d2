"""Sends the events and log lines of task runs to Prefect's server, many in one request.

In a thread of its own: the server is not on the way of any batch, and a run goes on without it.
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

import httpx
import orjson
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.events.related import related_resources_from_run_context
from prefect.exceptions import PrefectException
from prefect.settings import get_current_settings

MAX_IN_REQUEST = 400
"""Events in one request: each is about a kilobyte and a half."""
MAX_WAITING = 20_000
"""Events that wait for a server that is away; beyond, the oldest are dropped."""
GATHER_SECONDS = 0.2
"""How long the first event waits for others."""
IDLE_SECONDS = 10.0
"""After so long without events the thread ends, until there are more."""
MAY_PASS = (408, 425, 429, 502, 503, 504)
"""Statuses of a server that is busy or away; what it answers otherwise it would answer again."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 20.0
"""Seconds between two tries while the server is away."""

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Origin:
    """The flow run that events come from, with the resources that each of them names.

    To be made where the flow run's context is.
    """

    context: Context = field(default_factory=copy_context)
    _related: list[dict[str, str]] | None = None

    def related(self) -> list[dict[str, str]]:
        """The flow run, its flow, deployment, work pool and tags; asks the server once."""
        if self._related is None:
            found = self.context.copy().run(asyncio.run, _related())
            self._related = [dict(one.items()) for one in found]
        return self._related


async def _related() -> list[Any]:
    async with get_client(httpx_settings={}) as client:
        return list(await related_resources_from_run_context(client))


class EventSender:
    """Sends to one server, in order, whatever is given to it."""

    def __init__(self, context: Context) -> None:
        """Start nothing yet.

        Args:
            context: One in which Prefect's settings are those of the server.
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
        """Send events of task runs, and log lines, soon."""
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
        """Wait until everything is sent, but not longer than this; whether it is."""
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
            with get_client(httpx_settings={}, sync_client=True) as client:
                self._send_all(client)
        except BaseException:
            with self._changed:
                self._thread = None
            raise

    def _send_all(self, client: SyncPrefectClient) -> None:
        pause = FIRST_PAUSE
        while self._wait():
            events, lines = self._take()
            problem = self._try(client, events, lines)
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
                    pause = min(2 * pause, LONGEST_PAUSE)
            if problem is not None and self._is_hurried:
                time.sleep(FIRST_PAUSE)

    def _wait(self) -> bool:
        """Wait for something to send, and a moment for more; False if there is nothing for long."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._events or self._lines, IDLE_SECONDS):
                self._thread = None  # Under the lock: what comes now starts another.
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

    def _try(
        self,
        client: SyncPrefectClient,
        events: list[tuple[Origin, bytes]],
        lines: list[Mapping[str, Any]],
    ) -> Exception | None:
        """Send; returns the problem if it may pass. What the server refuses for good is dropped."""
        try:
            if events:
                body = b"[%b]" % b",".join(_with_related(*one) for one in events)
                headers = {"content-type": "application/json"}
                client.request("POST", cast(Any, "/events"), content=body, headers=headers)
                events.clear()
            if lines:
                client.create_logs([dict(line) for line in lines])
        except httpx.HTTPStatusError as error:
            if error.response.status_code in MAY_PASS:
                return error
            log.warning("Prefect refuses what its pages would show of task runs: %s", error)
        except (PrefectException, httpx.HTTPError, OSError, RuntimeError) as error:
            return error
        return None

    def _note(self, problem: Exception) -> None:
        if not self._is_away:
            log.warning("Prefect's pages do not show task runs for now: %s", problem)
        self._is_away = True
        if self._dropped:
            log.warning("Prefect was away for so long that %d events are lost", self._dropped)
            self._dropped = 0


def _with_related(origin: Origin, event: bytes) -> bytes:
    """An event with the resources of its flow run, beside its own (tags)."""
    parsed = orjson.loads(event)
    known = {one["prefect.resource.id"] for one in parsed["related"]}
    known.add(parsed["resource"]["prefect.resource.id"])
    more = [one for one in origin.related() if one["prefect.resource.id"] not in known]
    parsed["related"] += more
    return orjson.dumps(parsed)


_senders: dict[tuple[Any, ...], EventSender] = {}
_lock = Lock()


def event_sender() -> EventSender | None:
    """The sender to the server of Prefect's settings here; None if they name none."""
    api = get_current_settings().api
    if not api.url:
        return None
    with _lock:
        server = api.url, api.auth_string, api.key
        return _senders.setdefault(server, EventSender(copy_context()))


def flush_events(seconds: float) -> bool:
    """Wait until all events of this process are sent, but not longer than this."""
    deadline = time.monotonic() + seconds
    with _lock:
        senders = list(_senders.values())
    return all(one.flush(max(0.0, deadline - time.monotonic())) for one in senders)
