"""Two drivers of one run: the second watches the first, and takes over when it has gone silent."""

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
"""Without a sign of life for so long, a driver counts as gone."""
LOOK_SECONDS = 2.0
"""How often the watched run is looked at."""


def is_driven_elsewhere(record: DriverRecord | None, own: str) -> bool:
    """Whether another driver than our own is at work, as far as can be told.

    On the same machine the process itself is asked; elsewhere its last sign of life counts.
    """
    if record is None or record.driver == own or record.state != "running":
        return False
    if record.host == socket.gethostname():
        return is_alive(record.pid, record.process_started)
    return time.time() - record.seen < SILENT_SECONDS


def watch(
    storage: Storage, ledger: Ledger, own: str, listen: Callable[[MapProgress], None]
) -> bool:
    """Follow another driver until it ends or goes silent.

    Returns:
        Whether the run was published meanwhile.
    """
    started = time.time()
    while is_driven_elsewhere(record := read_driver(storage, ledger.prefix), own):
        assert record is not None, "somebody drives"
        listen(_progress(record, started))
        time.sleep(LOOK_SECONDS)
    return ledger.published() is not None


def _progress(record: DriverRecord, started: float) -> MapProgress:
    names = ("chunks", "done", "failed", "rows_in", "rows_out", "bytes_in", "bytes_out")
    said = record.progress
    known = {name: value for name in names if isinstance(value := said.get(name, 0), int)}
    known = dict.fromkeys(names, 0) | known
    return MapProgress(
        round=record.rounds,
        batches=record.batches,
        seconds=time.time() - started,
        resumed=0,
        **known,
    )
