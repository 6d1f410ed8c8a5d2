"""Set up each worker process before it takes work (Dask's `--preload`)."""

from __future__ import annotations

import signal
import sys
from typing import Any


def dask_setup(worker: Any) -> None:
    """Set up logs as in the settings, and ignore signals, which the nanny handles.

    What transforms print becomes log lines.

    Systemd and terminals signal every process of a group: a worker that is killed by the signal
    could not hand its batches back. Its nanny asks it to, and kills it if it does not end.

    Args:
        worker: The Dask worker or scheduler; a scheduler has no nanny and keeps its handlers.
    """
    from pipeline.cluster.graceful_worker import GracefulWorker
    from pipeline.config.settings import load_settings
    from pipeline.logs import PrintedLines, set_up
    from pipeline.processes import freeze_imports

    logs = load_settings().logs
    set_up(logs.format, logs.level)
    if isinstance(worker, GracefulWorker) and worker.nanny:
        sys.stdout = PrintedLines()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
    freeze_imports()
