"""Count for Prometheus what a process does, and track the batches that it maps.

Dask serves the metrics of a worker at `/metrics` on the dashboard port, together with Dask's own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import wraps
from threading import Lock
from typing import ParamSpec, TypeVar

from prometheus_client import Counter, Gauge, Histogram

P = ParamSpec("P")
R = TypeVar("R")

CHUNKS = Counter("chunkmap_chunks", "Chunks that were mapped and recorded as completed")
ROWS = Counter(
    "chunkmap_rows", "Rows of completed chunks, read (in) and written (out)", ["direction"]
)
BYTES = Counter(
    "chunkmap_bytes",
    "Bytes of completed chunks, read from S3 (in) and staged (out)",
    ["direction"],
)
RETRIES = Counter("chunkmap_retries", "Retries of chunks after transient errors")
FAILURES = Counter("chunkmap_failures", "Attempts at chunks that failed, by error", ["error"])
QUARANTINED = Counter("chunkmap_quarantined", "Chunks that failed permanently and are not retried")
REQUESTS = Counter(
    "chunkmap_s3_requests",
    "Requests to S3, by kind and HTTP status (none: no response)",
    ["kind", "status"],
)
IN_FLIGHT = Gauge("chunkmap_s3_requests_in_flight", "Requests to S3 that wait for a response")
THROTTLED = Counter(
    "chunkmap_s3_throttled", "Requests that S3 refused because it gets too many (503, 429)"
)
REQUEST_LIMIT = Gauge(
    "chunkmap_s3_request_limit",
    "Maximum number of concurrent requests to S3 now: s3.max_requests, or fewer after throttling",
)
BATCH_SECONDS = Histogram(
    "chunkmap_batch_seconds",
    "Duration of batches in seconds",
    buckets=(0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800),
)
BATCHES = Counter("chunkmap_batches", "Batches by outcome: done, handed-back, error", ["end"])
RUNNING = Gauge("chunkmap_batches_running", "Batches that are being mapped")


@dataclass(slots=True)
class ActiveBatch:
    """A batch that this process maps."""

    run: str
    batch: str
    chunks: int
    done: int = 0
    """Chunks that completed or failed."""
    since: float = field(default_factory=time.time)
    """Time of the start, in Unix seconds."""


active_batches: dict[int, ActiveBatch] = {}
"""Batches by identity: two attempts at one batch may run in one process."""


@contextmanager
def track_batch(run: str, batch: str, chunks: int) -> Iterator[ActiveBatch]:
    """List a batch as active during the block, and count its outcome."""
    work = ActiveBatch(run, batch, chunks)
    active_batches[id(work)] = work
    RUNNING.inc()
    end = "error"
    try:
        yield work
        end = "done" if work.done >= work.chunks else "handed-back"
    finally:
        del active_batches[id(work)]
        RUNNING.dec()
        BATCHES.labels(end).inc()
        BATCH_SECONDS.observe(time.time() - work.since)


_WRITING = ("Put", "Copy", "List", "Create", "Upload", "Complete")
"""Beginnings of the names of requests that S3 services price as writes; listings are among them."""
_FREE = ("Delete", "Abort")


@dataclass(frozen=True, slots=True)
class RequestCounts:
    """Numbers of requests to S3, by how services price them."""

    reads: int = 0
    """GET and HEAD requests."""
    writes: int = 0
    """PUT, COPY, POST and LIST requests."""
    retries: int = 0
    """Operations that were tried again after a transient error."""
    throttled: int = 0
    """Requests that the service refused because it gets too many."""
    request_limit: int = 0
    """Lowest limit on concurrent requests of the process after a refusal; 0 if none was refused."""


class RequestTally:
    """Counts the requests of a batch, or of all of this process that belong to no batch."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._reads = self._writes = self._retries = self._throttled = self._limit = 0

    def add(self, kind: str) -> None:
        """Count a request by S3's name of it."""
        with self._lock:
            if kind.startswith(_WRITING):
                self._writes += 1
            elif not kind.startswith(_FREE):
                self._reads += 1

    def add_retry(self) -> None:
        """Count an operation that is tried again."""
        with self._lock:
            self._retries += 1

    def add_throttled(self, limit: int) -> None:
        """Count a refused request, and note the limit on concurrent requests after it."""
        with self._lock:
            self._throttled += 1
            self._limit = min(self._limit or limit, limit)

    def counts(self) -> RequestCounts:
        """Return what was counted so far."""
        with self._lock:
            return self._counts()

    def take(self) -> RequestCounts:
        """Return what was counted since the last call."""
        with self._lock:
            counts = self._counts()
            self._reads = self._writes = self._retries = self._throttled = self._limit = 0
        return counts

    def _counts(self) -> RequestCounts:
        return RequestCounts(self._reads, self._writes, self._retries, self._throttled, self._limit)


process_requests = RequestTally()
"""Requests of this process that belong to no batch: those of a driver."""
_tally: ContextVar[RequestTally] = ContextVar("tally", default=process_requests)


@contextmanager
def counting(tally: RequestTally) -> Iterator[None]:
    """Count the requests of the block in a tally."""
    token = _tally.set(tally)
    try:
        yield
    finally:
        _tally.reset(token)


def current_tally() -> RequestTally:
    """Return the tally that counts the requests made here."""
    return _tally.get()


def counted_here(call: Callable[P, R]) -> Callable[P, R]:
    """Make a function count its requests where it was made, in whatever thread it is called."""
    tally = _tally.get()

    @wraps(call)
    def counted(*args: P.args, **named: P.kwargs) -> R:
        with counting(tally):
            return call(*args, **named)

    return counted
