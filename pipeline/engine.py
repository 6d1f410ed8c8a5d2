"""The only door to Dask."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from threading import Thread
from typing import TYPE_CHECKING, Any

from pipeline.engines import Kind
from pipeline.errors import EngineUnavailableError
from pipeline.settings import DaskSettings

if TYPE_CHECKING:
    from distributed import LocalCluster
    from prefect_dask import DaskTaskRunner
    from prefect_dask.task_runners import PrefectDaskFuture

PRELOAD = ("polars", "prefect_dask", "pipeline.flows.map_dataset")
"""What the first batch would otherwise wait for: five seconds of imports in every worker."""
ALLOWED_FAILURES = 1
"""Workers that a batch may take with it, less one, before it is split. Dask's own default, 3, costs
four workers; none would take a batch whose worker was merely stopped for a killer."""


def start_local_cluster(
    workers: int | None = None,
    threads: int = 1,
    memory: int | None = None,
    environment: Mapping[str, str] | None = None,
    *,
    scheduler_port: int = 0,
    dashboard_port: int = 0,
    local_directory: str | None = None,
) -> LocalCluster:
    """Start worker processes on this machine, reachable from this machine alone.

    Args:
        workers: Worker processes. Default: one for each core that the threads leave.
        threads: Chunks that one worker maps at a time.
        memory: Limit of one worker's memory in bytes. Default: an equal share of the machine.
        environment: Variables of the workers, beyond ours; set before they import anything.
        scheduler_port: The scheduler's port. Default: any.
        dashboard_port: The port of its pages. Default: any.
        local_directory: Where workers spill to. Default: a temporary folder.

    Returns:
        The cluster, once all workers are there. Close it.
    """
    import dask
    from distributed import LocalCluster

    cores = _cores()
    workers = workers or max(1, cores // threads)
    variables = {
        # Polars would start a thread for each core in every worker.
        "POLARS_MAX_THREADS": str(max(1, cores // (workers * threads))),
        # Dask's profiler walks all threads' frames a hundred times a second. When a garbage
        # collection runs meanwhile, Python 3.11 deadlocks with threads that are just starting
        # (gh-106883): both workers froze for minutes on a thousand small chunks.
        "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
        **{name: os.environ[name] for name in ("POLARS_MAX_THREADS",) if name in os.environ},
        **(environment or {}),
    }
    # Only this way are they set before the worker's interpreter starts.
    dask.config.set({f"distributed.nanny.pre-spawn-environ.{k}": v for k, v in variables.items()})
    dask.config.set({"distributed.scheduler.allowed-failures": ALLOWED_FAILURES})
    return LocalCluster(
        n_workers=workers,
        threads_per_worker=threads,
        memory_limit=memory or "auto",
        host="127.0.0.1",
        scheduler_port=scheduler_port,
        dashboard_address=f"127.0.0.1:{dashboard_port}",
        local_directory=local_directory,
        preload=list(PRELOAD),
    )


def _cores() -> int:
    from dask.system import CPU_COUNT

    return int(CPU_COUNT)


def task_runner(settings: DaskSettings, environment: Mapping[str, str]) -> DaskTaskRunner:
    """The task runner that the settings describe.

    Args:
        settings: A scheduler's address, a cluster class, or else a local cluster for the flow.
        environment: Variables of the workers of a local cluster.
    """
    from prefect_dask import DaskTaskRunner

    if settings.scheduler:
        check_scheduler(settings.scheduler, settings.connect_timeout)
        return DaskTaskRunner(address=settings.scheduler)
    if settings.cluster_class:
        return DaskTaskRunner(
            cluster_class=settings.cluster_class.replace(":", "."),
            cluster_kwargs=dict(settings.cluster_kwargs),
        )
    return DaskTaskRunner(
        cluster_class=start_local_cluster,
        cluster_kwargs={
            "workers": settings.workers,
            "threads": settings.threads_per_worker,
            "memory": settings.memory_per_worker,
            "environment": dict(environment),
        },
    )


def check_scheduler(address: str, timeout: float) -> None:
    """Raise EngineUnavailableError when no scheduler answers at the address in time (seconds)."""
    from distributed import Client

    problems: list[Exception | None] = []

    def knock() -> None:
        try:
            Client(address, timeout=timeout, set_as_default=False).close()
            problems.append(None)
        except (OSError, ValueError, ImportError) as error:
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
            hint="start one, or `chunkmap up`, or unset dask.scheduler for a local cluster",
        ) from problem


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


def wait_any(futures: Sequence[PrefectDaskFuture[Any]], seconds: float) -> None:
    """Return when one of the futures is done, whatever way, or the time is up."""
    from distributed import wait

    inner = [future.wrapped_future for future in futures]
    with suppress(*connection_errors()), inner[0].client.as_current():
        wait(inner, timeout=seconds, return_when="FIRST_COMPLETED")


def fate(future: PrefectDaskFuture[Any]) -> tuple[Kind | None, str]:
    """What became of a future (None while it is under way), and what is known of it.

    Prefect's own `wait` swallows a killed worker and takes a cancelled future for a done one, so
    the Dask future is asked.
    """
    from distributed import KilledWorker

    inner = future.wrapped_future
    match inner.status:
        case "pending":
            return None, ""
        case "cancelled":
            return "cancelled", "the Dask future was cancelled"
        case "lost":
            return "lost", "the scheduler lost it"
        case "error":
            error = inner.exception()
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
