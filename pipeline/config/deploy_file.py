"""Read what is deployed: Prefect's own prefect.yaml, and one small file per environment over it.

`prefect.yaml` names the deployments, in Prefect's format; `conf/deploy/<environment>.yaml` says
what differs in an environment: work pool, settings, schedules, limits, tags. `read_deployed` puts
one over the other. Nothing here knows Prefect.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

from pipeline.config.ingest import load_ingest
from pipeline.config.job import load_job
from pipeline.config.job_part import Part, VariableName
from pipeline.config.load_file import read_load_file
from pipeline.config.pipeline_file import read_pipeline
from pipeline.config.units import parse_seconds
from pipeline.config.yaml_file import YamlFile, read_yaml
from pipeline.config.yaml_model import validate
from pipeline.errors import DeployFileError, UsageError

PROJECT_FILE = Path("prefect.yaml")
ENVIRONMENTS = Path("conf/deploy")
ENVIRONMENT_PATTERN = r"^[a-z][a-z0-9_]{0,39}$"
"""Prefect accepts no other characters in the names of variables, in which the names of what an
environment has made are kept."""
SWEEP, RUN, BACKFILL = "sweep", "run", "backfill"
"""Deployments of prefect.yaml that the sweep needs: itself, and those that resume."""
WINDOWS = "windows"
"""Deployment of prefect.yaml whose runs process the windows of a schedule."""
OBJECTS_CREATED = "chunkmap.objects.created"
"""Event that tells of new objects below a prefix, which `chunkmap receive` emits."""
DEADLINE = "pipeline.flows.deadline.check_deadline"
"""Flow that looks at an output at a time of day, or some time after a scheduled start."""
VARIABLE = re.compile(r"\{\{\s*\$(\w+)\s*\}\}")

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 _.:-]{0,99}$")]
Json = dict[str, Any]
Span = Annotated[float, BeforeValidator(parse_seconds), Field(ge=60)]
"""Seconds, at least 60; a number, or a text with a unit."""
T = TypeVar("T")


class Schedule(Part):
    """When runs of a deployment start."""

    cron: str | None = None
    """Cron expression, e.g. `0 2 * * *`."""
    interval: Span | None = None
    """Time between two runs, e.g. `10m`, at least 60 s; prefect.yaml has seconds."""
    rrule: str | None = None
    """Recurrence rule of RFC 5545, e.g. `FREQ=MONTHLY;BYDAY=-1FR`."""
    timezone: str = "UTC"
    """Time zone of the IANA database, e.g. `Europe/Berlin`."""
    active: bool = True
    """Whether runs are made."""
    parameters: Json = Field(default_factory=dict)
    """Parameters of the scheduled runs that differ from the deployment's."""

    @model_validator(mode="after")
    def _one_kind(self) -> Schedule:
        if sum(value is not None for value in (self.cron, self.interval, self.rrule)) != 1:
            raise ValueError("set exactly one of `cron`, `interval` and `rrule`")
        return self


class RunLimit(Part):
    """How many runs of a deployment there are at once."""

    limit: PositiveInt
    """Runs at once."""
    collision_strategy: Literal["ENQUEUE", "CANCEL_NEW"] = "ENQUEUE"
    """What happens to one more: it waits, or it is cancelled."""


class Queue(Part):
    """A queue of the work pool."""

    priority: PositiveInt | None = None
    """1 is served first."""
    concurrency_limit: NonNegativeInt | None = None
    """Runs at once."""


class Pool(Part):
    """The work pool of an environment."""

    name: Name
    type: Literal["process", "docker", "kubernetes"] = "process"
    job_template: Path | None = None
    """JSON file of the base job template; default for `process`: Prefect's own."""
    concurrency_limit: NonNegativeInt | None = None
    """Runs at once."""
    queues: dict[Name, Queue] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _has_template(self) -> Pool:
        if self.type != "process" and self.job_template is None:
            raise ValueError(f"a pool of type {self.type} needs `job_template`")
        return self


class SlotLimit(Part):
    """A global concurrency limit of Prefect."""

    limit: NonNegativeInt
    slot_decay_per_second: Annotated[float, Field(ge=0)] = 0.0


class SecretSource(Part):
    """Where the value of a Secret block comes from when it is deployed."""

    env: VariableName
    """Variable that holds the secret."""


Incident = Literal["failed", "crashed", "quarantined", "late", "recovered"]


