"""The flow `map_dataset`: plan (a task), map batches of chunks on Dask, publish (a task)."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.context import FlowRunContext
from prefect.utilities.annotations import quote
from typing_extensions import override

from pipeline.cluster.task_runner import check_resources, cluster_mapper
from pipeline.cluster.versions import check_versions
from pipeline.config.job import Job, parse_job
from pipeline.config.settings import Settings, load_settings
from pipeline.errors import ChunkmapError
from pipeline.flows.artifacts import ArtifactSender
from pipeline.flows.executor import TASK_OPTIONS, DaskExecutor, run_reduce_steps
from pipeline.flows.lineage import lineage
from pipeline.flows.lineage_facts import LineageFacts, facts_of_job
from pipeline.flows.run_events import RUN, reported
from pipeline.flows.run_logs import flow_logs, masked_errors
from pipeline.flows.server import flow_run_page
from pipeline.flows.worker_code import check_code
from pipeline.masking import mask, mask_text
from pipeline.quality.results import CheckResult
from pipeline.report.humanize import plural
from pipeline.runs.admin.known_outputs import remember_output
from pipeline.runs.driver.early_plan import BackgroundPlan, EarlyPlan
from pipeline.runs.driver.executor import Executor, WorkerNeeds
from pipeline.runs.driver.orchestrator import Orchestrator, T
from pipeline.runs.driver.plan import PreparedRun, ResumeOptions, plan_run
from pipeline.runs.driver.report import StoredReport
from pipeline.runs.driver.run import Listener, RunDriver
from pipeline.runs.driver.summary import MapProgress, RunSummary
from pipeline.runs.worker.reduce import Step
from pipeline.storage import Storage, open_storage
from pipeline.table.log import TableLog


@dataclass(frozen=True)
class FlowOptions:
    """Arguments of the flow that Prefect need not store."""

    settings: Settings
    listen: Listener = lambda phase, progress: None
    resume: ResumeOptions = field(default_factory=ResumeOptions)
    job: Job | None = None
    """The job, where the caller has it: its text is not parsed again."""
    early: EarlyPlan | BackgroundPlan | None = None
    """The run, where the caller plans it."""
    began: float | None = None
    """Unix seconds when the command started; default when the flow starts."""
    ended: list[RunSummary | ChunkmapError] = field(default_factory=list)
    """The summary or error of the run, added when it ends, even if Prefect fails afterwards."""

    def planned(self) -> EarlyPlan | None:
        """Return the run that the caller has planned, once it is; None if the flow must plan it."""
        early = self.early.result() if isinstance(self.early, BackgroundPlan) else self.early
        return None if early is None or early.run is None else early


def shown_job(job: Job) -> str:
    """Return the text of a job for Prefect, which shows parameters of flow runs: without secrets.

    The flow itself takes the job from its options.
    """
    changes: dict[str, Any] = {"params": mask(job.params)}
    if job.then is not None:
        changes["then"] = job.then.model_copy(update={"params": mask(job.then.params)})
    return mask_text(job.model_copy(update=changes).to_yaml())


_options: ContextVar[FlowOptions | None] = ContextVar("options", default=None)


@contextmanager
def options(flow_options: FlowOptions) -> Iterator[None]:
    """Run the flow with these options; without them, it takes the settings of the environment."""
    token = _options.set(flow_options)
    try:
        yield
    finally:
        _options.reset(token)


def _current_options() -> FlowOptions:
    return _options.get() or FlowOptions(load_settings())


@task(name="plan", task_run_name="plan {job_name}", **TASK_OPTIONS)
def plan_task(job_name: str, job: Job) -> PreparedRun:
    """Store the plan, or find the unfinished run of this job."""
    current = _current_options()
    early = current.planned()
    if early is not None and early.run is not None:
        return early.run
    storage = open_storage(current.settings)
    context = FlowRunContext.get()
    mapper = cluster_mapper(context.task_runner) if context else None  # type: ignore[arg-type]
    return plan_run(job, current.settings, storage, current.resume, mapper)


@task(name="step", task_run_name="{name} {run}", **TASK_OPTIONS)
def step_task(name: str, run: str, work: Callable[[], Any]) -> Any:
    """Do a step of a run, e.g. publish it."""
    with masked_errors():
        return work()


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
        name: The name of the job, for the Prefect UI.
        job_yaml: The text of the job file; with a job in the options, it is only shown.

    Raises:
        RunIncompleteError: Some chunks failed; nothing was published, completed work is kept.
        VersionMismatchError: The workers' packages, code or allow-list differ from those here.
        EngineUnavailableError: No worker offers the resources that the job asks for.
    """
    current = _current_options()
    job = current.job or parse_job(job_yaml)
    storage = open_storage(current.settings)
    first = next(iter(job.all_outputs.values()))
    about = {"job": job.name}
    output = TableLog(storage, first.uri).output
    with flow_logs(), reported(RUN, output, about) as complete:
        driver = _prepare(current, name, job, storage)
        about["run"] = driver.planned.ledger.run
        facts = partial(_facts, job, driver.planned)
        try:
            with lineage(current.settings.lineage, storage, facts) as done:
                summary = driver.run()
                done(summary)
        except ChunkmapError as error:
            current.ended.append(error)
            raise
        complete(summary)
    current.ended.append(summary)
    return summary


