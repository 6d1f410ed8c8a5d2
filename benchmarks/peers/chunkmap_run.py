"""chunkmap through its Python API, on a cluster that is up: as `chunkmap run JOB` does it."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import psutil

from benchmarks.peers.protocol import Spec, main
from benchmarks.suite.generating import FIRST_WINDOW
from benchmarks.suite.settings import load_suite_settings
from partitioning import Plan
from pipeline.config.job import Job
from pipeline.config.settings import Settings
from pipeline.runs.driver.plan import ResumeOptions, plan_input
from pipeline.runs.driver.summary import MapProgress
from pipeline.storage import open_storage

THREADS_PER_WORKER = 8
"""Of a cluster of our own that has more threads than cores, for work that waits."""


@dataclass(slots=True)
class Phases:
    """How long each phase of a run took."""

    seconds: dict[str, float] = field(default_factory=dict)
    _name: str = "start"
    _since: float = field(default_factory=time.perf_counter)

    def listen(self, phase: str, progress: MapProgress | None) -> None:
        """Told of by the flow."""
        now = time.perf_counter()
        self.seconds[self._name] = self.seconds.get(self._name, 0.0) + now - self._since
        self._name, self._since = phase, now

    def end(self) -> dict[str, float]:
        """All phases, the last one ended."""
        self.listen("", None)
        return self.seconds


@dataclass(slots=True)
class State:
    """What start-up made."""

    settings: Settings
    cluster: ExitStack = field(default_factory=ExitStack)
    """Of our own, if any."""
    workers: Sequence[int] = ()
    """Ids of the worker processes; none if they run elsewhere."""


def start(spec: Spec) -> State:
    """Import what a run imports, and start a cluster if one of a size of its own is asked for."""
    import pipeline.flows.launch
    import pipeline.flows.map_dataset  # noqa: F401 - the imports are the start-up

    settings = load_suite_settings()
    if not spec.workers:
        return State(settings, workers=worker_pids(settings))
    from benchmarks.suite.clusters import local_cluster

    threads = 1 if spec.workers <= spec.cores else min(THREADS_PER_WORKER, spec.workers)
    environment = {**settings.prefect.environment(), **settings.s3.environment()}
    cluster = ExitStack()
    started = local_cluster(spec.workers // threads, threads, environment)
    _, own = cluster.enter_context(started)
    settings = settings.model_copy(update={"dask": own})
    return State(settings, cluster, worker_pids(settings))


def worker_pids(settings: Settings) -> list[int]:
    """The cluster's worker processes, if they are of this machine."""
    from pipeline.cluster.client import cluster_of

    with cluster_of(settings.dask) as cluster:
        answers = list(cluster.ask(_where).values())
    told = [answer for answer in answers if not isinstance(answer, Exception)]
    here = [pid for machine, pid in told if machine == _where()[0]]
    return here if len(here) == len(answers) else []


def _where() -> tuple[str, int]:
    """This machine since it was started, and this process."""
    return f"{os.uname().nodename} {psutil.boot_time()}", os.getpid()


def workers_cpu(state: State) -> float | None:
    """Processor seconds of the workers so far; None if they run elsewhere, or one has gone."""
    try:
        times = [psutil.Process(pid).cpu_times() for pid in state.workers]
    except psutil.Error:
        return None
    return sum(each.user + each.system for each in times) if times else None


def peak_bytes() -> int:
    """The most memory that this process, the driver, has held."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def stop(state: State) -> None:
    """End a cluster of our own."""
    state.cluster.close()


def job_of(spec: Spec, output: str) -> Job:
    """The job of one time the work is done."""
    return Job.model_validate({**spec.job, "output": {**spec.job["output"], "uri": output}})


def run(state: State, spec: Spec, output: str) -> dict[str, Any]:
    """Run the job and return its figures."""
    from pipeline.flows.launch import launch
    from pipeline.runs.driver.summary import RunIncompleteError

    phases = Phases()
    try:
        summary = launch(job_of(spec, output), state.settings, phases.listen, ResumeOptions())
    except RunIncompleteError as error:
        error.add_note("; ".join(error.summary.errors))
        raise
    return {
        "rows": summary.rows_out,
        "tasks": summary.chunks,
        "mapped": summary.mapped,
        "phases": phases.end(),
        "driver_peak_bytes": peak_bytes(),
    }


def plan(state: State, spec: Spec, output: str) -> dict[str, Any]:
    """Plan the job's input; nothing is stored."""
    return _figures_of(_plan(state, spec, output))


def plan_again(state: State, spec: Spec, output: str) -> dict[str, Any]:
    """Plan the job's input, untimed; then time planning it with that plan at hand."""
    stored = _plan(state, spec, output).to_bytes()
    clock = time.perf_counter()
    again = _plan(state, spec, output, Plan.from_bytes(stored))
    seconds = time.perf_counter() - clock
    return {**_figures_of(again), "work_seconds": seconds, "cpu_seconds": None}


