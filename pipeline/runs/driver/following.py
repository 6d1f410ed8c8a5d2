"""Follow a run that another process drives, and take over when its heartbeat expires."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

from pipeline.processes import is_alive
from pipeline.runs.driver.heartbeat import HEARTBEAT_SECONDS, DriverRecord, read_driver
from pipeline.runs.driver.summary import MapProgress
from pipeline.runs.ledger.ledger import Ledger
from pipeline.storage import Storage

SILENT_SECONDS = 4 * HEARTBEAT_SECONDS
"""Seconds without a heartbeat after which a driver counts as dead."""
POLL_SECONDS = 2.0
"""Seconds between two reads of the other driver's record."""


def is_driven_elsewhere(record: DriverRecord | None, own: str) -> bool:
    """Whether a driver other than `own` seems to be running.

    On the same machine its process is checked; otherwise its last heartbeat counts.
    """
    if record is None or record.driver == own or record.state != "running":
        return False
    if record.host == socket.gethostname():
        return is_alive(record.pid, record.process_started)
    return time.time() - record.seen < SILENT_SECONDS


def watch(
    storage: Storage, ledger: Ledger, own: str, listen: Callable[[MapProgress], None]
) -> bool:
    """Follow another driver until it ends or its heartbeat expires.

    Returns:
        Whether the run is published.
    """
    started = time.time()
    while is_driven_elsewhere(record := read_driver(storage, ledger.prefix), own):
        assert record is not None, "a driver is running"
        listen(_progress(record, started))
        time.sleep(POLL_SECONDS)
    return ledger.published() is not None


def _progress(record: DriverRecord, started: float) -> MapProgress:
    names = ("chunks", "done", "failed", "rows_in", "rows_out", "bytes_in", "bytes_out")
    stored = record.progress
    counts = {name: value for name in names if isinstance(value := stored.get(name, 0), int)}
    counts = dict.fromkeys(names, 0) | counts
    return MapProgress(
        round=record.rounds,
        batches=record.batches,
        seconds=time.time() - started,
        resumed=0,
        **counts,
    )
