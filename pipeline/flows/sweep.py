"""The flow `sweep`: find dead drivers in object storage, report them, and resume what may be.

Prefect's automations see the end of a flow run's heartbeats. They miss drivers that died with the
server, or with the worker that watched them, and some are known to misfire. This looks at storage,
whatever Prefect thinks, and makes Prefect know it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit
from uuid import NAMESPACE_URL, UUID, uuid5

from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.events.filters import EventFilter, EventIDFilter
from prefect.exceptions import ObjectNotFound
from prefect.states import Completed, Crashed, Failed

from pipeline.config.settings import load_settings
from pipeline.errors import ChunkmapError
from pipeline.flows.event_sender import FLUSH_SECONDS, flush_events
from pipeline.flows.run_events import DIED, SWEEP, emit
from pipeline.logs import set_up_driver
from pipeline.masking import mask_text
from pipeline.report.humanize import duration, plural
from pipeline.runs.backfill.dead_drivers import MAX_DEATHS, DeadDriver, find_dead_drivers
from pipeline.runs.ledger.ledger import Ledger
from pipeline.storage import Storage, open_storage, parse

log = logging.getLogger(__name__)

DRIVER_FLOWS = {"run": "map_dataset", "backfill": "backfill"}
"""Flows of drivers, by what they drive."""
SILENT, ORPHANED = "Silent", "Orphaned"
"""Names of the states of a dead driver's topmost flow run, and of those below it."""


@flow(
    name="sweep",
    persist_result=False,
    result_serializer="json",
    validate_parameters=False,
)
def sweep_drivers(
    outputs: Iterable[str],
    resume: Iterable[str] = (),
    suffix: str = "",
    resume_backfills: bool = False,
) -> Any:
    """Report the runs and backfills whose driver has died, and resume them where that is wanted.

    Nothing is done about what is published, cancelled, paused or interrupted.

    Args:
        outputs: URIs of the outputs to look at.
        resume: Those of them whose runs and backfills are resumed.
        suffix: End of the names of the deployments that resume.
        resume_backfills: Whether backfills of all these outputs are resumed.
    """
    settings = load_settings()
    set_up_driver(settings.logs.format, settings.logs.level)
    storage, resumed = open_storage(settings), {_prefix(uri) for uri in resume}
    lines: list[str] = []
    problems: list[str] = []
    for output in outputs:
        try:
            for dead in find_dead_drivers(storage, output):
                is_wanted = _prefix(dead.output) in resumed
                if dead.kind == "backfill":
                    is_wanted = is_wanted or resume_backfills
                report_dead(dead)
                lines.append(f"{_title(dead)}: {_resume(storage, dead, suffix, is_wanted)}")
        except ChunkmapError as error:
            # One damaged output must not hide the others.
            problems.append(mask_text(f"{output}: {error}"))
            report_unreadable(output, error)
    for line in (*lines, *problems):
        log.warning("%s", line)
    flush_events(FLUSH_SECONDS)
    if problems:
        return Failed(message="; ".join((*problems, *lines)))
    return Completed(message="; ".join(lines) or "no driver has died")


def _prefix(uri: str) -> str:
    return parse(uri).uri.rstrip("/") + "/"


def report_unreadable(output: str, error: ChunkmapError) -> None:
    """Make people know that an output could not be looked at: once a day for each kind of error."""
    output = output.rstrip("/") + "/"  # As events of its runs name it, which tell of recovery.
    day = time.strftime("%Y-%m-%d", time.gmtime())
    event_id = uuid5(NAMESPACE_URL, f"chunkmap:sweep:{output}:{type(error).__name__}:{day}")
    with get_client(sync_client=True) as client:
        if _is_known(client, event_id):
            return
    payload = {
        "job": "sweep",
        "error": type(error).__name__,
        "message": f"dead drivers of {output} cannot be found: {error}",
        "hint": error.hint or "",
        "command": f"chunkmap status -o {output}",
    }
    emit(f"{SWEEP}.failed", output, payload, event_id=event_id)


