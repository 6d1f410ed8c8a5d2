"""Limit how many chunks this process maps at a time with one transform (`concurrency` of a job)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import Semaphore

from pipeline.config.job import Job


@contextmanager
def limited_calls(job: Job) -> Iterator[None]:
    """Map a chunk in the block, once fewer than `job.concurrency` are mapped in this process.

    Runs of the same transform count together, since they share e.g. a device.
    """
    if job.concurrency is None:
        yield
        return
    with _semaphore(job.transform, job.concurrency):
        yield


@cache
def _semaphore(transform: str, limit: int) -> Semaphore:
    return Semaphore(limit)
