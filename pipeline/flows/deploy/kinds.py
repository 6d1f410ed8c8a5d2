"""Read and write each kind of resource through Prefect's client."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Protocol
from uuid import UUID

from prefect.blocks.core import Block
from prefect.blocks.notifications import (
    CustomWebhookNotificationBlock,
    MicrosoftTeamsWebhook,
    SlackWebhook,
)
from prefect.blocks.system import Secret
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import (
    DeploymentScheduleCreate,
    DeploymentUpdate,
    GlobalConcurrencyLimitCreate,
    GlobalConcurrencyLimitUpdate,
    VariableCreate,
    VariableUpdate,
    WorkPoolCreate,
    WorkPoolUpdate,
)
from prefect.client.schemas.objects import DeploymentSchedule
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule, RRuleSchedule
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.filesystems import RemoteFileSystem
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema

from pipeline.errors import ConflictError
from pipeline.flows.deploy.resources import Resource

Fields = Mapping[str, Any]

UNKNOWN = UUID(int=0)
"""Stands for an id that only the server knows."""
SLUG = "chunkmap"
"""Slug of the schedule of a deployment that is ours; other schedules are their users'."""
ANCHOR = datetime(2020, 1, 1, tzinfo=UTC)
"""Start of intervals. Prefect's default is the time of deployment, which differs each time."""
BLOCKS: dict[str, type[Block]] = {
    "secret": Secret,
    "remote-file-system": RemoteFileSystem,
    "slack-webhook": SlackWebhook,
    "ms-teams-webhook": MicrosoftTeamsWebhook,
    "custom-webhook": CustomWebhookNotificationBlock,
}
"""Classes of blocks by their slugs."""


class Kind(Protocol):
    """Access to one kind of resource; names are as in `Resource.name`."""

    async def read(self, client: PrefectClient, name: str) -> Fields | None:
        """Return the fields that the server has; None if it has no such resource."""

    async def write(self, client: PrefectClient, name: str, fields: Fields) -> None:
        """Create the resource, or set its fields."""

    async def remove(self, client: PrefectClient, name: str) -> None:
        """Remove the resource, which exists."""


class WorkPools:
    """Work pools."""

    async def read(self, client: PrefectClient, name: str) -> Fields | None:
        """Return type, template and limit."""
        try:
            pool = await client.read_work_pool(name)
        except ObjectNotFound:
            return None
        return {
            "type": pool.type,
            "base_job_template": pool.base_job_template,
            "concurrency_limit": pool.concurrency_limit,
        }

    async def write(self, client: PrefectClient, name: str, fields: Fields) -> None:
        """Create or update; the type of a pool cannot change.

        Raises:
            ConflictError: The pool exists with another type.
        """
        try:
            await client.create_work_pool(WorkPoolCreate(name=name, **fields))
        except ObjectAlreadyExists:
            pool = await client.read_work_pool(name)
            refuse_other_type(name, pool.type, fields["type"])
            changed = {key: value for key, value in fields.items() if key != "type"}
            await client.update_work_pool(name, WorkPoolUpdate(**changed))

    async def remove(self, client: PrefectClient, name: str) -> None:
        """Delete the pool with its queues."""
        await client.delete_work_pool(name)


def refuse_other_type(pool: str, there: str, wanted: str) -> None:
    """Raise ConflictError if a work pool has another type: it cannot change."""
    if there != wanted:
        raise ConflictError(
            f"the work pool {pool} is of type {there}, not {wanted}",
            hint="name another pool in the environment's file, or remove this one",
        )


class WorkQueues:
    """Queues of work pools: `pool/queue`."""

    async def read(self, client: PrefectClient, name: str) -> Fields | None:
        """Return priority and limit."""
        pool, _, queue = name.partition("/")
        try:
            there = await client.read_work_queue_by_name(queue, pool)
        except ObjectNotFound:
            return None
        return {"priority": there.priority, "concurrency_limit": there.concurrency_limit}

    async def write(self, client: PrefectClient, name: str, fields: Fields) -> None:
        """Create or update."""
        pool, _, queue = name.partition("/")
        try:
            there = await client.create_work_queue(queue, work_pool_name=pool)
        except ObjectAlreadyExists:
            there = await client.read_work_queue_by_name(queue, pool)
        await client.update_work_queue(there.id, **fields)

    async def remove(self, client: PrefectClient, name: str) -> None:
        """Delete the queue, unless it is the pool's default, which Prefect has made."""
        pool, _, queue = name.partition("/")
        if queue != "default":
            there = await client.read_work_queue_by_name(queue, pool)
            await client.delete_work_queue_by_id(there.id)


class Variables:
    """Variables of Prefect."""

    async def read(self, client: PrefectClient, name: str) -> Fields | None:
        """Return the value."""
        there = await client.read_variable_by_name(name)
        return None if there is None else {"value": there.value}

    async def write(self, client: PrefectClient, name: str, fields: Fields) -> None:
        """Create or update."""
        if await client.read_variable_by_name(name) is None:
            await client.create_variable(VariableCreate(name=name, **fields))
        else:
            await client.update_variable(VariableUpdate(name=name, **fields))

    async def remove(self, client: PrefectClient, name: str) -> None:
        """Delete the variable."""
        await client.delete_variable_by_name(name)


