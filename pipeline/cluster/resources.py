"""Choose threads, memory and Dask's configuration of workers on a machine or in a container.

A worker maps `threads` chunks at a time, with `polars_threads` threads of Polars. Dask's defaults
for a worker's memory are meant for data that Dask keeps and can spill; chunkmap's data are in
Polars while a chunk is mapped, and then go to S3.
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
"""Modules imported when a worker starts, for which the first batch would otherwise wait five
seconds. The last one sets up logs."""
ALLOWED_FAILURES = 1
"""Workers that a batch may kill, less one, before it is split. Dask's default, 3, costs four
workers; with 0, a batch would be blamed for a worker that was only stopped."""
MALLOC = {
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
    "_RJEM_MALLOC_CONF": "dirty_decay_ms:5000,muzzy_decay_ms:0",
}
"""Arenas of the C library, and thresholds in bytes above which it returns memory to the system.
With Dask's 64 KiB, the pages of the buffers that each chunk uses again were mapped and cleared each
time, a sixth of a worker's CPU time. They bound the memory kept per arena. By default there are
eight arenas per core, and a buffer of each chunk is in another: a worker kept 40 MB more after 64
chunks, 80 MB after 192.

Polars has an allocator of its own, jemalloc, which returns free pages after half a second: each
chunk has its pages mapped and cleared again, a tenth of its CPU time. Within five seconds the next
chunk uses them (benchmarks/micro/free_pages.py)."""
NO_WORKERS_SECONDS = 120.0
"""Seconds that a run waits for a worker when there is none."""
NANNY_BYTES = 192 << 20
"""Bytes of a container for other things than the worker: its nanny, and files in memory."""

DASK: dict[str, Any] = {
    "distributed": {
        # Each process measures its event loop's delay so often. Every 20 ms, as Dask does, an idle
        # process takes one percent of a core.
        "admin": {"tick": {"interval": "200 ms"}},
        "deploy": {
            # A cluster in the process of a driver, or of `chunkmap up`, closes the nanny of a
            # worker that has been away for this long, by default 15 s, and never starts another. A
            # worker that ran out of memory is back after 5 s of imports, on a busy machine after a
            # minute: its nanny restarts it, and must not be closed meanwhile.
            "lost-worker-timeout": "365 days",
        },
        "scheduler": {
            "allowed-failures": ALLOWED_FAILURES,
            # A stopped or disconnected worker is given up after this time. Heartbeats come every
            # few seconds unless something holds the interpreter's lock, which Polars does not.
            "worker-ttl": "2 minutes",
            # Without it, tasks would wait forever if no worker is left. A driver gives up earlier.
            "no-workers-timeout": "10 minutes",
        },
        "worker": {
            "memory": {
                # There is nothing to spill: results are a hundred bytes.
                "target": False,
                "spill": False,
                # A paused worker would wait for tasks to free memory, and has none. (Polars'
                # allocator returns pages to the system within five seconds after they are freed.)
                "pause": False,
                # Just below the limit the nanny restarts the worker, and the batch is split until
                # the chunk that caused it is alone; the kernel would kill an arbitrary process.
                "terminate": 0.95,
            },
            # Dask's profiler walks the frames of all threads a hundred times per second. If a
            # garbage collection runs meanwhile, Python 3.11 deadlocks with threads that are just
            # starting (gh-106883): both workers froze for minutes on a thousand small chunks. A
            # variable does not help: a nanny's configuration overrides its worker's variables.
            "profile": {"enabled": False},
        },
    }
}
"""Defaults for Dask's configuration, which its own variables (DASK_DISTRIBUTED__…) override."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Resources of one worker process."""

    threads: int
    """Number of chunks that it maps at a time."""
    polars_threads: int
    """Number of Polars' threads, for all chunks of the process together."""
    memory: int
    """Limit of its memory in bytes; 0 means none."""

    def environment(self) -> dict[str, str]:
        """Return variables to set before the worker's interpreter starts; existing ones win."""
        variables = {
            # By default, each worker's Polars would start one thread per core of the machine.
            "POLARS_MAX_THREADS": str(self.polars_threads),
            **MALLOC,
            # Workers make no request to Prefect, and must not start a server either.
            "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
        }
        return {name: os.environ.get(name, value) for name, value in variables.items()}


def for_machine(
    cores: int, workers: int | None, threads: int | None, memory: int | None, available: int
) -> tuple[int, Profile]:
    """Choose the number and profile of workers that share a machine.

    Args:
        cores: The machine's cores.
        workers: The number of workers; default: cores divided by threads.
        threads: The threads of each; default: one.
        memory: The bytes of each; default: an equal share.
        available: The machine's bytes.
    """
    threads = threads or 1
    workers = workers or max(1, cores // threads)
    polars = max(1, cores // workers)
    return workers, Profile(threads, polars, memory or available // workers)


def for_container(cores: int, threads: int | None, memory: int | None, available: int) -> Profile:
    """Choose the profile of a worker that has a container or pod to itself.

    Args:
        cores: The cores that the container may use, rounded up.
        threads: The worker's threads; default: one per core (see docs/guides/cluster.md).
        memory: The worker's bytes; default: those of the container, less the nanny's.
        available: The container's bytes.
    """
    reserved = min(NANNY_BYTES, available // 4)
    return Profile(threads or cores, cores, memory or available - reserved)


def configure(extra: Mapping[str, Any] | None = None) -> None:
    """Set chunkmap's defaults for Dask in this process, and in workers that it starts.

    Args:
        extra: Further configuration by dotted names, which overrides everything else.
    """
    import dask
    import distributed  # noqa: F401 - sets its own defaults, which DASK then updates

    dask.config.update_defaults(DASK)
    if extra:
        dask.config.set(dict(extra))


def machine() -> tuple[int, int]:
    """Return the cores and bytes of memory of the container, or else of the machine."""
    from dask.system import CPU_COUNT
    from distributed.system import MEMORY_LIMIT

    return int(CPU_COUNT), int(MEMORY_LIMIT)
