"""Define the retry policy for transient errors of all requests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeVar

import stamina

from pipeline.errors import ThrottledError, Transient

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Retries of transient errors: exponential backoff with jitter, within a budget."""

    attempts: int = 6
    """Maximum number of attempts, without those that the service throttled."""
    throttled_attempts: int = 24
    """Maximum number of attempts that the service throttles. These are not failures: requests get
    through once all processes have lowered their limits."""
    seconds: float = 45.0
    """Budget of one operation in seconds, including waits."""
    wait_initial: float = 0.1
    """Seconds before the first retry; doubled after each attempt."""
    wait_max: float = 5.0
    """Maximum seconds between two attempts."""

    def call(self, work: Callable[[], T], on_retry: Callable[[], object]) -> T:
        """Call a function until it raises no transient error.

        Args:
            work: The function.
            on_retry: Called before each further attempt.
        """
        return call_repeatedly(
            work, lambda error: isinstance(error, Transient), self.contexts, on_retry
        )

    def contexts(self) -> Any:
        """Return a sync and async iterator of context managers, one per attempt."""
        failed, throttled = count(1), count(1)

        def is_retried(error: Exception) -> bool:
            if isinstance(error, ThrottledError):
                return next(throttled) < self.throttled_attempts
            return isinstance(error, Transient) and next(failed) < self.attempts

        return stamina.retry_context(
            on=is_retried,
            attempts=None,
            timeout=self.seconds,
            wait_initial=self.wait_initial,
            wait_max=self.wait_max,
            wait_jitter=self.wait_initial,
        )


def call_repeatedly(
    work: Callable[[], T],
    is_retried: Callable[[Exception], bool],
    contexts: Callable[[], Any],
    on_retry: Callable[[], object],
) -> T:
    """Call a function as in stamina's contexts, which are made after a first error only.

    To make them takes as long as a tenth of a request.

    Args:
        work: The function.
        is_retried: Whether an error is one after which the function is called again.
        contexts: Makes the contexts of stamina, one per attempt.
        on_retry: Called before each further attempt.
    """
    try:
        return work()
    except Exception as error:
        if not is_retried(error):
            raise
        first = error
    for attempt in contexts():
        with attempt:
            if attempt.num == 1:
                raise first
            on_retry()
            return work()
    raise AssertionError("stamina returns or raises")
