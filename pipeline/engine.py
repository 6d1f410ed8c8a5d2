"""The only door to Dask."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distributed import LocalCluster

# What the first batch would otherwise wait for: five seconds of imports in every worker.
_PRELOAD = ("polars", "prefect_dask")


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
        **{name: os.environ[name] for name in ("POLARS_MAX_THREADS",) if name in os.environ},
        **(environment or {}),
    }
    # Only this way are they set before the worker's interpreter starts.
    dask.config.set({f"distributed.nanny.pre-spawn-environ.{k}": v for k, v in variables.items()})
    return LocalCluster(  # type: ignore[no-untyped-call]
        n_workers=workers,
        threads_per_worker=threads,
        memory_limit=memory or "auto",
        host="127.0.0.1",
        scheduler_port=scheduler_port,
        dashboard_address=f"127.0.0.1:{dashboard_port}",
        local_directory=local_directory,
        preload=list(_PRELOAD),
    )


def _cores() -> int:
    from dask.system import CPU_COUNT

    return int(CPU_COUNT)
