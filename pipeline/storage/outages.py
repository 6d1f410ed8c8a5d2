"""Wait for unavailable storage: a request fails within seconds, a driver can wait longer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import stamina

from pipeline.errors import is_transient

T = TypeVar("T")

OUTAGE_SECONDS = 300.0
"""Seconds that a driver waits for unavailable storage before it gives up. The same command resumes
the run."""

log = logging.getLogger(__name__)


def retry_until_available(call: Callable[[], T]) -> T:
    """Call an idempotent function; retry transient storage errors for up to OUTAGE_SECONDS."""
    for attempt in stamina.retry_context(
        on=is_transient,
        attempts=None,
        timeout=OUTAGE_SECONDS,
        wait_initial=1.0,
        wait_max=10.0,
    ):
        with attempt:
            return call()
    raise AssertionError("the last attempt returns or raises")


@contextmanager
def best_effort() -> Iterator[None]:
    """Suppress and log transient storage errors in the block; for optional writes."""
    try:
        yield
    except Exception as error:
        if not is_transient(error):
            raise
        log.warning("skipped an optional write: %s", error)
