"""Limit concurrent requests, with a limit that falls when S3 throttles and then recovers.

Additive increase and multiplicative decrease, as in TCP (Chiu and Jain, 1989): a refusal for load
halves the limit, and requests that get through raise it again, one by one. Each process adapts
alone. The processes of a cluster that share a service are refused alike, so that their sum falls
and recovers in the same way; each keeps at least one request in flight.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from threading import Lock

from pipeline import metrics

RAISE_AFTER = 10
"""Requests per slot that must get through before a slot is added. Fewer would recover sooner, and
be refused more often while the service is at its limit: about once per RAISE_AFTER × limit² / 3."""


class Gate:
    """A fair semaphore for threads and event loops together, with an adaptive limit.

    The limit covers both obstore's requests, which are made in any thread, and s3fs's requests,
    which are made on an event loop. Neither kind of standard semaphore covers both.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        """Maximum number of concurrent requests now."""
        self.generation = 0
        """Number of times that the limit was halved."""
        self._most = limit
        self._inside = 0
        self._passed = 0
        """Requests that got through since the limit changed, while it was used up."""
        self._waiting: deque[Future[None]] = deque()
        self._lock = Lock()

    def enter(self) -> Future[None] | None:
        """Take a slot; if none is free, return a future that is done once there is one."""
        with self._lock:
            if self._inside < self.limit:
                self._inside += 1
                return None
            turn: Future[None] = Future()
            self._waiting.append(turn)
            return turn

    def leave(self) -> None:
        """Free the slot, which the first waiter gets."""
        with self._lock:
            self._inside -= 1
            self._let_in()

    def give_up(self, turn: Future[None]) -> None:
        """Stop waiting; a slot that has just been assigned is passed on."""
        if not turn.cancel():
            self.leave()

    def throttled(self, generation: int) -> int:
        """Halve the limit because a request was refused; return the limit.

        Requests that were sent before the limit was last halved do not halve it again.

        Args:
            generation: `generation` when the request was sent.
        """
        with self._lock:
            if generation == self.generation:
                self.generation += 1
                self._set(max(1, min(self.limit, self._inside) // 2))
            return self.limit

    def passed(self) -> None:
        """Count a request that got through, and add a slot after enough of them."""
        if self.limit == self._most:
            return
        with self._lock:
            # Requests that do not use up the limit do not show that the service accepts more.
            if self._inside < self.limit:
                return
            self._passed += 1
            if self._passed >= RAISE_AFTER * self.limit:
                self._set(min(self._most, self.limit + 1))
                self._let_in()

    def _set(self, limit: int) -> None:
        self.limit, self._passed = limit, 0
        metrics.REQUEST_LIMIT.set(limit)

    def _let_in(self) -> None:
        while self._waiting and self._inside < self.limit:
            turn = self._waiting.popleft()
            if turn.set_running_or_notify_cancel():
                self._inside += 1
                turn.set_result(None)
