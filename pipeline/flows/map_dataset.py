"""The flow `map_dataset`: plan (a task), map batches of chunks on Dask, publish (a task)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, field
from functools import cached_property, partial
from threading import Thread
from typing import Any
from uuid import UUID

from prefect import flow, task
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)
from prefect.context import FlowRunContext
from prefect.utilities.annotations import quote

from pipeline.cluster.task_runner import cluster_mapper
from pipeline.cluster.versions import check_versions
from pipeline.config.job import Job, parse_job
from pipeline.config.settings import Settings, load_settings
from pipeline.errors import ChunkmapError
from pipeline.flows.event_sender import flush_events
from pipeline.flows.executor import TASK_OPTIONS, DaskExecutor, run_reduce_steps
from pipeline.flows.server import flow_run_page
from pipeline.runs.admin.known_outputs import remember_output
from pipeline.runs.driver.executor import Executor
from pipeline.runs.driver.plan import PreparedRun, ResumeOptions, plan_run
from pipeline.runs.driver.publish import publish_run
from pipeline.runs.driver.report import StoredReport
from pipeline.runs.driver.run import Listener, RunDriver
from pipeline.runs.driver.summary import MapProgress, RunSummary
from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.worker.reduce import Step
from pipeline.storage import Storage, open_storage
from pipeline.table.errors import UploadsVanishedError

ARTIFACT_SECONDS = 5.0
"""How often the progress artifact moves."""
LAST_WORDS_SECONDS = 3.0
"""How long a run that is over waits for Prefect to take its report."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FlowOptions:
    """What the caller of the flow knows and Prefect need not store."""

    settings: Settings
    listen: Listener = lambda phase, progress: None
    resume: ResumeOptions = field(default_factory=ResumeOptions)
    job: Job | None = None
    """The job, where the caller has it: its text is not parsed again."""
    ended: list[RunSummary | ChunkmapError] = field(default_factory=list)
    """How the run ended, whatever Prefect makes of it afterwards."""

    @cached_property
    def storage(self) -> Storage:
        """What the settings name, opened once: a client of S3 takes a quarter of a second."""
        return open_storage(self.settings)


_options: ContextVar[FlowOptions | None] = ContextVar("options", default=None)


@contextmanager
def options(given: FlowOptions) -> Iterator[None]:
    """Run the flow with these options; a deployment runs with those of its environment."""
    token = _options.set(given)
    try:
        yield
    finally:
        _options.reset(token)


def _given() -> FlowOptions:
    return _options.get() or FlowOptions(load_settings())


@task(name="plan", task_run_name="plan {job_name}", **TASK_OPTIONS)
def plan_task(job_name: str, job: Job) -> PreparedRun:
    """Store the plan, or find the unfinished run of this job."""
    given = _given()
    context = FlowRunContext.get()
    mapper = cluster_mapper(context.task_runner) if context else None  # type: ignore[arg-type]
    return plan_run(job, given.settings, given.storage, given.resume, mapper)


@task(name="publish", task_run_name="publish {run}", **TASK_OPTIONS)
def publish_task(run: str, publish: Callable[[], int]) -> int:
    """Publish a run that is complete; returns the manifest's number."""
    return publish()


