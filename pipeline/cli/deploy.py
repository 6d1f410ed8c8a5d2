"""Deploy flows to the Prefect server: `chunkmap deploy`."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli.output import columns, out, print_json, say, warn
from pipeline.config.deploy_file import ENVIRONMENTS, Override, Schedule, read_deployed
from pipeline.config.file_kind import file_kind
from pipeline.config.job import load_job
from pipeline.config.pipeline_file import parameter_values, read_pipeline
from pipeline.config.settings import load_settings
from pipeline.config.units import parse_seconds
from pipeline.config.yaml_file import YamlFile, read_yaml
from pipeline.config.yaml_model import validate
from pipeline.errors import DeployFileError, UsageError
from pipeline.report.humanize import duration, plural

if TYPE_CHECKING:
    from pipeline.flows.deploy.deploy import DeployResult

SIGNS = {"create": "+", "update": "~", "remove": "-"}
DEFAULT_ENVIRONMENT = "dev"
MIN_TOKEN = 16
"""Characters of the shortest token that a receiver accepts."""
MAX_SHOWN = 60
"""Characters of a value in the list of changes."""


def deploy(
    what: str,
    environment: str | None,
    schedule: Mapping[str, Any],
    *,
    lookback: str | None,
    params: Sequence[str],
    to: str | None,
    dry_run: bool,
    adopt: bool,
    remove: bool,
    as_json: bool,
) -> None:
    """Deploy an environment, or one job or pipeline file into one, and show the changes."""
    folder = Path.cwd()
    given = {name: value for name, value in schedule.items() if value is not None}
    given |= {"lookback": lookback} if lookback else {}
    given |= {"param": params} if params else {}
    if remove and given:
        raise UsageError(f"--remove and --{next(iter(given))} exclude each other: use one of them")
    if what.endswith((".yaml", ".yml")):
        name, override = _read_file(Path(what), schedule, lookback, params)
        environment_files = read_deployed(
            folder,
            to or DEFAULT_ENVIRONMENT,
            _variables(folder),
            _version(folder),
            {name: override},
        )
        deployed, prune = environment_files.only(name), False
    elif given or to:
        raise UsageError(
            f"schedule options are for a job or pipeline file, and {what} is an environment",
            hint=f"set the schedules of {what} in conf/deploy/{what}.yaml",
        )
    else:
        deployed, prune = read_deployed(folder, what, _variables(folder), _version(folder)), True
    settings = load_settings(environment)
    for name in () if remove else deployed.only_notified:
        warn(
            f"{name} has no schedule: what comes while `chunkmap receive` is down would wait for "
            "the next notification; add e.g. `schedule: {interval: 1h}`"
        )
    from pipeline.flows.launch import launch_deploy

    result = launch_deploy(
        deployed,
        settings,
        (lambda planned: None) if as_json else show_changes,
        dry_run=dry_run,
        adopt=adopt,
        prune=prune,
        remove=remove,
    )
    if as_json:
        print_json({**result.to_dict(), "dry_run": dry_run})
    else:
        say_end(result, dry_run=dry_run)


def receive(
    what: str,
    environment: str | None,
    *,
    host: str,
    port: int,
    token_env: str,
    quiet: str,
    longest: str,
) -> None:
    """Receive notifications about the inputs of an environment's deployments."""
    folder = Path.cwd()
    watched = read_deployed(folder, what, _variables(folder)).watched
    if not watched:
        raise UsageError(
            f"no deployment of {what} waits for objects",
            hint="set `on_objects: true` for a deployment with a `job` in its file",
        )
    token = os.environ.get(token_env, "")
    if len(token) < MIN_TOKEN:
        raise UsageError(
            f"the variable {token_env} must hold a token of at least {MIN_TOKEN} characters",
            hint=f"export {token_env}=$(openssl rand -hex 32)",
        )
    try:
        seconds, most = parse_seconds(quiet), parse_seconds(longest)
    except ValueError as error:
        raise UsageError(f"--quiet or --longest: {error}") from None
    from pipeline.flows.launch import launch_receiver
    from pipeline.flows.object_events import Debouncer

    def started(bound: int) -> None:
        say(f"http://{host}:{bound}/objects takes notifications about {', '.join(watched)}")

    bursts = Debouncer(watched, seconds, most)
    launch_receiver(load_settings(environment), token, bursts, (host, port), started)