class Notify(Part):
    """Where messages about incidents go."""

    env: VariableName
    """Variable that holds the URL, which is kept in a block."""
    kind: Literal["slack", "teams", "webhook", "apprise"] = "apprise"
    """`apprise`: any URL of Apprise, e.g. `mailtos://…` or `pagerduty://…`. `webhook`: a POST with
    `{"subject": …, "body": …}` as JSON."""
    on: tuple[Incident, ...] = ("failed", "crashed", "quarantined", "late", "recovered")


class Sweep(Part):
    """A scheduled search for drivers that died, in S3, whatever Prefect knows."""

    every: Span = 600.0
    """Time between two sweeps, e.g. `10m`."""
    outputs: tuple[Annotated[str, Field(pattern=r"^\S+$")], ...] = ()
    """URIs of further outputs; those of the deployments' jobs are always looked at."""


class Trigger(Part):
    """An event after which a deployment runs."""

    output: Annotated[str, Field(pattern=r"^\S+$")]
    """URI of an output of chunkmap, as its jobs name it; it may end with `*`."""
    event: Annotated[str, Field(pattern=r"^chunkmap\.[a-z.]+$")] = "chunkmap.run.completed"
    """Event, e.g. `chunkmap.window.published` (docs/guides/deploying.md lists them)."""

    @model_validator(mode="after")
    def _is_received(self) -> Trigger:
        if self.event == OBJECTS_CREATED and "*" in self.output:
            raise ValueError(f"the event {OBJECTS_CREATED} has a prefix, without `*`")
        return self


class Override(Part):
    """What is different for one deployment, or a deployment that only this environment has."""

    like: Name | None = None
    """Deployment of prefect.yaml that a new one is made from."""
    job: Path | None = None
    """Job file whose text the runs get."""
    ingest: Path | None = None
    """Ingest file whose text the runs get."""
    load: Path | None = None
    """Load file whose text the runs get."""
    pipeline: Path | None = None
    """Pipeline file whose text the runs get, with the files of its stages."""
    enabled: bool = True
    """Whether the environment has it."""
    description: str | None = None
    schedule: Schedule | None = None
    expect_done_by: Annotated[str, Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")] | None = None
    """Time of day, e.g. `06:00`, on the days and in the time zone of the schedule, at which the
    output is checked: unless it has what the schedule was to publish, the event
    `chunkmap.output.late` follows."""
    expect_within: Span | None = None
    """Time after the scheduled start of each run, e.g. `2h`, at which the output is checked in the
    same way. For any kind of schedule."""
    after: tuple[Trigger, ...] = ()
    """Events after which it runs."""
    on_objects: bool = False
    """Whether it runs after new objects in the input of its `job`, which `chunkmap receive`
    receives. Runs then follow each other, as those of windows do, unless `concurrency_limit` says
    otherwise: each sees what the one before has done."""
    resume: bool = False
    """Whether the sweep resumes runs and backfills of its `job` whose driver died."""
    parameters: Json = Field(default_factory=dict)
    concurrency_limit: RunLimit | PositiveInt | None = None
    queue: Name | None = None
    """Queue of the work pool."""
    tags: tuple[str, ...] = ()
    job_variables: Json = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_text(self) -> Override:
        paths = (self.job, self.ingest, self.load, self.pipeline)
        if sum(path is not None for path in paths) > 1:
            raise ValueError("set one of `job`, `ingest`, `load` and `pipeline`")
        if self.resume and self.job is None:
            raise ValueError(
                "`resume` needs a `job`: the sweep resumes runs and backfills, nothing else"
            )
        return self

    @model_validator(mode="after")
    def _one_deadline(self) -> Override:
        if self.expect_done_by is not None and self.expect_within is not None:
            raise ValueError("set one of `expect_done_by` and `expect_within`")
        return self

    @property
    def has_deadline(self) -> bool:
        """Whether its output is checked."""
        return self.expect_done_by is not None or self.expect_within is not None


class EnvironmentFile(Part):
    """What is different in one environment."""

    settings: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")] | None = None
    """Settings of the runs: `conf/<settings>.yaml`."""
    suffix: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]*$")] = ""
    """End of the deployments' names, for servers with several environments: `-staging`."""
    work_pool: Pool
    tags: tuple[str, ...] = ()
    """Tags of all deployments, and so of their runs."""
    job_variables: Json = Field(default_factory=dict)
    """Job variables of all deployments."""
    pull: tuple[Json, ...] | None = None
    """Prefect's pull steps, e.g. `git_clone`; default those of prefect.yaml."""
    watchdog: bool = False
    """Whether backfills whose driver dies are resumed."""
    sweep: Sweep | None = None
    """Search for dead drivers; None for none."""
    results: Annotated[str, Field(pattern=r"^s3://.+/$")] | None = None
    """Prefix in S3 of the results that Prefect stores, made a block."""
    secrets: dict[Annotated[str, Field(pattern=r"^[a-z0-9-]+$")], SecretSource] = Field(
        default_factory=dict
    )
    """Secret blocks by name."""
    notify: dict[Annotated[str, Field(pattern=r"^[a-z0-9-]+$")], Notify] = Field(
        default_factory=dict
    )
    """Receivers of messages, by name."""
    variables: dict[Annotated[str, Field(pattern=r"^[a-z0-9_]+$")], Any] = Field(
        default_factory=dict
    )
    """Prefect variables."""
    limits: dict[Name, SlotLimit] = Field(default_factory=dict)
    """Global concurrency limits."""
    deployments: dict[Name, Override] = Field(default_factory=dict)


