"""Hooks through which Prefect (or nothing) hosts a backfill."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from typing_extensions import override

from pipeline.runs.backfill.records import Control
from pipeline.runs.driver.executor import Executor, SerialExecutor

ExecutorOf = Callable[[str, str, Callable[[], int]], Executor]
"""Makes the executor of a run from its URI, the code's fingerprint and a function that returns the
priority."""


class BackfillOrchestrator(Protocol):
    """Hooks through which Prefect (or nothing) hosts a backfill. They never affect the result."""

    @property
    def page(self) -> str | None:
        """URL of the page that shows the backfill."""
        ...

    def run(self, name: str, work: Callable[[ExecutorOf], None]) -> None:
        """Do a run's work as a child of the orchestrator's own run. Raises what it raises."""
        ...

    def sync_control(self, control: Control) -> Control | None:
        """Show the desired state; return another if users paused or cancelled it there."""
        ...


class NoBackfillOrchestrator(BackfillOrchestrator):
    """Hosts a backfill without an orchestrator: each batch runs at once, in this process."""

    page: str | None = None

    @override
    def run(self, name: str, work: Callable[[ExecutorOf], None]) -> None:
        work(lambda run_uri, fingerprint, _: SerialExecutor(run_uri, fingerprint))

    @override
    def sync_control(self, control: Control) -> Control | None:
        return None
