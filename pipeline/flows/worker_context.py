"""Make the context that is sent with task runs: names, and settings without secrets.

prefect-dask would send the flow with its task runner (and the cluster's variables), the flow run
with its parameters, the result storage and all of Prefect's settings, including passwords. Workers
make no request to the Prefect server, so they get nothing that would let them make one.
"""

from __future__ import annotations

from typing import Any

from prefect import Flow
from prefect.client.schemas import FlowRun
from prefect.context import FlowRunContext, TagsContext
from prefect.settings import Profile, Settings, get_current_settings
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import SecretStr
from pydantic_settings import BaseSettings

WORKER_SECTIONS = ("experiments", "flows", "internal", "logging", "results", "tasks")
"""Sections of Prefect's settings that a task run needs and that hold no secret."""
WORKER_VALUES = ("home", "debug_mode")
NO_KEY = "workers-hold-no-key"
"""API key of workers: with a key and no address, Prefect sends no events; without either, it would
start its own server."""


def worker_context() -> dict[str, Any]:
    """Make the worker's version of the current flow run's context."""
    context, tags = FlowRunContext.get(), TagsContext.get()
    return {
        "settings_context": {
            "profile": Profile(name="worker", settings={}),
            "settings": worker_settings(get_current_settings()),
        },
        "flow_run_context": {} if context is None else _flow_run_context(context),
        "tags_context": {"current_tags": tags.current_tags},
    }


def worker_settings(settings: Settings) -> Settings:
    """Remove from Prefect's settings everything about the server, its database and access to it.

    Args:
        settings: The driver's settings.

    Returns:
        The sections that a task run needs; all others have Prefect's defaults, without reading the
        environment. No server is named, and none may be started.
    """
    blank = _defaults(Settings)
    kept = {name: getattr(settings, name) for name in WORKER_SECTIONS + WORKER_VALUES}
    server = blank.server.model_copy(
        update={"ephemeral": blank.server.ephemeral.model_copy(update={"enabled": False})}
    )
    api = blank.api.model_copy(update={"url": None, "key": SecretStr(NO_KEY)})
    reduced: Settings = blank.model_copy(update={**kept, "server": server, "api": api})
    return reduced


def _defaults(model: type[Any]) -> Any:
    """Make settings with their defaults, without validation, which would read the environment."""
    values = {}
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseSettings):
            values[name] = _defaults(kind)
        else:
            values[name] = field.get_default(call_default_factory=True, validated_data={})
    return model.model_construct(**values)


def _flow_run_context(context: FlowRunContext) -> dict[str, Any]:
    runner: Any = ThreadPoolTaskRunner(max_workers=1)
    return {
        "flow": Flow(
            fn=_no_flow,
            name="unnamed" if context.flow is None else context.flow.name,
            task_runner=runner,
            persist_result=False,
            validate_parameters=False,
        ),
        "flow_run": _flow_run(context.flow_run),
        "parameters": {},
        "log_prints": context.log_prints,
        "start_time": context.start_time,
        "persist_result": False,
        "result_store": {},
    }


def _flow_run(run: FlowRun | None) -> FlowRun | None:
    """Keep the identity of a flow run, without its parameters and the variables of its job."""
    if run is None:
        return None
    identity = run.model_dump(include={"id", "name", "flow_id", "run_count", "tags", "start_time"})
    return FlowRun.model_validate(identity)


def _no_flow() -> None:
    """Replace the flow's function, which workers do not need."""
