"""A cluster of worker processes on this machine."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cluster.resources import PRELOAD, configure, for_machine, machine
from pipeline.cluster.tls import own_security, security_of
from pipeline.config.sections import TlsSettings

if TYPE_CHECKING:
    from distributed import LocalCluster

_GIVEN = "distributed.nanny.pre-spawn-environ"
_own: dict[str, str | None] = {}
"""What this process had in the variables that its cluster's workers were given."""

STOP_SECONDS = 4.0
"""Workers of a local cluster are stopped by somebody who waits for it."""
REPLACE_SECONDS = 5.0
"""How often a local cluster looks for nannies that have closed."""


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
) -> LocalCluster:
    """Start worker processes on this machine, reachable from this machine alone.

    Args:
        workers: Worker processes. Default: one for each core that the threads leave.
        threads: Chunks that one worker maps at a time. Default: one.
        memory: Limit of one worker's memory in bytes. Default: an equal share of the machine.
        environment: Variables of the workers, beyond ours; set before they import anything.
        scheduler_port: The scheduler's port. Default: any.
        dashboard_port: The port of its pages. Default: any.
        local_directory: Where workers keep their files. Default: a temporary folder.
        tls: The settings `dask.tls`. Default: a certificate that only this cluster has; clients
            take it from the cluster.

    Returns:
        The cluster, once all workers are there. Close it.
    """
    from distributed import LocalCluster

    from pipeline.cluster.graceful_worker import GracefulNanny

    _take_back()
    cores, available = machine()
    workers, profile = for_machine(cores, workers, threads, memory, available)
    security = security_of(TlsSettings.model_validate(dict(tls or {}))) or own_security()
    _give({**profile.environment(), **(environment or {})})
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
    )
    _let_scale(cluster)
    _replace_closed_nannies(cluster)
    return cluster


def _give(variables: Mapping[str, str]) -> None:
    """Let workers that are started from now on have these variables.

    Only by Dask's configuration are they set before a worker's interpreter starts. A nanny then
    sets them in this process, for good, and prefers what this process has to what it is told: so
    they are set here before, and `_take_back` undoes it.
    """
    _own.update({name: os.environ.get(name) for name in variables})
    os.environ.update(variables)
    configure({f"{_GIVEN}.{name}": value for name, value in variables.items()})


def _take_back() -> None:
    """Undo what an earlier cluster of this process was given."""
    for name, value in _own.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    configure({f"{_GIVEN}.{name}": None for name in _own})
    _own.clear()


def _let_scale(cluster: Any) -> None:
    """Take `chunkmap cluster scale` from clients: workers belong to this process."""

    async def scale(n: int) -> int:
        cluster.scale(n)
        return n

    cluster.scheduler.handlers["chunkmap_scale"] = scale


def _replace_closed_nannies(cluster: Any) -> None:
    """Let the cluster start a worker in the place of each whose nanny has given up.

    A nanny closes for good when its worker does not start, such as one that is ended for its memory
    while it imports. Dask's cluster does not look after it.
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