def _is_known(client: SyncPrefectClient, event_id: UUID) -> bool:
    return bool(client.read_events(EventFilter(id=EventIDFilter(id=[event_id])), limit=1).events)


def report_dead(dead: DeadDriver) -> None:
    """Make Prefect know that a driver is dead; once.

    Its flow run, which Prefect may believe to be running, is set to Crashed, with those above it,
    which ends the hold on their concurrency limits. People are notified of the topmost one, by the
    name of its state; the watchdog reacts to neither name, since the sweep resumes by itself. The
    event `chunkmap.run.died` (or `.backfill.died`) names the output. If Prefect does not have the
    flow run, it is `.failed` instead, of which people are notified.
    """
    with get_client(sync_client=True) as client:
        flow_runs = _flow_runs(client, dead)
        for flow_run in flow_runs:
            if flow_run.state is None or not flow_run.state.is_final():
                name = SILENT if flow_run is flow_runs[-1] else ORPHANED
                state: Any = Crashed(name=name, message=f"{_title(dead)}: found by the sweep")
                client.set_flow_run_state(flow_run.id, state, force=True)
        event_id = uuid5(NAMESPACE_URL, f"chunkmap:dead-driver:{dead.driver}")
        if _is_known(client, event_id):
            return
    payload = {
        dead.kind: dead.id,
        "job": dead.job,
        "error": "DriverDied",
        "message": f"{_title(dead)}; finished work is kept",
        "hint": "run it again to resume it",
        "command": f"{dead.command} -o {dead.output}",
    }
    event = f"chunkmap.{dead.kind}.{DIED if flow_runs else 'failed'}"
    emit(event, dead.output, payload, event_id=event_id)


def _title(dead: DeadDriver) -> str:
    silent = duration(max(0.0, time.time() - dead.seen))
    return f"{dead.kind} {dead.id} of {dead.job}: its driver on {dead.host} is silent for {silent}"


def _flow_runs(client: SyncPrefectClient, dead: DeadDriver) -> list[FlowRun]:
    """Return the flow run of a driver and those above it; none if Prefect does not have it.

    The record of a driver could name any flow run: only one of the same flow, and of the same job
    or backfill, is taken. That of a job in a pipeline has the name of the stage.
    """
    path = urlsplit(dead.page or "").path
    try:
        flow_run = client.read_flow_run(UUID(path.rpartition("/")[2]))
        name = client.read_flow(flow_run.flow_id).name
    except (ValueError, ObjectNotFound):
        return []
    if dead.kind == "run":
        is_same = flow_run.parameters.get("name") == dead.job
    else:
        is_same = flow_run.name == f"backfill {dead.id}"
    if name != DRIVER_FLOWS[dead.kind] or not is_same:
        return []
    found = [flow_run]
    while found[-1].parent_task_run_id is not None:
        above = client.read_task_run(found[-1].parent_task_run_id).flow_run_id
        if above is None:
            break
        found.append(client.read_flow_run(above))
    return found


def _resume(storage: Storage, dead: DeadDriver, suffix: str, is_wanted: bool) -> str:
    """Start another driver, if that is wanted; returns what is done about it."""
    if not is_wanted:
        return f"see what is left: {dead.command}"
    if dead.deaths >= MAX_DEATHS:
        return f"not resumed, since its last {plural(dead.deaths, 'driver')} died"
    if dead.kind == "run":
        name = f"chunkmap/run{suffix}"
        text = Ledger(storage, dead.output, dead.id).job_text()
        parameters: dict[str, Any] = {"job": text, "run": dead.id}
    else:
        name = f"resume/backfill{suffix}"
        parameters = {"output": dead.output, "backfill": dead.id, "only_if_dead": True}
    start: Any = run_deployment
    # Once per driver and day: the next sweep finds it again if no worker has taken it yet.
    key = f"sweep {dead.driver} {time.strftime('%Y-%m-%d', time.gmtime())}"
    start(name, parameters=parameters, timeout=0, as_subflow=False, idempotency_key=key)
    return f"resumed by {name}"
