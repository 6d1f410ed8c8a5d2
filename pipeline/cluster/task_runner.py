"""Make the task runners of flows, and inspect their clusters."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

from pipeline.cluster.futures import connection_errors
from pipeline.cluster.local_cluster import start_local_cluster
from pipeline.cluster.resources import configure
from pipeline.cluster.tls import client_security
from pipeline.config.sections import DaskSettings
from pipeline.errors import EngineUnavailableError

if TYPE_CHECKING:
    from prefect_dask import DaskTaskRunner


LEVEL = "CHUNKMAP_LOGS__LEVEL"
Resources: TypeAlias = Mapping[str, float]
"""Amounts of Dask's resources, by name."""
NO_RESOURCES: Resources = MappingProxyType({})


def task_runner(settings: DaskSettings, environment: Mapping[str, str]) -> DaskTaskRunner:
    """Make the task runner that the settings describe.

    Args:
        settings: The address of a scheduler, or a cluster class; with neither, the flow gets a
            local cluster.
        environment: Variables for the workers of a local cluster.
    """
    from prefect_dask import DaskTaskRunner

    security = client_security(settings)
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
            "resources": settings.resources,
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
    from pipeline.cluster.connected_runner import AddressRunner

    client: Any = runner.client
    options = {**runner.client_kwargs, "security": client.security}
    return AddressRunner(address=client.scheduler.address, client_kwargs=options)


def slot_count(
    runner: DaskTaskRunner, concurrency: int | None = None, resources: Resources = NO_RESOURCES
) -> int | None:
    """Count the tasks of a kind that the runner's cluster can run at the same time.

    Args:
        runner: The flow's task runner.
        concurrency: Maximum number of such tasks per worker; None for one per thread.
        resources: Resources that each task needs of its worker.

    Returns:
        The number; None while the scheduler is unavailable.
    """
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
    return sum(_slots_of(worker, concurrency, resources) for worker in workers.values())


def _slots_of(worker: Mapping[str, Any], concurrency: int | None, resources: Resources) -> int:
    offered = worker.get("resources") or {}
    limits = [int(worker["nthreads"])]
    limits += [] if concurrency is None else [concurrency]
    # Rounded up a little: 1.0 // 0.1 is 9.
    limits += [int(offered.get(name, 0.0) / need + 1e-9) for name, need in resources.items()]
    return max(0, min(limits))


def check_resources(runner: Any, resources: Resources) -> None:
    """Refuse a cluster of whose workers none offers what tasks need: Dask would wait for ever.

    A cluster without workers may be about to start some, and is not refused.

    Raises:
        EngineUnavailableError: No worker offers the resources.
    """
    if not resources:
        return
    workers = runner.client.scheduler_info(n_workers=-1).get("workers") or {}
    if not workers or any(_slots_of(worker, None, resources) for worker in workers.values()):
        return
    raise lacking_resources(resources)


def lacking_resources(resources: Resources) -> EngineUnavailableError:
    """Return the error for a cluster without workers that offer resources."""
    wanted = "{" + ", ".join(f"{name}: {need:g}" for name, need in resources.items()) + "}"
    return EngineUnavailableError(
        f"no worker of the Dask cluster offers {wanted}, which each batch of the job needs "
        "(resources)",
        hint=f"start workers with CHUNKMAP_DASK__RESOURCES='{wanted}' in their environment, or "
        "`dask worker --resources`; or take `resources` out of the job",
    )
