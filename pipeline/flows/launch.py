"""Starting the flow from a command or a program: the addresses first, then Prefect and Dask."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from pipeline.driver import RunSummary
from pipeline.errors import ChunkmapError, EngineUnavailableError
from pipeline.flows.server import connect, drain, few_retries
from pipeline.job import Job
from pipeline.leaving import is_leaving_at_once, leave_at_once
from pipeline.planning import Resume
from pipeline.settings import DaskSettings, Settings

if TYPE_CHECKING:
    from pipeline.driving import Listener


DRAIN_SECONDS = 10.0
"""How long a driver waits, once its run is over, for Prefect to take the last logs and events."""
PREFECT_RETRIES = 1
"""How often a request to Prefect is repeated. With its own default, 5, a driver whose server is
gone waits for a minute with each request."""


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
    given = FlowOptions(settings, listen, resume)
    with options(given), few_retries(PREFECT_RETRIES), warnings.catch_warnings():
        # Dask warns of task arguments that it thinks large; Prefect's context is.
        warnings.filterwarnings("ignore", message="Sending large graph")
        try:
            summary: RunSummary = flow(job.name, job.to_yaml())
        except Exception as error:
            if not given.ended or isinstance(error, ChunkmapError):
                raise
            leave_at_once()
            # The run is over; only Prefect could not be told. What counts is the ledger.
            if isinstance(given.ended[0], ChunkmapError):
                raise given.ended[0] from None
            return given.ended[0]
        finally:
            if not is_leaving_at_once() and not drain(DRAIN_SECONDS):
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
