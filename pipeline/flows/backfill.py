"""The flow `backfill`, and `map_windows` for its runs: subflows that share its cluster."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from prefect import flow
from prefect.context import FlowRunContext
from prefect.states import Cancelled
from typing_extensions import override

from pipeline.cluster.task_runner import check_resources, sharing
from pipeline.cluster.versions import check_versions
from pipeline.config.settings import Settings, load_settings
from pipeline.errors import ChunkmapError, RunCancelledError, RunInterruptedError
from pipeline.flows.artifacts import BackfillArtifacts
from pipeline.flows.executor import DaskExecutor, map_batch_task
from pipeline.flows.lineage import lineage
from pipeline.flows.lineage_facts import LineageFacts, facts_of_job
from pipeline.flows.run_events import BACKFILL, reported, reporting_windows
from pipeline.flows.run_logs import flow_logs
from pipeline.flows.run_state import RunStateWatcher
from pipeline.flows.server import flow_run_page, patient
from pipeline.flows.worker_code import check_code
from pipeline.runs.backfill.driver import BackfillDriver, Listener
from pipeline.runs.backfill.orchestrator import BackfillOrchestrator, ExecutorOf
from pipeline.runs.backfill.progress import WindowProgress
from pipeline.runs.backfill.records import BackfillResumeOptions, Control
from pipeline.runs.backfill.run import Publish
from pipeline.runs.backfill.store import BackfillStore
from pipeline.runs.backfill.summary import BackfillSummary
from pipeline.runs.driver.executor import Executor, WorkerNeeds
from pipeline.runs.driver.publish import publish_run
from pipeline.storage import open_storage

BY_PREFECT = "Prefect"
"""Author, as stored, of changes to the desired state that were made in the Prefect UI or API."""

SUBFLOW_RETRIES = 4
"""Retries of requests for a subflow: with SQLite, Prefect is busy for moments."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BackfillOptions:
    """Arguments of the flow that Prefect need not store."""

    settings: Settings
    resume: BackfillResumeOptions = field(default_factory=BackfillResumeOptions)
    listen: Listener = lambda progress, phase: None
    task_of_batch: Any = map_batch_task
    publish: Publish = publish_run
    began: float | None = None
    """Unix seconds when the command started; default when the flow starts."""
    ended: list[BackfillSummary | ChunkmapError] = field(default_factory=list)
    """The summary or error of the backfill, added when it ends, even if Prefect fails then."""


_options: ContextVar[BackfillOptions | None] = ContextVar("backfill_options", default=None)
_work: ContextVar[Callable[[], None] | None] = ContextVar("work", default=None)


@contextmanager
def backfill_options(flow_options: BackfillOptions) -> Iterator[None]:
    """Run the flow with these options; without them, it takes the settings of the environment."""
    token = _options.set(flow_options)
    try:
        yield
    finally:
        _options.reset(token)


def _current_options() -> BackfillOptions:
    return _options.get() or BackfillOptions(load_settings())


@flow(
    name="backfill",
    flow_run_name="backfill {backfill}",
    persist_result=False,
    result_serializer="json",
    validate_parameters=False,
)
def backfill_flow(output: str, backfill: str) -> Any:
    """Drive a stored backfill to its end; resume it if it has started.

    Args:
        output: The URI of its output.
        backfill: Its id.

    Raises:
        BackfillIncompleteError: Some windows failed.
        BackfillHeldError: It stopped after its canary.
        VersionMismatchError: The workers' packages, code or allow-list differ from those here.
        EngineUnavailableError: No worker offers the resources that the job asks for.
    """
    current = _current_options()
    store = BackfillStore(open_storage(current.settings), output, backfill)
    context = FlowRunContext.get()
    assert context is not None, "a flow runs in a flow run's context"
    check_versions(context.task_runner)
    job = store.job()
    check_resources(context.task_runner, job.resources)
    check_code(context.task_runner, job, current.settings)
    about = {"backfill": backfill, "job": store.record().job}
    artifacts = BackfillArtifacts(backfill, store.output)

    def listen(progress: WindowProgress, phase: str) -> None:
        current.listen(progress, phase)
        artifacts.update(progress)

    driver = BackfillDriver(
        store,
        current.settings,
        PrefectBackfillOrchestrator(store, WorkerNeeds.of(job)),
        current.resume,
        listen,
        publish=reporting_windows(current.publish, about),
    )
    if current.began is not None:
        driver.heartbeat.start(current.began)
    try:
        facts = partial(_facts, store)
        sends = lineage(current.settings.lineage, store.storage, facts)
        with flow_logs(), reported(BACKFILL, output, about) as complete, sends as done:
            try:
                summary = driver.run()
            finally:
                artifacts.finish()
            done(summary)
            complete(summary)
    except RunCancelledError as error:
        current.ended.append(error)
        return Cancelled(message=str(error))
    except KeyboardInterrupt:
        # As a crash, an automation would undo it: it resumes what has crashed.
        interrupted = RunInterruptedError(
            f"backfill {backfill} was interrupted: completed chunks are kept",
            hint=f"resume with: chunkmap backfill resume {backfill}",
        )
        current.ended.append(interrupted)
        return Cancelled(message=str(interrupted))
    except ChunkmapError as error:
        current.ended.append(error)
        raise
    current.ended.append(summary)
    return summary