def _read_file(
    path: Path, schedule: Mapping[str, Any], lookback: str | None, params: Sequence[str]
) -> tuple[str, Override]:
    """Return the name and the deployment of a job or a pipeline."""
    timed = _schedule(schedule)
    kind = file_kind(read_yaml(path, DeployFileError).data)
    if kind in ("ingest", "load"):
        raise UsageError(
            f"{path} is a file of the kind {kind}; jobs and pipelines are deployed by their file",
            hint=f"add it to a file in {ENVIRONMENTS}: deployments: {{NAME: {{like: {kind}, "
            f'{kind}: {path}, schedule: {{cron: "0 2 * * *"}}}}}}; or make it a stage of a '
            "pipeline",
        )
    if kind == "pipeline":
        source = read_pipeline(path)
        if lookback is not None:
            raise UsageError(f"--lookback is for a job with windows, and {path} is a pipeline")
        values = parameter_values(params)
        override = Override(
            like="pipeline",
            pipeline=path.resolve(),
            parameters={"parameters": values} if values else {},
            schedule=timed,
        )
        return source.file.name, override
    if params:
        raise UsageError(f"--param is for a pipeline, and {path} is a job")
    job = load_job(path)
    if lookback is not None and job.window is None:
        raise UsageError(
            f"--lookback needs windows, and job {job.name} has none",
            hint="add `window: {column: ds, grain: day}` to it",
        )
    override = Override(
        like="run" if job.window is None else "windows",
        job=path.resolve(),
        parameters={} if lookback is None else {"lookback": lookback},
        schedule=timed,
    )
    return job.name, override


def _schedule(options: Mapping[str, Any]) -> Schedule | None:
    values = {name: value for name, value in options.items() if value is not None}
    if not values:
        return None
    if len(values.keys() - {"timezone"}) != 1:
        raise UsageError(
            "--timezone needs one of --cron, --interval and --rrule"
            if values.keys() == {"timezone"}
            else "--cron, --interval and --rrule exclude each other: use one of them",
            hint='e.g. --cron "0 2 * * *" --timezone Europe/Berlin',
        )
    if "interval" in values:
        try:
            values["interval"] = parse_seconds(values["interval"])
        except ValueError as error:
            raise UsageError(f"--interval: {error}") from None
    return validate(YamlFile("options", values, {}), Schedule, DeployFileError)


def _variables(folder: Path) -> dict[str, str]:
    return {**os.environ, "PWD": str(folder)}


def _version(folder: Path) -> str | None:
    """Return the commit of the folder; None if it is no repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        result = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() or None


def show_changes(planned: DeployResult) -> None:
    """Print the changes of a deploy, before they are made."""
    rows = [
        (SIGNS[change.action], change.kind, change.name, field)
        for change in planned.changes
        for field in (_fields(change.fields) or [""])
    ]
    if rows:
        out.print(columns(("", "kind", "name", "change"), rows))
    for name in planned.used:
        warn(f"{name} was not made by {planned.environment}: it is used as it is")


def say_end(result: DeployResult, *, dry_run: bool) -> None:
    """Print what a deploy came to."""
    count = plural(len(result.changes), "change")
    same = f"{result.unchanged} unchanged"
    if dry_run:
        say(f"{result.environment}: {count} to make, {same}; nothing was changed")
    elif result.changes:
        say(f"{result.environment}: {count}, {same}, in {duration(result.seconds)}")
    else:
        say(f"{result.environment}: nothing to change, {same}")


def _fields(fields: tuple[tuple[str, Any, Any], ...]) -> list[str]:
    return [
        f"{field} (changed)"
        if isinstance(old, dict) or isinstance(new, dict)
        else f"{field}: {_short(old)} → {_short(new)}"
        for field, old, new in fields
    ]


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}…"
