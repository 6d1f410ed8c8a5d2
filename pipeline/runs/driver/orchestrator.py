"""Hooks through which Prefect (or nothing) hosts a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from typing_extensions import override

from pipeline.quality.results import CheckResult
from pipeline.runs.driver.executor import Executor, SerialExecutor
from pipeline.runs.driver.report import StoredReport
from pipeline.runs.driver.summary import MapProgress
from pipeline.runs.worker.reduce import Step, reduce_step

T = TypeVar("T")


class Orchestrator(Protocol):
    """Hooks through which Prefect (or nothing) hosts a run. They never affect the result."""

    @property
    def page(self) -> str | None:
        """URL of the page that shows this run."""
        ...

    def executor(self, run_uri: str, fingerprint: str) -> Executor:
        """Return the executor of the run's batches."""
        ...

    def reduce(self, run_uri: str, fingerprint: str, steps: list[Step]) -> None:
        """Run some steps of the reduce, in any order. Raises what a step raises."""
        ...

    def step(self, name: str, run: str, work: Callable[[], T]) -> T:
        """Do a step of the run in this process (e.g. publish), shown under its name."""
        ...

    def show_progress(self, run: str, progress: MapProgress) -> None:
        """Show the progress of the map stage."""
        ...

    def show_checks(self, run: str, results: Sequence[CheckResult]) -> None:
        """Show what the checks of the result have found."""
        ...

    def show_report(self, run: str, report: StoredReport) -> None:
        """Show the report."""
        ...


@dataclass(slots=True)
class NoOrchestrator(Orchestrator):
    """Hosts a run without an orchestrator: one batch after the other, in this process."""

    page: str | None = None

    @override
    def executor(self, run_uri: str, fingerprint: str) -> Executor:
        return SerialExecutor(run_uri, fingerprint)

    @override
    def reduce(self, run_uri: str, fingerprint: str, steps: list[Step]) -> None:
        for step in steps:
            reduce_step(run_uri, fingerprint, step)

    @override
    def step(self, name: str, run: str, work: Callable[[], T]) -> T:
        return work()

    @override
    def show_progress(self, run: str, progress: MapProgress) -> None:
        pass

    @override
    def show_checks(self, run: str, results: Sequence[CheckResult]) -> None:
        pass

    @override
    def show_report(self, run: str, report: StoredReport) -> None:
        pass
