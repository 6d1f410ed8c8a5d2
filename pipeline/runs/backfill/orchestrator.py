"""What is around a backfill: an orchestrator, or none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from pipeline.runs.backfill.records import Control
from pipeline.runs.driver.executor import Executor, SerialExecutor

ExecutorOf = Callable[[str, str, Callable[[], int]], Executor]
"""What maps the batches of a run: of its URI, the fingerprint, and what says the priority."""


class BackfillOrchestrator(Protocol):
    """What an orchestrator does around a backfill. None of it matters to the result."""

    @property
    def page(self) -> str | None:
        """Where the orchestrator shows the backfill."""
        ...

    def run(self, name: str, work: Callable[[ExecutorOf], None]) -> None:
        """Do a run's work as a child of the orchestrator's own run; raises what it raises."""
        ...

    def agree(self, control: Control) -> Control | None:
        """Show the wishes; returns others if users wished them there, by pausing or cancelling."""
        ...


class NoBackfillOrchestrator:
    """No orchestrator: each batch in this process, as soon as it is submitted."""

    page: str | None = None

    def run(self, name: str, work: Callable[[ExecutorOf], None]) -> None:
        """See `BackfillOrchestrator.run`."""
        work(lambda run_uri, fingerprint, _: SerialExecutor(run_uri, fingerprint))

    def agree(self, control: Control) -> Control | None:
        """See `BackfillOrchestrator.agree`."""
        return None
