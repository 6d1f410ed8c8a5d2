"""Host a run or a backfill in this process, with worker processes of this machine."""

from __future__ import annotations

from collections.abc import Callable

from typing_extensions import override

from pipeline.config.job import Job
from pipeline.config.settings import Settings
from pipeline.local.executor import LocalExecutor, run_reduce_steps
from pipeline.local.workers import LocalWorkers
from pipeline.runs.backfill.orchestrator import ExecutorOf, NoBackfillOrchestrator
from pipeline.runs.driver.executor import Executor, WorkerNeeds
from pipeline.runs.driver.orchestrator import NoOrchestrator
from pipeline.runs.worker.reduce import Step


class LocalOrchestrator(NoOrchestrator):
    """Hosts a run on this machine."""

    def __init__(self, workers: LocalWorkers, settings: Settings, job: Job) -> None:
        super().__init__()
        self._workers, self._settings, self._needs = workers, settings, WorkerNeeds.of(job)

    @override
    def executor(self, run_uri: str, fingerprint: str) -> Executor:
        return LocalExecutor(self._workers, run_uri, fingerprint, self._settings, self._needs)

    @override
    def reduce(self, run_uri: str, fingerprint: str, steps: list[Step]) -> None:
        run_reduce_steps(self._workers, run_uri, fingerprint, steps, self._settings)


class LocalBackfillOrchestrator(NoBackfillOrchestrator):
    """Hosts a backfill on this machine; its runs share the workers, first come, first served."""

    def __init__(self, workers: LocalWorkers, settings: Settings, job: Job) -> None:
        self._workers, self._settings, self._needs = workers, settings, WorkerNeeds.of(job)

    @override
    def run(self, name: str, work: Callable[[ExecutorOf], None]) -> None:
        def executor(run_uri: str, fingerprint: str, _: Callable[[], int]) -> Executor:
            return LocalExecutor(self._workers, run_uri, fingerprint, self._settings, self._needs)

        work(executor)
