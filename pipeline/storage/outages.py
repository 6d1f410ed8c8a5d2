"""Waiting while storage is away: a request gives up within seconds, a driver has hours to lose."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import stamina

from pipeline.errors import is_transient

T = TypeVar("T")

OUTAGE_SECONDS = 300.0
"""How long a driver waits for storage that does not answer, before it gives up; what is done is
kept then, and the same command goes on."""

log = logging.getLogger(__name__)


def retry_until_available(call: Callable[[], T]) -> T:
    """Do something that may be done again, until it works or an error says that it will not."""
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
    """Around what is nice to have: where storage is away for now, it is left out."""
    try:
        yield
    except Exception as error:
        if not is_transient(error):
            raise
        log.warning("left out for now: %s", error)
