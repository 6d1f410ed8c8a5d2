"""What a process counts, for Prometheus, and which batches it is at.

Dask serves the metrics of a worker at `/metrics` of the port of its pages, its own beside ours.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from prometheus_client import Counter, Gauge, Histogram

CHUNKS = Counter("chunkmap_chunks", "Chunks that were mapped and recorded as done")
ROWS = Counter("chunkmap_rows", "Rows of done chunks, read (in) and written (out)", ["direction"])
BYTES = Counter(
    "chunkmap_bytes", "Bytes of done chunks, read from S3 (in) and staged (out)", ["direction"]
)
RETRIES = Counter("chunkmap_retries", "Further tries of chunks after errors that may pass")
FAILURES = Counter("chunkmap_failures", "Tries of chunks that were recorded as failed", ["error"])
QUARANTINED = Counter(
    "chunkmap_quarantined", "Chunks whose error will not pass; nobody tries them again by himself"
)
REQUESTS = Counter(
    "chunkmap_s3_requests",
    "Requests to S3, by kind and HTTP status (none: no answer)",
    ["kind", "status"],
)
IN_FLIGHT = Gauge("chunkmap_s3_requests_in_flight", "Requests to S3 that wait for their answer")
BATCH_SECONDS = Histogram(
    "chunkmap_batch_seconds",
    "How long batches took",
    buckets=(0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800),
)
BATCHES = Counter(
    "chunkmap_batches", "Batches by how they ended: done, handed-back, error", ["end"]
)
RUNNING = Gauge("chunkmap_batches_running", "Batches that are being mapped")


@dataclass(slots=True)
class AtWork:
    """A batch that this process is at."""

    run: str
    batch: str
    chunks: int
    done: int = 0
    """Chunks that are settled, also those that failed."""
    since: float = field(default_factory=time.time)
    """Unix seconds."""


at_work: dict[int, AtWork] = {}
"""By identity: two tries of one batch may run in one process."""


@contextmanager
def working(run: str, batch: str, chunks: int) -> Iterator[AtWork]:
    """Note that this process is at a batch, and count it by its end."""
    work = AtWork(run, batch, chunks)
    at_work[id(work)] = work
    RUNNING.inc()
    end = "error"
    try:
        yield work
        end = "done" if work.done >= work.chunks else "handed-back"
    finally:
        del at_work[id(work)]
        RUNNING.dec()
        BATCHES.labels(end).inc()
        BATCH_SECONDS.observe(time.time() - work.since)