@flow(
    name="map_dataset",
    flow_run_name="{name}",
    persist_result=False,
    result_serializer="json",
    validate_parameters=False,
)
def map_dataset(name: str, job_yaml: str) -> RunSummary:
    """Map a job's transform over every chunk of its input and publish the results once.

    Args:
        name: The job's name, for Prefect's pages.
        job_yaml: The job file's text.

    Raises:
        RunIncompleteError: some chunks failed; nothing was published, all work is kept.
        VersionMismatchError: the workers have other packages than this process.
    """
    given = _given()
    job = given.job or parse_job(job_yaml)
    given.listen("plan", None)
    started = time.time()
    context = FlowRunContext.get()
    assert context is not None, "a flow runs in a flow run's context"
    check_versions(context.task_runner)
    # Quoted: Prefect would look into it for results of other tasks.
    task_parameter: Any = quote(job)
    planned = plan_task(name, task_parameter)
    remember_output(given.settings.state_dir, job.output.uri)
    driver = RunDriver(
        job,
        given.settings,
        given.storage,
        planned,
        PrefectOrchestrator(),
        given.resume,
        given.listen,
    )
    driver.heartbeat.record.phases.append(("plan", started, time.time() - started))
    try:
        summary = driver.run()
    except ChunkmapError as error:
        given.ended.append(error)
        raise
    finally:
        flush_events(LAST_WORDS_SECONDS)
    given.ended.append(summary)
    return summary


@dataclass(slots=True)
class PrefectOrchestrator:
    """Prefect as the host of a run (see `pipeline.runs.driver.orchestrator.Orchestrator`).

    Its pages are for people: when the server is gone, the run goes on without them.
    """

    _artifact: UUID | None = None
    _telling: Thread | None = None
    _shown: float = 0.0

    @property
    def page(self) -> str | None:
        """See `Orchestrator.page`."""
        return flow_run_page()

    def executor(self, run_uri: str, fingerprint: str) -> Executor:
        """See `Orchestrator.executor`."""
        context = FlowRunContext.get()
        assert context is not None, "a flow runs in a flow run's context"
        limit = _given().settings.batches.concurrency_limit
        return DaskExecutor(context.task_runner, run_uri, fingerprint, limit=limit)

    def reduce(self, run_uri: str, fingerprint: str, steps: list[Step]) -> None:
        """See `Orchestrator.reduce`."""
        context = FlowRunContext.get()
        assert context is not None, "a flow runs in a flow run's context"
        run_reduce_steps(context.task_runner, run_uri, fingerprint, steps)

    def publish(self, ledger: Ledger, vanished: UploadsVanishedError | None) -> int:
        """See `Orchestrator.publish`."""
        call: Any = quote(partial(publish_run, _given().storage, ledger, vanished))
        return publish_task(ledger.run, call)

    def show_progress(self, run: str, progress: MapProgress) -> None:
        """See `Orchestrator.show_progress`: the progress artifact, every few seconds."""
        over = progress.done >= progress.chunks
        if over or time.monotonic() - self._shown >= ARTIFACT_SECONDS:
            self._shown = time.monotonic()
            percent = 100.0 * progress.done / max(1, progress.chunks)
            said = f"{progress.done:,} of {progress.chunks:,} chunks, {progress.failed:,} failed"
            self._tell(lambda: self._show(f"progress-{run}", percent, said))

    def _show(self, key: str, percent: float, said: str) -> None:
        if self._artifact is None:
            made: Any = create_progress_artifact(progress=percent, key=key, description=said)
            self._artifact = made
        else:
            update_progress_artifact(self._artifact, progress=percent, description=said)

    def show_report(self, run: str, report: StoredReport) -> None:
        """See `Orchestrator.show_report`."""
        if self._telling is not None:
            self._telling.join(LAST_WORDS_SECONDS)
            if self._telling.is_alive():
                return  # Whoever does not listen is not told more.
        self._tell(lambda: create_markdown_artifact(markdown=report.markdown, key=f"run-{run}"))
        assert self._telling is not None, "it was started just now"
        self._telling.join(LAST_WORDS_SECONDS)

    def _tell(self, call: Callable[[], object]) -> None:
        """Tell Prefect, in a thread: a server that is gone or slow must not hold the run up."""
        if self._telling is None or not self._telling.is_alive():
            run = copy_context().run
            self._telling = Thread(target=run, args=(_shielded, call), daemon=True)
            self._telling.start()


def _shielded(call: Callable[[], object]) -> None:
    try:
        call()
    except Exception as error:
        log.warning("Prefect's pages are not up to date: %s", error)
