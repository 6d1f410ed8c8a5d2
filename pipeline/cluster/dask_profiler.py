"""Stop Dask's profiler, which can deadlock batches."""

from __future__ import annotations

import sys
from contextlib import suppress


def stop_profiler() -> None:
    """Stop the profiler of the current Dask worker, which chunkmap may not have started.

    The profiler walks the frames of all threads a hundred times per second. If a garbage collection
    runs meanwhile, Python up to 3.12 deadlocks with threads that are just starting (gh-106883):
    both workers froze for minutes on a thousand small chunks, until `worker-ttl` had them killed.
    chunkmap starts its own workers without it (`pipeline.cluster.resources`).
    """
    from distributed import get_worker

    if sys.version_info >= (3, 13):
        return
    with suppress(ValueError):
        worker = get_worker()
        for name in ("profile", "profile-cycle"):
            if callback := worker.periodic_callbacks.pop(name, None):
                worker.loop.add_callback(callback.stop)
