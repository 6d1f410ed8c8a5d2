"""One driver's session: follow another driver, or drive and store how it ends."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pipeline.errors import ChunkmapError
from pipeline.processes import is_alive, was_interrupted
from pipeline.runs.driver.heartbeat import HEARTBEAT_SECONDS, DriverRecord, Heartbeat
from pipeline.runs.driver.summary import MapProgress
from pipeline.storage.outages import best_effort

log = logging.getLogger(__name__)

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


def follow(heartbeat: Heartbeat) -> Iterator[DriverRecord]:
    """Yield the record of another driver, every two seconds, until it ends or seems dead."""
    while is_driven_elsewhere(record := heartbeat.stored(), heartbeat.record.driver):
        assert record is not None, "a driver is running"
        yield record
        time.sleep(POLL_SECONDS)


def followed_progress(record: DriverRecord, started: float) -> MapProgress:
    """Return the progress that another driver has stored; figures that are damaged are 0.

    Args:
        record: Record of the other driver.
        started: Unix seconds when this process began to follow it.
    """
    names = ("chunks", "done", "failed", "rows_in", "rows_out", "bytes_in", "bytes_out")
    stored = ((name, record.progress.get(name, 0)) for name in names)
    counts: dict[str, Any] = {
        name: value if isinstance(value, int) else 0 for name, value in stored
    }
    return MapProgress(
        round=record.rounds,
        batches=record.batches,
        seconds=time.time() - started,
        resumed=0,
        **counts,
    )


@dataclass(slots=True)
class Session:
    """State of a run or backfill while this process drives it."""

    state: str = "failed"
    """State that is stored at the end: done, failed, held, cancelled or interrupted."""


@contextmanager
def drive_session(
    name: str,
    save: Callable[[str | None], None],
    is_interrupted: Callable[[], bool] = was_interrupted,
) -> Iterator[Session]:
    """Store that this process drives a run or backfill and, at the end, how it ended.

    Args:
        name: Name for the log.
        save: Stores the driver's record with a state; None: still running.
        is_interrupted: Whether an error comes from an interrupted process.
    """
    session = Session()
    with best_effort():
        save(None)
    try:
        yield session
    except BaseException as error:
        if isinstance(error, ChunkmapError):
            session.state = error.end_state
        if session.state == "failed" and (isinstance(error, KeyboardInterrupt) or is_interrupted()):
            session.state = "interrupted"
        raise
    finally:
        with best_effort():
            save(session.state)
        log.info("%s: %s", name, session.state)
