"""Dask as the flows see it: a task runner, futures and what became of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from threading import Thread
from typing import TYPE_CHECKING, Any

from pipeline.engine.local import start_local_cluster
from pipeline.engine.profile import configure
from pipeline.engine.security import security_of
from pipeline.errors import EngineUnavailableError
from pipeline.settings import DaskSettings

if TYPE_CHECKING:
    from distributed import Future
    from distributed.security import Security
    from prefect_dask import DaskTaskRunner

    from pipeline.engines import Kind


LEVEL = "CHUNKMAP_LOGS__LEVEL"


def task_runner(settings: DaskSettings, environment: Mapping[str, str]) -> DaskTaskRunner:
    """The task runner that the settings describe.

    Args:
        settings: A scheduler's address, a cluster class, or else a local cluster for the flow.
        environment: Variables of the workers of a local cluster.
    """
    from prefect_dask import DaskTaskRunner

    security = security_of(settings.tls)
    options = {"security": security} if security else {}
    if settings.scheduler:
        check_scheduler(settings.scheduler, settings.connect_timeout, security)
        return DaskTaskRunner(address=settings.scheduler, client_kwargs=options)
    adapt = settings.adapt.model_dump() if settings.adapt.maximum else None
    if settings.cluster_class:
        # Some clusters have their scheduler, or their nannies, in the driver's process.
        configure()
        return DaskTaskRunner(
            cluster_class=settings.cluster_class.replace(":", "."),
            cluster_kwargs=dict(settings.cluster_kwargs),
            adapt_kwargs=adapt,
            client_kwargs=options,
        )
    return DaskTaskRunner(
        cluster_class=start_local_cluster,
        cluster_kwargs={
            "workers": settings.workers,
            "threads": settings.threads_per_worker,
            "memory": settings.memory_per_worker,
            # They share the terminal of whoever runs the job.
            "environment": {LEVEL: os.environ.get(LEVEL, "warning"), **environment},
            "tls": settings.tls.paths(),
        },
        adapt_kwargs=adapt,
        client_kwargs=options,
    )


def check_scheduler(address: str, timeout: float, security: Security | None = None) -> None:
    """Raise EngineUnavailableError when no scheduler answers at the address in time (seconds)."""
    from distributed import Client

    problems: list[Exception | None] = []

    def knock() -> None:
        try:
            Client(address, timeout=timeout, security=security, set_as_default=False).close()
            problems.append(None)
        except (OSError, ValueError, ImportError, TypeError) as error:
            problems.append(error)

    # Apart, because Dask waits for ever for one that takes the connection and then says nothing.
    thread = Thread(target=knock, name="knock", daemon=True)
    thread.start()
    thread.join(timeout)
    problem = problems[0] if problems else TimeoutError("it does not speak Dask's language")
    if problem is not None:
        raise EngineUnavailableError(
            f"no Dask scheduler answers at {address} (dask.scheduler) within {timeout:g} s: "
            f"{problem}",
            hint="start one, or `chunkmap up`, or unset dask.scheduler for a local cluster; "
            "one that asks for TLS needs dask.tls",
        ) from problem


def check_versions(runner: Any) -> None:
    """Refuse workers with other packages than ours.

    Raises:
        VersionMismatchError: both versions are named.
    """
    from pipeline.engine.asking import refuse_other_versions

    refuse_other_versions(runner.client)


def cluster_mapper(runner: DaskTaskRunner) -> Callable[[Any, Sequence[Any]], Iterator[Any]]:
    """A mapper for the planner: groups of footers are read by the workers, results as they come."""

    def mapped(function: Any, groups: Sequence[Any]) -> Iterator[Any]:
        from distributed import as_completed

        client: Any = runner.client
        futures = client.map(function, groups, pure=False)
        with client.as_current():
            for future in as_completed(futures):
                yield future.result()
                future.release()

    return mapped


def sharing(runner: DaskTaskRunner) -> DaskTaskRunner:
    """A task runner on the same cluster, with a client of its own: for a flow within a flow."""
    from prefect_dask import DaskTaskRunner

    client: Any = runner.client
    options = {**runner.client_kwargs, "security": client.security}
    return DaskTaskRunner(address=client.scheduler.address, client_kwargs=options)


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


def thread_count(runner: DaskTaskRunner) -> int | None:
    """Worker threads of the runner's cluster at this moment; None while its scheduler is gone."""
    if runner._client is not None and runner._client.status == "closed":
        # It looked for its scheduler for as long as a connection may take; the runner makes a new
        # one when it is asked for it.
        runner._client = None
    try:
        # Empty while the client looks for its scheduler again.
        workers = runner.client.scheduler_info(n_workers=-1).get("workers")
    except connection_errors():
        return None
    if workers is None:
        return None
    return sum(int(worker["nthreads"]) for worker in workers.values())


def wait_any(futures: Sequence[Future[Any]], seconds: float) -> None:
    """Return when one of the futures is done, whatever way, or the time is up."""
    from distributed import wait

    with suppress(*connection_errors()), futures[0].client.as_current():
        wait(list(futures), timeout=seconds, return_when="FIRST_COMPLETED")


def fate(future: Future[Any]) -> tuple[Kind | None, str]:
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