class Limits:
    """Global concurrency limits."""

    async def read(self, client: PrefectClient, name: str) -> Fields | None:
        """Return the limit and its decay."""
        try:
            there = await client.read_global_concurrency_limit_by_name(name)
        except ObjectNotFound:
            return None
        return {"limit": there.limit, "slot_decay_per_second": there.slot_decay_per_second}

    async def write(self, client: PrefectClient, name: str, fields: Fields) -> None:
        """Create or update."""
        if await self.read(client, name) is None:
            limit = GlobalConcurrencyLimitCreate(name=name, **fields)
            await client.create_global_concurrency_limit(limit)
        else:
            update = GlobalConcurrencyLimitUpdate(**fields)
            await client.update_global_concurrency_limit(name, update)

    async def remove(self, client: PrefectClient, name: str) -> None:
        """Delete the limit."""
        await client.delete_global_concurrency_limit_by_name(name)


class Blocks:
    """Block documents: `slug/name`, e.g. `secret/shop-token`."""

    async def read(self, client: PrefectClient, name: str) -> Fields | None:
        """Return the values, secret ones too: they are compared, never shown."""
        slug, _, block = name.partition("/")
        try:
            there = await client.read_block_document_by_name(block, slug, include_secrets=True)
        except ObjectNotFound:
            return None
        return dict(there.data)

    async def write(self, client: PrefectClient, name: str, fields: Fields) -> None:
        """Create or replace."""
        slug, _, block = name.partition("/")
        await BLOCKS[slug](**fields).asave(block, overwrite=True, client=client)

    async def remove(self, client: PrefectClient, name: str) -> None:
        """Delete the block document."""
        slug, _, block = name.partition("/")
        there = await client.read_block_document_by_name(block, slug)
        await client.delete_block_document(there.id)


class Deployments:
    """Deployments: `flow/name`."""

    async def read(self, client: PrefectClient, name: str) -> Fields | None:
        """Return what `deploy` sets."""
        try:
            there = await client.read_deployment_by_name(name)
        except ObjectNotFound:
            return None
        limit, options = there.global_concurrency_limit, there.concurrency_options
        return {
            "entrypoint": there.entrypoint,
            "description": there.description,
            "version": there.version,
            "tags": there.tags,
            "parameters": there.parameters,
            "job_variables": there.job_variables,
            "pull_steps": there.pull_steps or [],
            "work_pool_name": there.work_pool_name,
            "work_queue_name": there.work_queue_name,
            "parameter_openapi_schema": there.parameter_openapi_schema,
            "concurrency_limit": None if limit is None else limit.limit,
            "collision_strategy": (
                None if limit is None or options is None else options.collision_strategy.value
            ),
        }

    async def write(self, client: PrefectClient, name: str, fields: Fields) -> None:
        """Create or update. Its schedules, and whether it is paused, are left alone."""
        values = dict(fields)
        strategy = values.pop("collision_strategy")
        values["concurrency_options"] = strategy and {"collision_strategy": strategy}
        try:
            known = await client.read_deployment_by_name(name)
        except ObjectNotFound:
            flow: Any = load_flow_from_entrypoint(fields["entrypoint"])
            values = {key: value for key, value in values.items() if value is not None}
            flow_id = await client.create_flow(flow)
            await client.create_deployment(flow_id, name.partition("/")[2], **values)
        else:
            await client.update_deployment(known.id, DeploymentUpdate(**values))

    async def remove(self, client: PrefectClient, name: str) -> None:
        """Delete the deployment with its schedules."""
        await client.delete_deployment((await client.read_deployment_by_name(name)).id)


class Schedules:
    """The schedule of a deployment that is ours; its name is the deployment's."""

    async def read(self, client: PrefectClient, name: str) -> Fields | None:
        """Return when it runs, with which parameters, and whether it is active."""
        found = await self._find(client, name)
        if found is None:
            return None
        there = found[1]
        return {
            "schedule": there.schedule.model_dump(mode="json"),
            "active": there.active,
            "parameters": there.parameters or {},
        }

    async def write(self, client: PrefectClient, name: str, fields: Fields) -> None:
        """Create, or replace what differs."""
        values = {"schedule": _schedule(fields["schedule"]), "active": fields["active"]}
        found = await self._find(client, name)
        if found is None:
            deployment = await client.read_deployment_by_name(name)
            new = DeploymentScheduleCreate(slug=SLUG, parameters=fields["parameters"], **values)
            await client.create_deployment_schedules(deployment.id, [new])
            return
        deployment_id, there = found
        await client.update_deployment_schedule(
            deployment_id, there.id, parameters=fields["parameters"], **values
        )

    async def remove(self, client: PrefectClient, name: str) -> None:
        """Delete the schedule."""
        found = await self._find(client, name)
        if found is not None:
            await client.delete_deployment_schedule(found[0], found[1].id)

    async def _find(
        self, client: PrefectClient, name: str
    ) -> tuple[UUID, DeploymentSchedule] | None:
        try:
            deployment = await client.read_deployment_by_name(name)
        except ObjectNotFound:
            return None
        for schedule in await client.read_deployment_schedules(deployment.id):
            if schedule.slug == SLUG:
                return deployment.id, schedule
        return None


