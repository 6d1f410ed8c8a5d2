"""Measure what Prefect and Dask cost a batch, on a stack that is up and otherwise idle.

Tasks that wait for a file keep the worker threads, so that submitting and polling are measured
while nothing else happens; then tasks that do nothing show what each process spends on one.
"""

from __future__ import annotations

import shutil
import tempfile
import time
import uuid
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext

from benchmarks.simulation.probes import Figures, cpu_of, job_of, stopwatch
from benchmarks.suite.datasets import ensure
from pipeline.cluster import local
from pipeline.cluster.task_runner import task_runner
from pipeline.config.settings import Settings
from pipeline.errors import EngineUnavailableError
from pipeline.flows.executor import DaskExecutor
from pipeline.flows.launch import launch
from pipeline.flows.server import connect, talking_to
from pipeline.runs.driver.plan import ResumeOptions
from pipeline.runs.worker.batch import Batch, BatchResult
from pipeline.storage import Storage

QUEUED = 60
HELD_SECONDS = 180.0
"""How long workers are held at most."""
IDLE_SECONDS = 2.0
IDLE_MOMENTS = 5


@task(name="probe", task_run_name="{name}", persist_result=False, cache_policy=NO_CACHE)
def probe_task(run_uri: str, fingerprint: str, name: str, spec: str, types: str) -> BatchResult:
    """Wait for a file, if one is named in place of a run."""
    deadline = time.monotonic() + HELD_SECONDS
    while run_uri and not Path(run_uri).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return BatchResult(name, 0, 0, 0, 0, 0, 0, 0, 0.0)


@flow(name="probe", persist_result=False, validate_parameters=False)
def probe_flow(scheduler: int, workers: list[int], prefect: int) -> Figures:
    """Submit, poll and take in batches.

    Args:
        scheduler: Process id of the scheduler.
        workers: Process ids of the workers.
        prefect: Process id of the Prefect server.
    """
    context = FlowRunContext.get()
    assert context is not None, "a flow runs in a flow run's context"
    gate = Path(tempfile.mkdtemp(prefix="chunkmap-bench-"), "go")
    engine = DaskExecutor(context.task_runner, "", "none", probe_task)
    holding = DaskExecutor(context.task_runner, str(gate), "none", probe_task)
    warm = _batches("warm", 2 * engine.threads)
    for batch in warm:
        engine.submit(batch)
    _await(engine, len(warm))
    holders = _batches("held", engine.threads)
    for batch in holders:
        holding.submit(batch)
    queued = _batches("queued", QUEUED)
    watched = ([scheduler], workers, [prefect])
    idle = _idle(watched)
    clock, before = time.perf_counter(), [cpu_of(pids) for pids in watched]
    with stopwatch() as submitting:
        for batch in queued:
            engine.submit(batch)
    with stopwatch() as polling:
        ended = _finished(engine, 0.0)
    if ended:
        raise EngineUnavailableError(
            f"submitting {QUEUED} batches took longer than {HELD_SECONDS:g} s",
            hint="measure again while the machine is idle",
        )
    gate.touch()
    _await(holding, len(holders))
    settling, left = 0.0, QUEUED
    while left:
        time.sleep(0.5)
        with stopwatch() as looking:
            found = _finished(engine, 0.0)
        settling += max(0.0, looking.cpu - (left - found) * polling.cpu / QUEUED)
        left -= found
    shutil.rmtree(gate.parent)
    time.sleep(3.0)  # The server is still at it.
    after, waited = [cpu_of(pids) for pids in watched], time.perf_counter() - clock
    spent = [
        max(0.0, b - a - rate * waited) / (QUEUED + len(holders))
        for a, b, rate in zip(before, after, idle, strict=True)
    ]
    how = f"{QUEUED} batches that do nothing"
    net = f"for {how}, less what is spent idle"
    return {
        "driver.submit_seconds": (submitting.cpu / QUEUED, f"submitting {how}, workers held"),
        "driver.poll_seconds": (polling.cpu / QUEUED, f"looking once at {how}, none back"),
        "driver.settle_seconds": (settling / QUEUED, f"taking in {how}"),
        "services.scheduler_seconds": (
            spent[0],
            f"processor time of Dask's scheduler {net}",
        ),
        "worker.batch_seconds": (
            spent[1],
            f"processor time of the workers {net}",
        ),
        "services.prefect_seconds": (
            spent[2],
            f"processor time of Prefect's server {net}",
        ),
    }


def _batches(name: str, count: int) -> list[Batch]:
    return [Batch(f"{name}{number}", "0-1") for number in range(count)]


def _await(engine: DaskExecutor, count: int) -> None:
    while count:
        count -= _finished(engine, 1.0)


def _finished(engine: DaskExecutor, seconds: float) -> int:
    """Wait for batches and count them; what one costs that fails says nothing of others.

    Raises:
        EngineUnavailableError: A batch failed or was lost.
    """
    outcomes = engine.wait(seconds)
    for outcome in outcomes:
        if outcome.kind != "finished":
            raise EngineUnavailableError(
                f"batch {outcome.batch.name}, which does nothing, ended as {outcome.kind}: "
                f"{outcome.detail}",
                hint="look at logs/dask.log in the state folder, then measure again",
            )
    return len(outcomes)


def _idle(watched: Sequence[Sequence[int]]) -> list[float]:
    """Seconds of a core that processes spend each second while nothing happens.

    The quietest of several moments: they may still be at what came before.
    """
    moments = []
    for _ in range(IDLE_MOMENTS):
        clock, before = time.perf_counter(), [cpu_of(pids) for pids in watched]
        time.sleep(IDLE_SECONDS)
        waited = time.perf_counter() - clock
        after = [cpu_of(pids) for pids in watched]
        moments.append([(b - a) / waited for a, b in zip(before, after, strict=True)])
    return [min(each) for each in zip(*moments, strict=True)]


def engine(settings: Settings, storage: Storage, root: str) -> Figures:
    """What a batch costs the driver, the scheduler, a worker and the Prefect server."""
    pids = {
        service.name: service.pid for service in local.status(settings) if service.pid is not None
    }
    dask = psutil.Process(pids["dask"])
    # Nannies start workers; what lives longest below them is the worker itself.
    workers = [process.pid for process in dask.children(recursive=True) if not process.children()]
    with talking_to(connect(settings.prefect), 1):
        runner: Any = task_runner(settings.dask, settings.s3.environment())
        flow_: Any = probe_flow.with_options(task_runner=runner)
        found: Figures = flow_(dask.pid, workers, pids["prefect"])
    return found | start(settings, storage, root)


def start(settings: Settings, storage: Storage, root: str) -> Figures:
    """What a run takes that has nearly nothing to do."""
    card = ensure(storage, root, "row-groups", "s")
    seconds = []
    for _ in range(3):
        few = {"filter": [["id", "<", 8]], "include": ["*0000.parquet"]}
        job = job_of(root, card.uri, "identity", chunks={"target": 1}, input=few)
        job = job.model_copy(update={"name": f"probe-{uuid.uuid4().hex[:6]}"})
        began: dict[str, float] = {}
        with stopwatch() as whole:
            launch(job, settings, partial(_note, began), ResumeOptions())
        seconds.append(whole.wall - (began["publish"] - began["map"]))
    how = "the fastest of three runs of two tiny chunks, less their mapping"
    return {"driver.start_seconds": (min(seconds), how)}


def _note(began: dict[str, float], phase: str, progress: object) -> None:
    began.setdefault(phase, time.perf_counter())
