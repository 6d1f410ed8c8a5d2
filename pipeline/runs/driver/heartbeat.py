"""Store that a driver is alive, and its progress (`driver.json`)."""

from __future__ import annotations

import logging
import os
import socket
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeInt

from pipeline import traces
from pipeline.errors import StateError
from pipeline.metrics import RequestCounts, process_requests
from pipeline.processes import start_time
from pipeline.runs.driver.origin import commit_of
from pipeline.runs.driver.summary import MapProgress
from pipeline.storage import Storage
from pipeline.storage.documents import Moment, parse_stored, seal_json
from pipeline.storage.outages import best_effort

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 15.0
"""Seconds between two heartbeats. After four without one, a driver counts as dead."""


MAX_ATTEMPTS = 50
"""Maximum number of earlier attempts to keep."""
MAX_ERRORS = 5
"""Maximum number of kinds of failure to keep per attempt."""
MAX_ERROR_CHARACTERS = 500


class AttemptRecord(BaseModel):
    """What one driver did. Times are in Unix seconds."""

    model_config = ConfigDict(extra="ignore")

    host: str
    pid: int
    started: Moment
    """Start of the command that drives, or of the driver if that is unknown."""
    seen: Moment
    """Last heartbeat: the end, unless it is still running."""
    state: str = "running"
    """State of the run: running, done, failed, held, cancelled or interrupted."""
    phases: list[tuple[str, Moment, FiniteFloat]] = []
    """Name, start and seconds of each phase; one lasts until the next begins."""
    code: str = ""
    """Fingerprint of the code that it runs. Empty in old records."""
    commit: str = ""
    """Git commit of that code; empty if unknown."""
    reads: NonNegativeInt = 0
    """GET and HEAD requests of this process, without those of batches."""
    writes: NonNegativeInt = 0
    """PUT, COPY, POST and LIST requests."""
    retries: NonNegativeInt = 0
    """Storage operations that were tried again."""
    throttled: NonNegativeInt = 0
    """Requests that S3 refused for load."""
    request_limit: NonNegativeInt = 0
    """Lowest limit on concurrent requests after such a refusal; 0 if none was refused."""
    errors: list[str] = []
    """One sentence per kind of failure that was left at its end."""


class DriverRecord(AttemptRecord):
    """The driver of a run and its progress. Advisory: nothing depends on it."""

    driver: str
    process_started: FiniteFloat
    """Start time of the process (see `pipeline.processes`), since pids are reused."""
    rounds: int = 0
    batches: int = 0
    flow_run: str | None = None
    """URL of the run's page in Prefect's UI."""
    progress: dict[str, Any] = {}
    speed: Annotated[FiniteFloat, Field(ge=0)] = 0.0
    """Measured speed of a thread (see `batching.Throughput`), for the next run; 0: not measured."""
    earlier: list[AttemptRecord] = []
    """Attempts of the drivers before, oldest first."""

    def end_phase(self, at: float) -> None:
        """Let the last phase last until this moment."""
        if self.phases:
            name, started, _ = self.phases[-1]
            self.phases[-1] = name, started, max(0.0, at - started)

    @property
    def attempts(self) -> list[AttemptRecord]:
        """All attempts, oldest first."""
        return [*self.earlier, self]


@dataclass(slots=True)
class Heartbeat:
    """Keeps `driver.json` of one run up to date."""

    storage: Storage
    uri: str
    record: DriverRecord
    _written: float = field(default=0.0)
    _requests: RequestCounts = field(default_factory=process_requests.counts)
    _is_first: bool = True
    _found: tuple[DriverRecord | None] | None = None
    """The last driver's record, as this driver found it; None: not read yet."""

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
        record = read_driver(self.storage, self.uri.removesuffix("driver.json"))
        self._found = (record,)
        return record

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
        self.beat()

    def beat(self) -> None:
        """Write the record if a heartbeat is due."""
        if time.time() - self._written >= HEARTBEAT_SECONDS:
            with best_effort():
                self.write()

    def write(self, state: str | None = None) -> None:
        """Store the record now. The first time, keep what it says about earlier drivers."""
        if self._is_first:
            [before] = self._found or (self.stored(),)
            if before is not None and before.driver != self.record.driver:
                attempts = [_attempt_of(attempt) for attempt in before.attempts]
                self.record.earlier = attempts[-MAX_ATTEMPTS:]
            self._is_first = False
        self._written = self.record.seen = time.time()
        if self.record.state == "running":
            self.record.end_phase(self.record.seen)
        self.record.state = state or self.record.state
        self._count_requests()
        self.storage.put(self.uri, seal_json(self.record.model_dump_json().encode()))

    def begin(self, began: float | None, planned: float, planning: float | None = None) -> None:
        """Record what went before the driver: the start of the command, and planning.

        Args:
            began: Unix seconds when the command started; None if there is none.
            planned: Unix seconds when planning started.
            planning: Seconds that planning took; default until now. What follows it is the start of
                the engines.
        """
        now = time.time()
        self.start(planned if began is None else min(began, planned), planned)
        until = now if planning is None else planned + planning
        self.record.phases.append(("plan", planned, until - planned))
        if until < now:
            self.record.phases.append(("start", until, now - until))

    def start(self, began: float, until: float | None = None) -> None:
        """Record the phase `start`: from the start of the command until a moment, or now."""
        until = time.time() if until is None else until
        self.record.started = began
        if began < until:
            self.record.phases.append(("start", began, until - began))

    def runs(self, code: str, transform: str) -> None:
        """Record which code this driver runs."""
        self.record.code = code
        self.record.commit = commit_of(transform.partition(":")[0])

    def fail(self, errors: Iterable[str]) -> None:
        """Record the kinds of failure that are left."""
        self.record.errors = [text[:MAX_ERROR_CHARACTERS] for text in errors][:MAX_ERRORS]

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure and record the time of a phase, until the next begins."""
        started = time.time()
        self.record.end_phase(started)
        self.record.phases.append((name, started, 0.0))
        try:
            with traces.span(name):
                yield
        finally:
            self.record.end_phase(time.time())

    @contextmanager
    def traced(self, endpoint: str | None, name: str, facts: traces.Attributes) -> Iterator[None]:
        """Trace the block, and what went before it since the start of the command.

        Args:
            endpoint: The collector's address; None: trace nothing.
            name: Name of the span.
            facts: What it is about.
        """
        with traces.tracing(endpoint), traces.span(name, facts, self.record.started):
            for phase, started, seconds in self.record.phases:
                traces.record_span(phase, started, started + seconds, {})
            yield
            counts = {name: getattr(self.record, name) for name in ("reads", "writes", "retries")}
            traces.set_attributes({f"s3.{name}": count for name, count in counts.items()})

    def _count_requests(self) -> None:
        now, before = process_requests.counts(), self._requests
        self.record.reads = now.reads - before.reads
        self.record.writes = now.writes - before.writes
        self.record.retries = now.retries - before.retries
        self.record.throttled = now.throttled - before.throttled
        self.record.request_limit = now.request_limit if self.record.throttled else 0


def _attempt_of(record: AttemptRecord) -> AttemptRecord:
    """Keep what reports need of an earlier driver's record."""
    fields = set(AttemptRecord.model_fields)
    return AttemptRecord.model_validate(record.model_dump(include=fields))


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