@flow(
    name="map_windows",
    flow_run_name="{name}",
    persist_result=False,
    result_serializer="json",
    validate_parameters=False,
)
def map_windows(name: str) -> None:
    """Do one run of a backfill, on the cluster of the backfill's flow.

    Args:
        name: The windows of the run.
    """
    _do_work(name)


def _facts(store: BackfillStore) -> LineageFacts:
    tables = store.record().tables or ()
    return facts_of_job("backfill", store.backfill, store.job(), store.plan(), tables)


def _do_work(name: str) -> None:
    # A separate function, because Prefect pickles a flow's function with each task, and context
    # variables that it names cannot be pickled.
    work = _work.get()
    assert work is not None, f"{name} is a part of a backfill, not a flow to start"
    with flow_logs(flush_seconds=0.0):  # The backfill's own flow run waits.
        work()


def _executor(
    needs: WorkerNeeds, run_uri: str, fingerprint: str, priority: Callable[[], int]
) -> Executor:
    context = FlowRunContext.get()
    assert context is not None, "a flow runs in a flow run's context"
    current = _current_options()
    return DaskExecutor(
        context.task_runner,
        run_uri,
        fingerprint,
        current.task_of_batch,
        priority=priority,
        limit=current.settings.batches.concurrency_limit,
        settings=current.settings,
        needs=needs,
    )


@dataclass(slots=True)
class PrefectBackfillOrchestrator(BackfillOrchestrator):
    """Prefect as the host of a backfill."""

    store: BackfillStore
    needs: WorkerNeeds = field(default_factory=WorkerNeeds)
    """What the batches of its job need of workers."""
    _watcher: RunStateWatcher = field(default_factory=RunStateWatcher)
    _paused: bool = False
    """Whether Prefect's flow run was paused at the last call of `agree`."""

    @property
    @override
    def page(self) -> str | None:
        return flow_run_page()

    @override
    def run(self, name: str, work: Callable[[ExecutorOf], None]) -> None:
        # The work is done even if Prefect cannot make the subflow or record its end.
        context = FlowRunContext.get()
        assert context is not None, "threads inherit the flow's context"
        runner: Any = context.task_runner
        ends: list[BaseException | None] = []
        executor_of: ExecutorOf = partial(_executor, self.needs)

        def work_and_record_end() -> None:
            try:
                work(executor_of)
            except BaseException as error:
                ends.append(error)
                raise
            ends.append(None)

        subflow: Any = map_windows.with_options(task_runner=sharing(runner))  # type: ignore[arg-type]
        token = _work.set(work_and_record_end)
        try:
            with patient(SUBFLOW_RETRIES):
                subflow(name)
        except Exception as error:
            if ends and ends[0] is not None:
                raise ends[0] from None
            log.warning("Prefect has no flow run of %s: %s", name, error)
            if not ends:
                work(executor_of)
        finally:
            _work.reset(token)

    @override
    def sync_control(self, control: Control) -> Control | None:
        # The latest change wins.
        requested = self._watcher.requested()
        if requested is None:
            return None  # The server is unavailable.
        if requested == "cancel":
            return self.store.change(BY_PREFECT, lambda _: {"cancelled": True})
        was_paused, self._paused = self._paused, requested == "pause"
        paused = self._paused
        if paused == control.paused:
            return None
        if paused != was_paused:
            return self.store.change(BY_PREFECT, lambda _: {"paused": paused})
        self._watcher.show(paused=control.paused)
        self._paused = control.paused
        return None
