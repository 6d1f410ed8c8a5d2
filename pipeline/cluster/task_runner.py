"""Make the task runners of flows, and inspect their clusters."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.cluster.futures import connection_errors
from pipeline.cluster.local_cluster import start_local_cluster
from pipeline.cluster.resources import configure
from pipeline.cluster.tls import security_of
from pipeline.config.sections import DaskSettings

if TYPE_CHECKING:
    from prefect_dask import DaskTaskRunner


LEVEL = "CHUNKMAP_LOGS__LEVEL"


def task_runner(settings: DaskSettings, environment: Mapping[str, str]) -> DaskTaskRunner:
    """Make the task runner that the settings describe.

    Args:
        settings: The address of a scheduler, or a cluster class; with neither, the flow gets a
            local cluster.
        environment: Variables for the workers of a local cluster.
    """
    from prefect_dask import DaskTaskRunner

    security = security_of(settings.tls)
    options = {"security": security} if security else {}
    if settings.scheduler:
        from pipeline.cluster.connected_runner import ConnectedRunner

        return ConnectedRunner.connect(settings.scheduler, settings.connect_timeout, options)
    adapt = settings.adapt.model_dump() if settings.adapt.maximum else None
    if settings.cluster_class:
        # Some cluster classes run the scheduler, or nannies, in the driver's process.
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
            # They share the terminal of the command.
            "environment": {LEVEL: os.environ.get(LEVEL, "warning"), **environment},
            "tls": settings.tls.paths(),
        },
        adapt_kwargs=adapt,
        client_kwargs=options,
    )


def cluster_mapper(runner: DaskTaskRunner) -> Callable[[Any, Sequence[Any]], Iterator[Any]]:
    """Make a map function by which the planner lets workers read footers, in any order."""

    def map_on_cluster(function: Any, groups: Sequence[Any]) -> Iterator[Any]:
        from distributed import as_completed

        client: Any = runner.client
        futures = client.map(function, groups, pure=False)
        with client.as_current():
            for future in as_completed(futures):
                yield future.result()
                future.release()

    return map_on_cluster


def sharing(runner: DaskTaskRunner) -> DaskTaskRunner:
    """Make a task runner for a subflow: on the same cluster, with its own client."""
    from prefect_dask import DaskTaskRunner

    client: Any = runner.client
    options = {**runner.client_kwargs, "security": client.security}
    return DaskTaskRunner(address=client.scheduler.address, client_kwargs=options)


def thread_count(runner: DaskTaskRunner) -> int | None:
    """Count the worker threads of the runner's cluster; None while its scheduler is unavailable."""
    if runner._client is not None and runner._client.status == "closed":
        # The client has given up reconnecting; the runner makes another at the next access.
        runner._client = None
    try:
        # Empty while the client reconnects to its scheduler.
        workers = runner.client.scheduler_info(n_workers=-1).get("workers")
    except connection_errors():
        return None
    if workers is None:
        return None
    return sum(int(worker["nthreads"]) for worker in workers.values())
