"""What Dask does in each worker process before it takes work (`--preload`)."""

from __future__ import annotations

import signal
from typing import Any


def dask_setup(worker: Any) -> None:
    """Write logs as the settings say, and leave signals to the nanny.

    Systemd and terminals signal every process of a group: a worker that died of it could hand
    nothing back. Its nanny tells it to, and ends it when it does not.

    Args:
        worker: The Dask worker, whose preload this is; a scheduler has none of its own to obey.
    """
    from pipeline.cluster.graceful_worker import GracefulWorker
    from pipeline.config.settings import load_settings
    from pipeline.logs import set_up

    logs = load_settings().logs
    set_up(logs.format, logs.level)
    if isinstance(worker, GracefulWorker) and worker.nanny:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
