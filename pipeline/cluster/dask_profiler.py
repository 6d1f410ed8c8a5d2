"""Keeping Dask's profiler away from our batches."""

from __future__ import annotations

import sys
from contextlib import suppress


def stop_profiler() -> None:
    """Stop the profiler of the Dask worker that runs this, whoever started that worker.

    It walks all threads' frames a hundred times a second. When a garbage collection runs meanwhile,
    Python up to 3.12 deadlocks with threads that are just starting (gh-106883): both workers froze
    for minutes on a thousand small chunks, until `worker-ttl` had them killed. Our own workers
    are started without it (by Dask's configuration: a variable does not do, since a nanny hands its
    own configuration to its worker, over the worker's variables).
    """
    from distributed import get_worker

    if sys.version_info >= (3, 13):
        return
    with suppress(ValueError):
        worker = get_worker()
        for name in ("profile", "profile-cycle"):
            if callback := worker.periodic_callbacks.pop(name, None):
                worker.loop.add_callback(callback.stop)
