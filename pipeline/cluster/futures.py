"""Submit functions to Dask, wait for their futures, and read their outcomes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from distributed import Future
    from prefect_dask import DaskTaskRunner

Fate = Literal["finished", "error", "killed", "cancelled", "lost"]
"""How a future ended. `killed`: its workers died; `lost`: the scheduler has forgotten it."""


def pickled(value: Any) -> bytes:
    """Pickle a value as Dask does: functions that workers cannot import are included by value."""
    from distributed.protocol.pickle import dumps

    data: bytes = dumps(value)
    return data


def submit(
    runner: DaskTaskRunner,
    key: str,
    function: Callable[..., Any],
    *arguments: Any,
    resources: Mapping[str, float] | None = None,
) -> Future[Any]:
    """Run a function on the cluster.

    Args:
        runner: The flow's task runner.
        key: The unique key of Dask's future.
        function: A function of a module that workers have.
        arguments: Its arguments.
        resources: Resources that it needs of its worker; Dask waits for a worker that has them.
    """
    # With a key and not pure: otherwise Dask pickles everything to derive a name.
    client: Any = runner.client
    needs = dict(resources) if resources else None
    future: Future[Any] = client.submit(function, *arguments, key=key, pure=False, resources=needs)
    return future


def announce(topic: str, message: Any) -> None:
    """Send a message from a worker to the drivers that listen; do nothing outside a worker.

    Args:
        topic: A topic of Dask's events. The scheduler keeps the last thousand events of each.
        message: Plain data.
    """
    from distributed import get_worker

    with suppress(ValueError):
        get_worker().log_event(topic, message)


def listen(runner: DaskTaskRunner, topic: str, take: Callable[[Any], None]) -> None:
    """Call a function with each message that workers announce from now on.

    Args:
        runner: A task runner on their cluster. A topic has one function.
        topic: A topic of Dask's events.
        take: Called in the client's thread, with untrusted data of any worker.
    """
    client: Any = runner.client
    client.subscribe_topic(topic, lambda event: take(event[1]))


def call_worker(
    runner: DaskTaskRunner, address: str, function: Callable[..., Any], *arguments: Any
) -> None:
    """Call a function in a worker without waiting for it, as a handler of `listen` must."""
    client: Any = runner.client
    call = partial(client.run, function, *arguments, workers=[address], on_error="ignore")
    client.loop.add_callback(partial(call, asynchronous=True))


@contextmanager
def prioritised(priority: int) -> Iterator[None]:
    """Submit tasks of the block with a priority; the scheduler runs higher ones first."""
    from dask.base import annotate

    with annotate(priority=priority) if priority else nullcontext():
        yield


def connection_errors() -> tuple[type[BaseException], ...]:
    """List the errors that submitting raises if the scheduler is unavailable."""
    from distributed.client import ClosedClientError, FutureCancelledError, FuturesCancelledError
    from distributed.comm.core import CommClosedError

    cancelled = (FutureCancelledError, FuturesCancelledError)
    return (CommClosedError, ClosedClientError, *cancelled, OSError, TimeoutError)


def wait_any(futures: Sequence[Future[Any]], seconds: float) -> None:
    """Wait until one of the futures has ended in any way, or for `seconds`."""
    from distributed import wait

    with suppress(*connection_errors()), futures[0].client.as_current():
        wait(list(futures), timeout=seconds, return_when="FIRST_COMPLETED")


def fate(future: Future[Any]) -> tuple[Fate | None, str]:
    """Return how a future ended (None while it is in flight), with details."""
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
    """Return the name of the current Dask worker, or else of this process."""
    from distributed import get_worker

    try:
        return str(get_worker().name)
    except ValueError:
        return f"process-{os.getpid()}"


def worker_address() -> str | None:
    """Return the address of the current Dask worker; None outside one."""
    from distributed import get_worker

    try:
        return str(get_worker().address)
    except ValueError:
        return None


def memory_limit() -> int:
    """Return the bytes of memory that the current Dask worker may use; 0 for no limit."""
    from distributed import get_worker

    try:
        return int(get_worker().memory_manager.memory_limit or 0)
    except ValueError:
        return 0


def is_leaving() -> bool:
    """Whether the current Dask worker is stopping or retiring."""
    from distributed import get_worker
    from distributed.core import Status

    try:
        return get_worker().status not in (Status.running, Status.paused)
    except ValueError:
        return False
