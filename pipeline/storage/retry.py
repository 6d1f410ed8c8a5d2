"""How long errors that may pass are tried again: one policy for every request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import stamina

from pipeline.errors import Transient


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long errors that may pass are tried again: exponential, jittered, within a budget."""

    attempts: int = 6
    """Tries in all."""
    seconds: float = 45.0
    """Budget of one operation, waits included."""
    wait_initial: float = 0.1
    """Seconds; doubled after each try."""
    wait_max: float = 5.0

    def tries(self) -> Any:
        """An iterator, plain and asynchronous, of context managers that each hold one try."""
        # stamina wants exception types; `Transient` is a marker that only exceptions carry.
        return stamina.retry_context(
            on=lambda error: isinstance(error, Transient),
            attempts=self.attempts,
            timeout=self.seconds,
            wait_initial=self.wait_initial,
            wait_max=self.wait_max,
            wait_jitter=self.wait_initial,
        )
