"""Define the flows of deployments, and register them: `python -P -m pipeline.flows.deployments`.

A worker of the work pool starts each flow run in a separate process, in the folder where the
deployment was registered, which holds job files and transforms. With `--watchdog on`, a backfill
whose driver dies is resumed (see `pipeline.flows.automations`).
"""

from __future__ import annotations

import argparse
import asyncio
import os
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from prefect import flow, runtime
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolCreate, WorkPoolUpdate
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.states import Completed
from prefect.utilities.callables import parameter_schema
from prefect.workers.process import ProcessWorker

from pipeline.cluster.task_runner import task_runner
from pipeline.config.job import load_job, parse_job
from pipeline.config.settings import load_settings
from pipeline.flows.automations import create_automations, delete_automations
from pipeline.flows.backfill import BackfillOptions, backfill_flow, backfill_options
from pipeline.flows.map_dataset import FlowOptions, map_dataset, options
from pipeline.flows.server import HEARTBEAT_SECONDS, check_server
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
from pipeline.storage import open_storage
from pipeline.table.log import TableLog


@flow(
    name="chunkmap",
    flow_run_name="{job}",
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
    if run is not None:
        storage, first = open_storage(settings), next(iter(parsed.all_outputs.values()))
        if reason := reason_not_to_resume_run(storage, Ledger(storage, first.uri, run)):
            return Completed(message=f"run {run} is not resumed: {reason}")
    check_server(settings.prefect)
    runner: Any = task_runner(settings.dask, settings.s3.environment())
    map_flow: Any = map_dataset.with_options(task_runner=runner)
    with options(FlowOptions(settings, resume=ResumeOptions(run=run))):
        map_flow(parsed.name, parsed.to_yaml())
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
    if only_if_dead and (reason := reason_not_to_resume(store)):
        return Completed(message=f"not resumed: {reason}")
    check_server(settings.prefect)
    runner: Any = task_runner(settings.dask, settings.s3.environment())
    drive_flow: Any = backfill_flow.with_options(task_runner=runner)
    with backfill_options(BackfillOptions(settings)):
        return drive_flow(output, backfill, return_state=True)


@flow(
    name="windows",
    persist_result=False,
    result_serializer="json",
    validate_parameters=False,
)
def run_windows(job: str, lookback: str | None = None) -> Any:
    """Process the last complete window of a job, and those that missed runs have left out.

    Which window that is follows from the time for which the run was scheduled: late runs and
    repeated ones process what they would have on time, and nothing twice.

    Args:
        job: The path of a job file in the worker's folder, or its text. It has a `window`.
        lookback: Span of windows that are processed again if their input has changed, e.g. `3d`.

    Returns:
        The final state of the backfill's flow run, which becomes that of this one.
    """
    settings = load_settings()
    set_up_driver(settings.logs.format, settings.logs.level)
    parsed = parse_job(job) if "\n" in job else load_job(job)
    check_server(settings.prefect)
    storage = open_storage(settings)
    options = Options(reprocess="changed" if lookback else "missing")
    refuse_unfit(parsed, options)
    assert parsed.window is not None, "refused before"
    rule = parsed.window.windowing()
    labels = materialised_windows(TableLog(storage, parsed.output.uri), rule)
    scheduled = runtime.flow_run.scheduled_start_time or datetime.now(UTC)
    selection = scheduled_windows(rule, labels, scheduled, lookback)
    drafted = draft(parsed, settings, storage, selection, options)
    created = create_backfill(storage, drafted)
    if created is None:
        return Completed(message=f"nothing to do: {drafted.up_to_date}")
    store, _ = created
    runner: Any = task_runner(settings.dask, settings.s3.environment())
    drive_flow: Any = backfill_flow.with_options(task_runner=runner)
    with backfill_options(BackfillOptions(settings)):
        return drive_flow(store.output, store.backfill, return_state=True)


DEPLOYMENTS: tuple[tuple[Any, str, str], ...] = (
    (run_job, "run", "Runs a job file, or resumes its unfinished run."),
    (resume_backfill, "backfill", "Drives or resumes a stored backfill."),
)


async def register(client: PrefectClient, pool: str, folder: str) -> dict[str, UUID]:
    """Create or update the work pool and the deployments; may be repeated.

    Args:
        client: A client of the Prefect server.
        pool: The name of a pool of the type `process`.
        folder: The folder in which its workers run the flows.

    Returns:
        The ids of the deployments by their names: `chunkmap/run` and `resume/backfill`.
    """
    template = ProcessWorker.get_default_base_job_template()
    try:
        await client.create_work_pool(
            WorkPoolCreate(name=pool, type="process", base_job_template=template)
        )
    except ObjectAlreadyExists:
        await client.update_work_pool(pool, WorkPoolUpdate(base_job_template=template))
    ids = {}
    for deployed_flow, name, description in DEPLOYMENTS:
        full_name = f"{deployed_flow.name}/{name}"
        fields: dict[str, Any] = {
            "description": description,
            "entrypoint": f"pipeline.flows.deployments.{deployed_flow.fn.__name__}",
            "work_pool_name": pool,
            "job_variables": {
                "working_dir": folder,
                "env": {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS)},
            },
            "parameter_openapi_schema": parameter_schema(deployed_flow).model_dump(),
        }
        flow_id = await client.create_flow(deployed_flow)
        try:
            known = await client.read_deployment_by_name(full_name)
        except ObjectNotFound:
            ids[full_name] = await client.create_deployment(flow_id=flow_id, name=name, **fields)
        else:
            # To create it again would delete its schedules, and other things that users have set.
            await client.update_deployment(known.id, DeploymentUpdate(**fields))
            ids[full_name] = known.id
    return ids


async def _main(watchdog: str | None) -> None:
    pool = os.environ.get("WORK_POOL", "chunkmap")
    async with get_client() as client:
        ids = await register(client, pool, os.getcwd())
        print(f"work pool {pool}, deployments {', '.join(ids)}")
        if watchdog == "on":
            await create_automations(client, ids["resume/backfill"])
            print("backfills whose driver dies are resumed")
        elif watchdog == "off":
            await delete_automations(client)
            print("backfills whose driver dies are not resumed")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Register chunkmap's deployments.")
    parser.add_argument("--watchdog", choices=["on", "off"], help="resume backfills that crash")
    asyncio.run(_main(parser.parse_args().watchdog))