class ProjectPool(Part):
    """The key `work_pool` of a deployment of prefect.yaml."""

    name: str | None = None
    work_queue_name: str | None = None
    job_variables: Json = Field(default_factory=dict)


class ProjectDeployment(Part):
    """A deployment of prefect.yaml; other keys of Prefect are refused, since they had no effect."""

    name: Name
    entrypoint: str
    description: str = ""
    version: str | None = None
    tags: tuple[str, ...] = ()
    parameters: Json = Field(default_factory=dict)
    work_pool: ProjectPool = ProjectPool()
    schedules: tuple[Schedule, ...] = ()
    concurrency_limit: RunLimit | PositiveInt | None = None
    pull: tuple[Json, ...] | None = None


class ProjectFile(Part):
    """Prefect's prefect.yaml."""

    model_config = ConfigDict(extra="allow")

    pull: tuple[Json, ...] | None = None
    deployments: tuple[ProjectDeployment, ...]


@dataclass(frozen=True, slots=True)
class Deployment:
    """One deployment of an environment.

    Attributes:
        key: Its name in the files.
        name: Its name on the server, without that of the flow.
        entrypoint: Flow, as `package.module.function` or `file.py:function`.
        schedule: None for none.
        limit: None for as many runs at once as there are.
        queue: Queue of the work pool; None for its default.
        pull: Prefect's pull steps; empty for none.
    """

    key: str
    name: str
    entrypoint: str
    description: str
    version: str | None
    tags: tuple[str, ...]
    parameters: Json
    job_variables: Json
    schedule: Schedule | None
    after: tuple[Trigger, ...]
    limit: RunLimit | None
    queue: str | None
    pull: tuple[Json, ...]


@dataclass(frozen=True, slots=True)
class Deployed:
    """All that an environment has on the server.

    Attributes:
        environment: Name of the environment.
        job_template: Base job template of the pool; None for Prefect's default.
        secrets: Variables that hold the values of Secret blocks, by name.
        notify: Receivers of messages by name.
        shell: Variables of the shell that deploys. Those of secrets are looked up when they are
            needed, so what needs none can be done where they are not set.
    """

    environment: str
    pool: Pool
    job_template: Json | None
    deployments: tuple[Deployment, ...]
    watchdog: bool
    results: str | None
    secrets: Mapping[str, str]
    notify: Mapping[str, Notify]
    variables: Json
    limits: Mapping[str, SlotLimit]
    shell: Mapping[str, str] = field(repr=False)

    def secret(self, variable: str) -> str:
        """Return the value of a variable that holds a secret.

        Raises:
            DeployFileError: It is not set.
        """
        return _variable(variable, self.shell, str(ENVIRONMENTS / f"{self.environment}.yaml"))

    @property
    def watched(self) -> list[str]:
        """Prefixes whose new objects start a run."""
        triggers = [each for deployment in self.deployments for each in deployment.after]
        return sorted({each.output for each in triggers if each.event == OBJECTS_CREATED})

    @property
    def only_notified(self) -> list[str]:
        """Names of deployments that run after new objects, and have no schedule."""
        return [
            each.name
            for each in self.deployments
            if each.schedule is None
            and any(trigger.event == OBJECTS_CREATED for trigger in each.after)
        ]

    def only(self, name: str) -> Deployed:
        """Return the environment with nothing but its pool and one deployment."""
        return replace(
            self,
            deployments=tuple(each for each in self.deployments if each.key == name),
            watchdog=False,
            secrets={},
            notify={},
            variables={},
            limits={},
        )


