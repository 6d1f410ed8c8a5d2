"""The limit on concurrent requests falls when the service throttles, and recovers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import metrics
from pipeline.errors import ThrottledError, TransientStorageError
from pipeline.storage.request_gate import RAISE_AFTER, Gate
from pipeline.storage.retry import RetryPolicy
from pipeline.storage.s3_requests import Requests

URI = "s3://bucket/key"


class Callers:
    """Callers of a gate that enter, wait, give up, and leave, as a machine says."""

    def __init__(self, limit: int) -> None:
        self.gate = Gate(limit)
        self.inside: list[int] = []
        """Generation in which each request inside was sent."""
        self.waiting: list[Future[None]] = []

    def enter(self) -> None:
        turn = self.gate.enter()
        if turn is None:
            self.inside.append(self.gate.generation)
        else:
            self.waiting.append(turn)

    def give_up(self) -> None:
        if self.waiting:
            self.gate.give_up(self.waiting.pop())
        self._let_in()

    def passed(self) -> None:
        if self.inside:
            self.gate.passed()
            self._leave()

    def throttled(self) -> None:
        if self.inside:
            before, sent = self.gate.limit, self.inside[0]
            is_news = sent == self.gate.generation
            limit = self.gate.throttled(sent)
            assert limit == self.gate.limit
            assert limit <= max(1, before // 2) if is_news else limit == before
            self._leave()

    def failed(self) -> None:
        if self.inside:
            self._leave()

    def _leave(self) -> None:
        self.inside.pop(0)
        self.gate.leave()
        self._let_in()

    def _let_in(self) -> None:
        self.inside += [self.gate.generation for turn in self.waiting if turn.done()]
        self.waiting = [turn for turn in self.waiting if not turn.done()]


ACTS: dict[str, Callable[[Callers], None]] = {
    name: getattr(Callers, name) for name in ("enter", "give_up", "passed", "throttled", "failed")
}


@given(st.integers(1, 20), st.lists(st.sampled_from([*ACTS, "enter", "passed"]), max_size=200))
def test_nobody_waits_while_a_slot_is_free(limit: int, acts: list[str]) -> None:
    callers = Callers(limit)
    for act in acts:
        before = len(callers.inside)
        ACTS[act](callers)
        assert 1 <= callers.gate.limit <= limit
        assert len(callers.inside) <= max(before, callers.gate.limit)
        assert not callers.waiting or len(callers.inside) >= callers.gate.limit
    while callers.inside:
        callers.failed()
    assert not callers.waiting


@pytest.mark.parametrize("limit", [1, 2, 7, 16])
def test_a_gate_recovers_to_its_first_limit(limit: int) -> None:
    callers = Callers(limit)
    for _ in range(limit + 1):  # One waits, so that the limit is used up all the time.
        callers.enter()
    while callers.gate.limit > 1:
        callers.throttled()
        callers.enter()
    while len(callers.inside) > 1:
        callers.failed()
    for _ in range(RAISE_AFTER * limit * (limit + 1)):
        while len(callers.waiting) < 2:
            callers.enter()
        callers.passed()
    assert callers.gate.limit == limit


def test_a_limit_that_is_not_used_up_stays() -> None:
    gate = Gate(8)
    for _ in range(8):
        gate.enter()
    assert gate.throttled(gate.generation) == 4
    for _ in range(7):
        gate.leave()
    for _ in range(1000):
        gate.passed()
    assert gate.limit == 4


class Service:
    """Serves some requests at a time, and refuses any more."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.refused = self.served = self._now = 0

    async def serve(self) -> None:
        if self._now >= self.capacity:
            self.refused += 1
            raise ThrottledError("503 SlowDown")
        self._now += 1
        await asyncio.sleep(0.001)
        self._now -= 1
        self.served += 1


def test_many_callers_converge_at_what_the_service_takes() -> None:
    requests, service = Requests(128), Service(8)
    policy = RetryPolicy(attempts=1, wait_initial=0.005, wait_max=0.05)
    limits: list[int] = []
    tally = metrics.RequestTally()

    async def call() -> None:
        async for attempt in policy.contexts():
            with attempt:
                async with requests.sending("get", URI):
                    await service.serve()
        limits.append(requests.limit)

    async def run() -> None:
        await asyncio.gather(*(call() for _ in range(4000)))

    before = metrics.THROTTLED._value.get()
    with metrics.counting(tally):
        asyncio.run(run())
    assert service.served == 4000
    assert max(limits[1000:]) <= 2 * service.capacity
    # With a limit that stays, 128 callers are refused for ever: 240,000 times in 45 s.
    assert 0 < service.refused < 1_000
    counts = tally.counts()
    assert counts.throttled == service.refused == metrics.THROTTLED._value.get() - before
    assert 1 <= counts.request_limit <= service.capacity


def test_other_errors_leave_the_limit() -> None:
    requests = Requests(4)
    for _ in range(9):
        with pytest.raises(TransientStorageError), requests.sent("put", URI):
            raise ConnectionError("reset")
    assert requests.limit == 4


def test_throttled_attempts_are_no_failures() -> None:
    policy = RetryPolicy(attempts=2, throttled_attempts=5, wait_initial=0.0, wait_max=0.0)
    errors = [ThrottledError("busy")] * 4 + [TransientStorageError("lost")]

    def call() -> str:
        for attempt in policy.contexts():
            with attempt:
                if errors:
                    raise errors.pop()
                return "done"
        raise AssertionError

    assert call() == "done"
    errors += [ThrottledError("busy")] * 5
    with pytest.raises(ThrottledError):
        call()
    errors += [TransientStorageError("lost")] * 2
    with pytest.raises(TransientStorageError):
        call()
