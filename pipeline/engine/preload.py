"""What Dask does in each worker process before it takes work (`--preload`)."""

from __future__ import annotations

import signal
from typing import Any


def dask_setup(worker: Any) -> None:
    """Write logs as the settings say, leave signals to the nanny, and import what comes late.

    Systemd and terminals signal every process of a group: a worker that died of it could hand
    nothing back. Its nanny tells it to, and ends it when it does not.

    Args:
        worker: The Dask worker, whose preload this is; a scheduler has none of its own to obey.
    """
    from pipeline.engine.worker import MapWorker
    from pipeline.logs import set_up
    from pipeline.settings import load_settings

    import_collections()
    logs = load_settings().logs
    set_up(logs.format, logs.level)
    if isinstance(worker, MapWorker) and worker.nanny:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)


def import_collections() -> None:
    """Let Prefect import what is registered with it, which its first task run would wait for.

    It does so when a task run's context names a file system, and imports Redis' client with
    it: 0.4 s in every worker.
    """
    from prefect.filesystems import LocalFileSystem

    LocalFileSystem.get_block_class_from_key(LocalFileSystem.get_block_type_slug())
