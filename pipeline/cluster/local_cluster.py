"""Start a cluster of worker processes on this machine."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cluster.resources import PRELOAD, for_machine, machine
from pipeline.cluster.tls import own_security, security_of
from pipeline.config.sections import TlsSettings

if TYPE_CHECKING:
    from distributed import LocalCluster

STOP_SECONDS = 4.0
"""Seconds that workers may take to stop; short, because a user waits for it."""
REPLACE_SECONDS = 5.0
"""Seconds between two checks for closed nannies."""


def start_local_cluster(
    workers: int | None = None,
    threads: int | None = None,
    memory: int | None = None,
    environment: Mapping[str, str] | None = None,
    *,
    scheduler_port: int = 0,
    dashboard_port: int = 0,
    local_directory: str | None = None,
    tls: Mapping[str, str] | None = None,
    resources: Mapping[str, float] | None = None,
) -> LocalCluster:
    """Start worker processes on this machine, reachable from this machine only.

    Args:
        workers: The number of worker processes. Default: cores divided by threads.
        threads: The number of chunks that a worker maps at a time. Default: one.
        memory: The limit of a worker's memory in bytes. Default: an equal share of the machine.
        environment: Further variables of the workers, set before they import anything.
        scheduler_port: The port of the scheduler. Default: any.
        dashboard_port: The port of the dashboard. Default: any.
        local_directory: The folder for workers' files. Default: a temporary folder.
        tls: The settings `dask.tls`. Default: a certificate for this cluster only, which clients
            take from the cluster.
        resources: Resources of Dask that each worker offers. Default: none.

    Returns:
        The cluster, with all workers running. Close it after use.
    """
    from distributed import LocalCluster

    from pipeline.cluster.graceful_worker import GracefulNanny
    from pipeline.cluster.worker_environment import WorkerEnvironment, restore_environment

    restore_environment()
    cores, available = machine()
    workers, profile = for_machine(cores, workers, threads, memory, available)
    security = security_of(TlsSettings.model_validate(dict(tls or {}))) or own_security()
    variables = WorkerEnvironment({**profile.environment(), **(environment or {})})
    try:
        cluster = LocalCluster(
            n_workers=workers,
            threads_per_worker=profile.threads,
            memory_limit=profile.memory,
            host="127.0.0.1",
            protocol="tls",
            security=security,
            worker_class=GracefulNanny,
            stop_seconds=STOP_SECONDS,
            scheduler_port=scheduler_port,
            dashboard_address=f"127.0.0.1:{dashboard_port}",
            local_directory=None if local_directory is None else str(Path(local_directory)),
            preload=list(PRELOAD),
            resources=dict(resources or {}) or None,
        )
    except BaseException:
        variables.restore()
        raise
    scheduler: Any = cluster.scheduler
    scheduler.add_plugin(variables)
    _allow_scaling(cluster)
    _replace_closed_nannies(cluster)
    return cluster


def _allow_scaling(cluster: Any) -> None:
    """Let clients scale the cluster (`chunkmap cluster scale`)."""

    async def scale(n: int) -> int:
        cluster.scale(n)
        return n

    cluster.scheduler.handlers["chunkmap_scale"] = scale


def _replace_closed_nannies(cluster: Any) -> None:
    """Replace workers whose nanny has closed.

    A nanny closes for good if its worker does not start, e.g. because it runs out of memory during
    imports. Dask's cluster does not replace it.
    """
    from distributed.core import Status

    def replace() -> None:
        if cluster.status in (Status.closing, Status.closed):
            return
        closed = [
            name
            for name, nanny in cluster.workers.items()
            if nanny.status in (Status.closed, Status.failed) and name in cluster.worker_spec
        ]
        for name in closed:
            del cluster.workers[name]
        if closed:
            cluster.scale(len(cluster.worker_spec))

        asyncio.get_running_loop().call_later(REPLACE_SECONDS, replace)

    cluster.loop.add_callback(replace)
