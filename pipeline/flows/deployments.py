"""The flows that deployments run, and `python -m pipeline.flows.deployments`, which registers them.

A worker of the work pool starts each in a process of its own, in the folder where it was
registered: job files and transforms are found from there. With `--watchdog on`, a backfill whose
driver dies is resumed (see `pipeline.flows.automations`).
"""

from __future__ import annotations

import argparse
import asyncio
import os
from typing import Any
from uuid import UUID

from prefect import flow
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.exceptions import ObjectAlreadyExists
from prefect.utilities.callables import parameter_schema
from prefect.workers.process import ProcessWorker

from pipeline.cluster.task_runner import task_runner
from pipeline.config.job import load_job, parse_job
from pipeline.config.settings import load_settings
from pipeline.flows.automations import switch_off, switch_on
from pipeline.flows.backfill import BackfillOptions, backfill_flow, backfill_options
from pipeline.flows.map_dataset import FlowOptions, map_dataset, options
from pipeline.flows.server import HEARTBEAT_SECONDS, check_server
from pipeline.logs import set_up_driver


@flow(
    name="chunkmap",
    flow_run_name="{job}",
    persist_result=False,
    result_serializer="json",
    validate_parameters=False,
)
def run_job(job: str) -> None:
    """Run a job on the cluster that the settings name, or go on with its unfinished run.

    Args:
        job: A job file, as a path in the worker's folder, or the text of one.

    Raises:
        RunIncompleteError: some chunks failed; nothing was published, all work is kept.
    """
    settings = load_settings()
    set_up_driver(settings.logs.format, settings.logs.level)
    found = parse_job(job) if "\n" in job else load_job(job)
    check_server(settings.prefect)
    runner: Any = task_runner(settings.dask, settings.s3.environment())
    mapped: Any = map_dataset.with_options(task_runner=runner)
    with options(FlowOptions(settings)):
        mapped(found.name, found.to_yaml())


@flow(
    name="resume",
    flow_run_name="resume {backfill}",
    persist_result=False,
    result_serializer="json",
)
def resume_backfill(output: str, backfill: str) -> Any:
    """Drive a stored backfill to its end on the cluster that the settings name, or go on with it.

    Args:
        output: URI of its output.
        backfill: Its id.

    Returns:
        The state that it ended in, which is that of this flow run too.
    """
    settings = load_settings()
    set_up_driver(settings.logs.format, settings.logs.level)
    check_server(settings.prefect)
    runner: Any = task_runner(settings.dask, settings.s3.environment())
    driven: Any = backfill_flow.with_options(task_runner=runner)
    with backfill_options(BackfillOptions(settings)):
        return driven(output, backfill, return_state=True)


DEPLOYMENTS: tuple[tuple[Any, str, str], ...] = (
    (run_job, "run", "Runs a job file, or goes on with its unfinished run."),
    (resume_backfill, "backfill", "Drives a stored backfill, or goes on with it."),
)


async def register(client: PrefectClient, pool: str, folder: str) -> dict[str, UUID]:
    """Make the work pool and the deployments; again, and nothing changes.

    Args:
        client: Of the Prefect server.
        pool: A pool of the type `process`.
        folder: Where its workers run the flows.

    Returns:
        The deployments' ids, by their names: `chunkmap/run` and `resume/backfill`.
    """
    template = ProcessWorker.get_default_base_job_template()
    try:
        await client.create_work_pool(
            WorkPoolCreate(name=pool, type="process", base_job_template=template)
        )
    except ObjectAlreadyExists:
        await client.update_work_pool(pool, WorkPoolUpdate(base_job_template=template))
    made = {}
    for deployed, name, description in DEPLOYMENTS:
        made[f"{deployed.name}/{name}"] = await client.create_deployment(
            flow_id=await client.create_flow(deployed),
            name=name,
            description=description,
            entrypoint=f"pipeline.flows.deployments.{deployed.fn.__name__}",
            work_pool_name=pool,
            job_variables={
                "working_dir": folder,
                "env": {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS)},
            },
            parameter_openapi_schema=parameter_schema(deployed).model_dump(),
        )
    return made


async def _main(watchdog: str | None) -> None:
    pool = os.environ.get("WORK_POOL", "chunkmap")
    async with get_client() as client:
        made = await register(client, pool, os.getcwd())
        print(f"work pool {pool}, deployments {', '.join(made)}")
        if watchdog == "on":
            await switch_on(client, made["resume/backfill"])
            print("backfills whose driver dies are resumed")
        elif watchdog == "off":
            await switch_off(client)
            print("backfills whose driver dies are left alone")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Register chunkmap's deployments.")
    parser.add_argument("--watchdog", choices=["on", "off"], help="resume backfills that crash")
    asyncio.run(_main(parser.parse_args().watchdog))
