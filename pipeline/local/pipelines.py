"""Run the stages of a pipeline without Prefect; worker processes of this machine map."""

from __future__ import annotations

from typing_extensions import override

from pipeline.config.job import Job
from pipeline.config.settings import Settings
from pipeline.local.orchestrator import LocalOrchestrator
from pipeline.local.workers import LocalWorkers
from pipeline.pipelines.listener import PipelineListener
from pipeline.pipelines.runner import LocalRunner
from pipeline.runs.driver.orchestrator import Orchestrator
from pipeline.storage import Storage


class LocalWorkersRunner(LocalRunner):
    """Runs stages in this process, and maps with worker processes of this machine."""

    def __init__(
        self,
        settings: Settings,
        storage: Storage,
        listen: PipelineListener | None,
        workers: LocalWorkers,
    ) -> None:
        super().__init__(settings, storage, listen)
        self._workers = workers

    @override
    def host(self, job: Job) -> Orchestrator:
        return LocalOrchestrator(self._workers, self._settings, job)
