"""Deploy an environment: read, compare, change, read back."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from time import perf_counter
from typing import Any

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import VariableCreate, VariableUpdate
from prefect.events.actions import RunDeployment
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.workers.process import ProcessWorker
from pydantic import ValidationError

from pipeline.config.deploy_file import BACKFILL, Deployed, Deployment, Trigger
from pipeline.errors import ConflictError, DeployFileError, StateError
from pipeline.flows.automations import automations
from pipeline.flows.deploy.kinds import (
    KINDS,
    UNKNOWN,
    automation_resource,
    flow_and_schema,
    refuse_other_type,
    schedule_fields,
)
from pipeline.flows.deploy.notifications import notification_resources
from pipeline.flows.deploy.resources import Change, Key, Resource, compare
from pipeline.flows.server import HEARTBEAT_SECONDS

Announce = Callable[["DeployResult"], None]

SHARED_KINDS = ("work pool", "work queue")
"""Kinds that several environments, and others, may use. A queue `default` comes with its pool."""
MAX_VARIABLES = 200
"""Maximum number of variables that the server returns at once, for 4,000 resources."""
MAX_READS = 8
"""Maximum number of resources that are read at a time."""
NAMES_PER_VARIABLE = 20
"""Names of resources in one variable, whose value Prefect limits to 5,000 characters."""


@dataclass(frozen=True, slots=True)
class DeployResult:
    """The result of a deploy.

    Attributes:
        environment: The environment.
        changes: What was changed, or would be.
        unchanged: Number of resources that are as wanted.
        used: Work pools and queues that something else has made: they are used as they are.
        seconds: Duration.
    """

    environment: str
    changes: tuple[Change, ...]
    unchanged: int
    used: tuple[str, ...] = ()
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "environment": self.environment,
            "changes": [
                {
                    "action": change.action,
                    "kind": change.kind,
                    "name": change.name,
                    "fields": [
                        {"field": field, "old": old, "new": new}
                        for field, old, new in change.fields
                    ],
                }
                for change in self.changes
            ],
            "unchanged": self.unchanged,
            "used": list(self.used),
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True, slots=True)
class DeployOptions:
    """How to deploy.

    Attributes:
        dry_run: Only compare.
        adopt: Take over what has the same names and was made by something else.
        prune: Remove what the environment has made and does not want any more. Otherwise only
            the schedules of these deployments are removed.
        remove: Remove what the environment has made; without `prune`, only these deployments.
    """

    dry_run: bool = False
    adopt: bool = False
    prune: bool = True
    remove: bool = False


def deploy(
    deployed: Deployed,
    options: DeployOptions = DeployOptions(),
    announce: Announce = lambda planned: None,
) -> DeployResult:
    """Make the server have what an environment's files say.

    What the environment has made before and does not want any more is removed, nothing else. A
    deploy that was stopped is completed by the next one.

    Args:
        deployed: What the files say.
        options: How to deploy.
        announce: Called with the changes before they are made.

    Raises:
        ConflictError: A resource of that name exists that this environment has not made, or the
            server returns something else than was set.
        DeployFileError: An entrypoint is no flow, or a schedule is none.
    """
    began = perf_counter()
    # To remove an environment, only its name is needed.
    resources = [] if options.remove and options.prune else resources_of(deployed)
    result = asyncio.run(_deploy(deployed.environment, resources, options, announce))
    return replace(result, seconds=perf_counter() - began)


async def _deploy(
    environment: str, resources: list[Resource], options: DeployOptions, announce: Announce
) -> DeployResult:
    wanted = [] if options.remove else resources
    async with get_client() as client:
        record = Record(client, environment)
        made = await record.read()
        removable = made if options.prune else made & _keys_of_jobs(resources)
        actual = await _read(client, {resource.key for resource in wanted} | removable)
        shared: list[Resource] = []
        if not options.adopt:
            shared = _shared(wanted, actual, made)
            wanted = [resource for resource in wanted if resource not in shared]
        keys = {resource.key for resource in wanted}
        changes = compare(wanted, actual, removable)
        touched = sum(change.action != "remove" for change in changes)
        used = tuple(f"{resource.kind} {resource.name}" for resource in shared)
        result = DeployResult(environment, tuple(changes), len(wanted) - touched, used)
        announce(result)
        if not options.dry_run:
            # Names are stored before anything is made: what a stopped deploy has made stays known.
            await record.write(made | keys)
            for change in changes:
                await _apply(client, change, wanted)
            if changes:
                await _read_back(client, wanted)
            await record.write((made - removable) | keys)
    return result


def _keys_of_jobs(resources: list[Resource]) -> set[Key]:
    """Return the keys of deployments and their schedules, also of schedules not wanted."""
    names = [resource.name for resource in resources if resource.kind == "deployment"]
    return {(kind, name) for kind in ("deployment", "schedule") for name in names}


def resources_of(deployed: Deployed) -> list[Resource]:
    """Return all resources of an environment.

    Raises:
        DeployFileError: An entrypoint is no flow, or a schedule is none.
    """
    pool = deployed.pool
    template = deployed.job_template or ProcessWorker.get_default_base_job_template()
    resources = [
        Resource(
            "work pool",
            pool.name,
            {
                "type": pool.type,
                "base_job_template": template,
                "concurrency_limit": pool.concurrency_limit,
            },
        )
    ]
    for name, queue in pool.queues.items():
        fields = queue.model_dump(exclude_none=True)
        resources.append(Resource("work queue", f"{pool.name}/{name}", fields))
    for name, value in deployed.variables.items():
        resources.append(Resource("variable", name, {"value": value}))
    for name, limit in deployed.limits.items():
        resources.append(Resource("limit", name, limit.model_dump()))
    for name, variable in deployed.secrets.items():
        fields = {"value": deployed.secret(variable)}
        resources.append(Resource("block", f"secret/{name}", fields))
    variables: dict[str, str] = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS)}
    if deployed.results is not None:
        block = f"remote-file-system/chunkmap-results-{deployed.environment.replace('_', '-')}"
        fields = {"basepath": deployed.results, "settings": {}}
        resources.append(Resource("block", block, fields))
        variables["PREFECT_DEFAULT_RESULT_STORAGE_BLOCK"] = block
        variables["PREFECT_RESULTS_DEFAULT_SERIALIZER"] = "json"
    resume = ""
    for deployment in deployed.deployments:
        resource = _deployment(deployment, pool.name, variables)
        resources.append(resource)
        if deployment.key == BACKFILL:
            resume = resource.name
        if deployment.schedule is not None:
            resources.append(_schedule(resource.name, deployment))
        resources += [_trigger(resource.name, trigger) for trigger in deployment.after]
    if deployed.watchdog:
        resources += _watchdog(resume)
    return resources + notification_resources(deployed)


def _deployment(deployment: Deployment, pool: str, variables: Mapping[str, str]) -> Resource:
    try:
        flow, schema = flow_and_schema(deployment.entrypoint)
    except Exception as error:
        # Anything: the module is the user's.
        raise DeployFileError(
            f"deployment {deployment.name}: {deployment.entrypoint} is no flow: {error}"
        ) from error
    job_variables = {
        **deployment.job_variables,
        "env": {**variables, **deployment.job_variables.get("env", {})},
    }
    limit = deployment.limit
    fields = {
        "entrypoint": deployment.entrypoint,
        "description": deployment.description,
        "version": deployment.version,
        "tags": list(deployment.tags),
        "parameters": deployment.parameters,
        "job_variables": job_variables,
        "pull_steps": list(deployment.pull),
        "work_pool_name": pool,
        "work_queue_name": deployment.queue or "default",
        "parameter_openapi_schema": schema,
        "concurrency_limit": None if limit is None else limit.limit,
        "collision_strategy": None if limit is None else limit.collision_strategy,
    }
    return Resource("deployment", f"{flow}/{deployment.name}", fields)


def _schedule(name: str, deployment: Deployment) -> Resource:
    try:
        return Resource("schedule", name, schedule_fields(deployment.schedule))
    except ValidationError as error:
        problem = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise DeployFileError(f"deployment {deployment.name}: its schedule: {problem}") from error


def _watchdog(resume: str) -> list[Resource]:
    if not resume:
        raise DeployFileError(
            f"`watchdog` needs the deployment {BACKFILL}, which the environment does not have"
        )
    return [automation_resource(automation, resume) for automation in automations(UNKNOWN)]


def _trigger(deployment: str, trigger: Trigger) -> Resource:
    """Return the automation that runs a deployment after an event."""
    automation = AutomationCore(
        name=f"chunkmap: {deployment} after {trigger.event} of {trigger.output}",
        description="Runs a deployment after an event of chunkmap.",
        trigger=EventTrigger(
            expect={trigger.event},
            match=ResourceSpecification({"prefect.resource.id": trigger.output}),
            posture=Posture.Reactive,
            threshold=1,
            within=timedelta(0),
        ),
        actions=[RunDeployment(source="selected", deployment_id=UNKNOWN)],
    )
    return automation_resource(automation, deployment)


async def _read(client: PrefectClient, keys: Iterable[Key]) -> dict[Key, Mapping[str, Any]]:
    """Return the fields of those resources that exist; reads several at a time."""
    slots = asyncio.Semaphore(MAX_READS)

    async def read(key: Key) -> tuple[Key, Mapping[str, Any] | None]:
        async with slots:
            return key, await KINDS[key[0]].read(client, key[1])

    found = await asyncio.gather(*map(read, keys))
    return {key: fields for key, fields in found if fields is not None}


def _shared(
    wanted: list[Resource], actual: Mapping[Key, Mapping[str, Any]], made: set[Key]
) -> list[Resource]:
    """Return what exists and this environment has not made: work pools and queues, used as is.

    Raises:
        ConflictError: Something else exists that it has not made, or a pool of another type.
    """
    foreign = [each for each in wanted if each.key in actual and each.key not in made]
    shared = [each for each in foreign if each.kind in SHARED_KINDS]
    taken = [each for each in foreign if each.kind not in SHARED_KINDS]
    if taken:
        names = ", ".join(f"{each.kind} {each.name}" for each in taken)
        hint = "take it over with --adopt, or choose other names (`suffix`)"
        if all(each.kind == "automation" for each in taken):
            hint = (
                "one environment of a server has the `watchdog`: leave it out here, or --adopt it"
            )
        raise ConflictError(f"the server has what this environment has not made: {names}", hint)
    for resource in shared:
        if resource.kind == "work pool":
            refuse_other_type(resource.name, actual[resource.key]["type"], resource.fields["type"])
    return shared


async def _apply(client: PrefectClient, change: Change, wanted: list[Resource]) -> None:
    kind = KINDS[change.kind]
    if change.action == "remove":
        await kind.remove(client, change.name)
        return
    [resource] = [each for each in wanted if each.key == (change.kind, change.name)]
    await kind.write(client, resource.name, resource.fields)


async def _read_back(client: PrefectClient, wanted: list[Resource]) -> None:
    """Compare again: some versions of Prefect are known to change schedules when deploying."""
    actual = await _read(client, [resource.key for resource in wanted])
    left = compare(wanted, actual, ())
    if left:
        names = ", ".join(
            f"{change.kind} {change.name}"
            + "".join(f" ({field})" for field, _, _ in change.fields[:3])
            for change in left
        )
        raise ConflictError(
            f"the server does not have what was set: {names}",
            hint="was somebody else deploying? Give the command again",
        )


class Record:
    """What an environment has made, in variables on the server."""

    def __init__(self, client: PrefectClient, environment: str) -> None:
        self._client = client
        self._prefix = f"chunkmap_deployed_{environment}_"

    async def read(self) -> set[Key]:
        """Return the resources that were made.

        Raises:
            StateError: A variable has another content.
        """
        made: set[Key] = set()
        for name, value in (await self._variables()).items():
            if not isinstance(value, list) or not all(_is_key(item) for item in value):
                raise StateError(
                    f"Prefect's variable {name}",
                    "it lists no resources",
                    hint="delete it, and deploy with --adopt: what is not wanted any more stays",
                )
            made |= {(kind, each) for kind, each in value}
        return made

    async def write(self, keys: Iterable[Key]) -> None:
        """Store the resources that were made."""
        ordered = sorted(keys)
        parts = {
            f"{self._prefix}{start // NAMES_PER_VARIABLE}": [
                list(key) for key in ordered[start : start + NAMES_PER_VARIABLE]
            ]
            for start in range(0, len(ordered), NAMES_PER_VARIABLE)
        }
        known = await self._variables()
        names = list(parts)
        if len(ordered) > sum(len(value) for value in known.values() if isinstance(value, list)):
            # A name that moves to the next variable is there before it leaves its own.
            names.reverse()
        for name in names:
            if name not in known:
                await self._client.create_variable(VariableCreate(name=name, value=parts[name]))
            elif known[name] != parts[name]:
                await self._client.update_variable(VariableUpdate(name=name, value=parts[name]))
        for name in known.keys() - parts.keys():
            await self._client.delete_variable_by_name(name)

    async def _variables(self) -> dict[str, Any]:
        """Return the variables, also those of a deploy that was stopped between two of them."""
        path: Any = "/variables/filter"
        body = {"variables": {"name": {"like_": f"{self._prefix}%"}}, "limit": MAX_VARIABLES}
        response = await self._client.request("POST", path, json=body)
        found = {each["name"]: each["value"] for each in response.json()}
        pattern = re.compile(re.escape(self._prefix) + r"\d+")
        return {name: value for name, value in found.items() if pattern.fullmatch(name)}


def _is_key(item: object) -> bool:
    return (
        isinstance(item, list) and len(item) == 2 and item[0] in KINDS and isinstance(item[1], str)
    )
