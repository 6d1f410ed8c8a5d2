"""Start a run or a backfill on this machine, as `flows.launch` does on a cluster."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from pipeline.config.job import Job
from pipeline.config.settings import Settings
from pipeline.logs import set_up_driver

if TYPE_CHECKING:
    from pipeline.local.workers import LocalWorkers
    from pipeline.runs.backfill.driver import Listener as BackfillListener
    from pipeline.runs.backfill.records import BackfillResumeOptions
    from pipeline.runs.backfill.store import BackfillStore
    from pipeline.runs.backfill.summary import BackfillSummary
    from pipeline.runs.driver.plan import PreparedRun, ResumeOptions
    from pipeline.runs.driver.run import Listener
    from pipeline.runs.driver.summary import RunSummary


def run_locally(
    job: Job,
    settings: Settings,
    listen: Listener,
    resume: ResumeOptions,
    workers: LocalWorkers,
    *,
    planned: Callable[[PreparedRun], None] = lambda run: None,
    began: float | None = None,
) -> RunSummary:
    """Run a job with worker processes of this machine; no service but S3 is needed.

    Args:
        job: The job.
        settings: Where and how to run it.
        listen: Called with the phase and the progress.
        resume: Options for resuming it.
        workers: The worker processes.
        planned: Called with the run when it is planned.
        began: Unix seconds when the command started, for the run's clock; default now.

    Raises:
        RunIncompleteError: Some chunks failed.
        And what `plan_run` raises.
    """
    from pipeline.local.orchestrator import LocalOrchestrator
    from pipeline.runs.admin.known_outputs import remember_output
    from pipeline.runs.driver.plan import plan_run
    from pipeline.runs.driver.preflight import preflight
    from pipeline.runs.driver.run import RunDriver
    from pipeline.storage import open_storage

    set_up_driver(settings.logs.format, settings.logs.level)
    listen("plan", None)
    started, storage = time.time(), open_storage(settings)
    preflight(job, settings, storage)
    run = plan_run(job, settings, storage, resume)
    planned(run)
    for output in job.all_outputs.values():
        remember_output(settings.state_dir, output.uri)
    host = LocalOrchestrator(workers, settings, job)
    driver = RunDriver(job, settings, storage, run, host, resume, listen)
    driver.heartbeat.begin(began, started)
    return driver.run()


def backfill_locally(
    store: BackfillStore,
    settings: Settings,
    listen: BackfillListener,
    resume: BackfillResumeOptions,
    workers: LocalWorkers,
    *,
    began: float | None = None,
) -> BackfillSummary:
    """Drive a stored backfill with worker processes of this machine; arguments as `run_locally`.

    Raises:
        BackfillIncompleteError, BackfillHeldError, RunCancelledError: See `BackfillDriver`.
    """
    from pipeline.local.orchestrator import LocalBackfillOrchestrator
    from pipeline.runs.backfill.driver import BackfillDriver

    set_up_driver(settings.logs.format, settings.logs.level)
    host = LocalBackfillOrchestrator(workers, settings, store.job())
    driver = BackfillDriver(store, settings, host, resume, listen)
    if began is not None:
        driver.heartbeat.start(began)
    return driver.run()