class Automations:
    """Automations, with the names of deployments and blocks instead of their ids."""

    async def read(self, client: PrefectClient, name: str) -> Fields | None:
        """Return the definition."""
        there = await client.read_automations_by_name(name)
        if not there:
            return None
        definition = _definition(
            AutomationCore.model_validate(there[0].model_dump(exclude={"id", "created", "updated"}))
        )
        for action in definition["actions"]:
            if action.get("deployment_id"):
                action["deployment_id"] = await _deployment_name(client, action["deployment_id"])
            if action.get("block_document_id"):
                action["block_document_id"] = await _block_name(client, action["block_document_id"])
        return {"definition": definition, "count": len(there)}

    async def write(self, client: PrefectClient, name: str, fields: Fields) -> None:
        """Create or replace."""
        definition = dict(fields["definition"])
        actions = [dict(action) for action in definition["actions"]]
        for action in actions:
            if action.get("deployment_id"):
                known = await client.read_deployment_by_name(action["deployment_id"])
                action["deployment_id"] = str(known.id)
            if action.get("block_document_id"):
                slug, _, block = action["block_document_id"].partition("/")
                document = await client.read_block_document_by_name(block, slug)
                action["block_document_id"] = str(document.id)
        automation = AutomationCore.model_validate({**definition, "actions": actions})
        await self.remove(client, name)
        await client.create_automation(automation)

    async def remove(self, client: PrefectClient, name: str) -> None:
        """Delete every automation of that name."""
        for there in await client.read_automations_by_name(name):
            await client.delete_automation(there.id)


def _definition(automation: AutomationCore) -> dict[str, Any]:
    """Return an automation as JSON values, of which equal ones are equal."""
    definition = automation.model_dump(mode="json")
    trigger = definition["trigger"]
    for field in ("after", "expect", "for_each"):
        # Prefect keeps them as sets, whose order is another in each process.
        if field in trigger:
            trigger[field] = sorted(trigger[field])
    return definition


async def _deployment_name(client: PrefectClient, deployment_id: str) -> str:
    try:
        deployment = await client.read_deployment(UUID(deployment_id))
        flow = await client.read_flow(deployment.flow_id)
    except ObjectNotFound:
        return f"deleted ({deployment_id})"
    return f"{flow.name}/{deployment.name}"


async def _block_name(client: PrefectClient, document_id: str) -> str:
    try:
        document = await client.read_block_document(UUID(document_id))
    except ObjectNotFound:
        return f"deleted ({document_id})"
    slug = document.block_type.slug if document.block_type else document.block_type_name
    return f"{slug}/{document.name}"


def schedule_fields(schedule: Any) -> Fields:
    """Return the fields of a schedule as the server returns them."""
    if schedule.cron is not None:
        timing = {"cron": schedule.cron, "timezone": schedule.timezone}
    elif schedule.interval is not None:
        timing = {
            "interval": schedule.interval,
            "anchor_date": ANCHOR,
            "timezone": schedule.timezone,
        }
    else:
        timing = {"rrule": schedule.rrule, "timezone": schedule.timezone}
    # Prefect adds the start of a rule that has none.
    normalised = DeploymentScheduleCreate(schedule=_schedule(timing)).schedule
    return {
        "schedule": normalised.model_dump(mode="json"),
        "active": schedule.active,
        "parameters": schedule.parameters,
    }


def _schedule(timing: Mapping[str, Any]) -> CronSchedule | IntervalSchedule | RRuleSchedule:
    if "cron" in timing:
        return CronSchedule(**timing)
    return IntervalSchedule(**timing) if "interval" in timing else RRuleSchedule(**timing)


def automation_resource(automation: AutomationCore, target: str) -> Resource:
    """Return an automation as a resource.

    Args:
        automation: The automation; deployments and blocks that it names have the id `UNKNOWN`.
        target: Name of the deployment or block that they stand for.
    """
    definition = _definition(automation)
    for action in definition["actions"]:
        for field in ("deployment_id", "block_document_id"):
            if action.get(field):
                action[field] = target
    return Resource("automation", automation.name, {"definition": definition, "count": 1})


def flow_and_schema(entrypoint: str) -> tuple[str, dict[str, Any]]:
    """Return the name of an entrypoint's flow, and the schema of its parameters."""
    flow: Any = load_flow_from_entrypoint(entrypoint)
    return flow.name, parameter_schema(flow).model_dump()


KINDS: dict[str, Kind] = {
    "work pool": WorkPools(),
    "work queue": WorkQueues(),
    "variable": Variables(),
    "limit": Limits(),
    "block": Blocks(),
    "deployment": Deployments(),
    "schedule": Schedules(),
    "automation": Automations(),
}
