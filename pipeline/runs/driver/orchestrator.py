"""What a driver asks of whoever hosts it: Prefect, or nobody."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from pipeline.runs.driver.executor import Executor, SerialExecutor
from pipeline.runs.driver.publish import publish_run
from pipeline.runs.driver.report import StoredReport
from pipeline.runs.driver.summary import MapProgress
from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.worker.reduce import Step, reduce_step
from pipeline.storage import Storage
from pipeline.table.errors import UploadsVanishedError


class Orchestrator(Protocol):
    """What an orchestrator does around a run. None of it matters to the result."""

    @property
    def page(self) -> str | None:
        """Where the orchestrator shows this run."""
        ...

    def executor(self, run_uri: str, fingerprint: str) -> Executor:
        """What maps the batches."""
        ...

    def reduce(self, run_uri: str, fingerprint: str, steps: list[Step]) -> None:
        """Do some steps of the reduce, in any order; raises what one of them raises."""
        ...

    def publish(self, ledger: Ledger, vanished: UploadsVanishedError | None) -> int:
        """Publish a complete run; returns the manifest's number."""
        ...

    def mapping(self, run: str, progress: MapProgress) -> None:
        """Show progress."""
        ...

    def ended(self, run: str, report: StoredReport) -> None:
        """Show the report."""
        ...


@dataclass(slots=True)
class NoOrchestrator:
    """No orchestrator: everything in this process, one batch after the other."""

    storage: Storage
    page: str | None = None

    def executor(self, run_uri: str, fingerprint: str) -> Executor:
        """See `Orchestrator.executor`."""
        return SerialExecutor(run_uri, fingerprint)

    def reduce(self, run_uri: str, fingerprint: str, steps: list[Step]) -> None:
        """See `Orchestrator.reduce`."""
        for step in steps:
            reduce_step(run_uri, fingerprint, step)

    def publish(self, ledger: Ledger, vanished: UploadsVanishedError | None) -> int:
        """See `Orchestrator.publish`."""
        return publish_run(self.storage, ledger, vanished)

    def mapping(self, run: str, progress: MapProgress) -> None:
        """See `Orchestrator.mapping`."""

    def ended(self, run: str, report: StoredReport) -> None:
        """See `Orchestrator.ended`."""
