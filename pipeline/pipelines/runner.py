"""What a pipeline needs of its host: run a stage, and show those that did not run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from pipeline.config.ingest import Ingest, SecretPlace
from pipeline.config.job import Job
from pipeline.config.load_file import LoadFile, LoadInto
from pipeline.config.settings import Settings
from pipeline.ingest.run import IngestOptions, IngestSummary, ingest
from pipeline.ingest.sources import secret_of_environment
from pipeline.load.connect import open_load
from pipeline.load.records import LoadSummary
from pipeline.pipelines.listener import PipelineListener
from pipeline.pipelines.summary import StageResult
from pipeline.runs.driver.early_plan import EarlyPlan
from pipeline.runs.driver.orchestrator import NoOrchestrator, Orchestrator
from pipeline.runs.driver.plan import ResumeOptions, plan_run
from pipeline.runs.driver.run import RunDriver
from pipeline.runs.driver.summary import RunSummary
from pipeline.storage import Storage


class StageRunner(Protocol):
    """Runs stages, in a process or on a cluster. Each of them is exactly-once by itself."""

    def ingest(self, stage: str, definition: Ingest, *, refresh: bool) -> IngestSummary:
        """Ingest; with `refresh`, again what is published."""
        ...

    def map(self, stage: str, job: Job, early: EarlyPlan, resume: ResumeOptions) -> RunSummary:
        """Run a job; its plan is there unless workers must make it."""
        ...

    def load(self, stage: str, file: LoadFile) -> LoadSummary:
        """Load."""
        ...

    def call(self, stage: str, work: Callable[[], Any]) -> Any:
        """Call a function."""
        ...

    def passed(self, result: StageResult) -> None:
        """Show a stage that had nothing to do, or was skipped."""
        ...

    def ingest_secret(self, place: SecretPlace) -> str | None:
        """Return the secret of an ingest."""
        ...

    def load_secret(self, into: LoadInto) -> str | None:
        """Return the secret that a load file names elsewhere than in a variable."""
        ...


class LocalRunner:
    """Runs stages in this process, without Prefect and Dask."""

    def __init__(
        self, settings: Settings, storage: Storage, listen: PipelineListener | None = None
    ) -> None:
        self._settings = settings
        self._storage = storage
        self._listen = listen or PipelineListener()

    def ingest(self, stage: str, definition: Ingest, *, refresh: bool) -> IngestSummary:
        """Ingest."""
        options = IngestOptions(refresh=refresh, listen=self._listen.ingesting)
        return ingest(definition, self._settings, options, storage=self._storage)

    def map(self, stage: str, job: Job, early: EarlyPlan, resume: ResumeOptions) -> RunSummary:
        """Run a job."""
        settings, storage = self._settings, self._storage
        run = early.run or plan_run(job, settings, storage, resume)
        driver = RunDriver(
            job, settings, storage, run, self.host(job), resume, self._listen.mapping
        )
        driver.heartbeat.begin(None, early.started)
        return driver.run()

    def host(self, job: Job) -> Orchestrator:
        """Return what hosts the run of a job: here nothing, so that chunks are mapped in turn."""
        return NoOrchestrator()

    def load(self, stage: str, file: LoadFile) -> LoadSummary:
        """Load."""
        return open_load(file, self._settings, self._storage, self._listen.loading).run()

    def call(self, stage: str, work: Callable[[], Any]) -> Any:
        """Call a function."""
        return work()

    def passed(self, result: StageResult) -> None:
        """Show nothing."""

    def ingest_secret(self, place: SecretPlace) -> str | None:
        """Return the secret in a variable."""
        return secret_of_environment(place)

    def load_secret(self, into: LoadInto) -> str | None:
        """Return none: variables and the database's own places are read elsewhere."""
        return None
