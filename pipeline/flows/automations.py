"""Automations that resume a backfill whose driver has died: Prefect notices, a deployment goes on.

Two, because Prefect knows what a flow run was started with only from an event of that run: one
marks a run without heartbeats as Crashed, the other answers to that by the deployment
`backfill/resume`, with the dead run's parameters. What the ledger holds is not done again.
"""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState, RunDeployment
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

SILENT = timedelta(seconds=120)
"""Without a heartbeat for so long, four times `HEARTBEAT_SECONDS`, a driver counts as dead."""
CRASHED = "chunkmap: a silent backfill has crashed"
RESUMED = "chunkmap: a crashed backfill is resumed"
WATCHED = ("backfill", "map_windows", "resume")
"""Flows whose silent runs are marked; the first is what is resumed."""
_OVER = ("Completed", "Failed", "Cancelled", "Crashed")


def automations(deployment: UUID, silent: timedelta = SILENT) -> list[AutomationCore]:
    """The two automations.

    Args:
        deployment: Id of the one that goes on.
        silent: How long a run may be without a heartbeat.
    """
    any_run = ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"})
    beat = "prefect.flow-run.heartbeat"
    given = {
        name: {"__prefect_kind": "jinja", "template": f"{{{{ flow_run.parameters['{name}'] }}}}"}
        for name in ("output", "backfill")
    }
    return [
        AutomationCore(
            name=CRASHED,
            description="Marks a backfill as Crashed whose driver no longer says that it is alive.",
            trigger=EventTrigger(
                after={beat},
                expect={beat, *(f"prefect.flow-run.{state}" for state in _OVER)},
                match=any_run,
                match_related=_of(*WATCHED),
                for_each={"prefect.resource.id"},
                posture=Posture.Proactive,
                threshold=1,
                within=silent,
            ),
            actions=[ChangeFlowRunState(state=StateType.CRASHED, message="its driver is silent")],
        ),
        AutomationCore(
            name=RESUMED,
            description="Goes on with a backfill whose driver has crashed.",
            trigger=EventTrigger(
                expect={"prefect.flow-run.Crashed"},
                match=any_run,
                match_related=_of("backfill"),
                posture=Posture.Reactive,
                threshold=1,
                within=timedelta(0),
            ),
            actions=[RunDeployment(source="selected", deployment_id=deployment, parameters=given)],
        ),
    ]


def _of(*flows: str) -> ResourceSpecification:
    return ResourceSpecification(
        {"prefect.resource.role": "flow", "prefect.resource.name": list(flows)}
    )


async def switch_on(client: PrefectClient, deployment: UUID, silent: timedelta = SILENT) -> None:
    """Create both automations anew."""
    await switch_off(client)
    for automation in automations(deployment, silent):
        await client.create_automation(automation)


async def switch_off(client: PrefectClient) -> None:
    """Delete both, if they are there."""
    for name in (CRASHED, RESUMED):
        for found in await client.read_automations_by_name(name):
            await client.delete_automation(found.id)
