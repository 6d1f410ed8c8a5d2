"""Define automations by which Prefect resumes a backfill whose driver has died.

There are two, because Prefect knows the parameters of a flow run only from an event of that run:
one marks a run without heartbeats as Crashed; the other reacts to that by running the deployment
`resume/backfill` with the parameters of the dead run. Completed work is not repeated.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState, RunDeployment
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

HEARTBEAT_TIMEOUT = timedelta(seconds=120)
"""Time without a heartbeat (four times `HEARTBEAT_SECONDS`) after which a driver counts as dead."""
MARK_CRASHED = "chunkmap: a silent backfill has crashed"
RESUME_CRASHED = "chunkmap: a crashed backfill is resumed"
WATCHED_FLOWS = ("backfill", "map_windows", "resume")
"""Flows whose silent runs are marked as Crashed; only runs of the first are resumed."""
_FINAL_STATES = ("Completed", "Failed", "Cancelled", "Crashed")


def automations(
    deployment: UUID, heartbeat_timeout: timedelta = HEARTBEAT_TIMEOUT
) -> list[AutomationCore]:
    """Define the two automations.

    Args:
        deployment: The id of the deployment that resumes a backfill.
        heartbeat_timeout: How long a run may be without a heartbeat.
    """
    any_run = ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"})
    heartbeat = "prefect.flow-run.heartbeat"
    parameters: dict[str, Any] = {
        name: {"__prefect_kind": "jinja", "template": f"{{{{ flow_run.parameters['{name}'] }}}}"}
        for name in ("output", "backfill")
    }
    parameters["only_if_dead"] = True
    return [
        AutomationCore(
            name=MARK_CRASHED,
            description="Marks a backfill as Crashed whose driver sends no more heartbeats.",
            trigger=EventTrigger(
                after={heartbeat},
                expect={heartbeat, *(f"prefect.flow-run.{state}" for state in _FINAL_STATES)},
                match=any_run,
                match_related=_of(*WATCHED_FLOWS),
                for_each={"prefect.resource.id"},
                posture=Posture.Proactive,
                threshold=1,
                within=heartbeat_timeout,
            ),
            actions=[ChangeFlowRunState(state=StateType.CRASHED, message="its driver is silent")],
        ),
        AutomationCore(
            name=RESUME_CRASHED,
            description="Resumes a backfill whose driver has crashed.",
            trigger=EventTrigger(
                expect={"prefect.flow-run.Crashed"},
                match=any_run,
                match_related=_of("backfill"),
                posture=Posture.Reactive,
                threshold=1,
                within=timedelta(0),
            ),
            actions=[
                RunDeployment(source="selected", deployment_id=deployment, parameters=parameters)
            ],
        ),
    ]


def _of(*flows: str) -> ResourceSpecification:
    return ResourceSpecification(
        {"prefect.resource.role": "flow", "prefect.resource.name": list(flows)}
    )
