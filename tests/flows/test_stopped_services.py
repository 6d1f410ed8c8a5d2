"""What Prefect's background services hold is gone when a run has drained them."""

from __future__ import annotations

import gc
import threading
import weakref
from contextvars import ContextVar
from typing import Any

from prefect._internal.concurrency.services import QueueService

from pipeline.flows.server import _forget_stopped_services

HANDLED: list[str] = []


class Service(QueueService[str]):
    """Does nothing with what it gets."""

    async def _handle(self, item: str) -> None:
        HANDLED.append(item)


class Held:
    """Stands for the plan, the ledger and the clients of a run."""


HELD: ContextVar[Held] = ContextVar("held")


def test_a_stopped_service_and_the_context_that_started_it_are_let_go() -> None:
    held = Held()
    token = HELD.set(held)
    Service.instance().send("a line of its log")
    HELD.reset(token)
    left = weakref.ref(held)
    del held, token
    _forget_stopped_services()
    gc.collect()
    assert left() is not None, "it runs"
    Service.drain_all(timeout=30)
    assert HANDLED == ["a line of its log"]
    _forget_stopped_services()
    gc.collect()
    assert left() is None
    exits: list[Any] = getattr(threading, "_threading_atexits")  # noqa: B009
    assert not [call for call in exits if "Service object" in repr(call)]
