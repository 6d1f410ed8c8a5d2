"""Starting the flow from a command or a program: the addresses first, then Prefect and Dask."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.config.job import Job
from pipeline.config.settings import Settings
from pipeline.errors import ChunkmapError, EngineUnavailableError, RunCancelledError
from pipeline.flows.server import connect, drain, talking_to
from pipeline.logs import set_up_driver
from pipeline.processes import exit_without_waiting, exits_without_waiting
from pipeline.runs.driver.plan import ResumeOptions
from pipeline.runs.driver.summary import RunSummary

if TYPE_CHECKING:
    from pipeline.runs.backfill.driver import Listener as BackfillListener
    from pipeline.runs.backfill.records import BackfillResumeOptions
    from pipeline.runs.backfill.store import BackfillStore
    from pipeline.runs.backfill.summary import BackfillSummary
    from pipeline.runs.driver.run import Listener

T = TypeVar("T")

DRAIN_SECONDS = 10.0
"""How long a driver waits, once its run is over, for Prefect to take the last logs and events."""
PREFECT_RETRIES = 1
"""How often a request to Prefect is repeated. With its own default, 5, a driver whose server is
gone waits for a minute with each request."""


def launch(job: Job, settings: Settings, listen: Listener, resume: ResumeOptions) -> RunSummary:
    """Run a job as the flow `map_dataset`, on the cluster that the settings name.

    Raises:
        EngineUnavailableError: no Prefect server or scheduler answers.
        RunIncompleteError: some chunks failed.
    """
    api_url = connect(settings.prefect)
    set_up_driver(settings.logs.format, settings.logs.level)
    from pipeline.flows.map_dataset import FlowOptions, map_dataset, options

    flow: Any = map_dataset.with_options(task_runner=_runner(settings))
    given = FlowOptions(settings, listen, resume, job)
    with options(given):
        return _launched(api_url, given.ended, partial(flow, job.name, job.to_yaml()))


def launch_backfill(
    store: BackfillStore,
    settings: Settings,
    listen: BackfillListener,
    resume: BackfillResumeOptions,
    **more: Any,
) -> BackfillSummary:
    """Drive a stored backfill as the flow `backfill`, on the cluster that the settings name.

    Args:
        store: The backfill.
        settings: How to operate.
        listen: Is told how far it is.
        resume: Options for resuming.
        more: Further `BackfillOptions`, for benchmarks.

    Raises:
        EngineUnavailableError: no Prefect server or scheduler answers.
        BackfillIncompleteError, BackfillHeldError, RunCancelledError: see `BackfillDriver`.
    """
    api_url = connect(settings.prefect)
    set_up_driver(settings.logs.format, settings.logs.level)
    from pipeline.flows.backfill import BackfillOptions, backfill_flow, backfill_options

    flow: Any = backfill_flow.with_options(task_runner=_runner(settings))
    given = BackfillOptions(settings, resume, listen, **more)
    with backfill_options(given):
        call = partial(flow, store.output, store.backfill)
        return _launched(api_url, given.ended, call, beats=True)


def _launched(
    api_url: str,
    ended: Sequence[T | ChunkmapError],
    flow: Callable[[], T],
    *,
    beats: bool = False,
) -> T:
    """Call a flow; how it ended is in a list, whatever Prefect makes of it."""
    with talking_to(api_url, PREFECT_RETRIES, beats=beats), warnings.catch_warnings():
        # Dask warns of task arguments that it thinks large; Prefect's context is.
        warnings.filterwarnings("ignore", message="Sending large graph")
        try:
            return flow()
        except Exception as error:
            if not ended or isinstance(error, ChunkmapError):
                raise
            if not isinstance(ended[0], RunCancelledError):
                # The run is over; only Prefect could not be told. What counts is the ledger.
                exit_without_waiting()
            if isinstance(ended[0], ChunkmapError):
                raise ended[0] from None
            return ended[0]
        finally:
            if not exits_without_waiting() and not drain(DRAIN_SECONDS):
                exit_without_waiting()


def _runner(given: Settings) -> Any:
    from pipeline.cluster.task_runner import task_runner

    settings = given.dask
    try:
        return task_runner(settings, given.s3.environment())
    except EngineUnavailableError:
        # Dask may still be at it in a thread of its own.
        exit_without_waiting()
        raise
    except (ImportError, AttributeError) as error:
        raise EngineUnavailableError(
            f"there is no cluster class {settings.cluster_class} (dask.cluster_class): {error}",
            hint="install its package, or mend the setting: `chunkmap config` says where it is",
        ) from error
