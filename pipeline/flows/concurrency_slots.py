"""Hold slots of Prefect's global concurrency limits in the driver while batches are in flight.

Workers have no access to the Prefect server. A thread of the driver requests slots, and renews the
leases of those that are held; only batches without a slot wait for it. If Prefect does not answer,
batches run without slots.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from threading import Condition, Thread
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.responses import ConcurrencyLimitWithLeaseResponse
from prefect.exceptions import PrefectException

from pipeline.flows.server import own_client_options, patient

LEASE_SECONDS = 120.0
"""Seconds until the slots of a dead driver are free again."""
RENEW_SECONDS = LEASE_SECONDS / 4
"""Seconds between two renewals of a lease."""
ASK_SECONDS = 1.0
"""Seconds between two requests while all slots are taken."""
SLOT_RETRIES = 4
"""Retries of a request for a slot."""
AWAY_SECONDS = 300.0
"""Seconds for which batches run without slots after Prefect did not answer."""
NO_LIMIT_SECONDS = 5.0
"""Seconds for which it is remembered that the limits do not exist, as in Prefect's own client."""
LOCKED = 423
"""HTTP status of Prefect when all slots are taken."""

PROBLEMS = (PrefectException, httpx.HTTPError, OSError, RuntimeError, ValueError)
log = logging.getLogger(__name__)


@dataclass
class _Lease:
    id: UUID | None
    """Id in Prefect; None for a batch that runs without a slot."""
    renewed: float


@dataclass(eq=False)
class Slots:
    """Gives each batch one slot of each limit, in the order of requests.

    Create it where Prefect's settings are those of the server.
    """

    limits: Sequence[str]
    max_held: int = 1
    """Maximum number of slots to hold: the batches that can run now. May be changed."""
    _wanted: list[str] = field(default_factory=list)
    _held: dict[str, _Lease] = field(default_factory=dict)
    _new: list[str] = field(default_factory=list)
    _to_release: list[UUID] = field(default_factory=list)
    _changed: Condition = field(default_factory=Condition)
    _thread: Thread | None = None
    _free_until: float = 0.0
    """Moment until which no slot is needed, since there is no such limit or no server."""
    _changes: int = 0
    """Number of requests and releases so far."""

    def request(self, name: str) -> None:
        """Request a slot for a batch; `granted` returns its name when it has one."""
        with self._changed:
            self._wanted.append(name)
            self._changes += 1
            if self._thread is None:
                run = copy_context().run
                self._thread = Thread(target=run, args=(self._run,), name="slots", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def granted(self, seconds: float = 0.0) -> list[str]:
        """Return names that got their slot since the last call; wait up to `seconds` for one."""
        with self._changed:
            self._changed.wait_for(lambda: self._new, seconds)
            names, self._new = self._new, []
            return names

    def release(self, name: str) -> None:
        """Release a slot, or withdraw its request."""
        with self._changed:
            if name in self._wanted:
                self._wanted.remove(name)
            if name in self._new:
                self._new.remove(name)
            lease = self._held.pop(name, None)
            if lease is not None and lease.id is not None:
                self._to_release.append(lease.id)
            self._changes += 1
            self._changed.notify_all()

    def _run(self) -> None:
        """Request, renew and release slots until none is wanted or held."""
        try:
            options = own_client_options()
            with (
                patient(SLOT_RETRIES),
                get_client(httpx_settings=options, sync_client=True) as client,
            ):
                self._serve(client)
        except Exception as error:
            # Whatever the client raises: batches would wait for this thread for ever.
            self._grant_all(error)

    def _serve(self, client: SyncPrefectClient) -> None:
        while True:
            changes = self._changes
            self._release_leases(client)
            self._renew(client)
            pause = self._ask(client)
            with self._changed:
                if not (self._wanted or self._held or self._to_release):
                    self._thread = None  # Under the lock: the next request starts another.
                    return
                if pause:
                    self._changed.wait_for(partial(self._has_changed_since, changes), pause)

    def _grant_all(self, error: Exception) -> None:
        """Let all batches that wait run without a slot; the next request starts another thread."""
        self._run_without_slots(error)
        with self._changed:
            names, self._wanted = self._wanted, []
            now = time.monotonic()
            self._held |= {name: _Lease(None, now) for name in names}
            self._new += names
            self._thread = None
            self._changed.notify_all()

    def _has_changed_since(self, changes: int) -> bool:
        return self._changes != changes

    def _release_leases(self, client: SyncPrefectClient) -> None:
        with self._changed:
            leases, self._to_release = self._to_release, []
        for lease in leases:
            try:
                client.release_concurrency_slots_with_lease(lease)
            except PROBLEMS as error:
                log.warning("a slot of %s stays taken until its lease ends: %s", self._what, error)

    def _renew(self, client: SyncPrefectClient) -> None:
        due = time.monotonic() - RENEW_SECONDS
        with self._changed:
            leases = [lease for lease in self._held.values() if lease.id and lease.renewed < due]
        for lease in leases:
            lease.renewed = time.monotonic()
            try:
                if lease.id is not None:
                    client.renew_concurrency_lease(lease.id, LEASE_SECONDS)
            except PROBLEMS as error:
                # Another batch may get the slot too; that is better than stopping this one.
                log.warning("a lease of %s is not renewed: %s", self._what, error)

    def _ask(self, client: SyncPrefectClient) -> float:
        """Request the next slot, if one is wanted; returns how long to wait before the next."""
        with self._changed:
            if not self._wanted or len(self._held) >= max(1, self.max_held):
                return ASK_SECONDS
            is_free = time.monotonic() < self._free_until
        lease = None if is_free else self._lease(client)
        if isinstance(lease, float):
            return lease
        with self._changed:
            if not self._wanted:
                if lease is not None:
                    self._to_release.append(lease)
                return 0.0
            name = self._wanted.pop(0)
            self._held[name] = _Lease(lease, time.monotonic())
            self._new.append(name)
            self._changed.notify_all()
        return 0.0

    def _lease(self, client: SyncPrefectClient) -> UUID | float | None:
        """Return a lease, or the seconds to wait, or None to run without a slot."""
        try:
            answer = client.increment_concurrency_slots_with_lease(
                names=list(self.limits), slots=1, mode="concurrency", lease_duration=LEASE_SECONDS
            )
            response = ConcurrencyLimitWithLeaseResponse.model_validate(answer.json())
        except httpx.HTTPStatusError as error:
            if error.response.status_code == LOCKED:
                return ASK_SECONDS
            self._run_without_slots(error)
            return None
        except PROBLEMS as error:
            self._run_without_slots(error)
            return None
        if response.limits:
            return response.lease_id
        self._free_until = time.monotonic() + NO_LIMIT_SECONDS
        return None

    def _run_without_slots(self, error: Exception) -> None:
        self._free_until = time.monotonic() + AWAY_SECONDS
        log.warning("batches run without a slot of %s: %s", self._what, error)

    @property
    def _what(self) -> str:
        return f"the limit {', '.join(self.limits)}"
