"""Apply the desired state of a backfill, which users may change while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from pipeline.errors import RunCancelledError
from pipeline.processes import was_interrupted
from pipeline.runs.backfill.orchestrator import BackfillOrchestrator
from pipeline.runs.backfill.records import Control
from pipeline.runs.backfill.store import BackfillStore

CONTROL_SECONDS = 5.0
"""Seconds between two heartbeats; each saves progress and reads the desired state."""


@dataclass(slots=True)
class DesiredState:
    """The desired state, as last read. Runs in other threads consult it."""

    store: BackfillStore
    orchestrator: BackfillOrchestrator
    is_interrupted: Callable[[], bool] = was_interrupted
    """Returns whether this process is to end."""
    control: Control = field(default_factory=Control)
    stopping: bool = False
    """Whether the driver ends because of an error: its runs must stop."""
    read_at: float = 0.0
    """Time of the last reading, of the monotonic clock."""
    _retries: int = 0

    def load(self) -> None:
        """Read it when a driver starts."""
        self.read_at = time.monotonic()
        self.control = self.store.control()
        self._retries = self.control.retries

    @property
    def is_due(self) -> bool:
        """Whether it is time to read it again."""
        return time.monotonic() - self.read_at >= CONTROL_SECONDS

    def refresh(self) -> None:
        """Read it again, and agree on it with the orchestrator. Raises where storage is away."""
        self.control = self.store.control()
        self.control = self.orchestrator.sync_control(self.control) or self.control

    def take_retry(self) -> bool:
        """Return whether a retry of failed windows was requested since the last call."""
        is_requested = self.control.retries > self._retries
        self._retries = max(self._retries, self.control.retries)
        return is_requested

    def check(self) -> None:
        """Raise if the driver is to stop.

        Raises:
            KeyboardInterrupt: the process is to end.
            RunCancelledError: the backfill was cancelled.
        """
        if self.stopping or self.is_interrupted():
            raise KeyboardInterrupt
        if self.control.cancelled:
            raise RunCancelledError(
                f"backfill {self.store.backfill} was cancelled; published windows are kept"
            )