def _plan(state: State, spec: Spec, output: str, previous: Plan | None = None) -> Plan:
    def on_workers(function: Any, items: Sequence[Any]) -> Iterator[Any]:
        """Read the footers of many files on the cluster, as a run does."""
        from pipeline.cluster.task_runner import cluster_mapper, task_runner

        with task_runner(state.settings.dask, state.settings.s3.environment()) as runner:
            yield from cluster_mapper(runner)(function, items)

    job, storage = job_of(spec, output), open_storage(state.settings)
    planned = plan_input(job, state.settings, storage, previous, mapper=on_workers)
    return planned.result.plan


def _figures_of(planned: Plan) -> dict[str, Any]:
    return {"rows": planned.rows, "parts": len(planned), "fragments": planned.fragments}


def publish(state: State, spec: Spec, output: str) -> dict[str, Any]:
    """Run a job to its end; what is timed is the publishing."""
    figures = run(state, spec, output)
    return {**figures, "work_seconds": figures["phases"]["publish"], "cpu_seconds": None}


def backfill(state: State, spec: Spec, output: str) -> dict[str, Any]:
    """Plan a backfill over every window of the input, store it and drive it to its end."""
    from pipeline.flows.launch import launch_backfill
    from pipeline.runs.backfill.plan import WindowSelection, create, draft
    from pipeline.runs.backfill.records import BackfillResumeOptions, Options

    storage = open_storage(state.settings)
    selection = WindowSelection()
    if spec.tasks:
        # The first windows of the dataset, as many as the scale asks for.
        end = FIRST_WINDOW + timedelta(days=spec.tasks)
        selection = WindowSelection(start=str(FIRST_WINDOW), end=str(end))
    drafted = draft(job_of(spec, output), state.settings, storage, selection, Options())
    created = create(storage, drafted)
    assert created is not None, "there is something to do"
    store, _ = created
    counts = launch_backfill(
        store, state.settings, lambda progress, phase: None, BackfillResumeOptions()
    ).counts
    return {
        "rows": counts["rows_out"],
        "tasks": counts["chunks_done"],
        "windows": counts["done"],
    }


def resume(state: State, spec: Spec, output: str) -> dict[str, Any]:
    """Run a job to its end, untimed; then time the same command again."""
    run(state, spec, output)
    return _timed_run(state, spec, output)


def resume_half(state: State, spec: Spec, output: str) -> dict[str, Any]:
    """Run a job of which half of the chunks fail, untimed; then time going on with it."""
    from pipeline.errors import RunFailedError

    storage, marker = open_storage(state.settings), spec.params["marker"]
    storage.put(marker, b"half")
    try:
        with suppress(RunFailedError):
            run(state, spec, output)
    finally:
        storage.delete(marker)
    return _timed_run(state, spec, output)


def ledger(state: State, spec: Spec, output: str) -> dict[str, Any]:
    """Store a plan of this many chunks; then time mapping it without reading or writing."""
    from benchmarks.micro.ledger_only import ledger_only_flow, ledger_only_run, only, synthetic_plan
    from pipeline.cluster.task_runner import task_runner
    from pipeline.flows.server import connect, talking_to

    settings = state.settings
    api_url = connect(settings.prefect)
    stored, code = ledger_only_run(settings, job_of(spec, output), synthetic_plan(spec.tasks))
    environment = {**settings.prefect.environment(), **settings.s3.environment()}
    run_flow = only(ledger_only_flow, task_runner(settings.dask, environment))
    with talking_to(api_url, 1):
        clock = time.perf_counter()
        done = run_flow(stored.prefix, code).completions.height
    if done != spec.tasks:
        raise RuntimeError(f"{done:,} of {spec.tasks:,} chunks were recorded")
    return {"tasks": done, "work_seconds": time.perf_counter() - clock, "cpu_seconds": None}


def _timed_run(state: State, spec: Spec, output: str) -> dict[str, Any]:
    clock = time.perf_counter()
    figures = run(state, spec, output)
    return {**figures, "work_seconds": time.perf_counter() - clock, "cpu_seconds": None}


WORK = {
    "map": run,
    "plan": plan,
    "plan-again": plan_again,
    "resume": resume,
    "resume-half": resume_half,
    "ledger": ledger,
    "publish": publish,
    "backfill": backfill,
    "windows": backfill,
}
"""Workloads that are more than a run of a job, and `map` for all others."""


if __name__ == "__main__":
    main(
        start,
        WORK,
        stop,
        ("chunkmap", "polars", "prefect", "distributed", "obstore"),
        workers_cpu,
    )
