"""Slots of Prefect's global concurrency limits, held by the driver while batches are under way.

Workers have no access to Prefect's server. A thread of the driver asks for slots, and renews the
leases of those that are held; nothing waits for it but the batches that have no slot yet. Where
Prefect does not answer, batches go on without.
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

from pipeline.flows.server import patient

LEASE_SECONDS = 120.0
"""How long a slot stays taken by a driver that is gone."""
RENEW_SECONDS = LEASE_SECONDS / 4
ASK_SECONDS = 1.0
"""How often Prefect is asked again while all slots are taken."""
SLOT_RETRIES = 4
"""How often Prefect is asked again when it does not answer."""
AWAY_SECONDS = 300.0
"""How long batches go on without asking, after Prefect did not answer."""
NO_LIMIT_SECONDS = 5.0
"""How long it is remembered that there are no such limits, as Prefect's own client does."""
LOCKED = 423

PROBLEMS = (PrefectException, httpx.HTTPError, OSError, RuntimeError, ValueError)
log = logging.getLogger(__name__)


@dataclass
class _Lease:
    id: UUID | None
    """None for a batch that goes on without a slot."""
    renewed: float


@dataclass(eq=False)
class Slots:
    """One slot of each limit for each name that asks for one, in the order in which they ask.

    To be made where Prefect's settings are those of the server. Names are of batches.
    """

    limits: Sequence[str]
    most: int = 1
    """Most slots to hold: as many as batches can run at this moment. May be changed."""
    _wanted: list[str] = field(default_factory=list)
    _held: dict[str, _Lease] = field(default_factory=dict)
    _new: list[str] = field(default_factory=list)
    _given_back: list[UUID] = field(default_factory=list)
    _changed: Condition = field(default_factory=Condition)
    _thread: Thread | None = None
    _free_until: float = 0.0
    """Until then no slot is needed: there is no such limit, or no server."""
    _changes: int = 0
    """Of what is wanted and given back."""

    def want(self, name: str) -> None:
        """Ask for a slot; `granted` tells when it is there."""
        with self._changed:
            self._wanted.append(name)
            self._changes += 1
            if self._thread is None:
                run = copy_context().run
                self._thread = Thread(target=run, args=(self._run,), name="slots", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def granted(self, seconds: float = 0.0) -> list[str]:
        """Names that have got their slot since the last call; waits for the first one."""
        with self._changed:
            self._changed.wait_for(lambda: self._new, seconds)
            names, self._new = self._new, []
            return names

    def release(self, name: str) -> None:
        """Give a slot back, or do not want it any more."""
        with self._changed:
            if name in self._wanted:
                self._wanted.remove(name)
            if name in self._new:
                self._new.remove(name)
            lease = self._held.pop(name, None)
            if lease is not None and lease.id is not None:
                self._given_back.append(lease.id)
            self._changes += 1
            self._changed.notify_all()

    def _run(self) -> None:
        """Ask, renew and give back, until nothing is wanted or held."""
        with patient(SLOT_RETRIES), get_client(httpx_settings={}, sync_client=True) as client:
            while True:
                seen = self._changes
                self._give_back(client)
                self._renew(client)
                pause = self._ask(client)
                with self._changed:
                    if not (self._wanted or self._held or self._given_back):
                        self._thread = None  # Under the lock: who wants one starts another.
                        return
                    if pause:
                        self._changed.wait_for(partial(self._has_changed_since, seen), pause)

    def _has_changed_since(self, seen: int) -> bool:
        return self._changes != seen

    def _give_back(self, client: SyncPrefectClient) -> None:
        with self._changed:
            leases, self._given_back = self._given_back, []
        for lease in leases:
            try:
                client.release_concurrency_slots_with_lease(lease)
            except PROBLEMS as error:
                log.warning("a slot of %s stays taken until its lease ends: %s", self._what, error)

    def _renew(self, client: SyncPrefectClient) -> None:
        due = time.monotonic() - RENEW_SECONDS
        with self._changed:
            leases = [one for one in self._held.values() if one.id and one.renewed < due]
        for lease in leases:
            lease.renewed = time.monotonic()
            try:
                if lease.id is not None:
                    client.renew_concurrency_lease(lease.id, LEASE_SECONDS)
            except PROBLEMS as error:
                # Another may take the slot as well: better than to stop a batch that runs.
                log.warning("a lease of %s is not renewed: %s", self._what, error)

    def _ask(self, client: SyncPrefectClient) -> float:
        """Ask for the next slot, if one is wanted; returns for how long there is nothing to do."""
        with self._changed:
            if not self._wanted or len(self._held) >= max(1, self.most):
                return ASK_SECONDS
            is_free = time.monotonic() < self._free_until
        lease = None if is_free else self._lease(client)
        if isinstance(lease, float):
            return lease
        with self._changed:
            if not self._wanted:
                if lease is not None:
                    self._given_back.append(lease)
                return 0.0
            name = self._wanted.pop(0)
            self._held[name] = _Lease(lease, time.monotonic())
            self._new.append(name)
            self._changed.notify_all()
        return 0.0

    def _lease(self, client: SyncPrefectClient) -> UUID | float | None:
        """A lease; or for how long to wait before asking again; or None: go on without."""
        try:
            answer = client.increment_concurrency_slots_with_lease(
                names=list(self.limits), slots=1, mode="concurrency", lease_duration=LEASE_SECONDS
            )
            found = ConcurrencyLimitWithLeaseResponse.model_validate(answer.json())
        except httpx.HTTPStatusError as error:
            if error.response.status_code == LOCKED:
                return ASK_SECONDS
            self._without(error)
            return None
        except PROBLEMS as error:
            self._without(error)
            return None
        if found.limits:
            return found.lease_id
        self._free_until = time.monotonic() + NO_LIMIT_SECONDS
        return None

    def _without(self, error: Exception) -> None:
        self._free_until = time.monotonic() + AWAY_SECONDS
        log.warning("goes on without a slot of %s: %s", self._what, error)

    @property
    def _what(self) -> str:
        return f"the limit {', '.join(self.limits)}"
