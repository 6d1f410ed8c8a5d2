"""The worker profile: how a worker shares out a machine or a container. The one place for it.

A worker maps `threads` chunks at a time, and Polars uses `polars_threads` inside each. What Dask's
own configuration says of a worker's memory is meant for data that Dask keeps and can spill; ours
lives in Polars for a chunk's time and then leaves for S3.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PRELOAD = (
    "polars",
    "prefect_dask",
    "pipeline.flows.map_dataset",
    "pipeline.flows.worker_preload",
    "pipeline.cluster.preload",
)
"""What the first batch would otherwise wait for: five seconds of imports in every worker. The last
one sets up logs."""
ALLOWED_FAILURES = 1
"""Workers that a batch may take with it, less one, before it is split. Dask's own default, 3, costs
four workers; none would take a batch whose worker was merely stopped for a killer."""
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
}
"""Dask lets the C library give memory back at once (64 KiB), for what workers hold for long. Ours
take the same buffers for each chunk (ranges that arrive, files that leave): mapping and clearing
their pages anew was a sixth of a worker's processor time. What is kept is bounded by these, for
each arena; Polars has an allocator of its own."""
NANNY_BYTES = 192 << 20
"""What a container holds beside the worker: its nanny, with Dask imported, and files in memory."""

DASK: dict[str, Any] = {
    "distributed": {
        "deploy": {
            # A cluster that is held in a driver's process, or in that of `chunkmap up`, closes the
            # nanny of a worker that has been away for this long, by default 15 s, and never makes
            # another. A worker that ran out of memory is back after 5 s of imports, on a busy
            # machine after a minute: its nanny sees to it, and must not be closed meanwhile.
            "lost-worker-timeout": "365 days",
        },
        "scheduler": {
            "allowed-failures": ALLOWED_FAILURES,
            # A worker that is stopped or cut off is given up after this long. It beats every few
            # seconds unless something holds the interpreter's lock, which Polars does not.
            "worker-ttl": "2 minutes",
            # Without it tasks wait for ever when no worker is left. A driver gives up before.
            "no-workers-timeout": "10 minutes",
        },
        "worker": {
            "memory": {
                # There is nothing to spill: results are a hundred bytes.
                "target": False,
                "spill": False,
                # A paused worker waits for memory to be freed by tasks, and has none. (Polars'
                # allocator gives pages back by itself, a second or two after they are freed.)
                "pause": False,
                # Just below the limit the nanny starts the worker anew, and the chunk's batch is
                # split until the chunk to blame is alone; the kernel would kill whatever it likes.
                "terminate": 0.95,
            },
            # Dask's profiler walks all threads' frames a hundred times a second. When a garbage
            # collection runs meanwhile, Python 3.11 deadlocks with threads that are just starting
            # (gh-106883): both workers froze for minutes on a thousand small chunks. Not by a
            # variable: a nanny hands its own configuration to its worker, over its variables.
            "profile": {"enabled": False},
        },
    }
}
"""Our defaults for Dask's configuration; its own variables (DASK_DISTRIBUTED__…) win over them."""


@dataclass(frozen=True, slots=True)
class Profile:
    """How one worker process is set up."""

    threads: int
    """Chunks that it maps at a time."""
    polars_threads: int
    """Threads that Polars uses, for all of the process's chunks together."""
    memory: int
    """Bytes at which it counts as full; 0 means no limit."""

    def environment(self) -> dict[str, str]:
        """Variables that must be set before the worker's interpreter starts; given ones win."""
        chosen = {
            # Polars would start a thread for each core of the machine in every worker.
            "POLARS_MAX_THREADS": str(self.polars_threads),
            **MALLOC,
            # Workers ask no Prefect server anything; what they run may not start one either.
            "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
        }
        return {name: os.environ.get(name, value) for name, value in chosen.items()}


def for_machine(
    cores: int, workers: int | None, threads: int | None, memory: int | None, available: int
) -> tuple[int, Profile]:
    """Several workers that share a machine, and their number.

    Args:
        cores: Of the machine.
        workers: Wanted; default one for each core that the threads leave.
        threads: Wanted in each; default one.
        memory: Bytes of each; default an equal share.
        available: Bytes of the machine.
    """
    threads = threads or 1
    workers = workers or max(1, cores // threads)
    polars = max(1, cores // workers)
    return workers, Profile(threads, polars, memory or available // workers)


def for_container(cores: int, threads: int | None, memory: int | None, available: int) -> Profile:
    """One worker that has a container, or a pod, to itself.

    Args:
        cores: That the container may use, rounded up.
        threads: Wanted; default one for each core (docs/cluster.md has the measurement).
        memory: Bytes; default what the container has, less what its nanny needs.
        available: Bytes of the container.
    """
    reserved = min(NANNY_BYTES, available // 4)
    return Profile(threads or cores, cores, memory or available - reserved)


def configure(extra: Mapping[str, Any] | None = None) -> None:
    """Make our defaults those of this process's Dask, and of the workers it starts.

    Args:
        extra: More of Dask's configuration, by dotted names; these are set whatever there was.
    """
    import dask
    import distributed  # noqa: F401 - its own defaults first, ours on top

    dask.config.update_defaults(DASK)
    if extra:
        dask.config.set(dict(extra))


def machine() -> tuple[int, int]:
    """Cores and bytes of memory that this process may use: the container's, if it is in one."""
    from dask.system import CPU_COUNT
    from distributed.system import MEMORY_LIMIT

    return int(CPU_COUNT), int(MEMORY_LIMIT)
