"""Start a flow from a command or a program: find Prefect and Dask first, then import them."""

from __future__ import annotations

import importlib.util
import socket
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from pipeline.config.job import Job
from pipeline.config.load_file import LoadFile
from pipeline.config.settings import Settings
from pipeline.errors import (
    ChunkmapError,
    EngineUnavailableError,
    RunCancelledError,
    RunInterruptedError,
)
from pipeline.flows.server import check_access, connect, drain, talking_to
from pipeline.logs import set_up_driver
from pipeline.masking import mask, mask_text
from pipeline.processes import exit_without_waiting, exits_without_waiting
from pipeline.runs.driver.early_plan import BackgroundPlan, EarlyPlan, plan_early
from pipeline.runs.driver.plan import ResumeOptions
from pipeline.runs.driver.summary import RunSummary
from pipeline.storage import open_storage

if TYPE_CHECKING:
    from pipeline.config.deploy_file import Deployed
    from pipeline.config.ingest import Ingest
    from pipeline.config.pipeline_file import Pipeline
    from pipeline.flows.deploy.deploy import DeployResult
    from pipeline.flows.object_events import Debouncer
    from pipeline.ingest.run import IngestOptions, IngestSummary
    from pipeline.load.records import Listener as LoadListener
    from pipeline.load.records import LoadSummary
    from pipeline.pipelines.driver import PipelineOptions
    from pipeline.pipelines.listener import PipelineListener
    from pipeline.pipelines.summary import PipelineSummary
    from pipeline.runs.backfill.driver import Listener as BackfillListener
    from pipeline.runs.backfill.records import BackfillResumeOptions
    from pipeline.runs.backfill.store import BackfillStore
    from pipeline.runs.backfill.summary import BackfillSummary
    from pipeline.runs.driver.run import Listener

T = TypeVar("T")

DRAIN_SECONDS = 10.0
"""Seconds that a driver waits after its run for Prefect to take the last logs and events."""
ANSWER_SECONDS = 2.0
"""Seconds that a scheduler may take to answer before a run is planned; a slower one, perhaps busy,
is waited for later."""
PREFECT_RETRIES = 1
"""Retries of a request to Prefect. With Prefect's default, 5, each request to an unavailable server
takes a minute."""
DEPLOY_RETRIES = 5
"""Retries of a request of a deploy, which has nothing but the server to write to: a busy server
answers 503 for as long as its database is locked. As Prefect's default, they wait for a minute."""


def prepare(job: Job, settings: Settings, resume: ResumeOptions) -> EarlyPlan:
    """Plan a run before Prefect and Dask are loaded, which takes ten times as long.

    So an input that cannot be mapped is refused at once, and leaves no failed flow run behind.

    Returns:
        The planned run; none if the flow is to plan it, since it needs the cluster for that, or
        since the cluster does not seem to exist, of which `launch` tells before anything is stored.

    Raises:
        EngineUnavailableError: No Prefect server answers, or it refuses the password; nothing was
            stored.
        And what `plan_run` raises.
    """
    check_access(settings.prefect)
    if not (answers(settings.dask.scheduler) and _is_installed(settings.dask.cluster_class)):
        return EarlyPlan(None, time.time(), 0.0)
    return plan_early(job, settings, open_storage(settings), resume)


def answers(address: str | None) -> bool:
    """Whether a scheduler seems to answer; true if none is set, or there is no quick way to ask.

    A scheduler speaks first, unless the connection is encrypted.
    """
    parts = urlsplit(address or "")
    if parts.scheme not in ("tcp", "tls") or parts.hostname is None or parts.port is None:
        return True
    try:
        with socket.create_connection((parts.hostname, parts.port), ANSWER_SECONDS) as connection:
            return parts.scheme == "tls" or bool(connection.recv(1))
    except OSError:
        return False


def _is_installed(cluster_class: str | None) -> bool:
    """Whether the package of a cluster class is installed; true if none is set."""
    package = (cluster_class or __name__).partition(":")[0].partition(".")[0]
    return importlib.util.find_spec(package) is not None


