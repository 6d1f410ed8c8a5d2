"""Count for Prometheus what a process does, and track the batches that it maps.

Dask serves the metrics of a worker at `/metrics` on the dashboard port, together with Dask's own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from prometheus_client import Counter, Gauge, Histogram

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
