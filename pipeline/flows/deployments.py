"""Define the flows of deployments, which `chunkmap deploy` registers.

A worker of the work pool starts each flow run in a separate process, pod or container.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from prefect import flow, runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.states import Completed

from pipeline.cluster.task_runner import task_runner
from pipeline.config.job import Job, load_job, parse_job
from pipeline.config.settings import Settings, load_settings
from pipeline.errors import ChunkmapError
from pipeline.flows.backfill import BackfillOptions, backfill_flow, backfill_options
from pipeline.flows.map_dataset import FlowOptions, map_dataset, options, shown_job
from pipeline.flows.run_events import BACKFILL, RUN, failures_reported
from pipeline.flows.server import check_server
from pipeline.logs import set_up_driver
from pipeline.runs.backfill.dead_drivers import reason_not_to_resume, reason_not_to_resume_run
from pipeline.runs.backfill.output_windows import materialised_windows
from pipeline.runs.backfill.plan import create as create_backfill
from pipeline.runs.backfill.plan import draft, refuse_unfit
from pipeline.runs.backfill.records import Options
from pipeline.runs.backfill.scheduled import scheduled_windows
from pipeline.runs.backfill.store import BackfillStore
from pipeline.runs.driver.plan import ResumeOptions
from pipeline.runs.ledger.ledger import Ledger
from pipeline.storage import Storage, open_storage
from pipeline.table.log import TableLog

DUE_STATES = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING]
"""States of a run whose time has come and which is not over."""


def _name_of_run() -> str:
    """Return the job's name, or its path: its whole text would be no name."""
    job = str(runtime.flow_run.parameters.get("job", ""))
    if "\n" not in job:
        return job
    try:
        return parse_job(job).name
    except ChunkmapError:
        return "a job with mistakes"  # The flow itself names them.


@flow(
    name="chunkmap",
    flow_run_name=_name_of_run,
    persist_result=False,
    result_serializer="json",
    validate_parameters=False,
)
def run_job(job: str, run: str | None = None) -> Any:
    """Run a job, or resume its unfinished run, on the cluster that the settings name.

    Args:
        job: The path of a job file in the worker's folder, or its text.
        run: Id of a run to resume if its driver died, as S3 knows it; otherwise nothing is done.

    Raises:
        RunIncompleteError: Some chunks failed; nothing was published, completed work is kept.
    """
    settings = load_settings()
    set_up_driver(settings.logs.format, settings.logs.level)
    parsed = parse_job(job) if "\n" in job else load_job(job)
    storage, first = open_storage(settings), next(iter(parsed.all_outputs.values()))
    output = TableLog(storage, first.uri).output
    with failures_reported(RUN, output, {"job": parsed.name}):
        if run is not None and (
            reason := reason_not_to_resume_run(storage, Ledger(storage, output, run))
        ):
            return Completed(message=f"run {run} is not resumed: {reason}")
        check_server(settings.prefect)
        runner: Any = task_runner(settings.dask, settings.s3.environment())
        map_flow: Any = map_dataset.with_options(task_runner=runner)
        with options(FlowOptions(settings, resume=ResumeOptions(run=run), job=parsed)):
            map_flow(parsed.name, shown_job(parsed))
    return Completed()


@flow(
    name="resume",
    flow_run_name="resume {backfill}",
    persist_result=False,
    result_serializer="json",
)
def resume_backfill(output: str, backfill: str, only_if_dead: bool = False) -> Any:
    """Drive or resume a stored backfill, on the cluster that the settings name.

    Args:
        output: The URI of its output.
        backfill: Its id.
        only_if_dead: Whether to do nothing unless its driver died, as S3 knows it. Automations
            ask for that: to Prefect, an interrupted driver, and one that only watched, crash too.

    Returns:
        The final state of the backfill's flow run, which becomes that of this one.
    """
    settings = load_settings()
    set_up_driver(settings.logs.format, settings.logs.level)
    store = BackfillStore(open_storage(settings), output, backfill)
    with failures_reported(BACKFILL, store.output, {"backfill": backfill}):
        if only_if_dead and (reason := reason_not_to_resume(store)):
            return Completed(message=f"not resumed: {reason}")
        return _drive(settings, store)


def _drive(settings: Settings, store: BackfillStore) -> Any:
    """Drive a backfill as a subflow; returns its final state."""
    check_server(settings.prefect)
    runner: Any = task_runner(settings.dask, settings.s3.environment())
    drive_flow: Any = backfill_flow.with_options(task_runner=runner)
    with backfill_options(BackfillOptions(settings)):
        return drive_flow(store.output, store.backfill, return_state=True)


@flow(
    name="windows",
    persist_result=False,
    result_serializer="json",
    validate_parameters=False,
)
def run_windows(job: str, lookback: str | None = None) -> Any:
    """Process the last complete window of a job, and those that missed runs have left out.

    Which window that is follows from the time for which the run was scheduled: a late run, and one
    that is repeated, processes what it would have on time, and nothing twice. If several runs of
    the schedule are late, the last of them processes the windows of all, as one backfill.

    Args:
        job: The path of a job file in the worker's folder, or its text. It has a `window`.
        lookback: Span of windows that are processed again if their input has changed, e.g. `3d`.

    Returns:
        The final state of the backfill's flow run, which becomes that of this one.
    """
    settings = load_settings()
    set_up_driver(settings.logs.format, settings.logs.level)
    parsed = parse_job(job) if "\n" in job else load_job(job)
    storage = open_storage(settings)
    output = TableLog(storage, parsed.output.uri).output
    with failures_reported(BACKFILL, output, {"job": parsed.name}):
        return _process_windows(settings, storage, parsed, lookback)


def later_run(scheduled: datetime, now: datetime) -> datetime | None:
    """Return the time of the last scheduled run of this deployment that is due, if it is later."""
    deployment = runtime.deployment.id
    if not deployment:
        return None
    due = FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(any_=[UUID(deployment)]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=DUE_STATES)),
        expected_start_time=FlowRunFilterExpectedStartTime(
            after_=scheduled + timedelta(microseconds=1), before_=now
        ),
    )
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(flow_run_filter=due, sort=FlowRunSort.EXPECTED_START_TIME_DESC)
    # Runs that were started by hand may have other parameters.
    return next((each.expected_start_time for each in runs if each.auto_scheduled), None)


def _process_windows(settings: Settings, storage: Storage, job: Job, lookback: str | None) -> Any:
    options = Options(reprocess="changed" if lookback else "missing")
    refuse_unfit(job, options)
    assert job.window is not None, "refused before"
    now = datetime.now(UTC)
    scheduled = runtime.flow_run.scheduled_start_time or now
    later = later_run(scheduled, now)
    if later is not None:
        message = f"left to the run that was scheduled for {later:%Y-%m-%d %H:%M %Z}"
        return Completed(name="Superseded", message=message)
    rule = job.window.windowing()
    labels = materialised_windows(TableLog(storage, job.output.uri), rule)
    selection = scheduled_windows(rule, labels, scheduled, lookback)
    drafted = draft(job, settings, storage, selection, options)
    created = create_backfill(storage, drafted)
    if created is None:
        return Completed(message=f"nothing to do: {drafted.up_to_date}")
    return _drive(settings, created[0])