def launch(
    job: Job,
    settings: Settings,
    listen: Listener,
    resume: ResumeOptions,
    *,
    early: EarlyPlan | None = None,
    began: float | None = None,
) -> RunSummary:
    """Run a job as the flow `map_dataset`, on the cluster that the settings name.

    Args:
        job: The job.
        settings: Where and how to run it.
        listen: Called with the phase and the progress.
        resume: Options for resuming it.
        early: The result of `prepare`; without it, the run is planned while Prefect and Dask start.
        began: Unix seconds when the command started, for the run's clock; default now.

    Raises:
        EngineUnavailableError: No Prefect server or scheduler answers.
        RunIncompleteError: Some chunks failed.
    """
    began = time.time() if began is None else began
    listen("start", None)
    api_url = connect(settings.prefect)
    set_up_driver(settings.logs.format, settings.logs.level)
    from pipeline.flows.map_dataset import FlowOptions, map_dataset, options, shown_job

    flow: Any = map_dataset.with_options(
        task_runner=_runner(settings), result_storage=_result_storage()
    )
    plan = early or BackgroundPlan(
        lambda: plan_early(job, settings, open_storage(settings), resume)
    )
    if settings.dask.scheduler is None and settings.dask.cluster_class is None:
        listen("workers", None)
    flow_options = FlowOptions(settings, listen, resume, job, plan, began)
    with options(flow_options):
        return _run_flow(api_url, flow_options.ended, partial(flow, job.name, shown_job(job)))


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
        settings: Where and how to run it.
        listen: Called with the progress.
        resume: Options for resuming it.
        more: Further `BackfillOptions`, for benchmarks.

    Raises:
        EngineUnavailableError: No Prefect server or scheduler answers.
        BackfillIncompleteError, BackfillHeldError, RunCancelledError: See `BackfillDriver`.
    """
    api_url = connect(settings.prefect)
    set_up_driver(settings.logs.format, settings.logs.level)
    from pipeline.flows.backfill import BackfillOptions, backfill_flow, backfill_options

    flow: Any = backfill_flow.with_options(
        task_runner=_runner(settings), result_storage=_result_storage()
    )
    flow_options = BackfillOptions(settings, resume, listen, **more)
    with backfill_options(flow_options):
        call = partial(flow, store.output, store.backfill)
        return _run_flow(api_url, flow_options.ended, call, beats=True)


def launch_ingest(
    definition: Ingest, settings: Settings, ingest_options: IngestOptions
) -> IngestSummary:
    """Run an ingest as the flow `ingest`, in this process.

    Args:
        definition: The definition.
        settings: Where its output and the Prefect server are.
        ingest_options: How to run it.

    Raises:
        EngineUnavailableError: No Prefect server answers.
        And what `pipeline.ingest.ingest` raises.
    """
    api_url = connect(settings.prefect)
    set_up_driver(settings.logs.format, settings.logs.level)
    from pipeline.flows.ingest import IngestFlowOptions, ingest_flow
    from pipeline.flows.ingest import ingest_options as options_of_flow

    flow_options = IngestFlowOptions(settings, ingest_options)
    with options_of_flow(flow_options):
        call = partial(ingest_flow, definition.name, definition.to_yaml())
        return _run_flow(api_url, flow_options.ended, call)


def launch_load(file: LoadFile, settings: Settings, listen: LoadListener) -> LoadSummary:
    """Load an output as the flow `load`, in this process.

    Args:
        file: What is loaded, and where.
        settings: Where the output and Prefect are.
        listen: Called with the progress.

    Raises:
        EngineUnavailableError: No Prefect server answers.
        ChunkmapError: See `pipeline.load.errors`.
    """
    api_url = connect(settings.prefect)
    set_up_driver(settings.logs.format, settings.logs.level)
    from pipeline.flows.load import LoadOptions, load_flow, load_options

    flow: Any = load_flow
    flow_options = LoadOptions(settings, listen)
    with load_options(flow_options):
        call = partial(flow, file.name, file.to_yaml())
        return _run_flow(api_url, flow_options.ended, call)


def launch_pipeline(
    pipeline: Pipeline,
    settings: Settings,
    pipeline_options: PipelineOptions,
    listen: PipelineListener,
) -> PipelineSummary:
    """Run a pipeline as the flow `pipeline`, in this process; jobs run on the cluster.

    Args:
        pipeline: The pipeline with the values of its parameters.
        settings: Where and how to run it.
        pipeline_options: Which stages to run.
        listen: Called with the progress.

    Raises:
        EngineUnavailableError: No Prefect server answers, or no scheduler for a stage that maps.
        And what `pipeline.pipelines.driver.run_stages` raises.
    """
    api_url = connect(settings.prefect)
    set_up_driver(settings.logs.format, settings.logs.level)
    from pipeline.config.templates import text_of
    from pipeline.flows.pipeline import PipelineFlowOptions, run_pipeline
    from pipeline.flows.pipeline import pipeline_options as options_of_flow

    name = f"{pipeline.name} {pipeline.label}".strip()
    flow: Any = run_pipeline.with_options(flow_run_name=name.replace("{", "{{").replace("}", "}}"))
    flow_options = PipelineFlowOptions(settings, _runner, pipeline, pipeline_options, listen)
    values = mask({name: text_of(value) for name, value in pipeline.parameters.items()})
    chosen = (pipeline_options.start_from, pipeline_options.only)
    with options_of_flow(flow_options):
        call = partial(flow, mask_text(pipeline.source), values, *chosen)
        return _run_flow(api_url, flow_options.ended, call)


def load_secret(file: LoadFile, settings: Settings) -> str | None:
    """Return the secret in the Secret block that a load file names; None if it names none."""
    if file.into.secret_block is None:
        return None
    api_url = connect(settings.prefect)
    from pipeline.flows.load import secret_of

    with talking_to(api_url, PREFECT_RETRIES):
        return secret_of(file.into)


def launch_deploy(
    deployed: Deployed,
    settings: Settings,
    announce: Callable[[DeployResult], None],
    **options: bool,
) -> DeployResult:
    """Deploy an environment to the Prefect server of the settings. See `deploy`.

    Args:
        deployed: What the files say.
        settings: Where the server is.
        announce: Called with the changes before they are made.
        options: See `DeployOptions`.

    Raises:
        EngineUnavailableError: No Prefect server answers.
        And what `deploy` raises.
    """
    api_url = connect(settings.prefect)
    from pipeline.flows.deploy.deploy import DeployOptions, deploy

    with talking_to(api_url, DEPLOY_RETRIES):
        return deploy(deployed, DeployOptions(**options), announce)


def launch_receiver(
    settings: Settings,
    token: str,
    bursts: Debouncer,
    address: tuple[str, int],
    started: Callable[[int], None],
) -> None:
    """Receive notifications about new objects until the process is told to stop.

    Args:
        settings: Where the Prefect server is.
        token: What senders must know.
        bursts: Gathers the objects of a burst.
        address: Address and port to listen at.
        started: Called with the port.

    Raises:
        EngineUnavailableError: No Prefect server answers.
    """
    api_url = connect(settings.prefect)
    set_up_driver(settings.logs.format, settings.logs.level)
    from pipeline.flows.receiver import Receiver, serve

    with talking_to(api_url, PREFECT_RETRIES):
        serve(Receiver(token, bursts), *address, started)


def _run_flow(
    api_url: str,
    ended: Sequence[T | ChunkmapError],
    flow: Callable[[], T],
    *,
    beats: bool = False,
) -> T:
    """Call a flow; return or raise what it stored in `ended`, even if Prefect failed afterwards."""
    with talking_to(api_url, PREFECT_RETRIES, beats=beats), warnings.catch_warnings():
        # Dask warns about large task arguments, such as Prefect's context.
        warnings.filterwarnings("ignore", message="Sending large graph")
        try:
            return flow()
        except Exception as error:
            if not ended or isinstance(error, ChunkmapError):
                raise
            if not isinstance(ended[0], RunCancelledError | RunInterruptedError):
                # The run is over, and its ledger is what counts; only Prefect does not know.
                exit_without_waiting()
            if isinstance(ended[0], ChunkmapError):
                raise ended[0] from None
            return ended[0]
        finally:
            if not exits_without_waiting() and not drain(DRAIN_SECONDS):
                exit_without_waiting()


def _result_storage() -> Path:
    """Return the storage for results of a flow and of its subflows, where nothing is stored.

    If none is named, Prefect asks its server for one, twice.
    """
    from prefect.settings import get_current_settings

    return get_current_settings().results.local_storage_path


def _runner(settings: Settings) -> Any:
    from pipeline.cluster.task_runner import task_runner

    try:
        return task_runner(settings.dask, settings.s3.environment())
    except EngineUnavailableError:
        # A thread of Dask may still try to connect.
        exit_without_waiting()
        raise
    except (ImportError, AttributeError) as error:
        raise EngineUnavailableError(
            f"cannot import the cluster class {settings.dask.cluster_class} "
            f"(dask.cluster_class): {error}",
            hint="install its package, or fix the setting: `chunkmap config` shows its source",
        ) from error
