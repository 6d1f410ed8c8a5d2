"""Store that a driver is alive, and its progress (`driver.json`)."""

from __future__ import annotations

import logging
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, FiniteFloat

from pipeline.errors import StateError
from pipeline.processes import start_time
from pipeline.runs.driver.summary import MapProgress
from pipeline.storage import Storage
from pipeline.storage.documents import Moment, parse_stored, seal_json
from pipeline.storage.outages import best_effort

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 15.0
"""Seconds between two heartbeats. After four without one, a driver counts as dead."""


class DriverRecord(BaseModel):
    """The driver of a run and its progress. Advisory: nothing depends on it."""

    model_config = ConfigDict(extra="ignore")

    driver: str
    host: str
    pid: int
    process_started: FiniteFloat
    """Start time of the process (see `pipeline.processes`), since pids are reused."""
    started: Moment
    seen: Moment
    """Unix seconds of the last heartbeat."""
    state: str = "running"
    """State of the run: running, done, failed, cancelled or interrupted."""
    rounds: int = 0
    batches: int = 0
    phases: list[tuple[str, Moment, FiniteFloat]] = []
    """Name, start and seconds of each finished phase."""
    flow_run: str | None = None
    """URL of the run's page in Prefect's UI."""
    progress: dict[str, Any] = {}


@dataclass(slots=True)
class Heartbeat:
    """Keeps `driver.json` of one run up to date."""

    storage: Storage
    uri: str
    record: DriverRecord
    _written: float = field(default=0.0)

    @classmethod
    def of(cls, storage: Storage, prefix: str, flow_run: str | None = None) -> Heartbeat:
        """Create the heartbeat of this process, for the run (or backfill) under a prefix."""
        now = time.time()
        record = DriverRecord(
            driver=uuid.uuid4().hex,
            host=socket.gethostname(),
            pid=os.getpid(),
            process_started=start_time(os.getpid()) or 0.0,
            started=now,
            seen=now,
            flow_run=flow_run,
        )
        return cls(storage, prefix + "driver.json", record)

    def stored(self) -> DriverRecord | None:
        """Read the record of the last driver, this or another."""
        return read_driver(self.storage, self.uri.removesuffix("driver.json"))

    def update(self, progress: MapProgress) -> None:
        """Record progress; write it if a heartbeat is due."""
        self.record.rounds = progress.round
        self.record.batches = progress.batches
        self.record.progress = {
            "done": progress.done,
            "failed": progress.failed,
            "chunks": progress.chunks,
            "rows_in": progress.rows_in,
            "rows_out": progress.rows_out,
            "bytes_in": progress.bytes_in,
            "bytes_out": progress.bytes_out,
        }
        if time.time() - self._written >= HEARTBEAT_SECONDS:
            with best_effort():
                self.write()

    def write(self, state: str | None = None) -> None:
        """Store the record now."""
        self._written = self.record.seen = time.time()
        self.record.state = state or self.record.state
        self.storage.put(self.uri, seal_json(self.record.model_dump_json().encode()))

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure and record the time of a phase."""
        started = time.time()
        try:
            yield
        finally:
            self.record.phases.append((name, started, time.time() - started))


def read_driver(storage: Storage, prefix: str) -> DriverRecord | None:
    """Read the record of the last driver of a run (or backfill); None if there is none.

    A record that is damaged, or in another release's format, is logged and ignored.

    Args:
        storage: Where the record is.
        prefix: URI of the state of the run or backfill.
    """
    uri = prefix + "driver.json"
    blob = storage.get_or_none(uri)
    try:
        return None if blob is None else parse_stored(DriverRecord, blob.data, uri)
    except StateError as error:
        log.warning("%s; assuming that no driver is running", error)
        return None
