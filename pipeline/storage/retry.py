"""Define the retry policy for transient errors of all requests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import stamina

from pipeline.errors import Transient


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Retries of transient errors: exponential backoff with jitter, within a budget."""

    attempts: int = 6
    """Maximum number of attempts."""
    seconds: float = 45.0
    """Budget of one operation in seconds, including waits."""
    wait_initial: float = 0.1
    """Seconds before the first retry; doubled after each attempt."""
    wait_max: float = 5.0
    """Maximum seconds between two attempts."""

    def contexts(self) -> Any:
        """Return a sync and async iterator of context managers, one per attempt."""
        # A predicate, because stamina accepts exception types only and `Transient` is a marker.
        return stamina.retry_context(
            on=lambda error: isinstance(error, Transient),
            attempts=self.attempts,
            timeout=self.seconds,
            wait_initial=self.wait_initial,
            wait_max=self.wait_max,
            wait_jitter=self.wait_initial,
        )
