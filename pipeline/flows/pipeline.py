"""The flow `pipeline`: each stage that has something to do is a subflow, or a task run of a call.

A stage without anything to do is a task run in the state Skipped: opening and closing a subflow
takes up to two seconds on SQLite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from prefect.states import Completed
from prefect.utilities.annotations import quote

from pipeline.config.ingest import Ingest, SecretPlace
from pipeline.config.job import Job
from pipeline.config.load_file import LoadFile, LoadInto
from pipeline.config.pipeline_file import Pipeline, parse_pipeline, read_pipeline
from pipeline.config.settings import Settings, load_settings
from pipeline.errors import ChunkmapError
from pipeline.flows.ingest import (
    IngestFlowOptions,
    ingest_flow,
    ingest_options,
    secret_of_place,
)
from pipeline.flows.load import LoadOptions, load_flow, load_options, secret_of
from pipeline.flows.map_dataset import FlowOptions, map_dataset, options, shown_job
from pipeline.flows.run_events import PIPELINE, reported
from pipeline.flows.run_logs import flow_logs, masked_errors
from pipeline.ingest.run import IngestOptions, IngestSummary
from pipeline.load.records import LoadSummary
from pipeline.logs import set_up_driver
from pipeline.pipelines.driver import PipelineOptions, run_stages
from pipeline.pipelines.listener import PipelineListener
from pipeline.pipelines.runner import StageRunner
from pipeline.pipelines.summary import PipelineSummary, StageResult
from pipeline.runs.driver.early_plan import EarlyPlan
from pipeline.runs.driver.plan import ResumeOptions
from pipeline.runs.driver.summary import RunSummary
from pipeline.storage import open_storage

T = TypeVar("T")

_TASK_OPTIONS: dict[str, Any] = {
    "persist_result": False,
    "result_serializer": "json",
    "cache_policy": NO_CACHE,
}


@dataclass(frozen=True)
class PipelineFlowOptions:
    """Arguments of the flow that Prefect need not store."""

    settings: Settings
    task_runner: Callable[[Settings], Any]
    """Makes the task runner of a stage that maps."""
    pipeline: Pipeline | None = None
    """The pipeline, where the caller has it: its file is not read again."""
    options: PipelineOptions = field(default_factory=PipelineOptions)
    listen: PipelineListener = field(default_factory=PipelineListener)
    ended: list[PipelineSummary | ChunkmapError] = field(default_factory=list)
    """The summary or error, added when it ends, even if Prefect fails afterwards."""


_options: ContextVar[PipelineFlowOptions | None] = ContextVar("pipeline_options", default=None)


@contextmanager
def pipeline_options(flow_options: PipelineFlowOptions) -> Iterator[None]:
    """Run the flow with these options; without them, it takes the settings of the environment."""
    token = _options.set(flow_options)
    try:
        yield
    finally:
        _options.reset(token)


def _run_name() -> str:
    given: Mapping[str, Any] = flow_run.parameters
    try:
        pipeline = _resolve(given["file"], given.get("parameters"))
    except ChunkmapError:  # The flow run itself says what is wrong.
        return "pipeline"
    return f"{pipeline.name} {pipeline.label}".strip()


def _resolve(file: str, parameters: Mapping[str, Any] | None) -> Pipeline:
    """Read a pipeline file, or its text; `today` and `yesterday` count from the scheduled time."""
    source = parse_pipeline(file) if "\n" in file else read_pipeline(file)
    # A late run has the date of its schedule, not that of the clock.
    scheduled = flow_run.scheduled_start_time or datetime.now(UTC)
    return source.resolve(parameters, scheduled.astimezone(UTC).date())


@flow(
    name="pipeline",
    flow_run_name=_run_name,
    persist_result=False,
    result_serializer="json",
    validate_parameters=False,
)
def run_pipeline(
    file: str,
    parameters: dict[str, Any] | None = None,
    start_from: str | None = None,
    only: str | None = None,
) -> PipelineSummary:
    """Run the stages of a pipeline, or resume one that was stopped.

    Args:
        file: Path of the pipeline file, or its text with the files of its stages in it.
        parameters: Values of its parameters; those that are not given have their defaults.
        start_from: First stage to run; those before it are left as they are.
        only: The only stage to run.

    Raises:
        StageFailedError: A stage failed, and those after it did not begin. What is done is kept.
        PipelineFileError: The file is wrong, or a parameter has no such value.
    """
    current = _options.get() or _options_of_environment(start_from, only)
    try:
        pipeline = current.pipeline or _resolve(file, parameters)
        storage = open_storage(current.settings)
        runner = PrefectRunner(current)
        about = {"job": pipeline.name, "run": pipeline.run}
        with flow_logs(), reported(PIPELINE, pipeline.state, about) as complete:
            summary = run_stages(
                pipeline,
                current.settings,
                storage,
                runner,
                options=current.options,
                listen=current.listen,
            )
            complete(summary)
    except ChunkmapError as error:
        current.ended.append(error)
        raise
    current.ended.append(summary)
    return summary


def _options_of_environment(start_from: str | None, only: str | None) -> PipelineFlowOptions:
    from pipeline.cluster.task_runner import task_runner

    def runner(settings: Settings) -> Any:
        return task_runner(settings.dask, settings.s3.environment())

    settings = load_settings()
    set_up_driver(settings.logs.format, settings.logs.level)
    chosen = PipelineOptions(start_from=start_from, only=only)
    return PipelineFlowOptions(settings, runner, options=chosen)


@task(name="stage", task_run_name="{stage}", **_TASK_OPTIONS)
def call_task(stage: str, work: Callable[[], Any]) -> Any:
    """Call the function of a stage."""
    with masked_errors():
        return work()


@task(name="stage", task_run_name="{stage}: {state}", **_TASK_OPTIONS)
def passed_task(stage: str, state: str, reason: str) -> Any:
    """Show a stage that had nothing to do."""
    return Completed(name="Skipped", message=f"{stage} is {state}: {reason}")


class PrefectRunner(StageRunner):
    """Runs stages as subflows and task runs of the current flow run."""

    def __init__(self, current: PipelineFlowOptions) -> None:
        self._settings = current.settings
        self._listen = current.listen
        self._task_runner = current.task_runner

    def ingest(self, stage: str, definition: Ingest, *, refresh: bool) -> IngestSummary:
        """Ingest, as the flow `ingest`."""
        how = IngestOptions(refresh=refresh, listen=self._listen.ingesting)
        given = IngestFlowOptions(self._settings, how)
        subflow: Any = ingest_flow.with_options(flow_run_name=stage)
        with ingest_options(given):
            call = partial(subflow, definition.name, definition.to_yaml())
            return _outcome(call, given.ended)

    def map(self, stage: str, job: Job, early: EarlyPlan, resume: ResumeOptions) -> RunSummary:
        """Run a job, as the flow `map_dataset` on Dask."""
        listen = self._listen.mapping
        listen("start", None)
        runner = self._task_runner(self._settings)
        if self._settings.dask.scheduler is None and self._settings.dask.cluster_class is None:
            listen("workers", None)
        given = FlowOptions(self._settings, listen, resume, job, early)
        subflow: Any = map_dataset.with_options(flow_run_name=stage, task_runner=runner)
        with options(given):
            return _outcome(partial(subflow, job.name, shown_job(job)), given.ended)

    def load(self, stage: str, file: LoadFile) -> LoadSummary:
        """Load, as the flow `load`."""
        given = LoadOptions(self._settings, self._listen.loading)
        subflow: Any = load_flow.with_options(flow_run_name=stage)
        with load_options(given):
            return _outcome(partial(subflow, file.name, file.to_yaml()), given.ended)

    def call(self, stage: str, work: Callable[[], Any]) -> Any:
        """Call a function, as a task run."""
        call: Any = quote(work)
        return call_task(stage, call)

    def passed(self, result: StageResult) -> None:
        """Show the stage as a task run."""
        show: Any = passed_task
        show(result.name, result.state, result.reason)

    def ingest_secret(self, place: SecretPlace) -> str | None:
        """Return the secret, also from a Secret block."""
        return secret_of_place(place)

    def load_secret(self, into: LoadInto) -> str | None:
        """Return the secret in a Secret block."""
        return secret_of(into)


def _outcome(call: Callable[[], T], ended: Sequence[T | ChunkmapError]) -> T:
    """Call a subflow; return or raise what it stored in `ended`, even if Prefect failed."""
    try:
        return call()
    except Exception:
        if not ended:
            raise
        if isinstance(ended[0], ChunkmapError):
            raise ended[0] from None
        return ended[0]