def _facts(job: Job, planned: PreparedRun) -> LineageFacts:
    record = planned.ledger.record()
    return facts_of_job("run", record.run, job, planned.plan, record.tables or ())


def _prepare(current: FlowOptions, name: str, job: Job, storage: Storage) -> RunDriver:
    """Check the workers, plan the run, and return its driver."""
    context = FlowRunContext.get()
    assert context is not None, "a flow runs in a flow run's context"
    check_versions(context.task_runner)
    check_resources(context.task_runner, job.resources)
    check_code(context.task_runner, job, current.settings)
    started = time.time()
    if not isinstance(current.early, EarlyPlan) or current.early.run is None:
        current.listen("plan", None)
    # Quoted: Prefect would look into it for results of other tasks.
    task_parameter: Any = quote(job)
    planned = plan_task(name, task_parameter)
    for output in job.all_outputs.values():
        remember_output(current.settings.state_dir, output.uri)
    driver = RunDriver(
        job,
        current.settings,
        storage,
        planned,
        PrefectOrchestrator(WorkerNeeds.of(job)),
        current.resume,
        current.listen,
    )
    early = current.planned()
    if early is None:
        driver.heartbeat.begin(current.began, started)
    else:
        driver.heartbeat.begin(current.began, early.started, early.seconds)
    return driver


@dataclass(slots=True)
class PrefectOrchestrator(Orchestrator):
    """Prefect as the host of a run.

    Its artifacts are for people: if the server is unavailable, the run continues without them.
    """

    needs: WorkerNeeds = field(default_factory=WorkerNeeds)
    """What the batches of the run need of workers."""
    _artifacts: ArtifactSender | None = None

    @property
    @override
    def page(self) -> str | None:
        return flow_run_page()

    @override
    def executor(self, run_uri: str, fingerprint: str) -> Executor:
        context = FlowRunContext.get()
        assert context is not None, "a flow runs in a flow run's context"
        settings = _current_options().settings
        return DaskExecutor(
            context.task_runner,
            run_uri,
            fingerprint,
            limit=settings.batches.concurrency_limit,
            settings=settings,
            needs=self.needs,
        )

    @override
    def reduce(self, run_uri: str, fingerprint: str, steps: list[Step]) -> None:
        context = FlowRunContext.get()
        assert context is not None, "a flow runs in a flow run's context"
        settings = _current_options().settings
        run_reduce_steps(context.task_runner, run_uri, fingerprint, steps, settings)

    @override
    def step(self, name: str, run: str, work: Callable[[], T]) -> T:
        call: Any = quote(work)
        do_step: Any = step_task.with_options(name=name)
        result: T = do_step(name, run, call)
        return result

    @override
    def show_progress(self, run: str, progress: MapProgress) -> None:
        percent = 100.0 * progress.done / max(1, progress.chunks)
        text = (
            f"{progress.done:,} of {plural(progress.chunks, progress.unit)}, "
            f"{progress.failed:,} failed"
        )
        is_over = progress.done >= progress.chunks
        self._sender(run).show_progress(percent, text, at_once=is_over)

    @override
    def show_checks(self, run: str, results: Sequence[CheckResult]) -> None:
        rows = [
            {
                "check": result.name,
                "outcome": result.outcome,
                "found": result.message,
                "examples": "\n".join(result.examples),
            }
            for result in results
        ]
        outcomes = Counter(result.outcome for result in results)
        found = ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(outcomes.items()))
        self._sender(run).send(
            lambda: create_table_artifact(
                mask(rows),
                key=f"checks-{run}",
                description=f"{plural(len(rows), 'check')}: {found}",
            )
        )

    @override
    def show_report(self, run: str, report: StoredReport) -> None:
        title = report.markdown.partition("\n")[0].lstrip("# ")
        sender = self._sender(run)
        sender.send(
            lambda: create_markdown_artifact(
                markdown=mask_text(report.markdown), key=f"run-{run}", description=title
            )
        )
        sender.wait()

    def _sender(self, run: str) -> ArtifactSender:
        if self._artifacts is None:
            self._artifacts = ArtifactSender(f"progress-{run}")
        return self._artifacts
