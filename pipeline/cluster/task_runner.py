"""Dask as the flows see it: a task runner, futures and what became of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.cluster.futures import connection_errors
from pipeline.cluster.local_cluster import start_local_cluster
from pipeline.cluster.reachability import check_scheduler
from pipeline.cluster.resources import configure
from pipeline.cluster.tls import security_of
from pipeline.config.sections import DaskSettings

if TYPE_CHECKING:
    from prefect_dask import DaskTaskRunner


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