def environments(folder: Path) -> list[str]:
    """Return the names of the environments that have a file."""
    return sorted(path.stem for path in (folder / ENVIRONMENTS).glob("*.yaml"))


def read_deployed(
    folder: Path,
    environment: str,
    variables: Mapping[str, str],
    version: str | None = None,
    more: Mapping[str, Override] | None = None,
) -> Deployed:
    """Read prefect.yaml and the file of an environment.

    Args:
        folder: The project's folder.
        environment: Name of the environment.
        variables: Values of `{{ $NAME }}`, and of secrets.
        version: Version of the deployments that have none, e.g. a commit.
        more: Further deployments, by name; they replace those of the file.

    Raises:
        DeployFileError: A file is missing or wrong, or a variable is not set.
    """
    if not re.fullmatch(ENVIRONMENT_PATTERN, environment):
        raise DeployFileError(
            f"{environment!r} is no name of an environment",
            hint="lower-case letters, digits and underscores",
        )
    path = folder / ENVIRONMENTS / f"{environment}.yaml"
    if not path.exists():
        raise DeployFileError(
            f"no environment {environment!r}: {ENVIRONMENTS / path.name} does not exist",
            hint=f"environments: {', '.join(environments(folder)) or 'none'}",
        )
    project_yaml = _fill_variables(read_yaml(folder / PROJECT_FILE, DeployFileError), variables)
    file = _fill_variables(read_yaml(path, DeployFileError), variables)
    project = validate(project_yaml, ProjectFile, DeployFileError)
    overlay = validate(file, EnvironmentFile, DeployFileError)
    overrides = {**overlay.deployments, **(more or {})}
    _check_names(project, overrides, file)
    known = {each.name: each for each in project.deployments}
    names = [*known, *(name for name in overrides if name not in known)]
    wanted = [name for name in names if name not in overrides or overrides[name].enabled]
    resolved = [
        _resolve(name, project, overlay, overrides.get(name, Override()), folder, version)
        for name in wanted
    ]
    for each in resolved:
        override = overrides.get(each.key)
        if override is not None and override.pipeline is not None:
            _check_parameters(each, folder / override.pipeline)
    deadlines = [
        _deadline(each, overrides[each.key], overlay.suffix, file)
        for each in resolved
        if each.key in overrides and overrides[each.key].has_deadline
    ]
    if overlay.sweep is not None:
        resolved = _with_sweep(resolved, overlay, overlay.sweep, overrides, folder)
    elif any(override.resume for override in overrides.values()):
        raise DeployFileError(
            f"{file.name}: `resume` needs a `sweep`", hint="add `sweep: {every: 10m}` to it"
        )
    deployments = (*resolved, *deadlines)
    _check_queues(deployments, overlay.work_pool, file)
    return Deployed(
        environment=environment,
        pool=overlay.work_pool,
        job_template=_read_template(overlay.work_pool, folder),
        deployments=deployments,
        watchdog=overlay.watchdog,
        results=overlay.results,
        secrets={name: source.env for name, source in overlay.secrets.items()},
        notify=overlay.notify,
        variables=overlay.variables,
        limits=overlay.limits,
        shell=variables,
    )


