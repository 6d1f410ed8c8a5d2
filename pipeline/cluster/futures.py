"""Submit functions to Dask, wait for their futures, and tell what became of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from distributed import Future
    from prefect_dask import DaskTaskRunner

Fate = Literal["finished", "error", "killed", "cancelled", "lost"]
"""How a future ended: `killed` took its worker with it, `lost` vanished with the scheduler."""


def pickled(value: Any) -> bytes:
    """A value as Dask sends it: with functions by value that workers cannot import."""
    from distributed.protocol.pickle import dumps

    found: bytes = dumps(value)
    return found


def submit(
    runner: DaskTaskRunner, key: str, function: Callable[..., Any], *arguments: Any
) -> Future[Any]:
    """Run a function on the cluster.

    Args:
        runner: The flow's task runner.
        key: Of Dask's future; used once.
        function: To be found in a module that workers have.
        arguments: Its arguments.
    """
    # With a key and not pure: else Dask pickles everything only to make up a name.
    client: Any = runner.client
    future: Future[Any] = client.submit(function, *arguments, key=key, pure=False)
    return future


def announce(topic: str, message: Any) -> None:
    """Tell the drivers that listen, from a worker; outside of one nobody is told.

    Args:
        topic: Of Dask's events. The scheduler keeps the last thousand of each.
        message: Plain data.
    """
    from distributed import get_worker

    with suppress(ValueError):
        get_worker().log_event(topic, message)


def listen(runner: DaskTaskRunner, topic: str, take: Callable[[Any], None]) -> None:
    """Let a function take each message that workers announce from now on.

    Args:
        runner: A task runner on their cluster. One function for each topic.
        topic: Of Dask's events.
        take: Called in the client's own thread, with whatever any worker sent.
    """
    client: Any = runner.client
    client.subscribe_topic(topic, lambda event: take(event[1]))


@contextmanager
def prioritised(priority: int) -> Iterator[None]:
    """Submit tasks with a priority: the scheduler hands out higher ones first."""
    from dask.base import annotate

    with annotate(priority=priority) if priority else nullcontext():
        yield


def connection_errors() -> tuple[type[BaseException], ...]:
    """What submitting raises when the scheduler is gone."""
    from distributed.client import ClosedClientError, FutureCancelledError, FuturesCancelledError
    from distributed.comm.core import CommClosedError

    cancelled = (FutureCancelledError, FuturesCancelledError)
    return (CommClosedError, ClosedClientError, *cancelled, OSError, TimeoutError)


def wait_any(futures: Sequence[Future[Any]], seconds: float) -> None:
    """Return when one of the futures is done, whatever way, or the time is up."""
    from distributed import wait

    with suppress(*connection_errors()), futures[0].client.as_current():
        wait(list(futures), timeout=seconds, return_when="FIRST_COMPLETED")


def fate(future: Future[Any]) -> tuple[Fate | None, str]:
    """What became of a future (None while it is under way), and what is known of it."""
    from distributed import KilledWorker

    match future.status:
        case "pending":
            return None, ""
        case "cancelled":
            return "cancelled", "the Dask future was cancelled"
        case "lost":
            return "lost", "the scheduler lost it"
        case "error":
            error = future.exception()
            if isinstance(error, KilledWorker):
                return "killed", f"{error.last_worker.address} and others died with it"
            return "error", f"{type(error).__name__}: {error}"
    return "finished", ""


def worker_name() -> str:
    """The name of the Dask worker that runs this, or of this process."""
    from distributed import get_worker

    try:
        return str(get_worker().name)
    except ValueError:
        return f"process-{os.getpid()}"


def is_leaving() -> bool:
    """Whether the Dask worker that runs this has been told to stop, or to retire."""
    from distributed import get_worker
    from distributed.core import Status

    try:
        return get_worker().status not in (Status.running, Status.paused)
    except ValueError:
        return False
