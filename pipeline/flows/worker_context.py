"""What is sent with each task run: the task, names, and settings that hold no secret.

prefect-dask would send the flow with its task runner (and the cluster's variables), the flow run
with its parameters, the storage of results and all of Prefect's settings, passwords included.
Workers make no request to Prefect's server, so they get nothing that would let them make one.
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
"""Sections of Prefect's settings that a task run needs, and none of which holds a secret."""
WORKER_VALUES = ("home", "debug_mode")
NO_KEY = "workers-hold-no-key"
"""Prefect sends no events where there is a key and no address. Any other way without an address
makes it start a server of its own."""


def worker_context() -> dict[str, Any]:
    """The context of the flow run that this is called in, as a worker is to see it."""
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
    """Prefect's settings without what concerns the server, its database and access to it.

    Args:
        settings: Those of the driver.

    Returns:
        Its sections that a task run needs; everything else has Prefect's defaults, whatever the
        environment says. There is no address of a server, and none may be started.
    """
    blank = _defaults(Settings)
    kept = {name: getattr(settings, name) for name in WORKER_SECTIONS + WORKER_VALUES}
    server = blank.server.model_copy(
        update={"ephemeral": blank.server.ephemeral.model_copy(update={"enabled": False})}
    )
    api = blank.api.model_copy(update={"url": None, "key": SecretStr(NO_KEY)})
    found: Settings = blank.model_copy(update={**kept, "server": server, "api": api})
    return found


def _defaults(model: type[Any]) -> Any:
    """Settings with their defaults: without validation, which would read the environment."""
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
    """Which flow run it is; neither its parameters nor the variables of its job."""
    if run is None:
        return None
    named = run.model_dump(include={"id", "name", "flow_id", "run_count", "tags", "start_time"})
    return FlowRun.model_validate(named)


def _no_flow() -> None:
    """Stand in for the flow's function, which workers have no use for."""
