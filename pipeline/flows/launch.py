"""Starting the flow from a command or a program: the addresses first, then Prefect and Dask."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from pipeline.driver import RunSummary
from pipeline.errors import EngineUnavailableError
from pipeline.flows.server import connect, drain
from pipeline.job import Job
from pipeline.leaving import leave_at_once
from pipeline.planning import Resume
from pipeline.settings import DaskSettings, Settings

if TYPE_CHECKING:
    from pipeline.driving import Listener


DRAIN_SECONDS = 10.0
"""How long a driver waits, once its run is over, for Prefect to take the last logs and events."""


def launch(job: Job, settings: Settings, listen: Listener, resume: Resume) -> RunSummary:
    """Run a job as the flow `map_dataset`, on the cluster that the settings name.

    Raises:
        EngineUnavailableError: no Prefect server or scheduler answers.
        RunIncompleteError: some chunks failed.
    """
    api_url = connect(settings.prefect)
    from pipeline.flows.map_dataset import FlowOptions, map_dataset, options

    environment = {"PREFECT_API_URL": api_url, **settings.s3.environment()}
    runner: Any = _runner(settings.dask, environment)
    flow: Any = map_dataset.with_options(task_runner=runner)
    with options(FlowOptions(settings, listen, resume)), warnings.catch_warnings():
        # Dask warns of task arguments that it thinks large; Prefect's context is.
        warnings.filterwarnings("ignore", message="Sending large graph")
        try:
            summary: RunSummary = flow(job.name, job.to_yaml())
        finally:
            if not drain(DRAIN_SECONDS):
                leave_at_once()
    return summary


def _runner(settings: DaskSettings, environment: dict[str, str]) -> Any:
    from pipeline.engine import task_runner

    try:
        return task_runner(settings, environment)
    except EngineUnavailableError:
        # Dask may still be at it in a thread of its own.
        leave_at_once()
        raise
    except (ImportError, AttributeError) as error:
        raise EngineUnavailableError(
            f"there is no cluster class {settings.cluster_class} (dask.cluster_class): {error}",
            hint="install its package, or mend the setting: `chunkmap config` says where it is",
        ) from error