def _fill_variables(file: YamlFile, variables: Mapping[str, str]) -> YamlFile:
    """Replace `{{ $NAME }}` in the values of a file by variables, as Prefect does."""

    def fill(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: fill(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [fill(inner) for inner in value]
        if not isinstance(value, str):
            return value
        return VARIABLE.sub(lambda match: _variable(match[1], variables, file.name), value)

    return YamlFile(file.name, fill(file.data), file.lines, file.changed)


def _variable(name: str, variables: Mapping[str, str], where: str) -> str:
    if name not in variables:
        raise DeployFileError(f"{where}: the variable {name} is not set", hint=f"export {name}=…")
    return variables[name]


def _check_names(project: ProjectFile, overrides: Mapping[str, Override], file: YamlFile) -> None:
    known = [each.name for each in project.deployments]
    if len(set(known)) < len(known):
        raise DeployFileError(f"{PROJECT_FILE}: two deployments have the same name")
    for each in project.deployments:
        if len(each.schedules) > 1:
            raise DeployFileError(
                f"{PROJECT_FILE}: deployment {each.name} has {len(each.schedules)} schedules, and "
                "one can be deployed: runs of overlapping schedules are lost",
                hint="make a deployment for each, with `like`, in a file of conf/deploy",
            )
    for name, override in overrides.items():
        base = override.like or name
        if base not in known or (override.like and name in known):
            reason = (
                f"prefect.yaml has no deployment {base!r}"
                if base not in known
                else f"`like` is for new names, and prefect.yaml has {name!r}"
            )
            raise DeployFileError(
                f"{file.where(('deployments', name))}: {reason}",
                hint=f"deployments of prefect.yaml: {', '.join(known)}",
            )


def _check_queues(deployments: tuple[Deployment, ...], pool: Pool, file: YamlFile) -> None:
    known = {"default", *pool.queues}
    for each in deployments:
        if each.queue is not None and each.queue not in known:
            raise DeployFileError(
                f"{file.where(('deployments', each.name))}: the work pool {pool.name} has no queue "
                f"{each.queue!r}",
                hint=f"queues: {', '.join(sorted(known))}; add it to work_pool.queues",
            )


def _resolve(  # noqa: PLR0917 - the files, and where and when they are read
    name: str,
    project: ProjectFile,
    overlay: EnvironmentFile,
    override: Override,
    folder: Path,
    version: str | None,
) -> Deployment:
    base = next(each for each in project.deployments if each.name == (override.like or name))
    pull = _first(overlay.pull, base.pull, project.pull, default=())
    schedule = _first(override.schedule, *base.schedules[:1], default=None)
    limit = _first(override.concurrency_limit, base.concurrency_limit, default=None)
    after = override.after
    if override.on_objects:
        inputs = _inputs(override, name, folder)
        after = (*after, *(Trigger(output=uri, event=OBJECTS_CREATED) for uri in inputs))
    if limit is None and (override.on_objects or (base.name == WINDOWS and override.job)):
        limit = 1  # Each run sees what the one before has done.
    return Deployment(
        key=name,
        name=name + overlay.suffix,
        entrypoint=base.entrypoint,
        description=_first(override.description, base.description, default=""),
        version=_first(base.version, version, default=None),
        tags=tuple(dict.fromkeys([*base.tags, *overlay.tags, *override.tags])),
        parameters={**base.parameters, **_text_of(override, folder), **override.parameters},
        job_variables=_job_variables(base, overlay, override),
        schedule=schedule,
        after=after,
        limit=RunLimit(limit=limit) if isinstance(limit, int) else limit,
        queue=_first(override.queue, base.work_pool.work_queue_name, default=None),
        pull=pull,
    )


def _with_sweep(
    deployments: list[Deployment],
    overlay: EnvironmentFile,
    sweep: Sweep,
    overrides: Mapping[str, Override],
    folder: Path,
) -> list[Deployment]:
    """Return deployments with the schedule and the parameters of the sweep."""
    keys = {each.key for each in deployments}
    resumes = overlay.watchdog or any(override.resume for override in overrides.values())
    missing = [key for key in (SWEEP, *((RUN, BACKFILL) if resumes else ())) if key not in keys]
    if missing:
        raise DeployFileError(
            f"`sweep` needs the deployment {missing[0]!r}, which the environment does not have"
        )
    outputs: dict[str, bool] = dict.fromkeys(sweep.outputs, False)
    for key, override in overrides.items():
        if override.job is None or key not in keys:
            continue
        first = next(iter(load_job(folder / override.job).all_outputs.values()))
        outputs[first.uri] = outputs.get(first.uri, False) or override.resume
    parameters: Json = {
        "outputs": list(outputs),
        "resume": [uri for uri, is_resumed in outputs.items() if is_resumed],
        "suffix": overlay.suffix,
        "resume_backfills": overlay.watchdog,
    }
    schedule, limit = (
        Schedule(interval=sweep.every),
        RunLimit(limit=1, collision_strategy="CANCEL_NEW"),
    )
    return [
        replace(each, schedule=schedule, limit=limit, parameters={**each.parameters, **parameters})
        if each.key == SWEEP
        else each
        for each in deployments
    ]


def _deadline(
    deployment: Deployment, override: Override, suffix: str, file: YamlFile
) -> Deployment:
    """Return the deployment that looks at the output of another."""
    where = file.where(("deployments", deployment.key))
    key = "expect_within" if override.expect_done_by is None else "expect_done_by"
    schedule = deployment.schedule
    if "job" not in deployment.parameters or schedule is None:
        raise DeployFileError(
            f"{where}: `{key}` needs a `job` and a `schedule`",
            hint="deploy the job itself, with `job: FILE.yaml` and a `schedule`; pipelines, "
            "ingests and loads have no deadline",
        )
    parameters: Json = {"job": deployment.parameters["job"]}
    if override.expect_done_by is None:
        assert override.expect_within is not None, "one of them is set"
        parameters["within"] = override.expect_within
        expected = f"{override.expect_within:g} s after its scheduled start"
        schedule = schedule.model_copy(update={"parameters": {}})
    else:
        expected = f"by {override.expect_done_by}"
        parameters |= {"cron": schedule.cron, "timezone": schedule.timezone}
        schedule = _daily(schedule, override.expect_done_by, where)
    return replace(
        deployment,
        name=f"{deployment.name.removesuffix(suffix)}-deadline{suffix}",
        entrypoint=DEADLINE,
        description=f"Reports if {deployment.name} is not done {expected}.",
        parameters=parameters,
        schedule=schedule,
        after=(),
        limit=None,
    )


def _daily(schedule: Schedule, time: str, where: str) -> Schedule:
    """Return a schedule at a time of day, on the days of another."""
    days = (schedule.cron or "").split()[2:]
    if len(days) != 3:
        raise DeployFileError(
            f"{where}: `expect_done_by` needs a `cron` of five fields",
            hint="for other schedules, set `expect_within`",
        )
    hour, _, minute = time.partition(":")
    return Schedule(
        cron=" ".join([str(int(minute)), str(int(hour)), *days]),
        timezone=schedule.timezone,
        active=schedule.active,
    )


def _first(*values: T | None, default: T) -> T:
    return next((value for value in values if value is not None), default)


def _text_of(override: Override, folder: Path) -> Json:
    """Return the parameter with the text of the file: the path may exist on this machine only."""
    if override.job is not None:
        return {"job": load_job(folder / override.job).to_yaml()}
    if override.ingest is not None:
        definition = load_ingest(folder / override.ingest)
        return {"name": definition.name, "definition": definition.to_yaml()}
    if override.load is not None:
        file = read_load_file(folder / override.load, {})
        return {"name": file.name, "load_yaml": file.to_yaml()}
    if override.pipeline is not None:
        return {"file": read_pipeline(folder / override.pipeline).to_yaml()}
    return {}


def _check_parameters(deployment: Deployment, path: Path) -> None:
    """Refuse a pipeline whose runs would lack a parameter, or have one of another type.

    Without a schedule or an event, whoever starts a run gives it its parameters.
    """
    schedule = deployment.schedule
    if schedule is None and not deployment.after:
        return
    parameters = {**deployment.parameters, **(schedule.parameters if schedule else {})}
    try:
        read_pipeline(path).resolve(parameters.get("parameters"))
    except UsageError as problem:
        in_file = "in conf/deploy: `parameters: {parameters: {NAME: VALUE}}`"
        raise DeployFileError(
            f"deployment {deployment.name}: {problem}",
            hint=f"{problem.hint}; {in_file}" if problem.hint else None,
        ) from None


def _inputs(override: Override, name: str, folder: Path) -> tuple[str, ...]:
    if override.job is None:
        raise DeployFileError(f"deployments.{name}: `on_objects` needs a `job`")
    uris = load_job(folder / override.job).input.uri
    if not uris or not all(uri.endswith("/") for uri in uris):
        raise DeployFileError(
            f"deployments.{name}: `on_objects` needs a job whose input is a prefix",
            hint="a prefix ends with /: s3://shop/orders/",
        )
    return uris


def _job_variables(base: ProjectDeployment, overlay: EnvironmentFile, override: Override) -> Json:
    sources = (base.work_pool.job_variables, overlay.job_variables, override.job_variables)
    merged: Json = {}
    for source in sources:
        merged.update(source)
    variables: Json = {}
    for source in sources:
        variables.update(source.get("env") or {})
    if overlay.settings is not None:
        variables["CHUNKMAP_ENVIRONMENT"] = overlay.settings
    if variables:
        merged["env"] = variables
    return merged


def _read_template(pool: Pool, folder: Path) -> Json | None:
    if pool.job_template is None:
        return None
    # JSON is YAML, so its errors name the line too.
    template = read_yaml(folder / pool.job_template, DeployFileError).data
    if set(template) != {"job_configuration", "variables"}:
        raise DeployFileError(
            f"{pool.job_template}: not a base job template, which has `job_configuration` and "
            "`variables`"
        )
    return template
