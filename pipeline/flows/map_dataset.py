"""The flow `map_dataset`: plan (a task), map batches of chunks on Dask, publish (a task)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from prefect import flow, task
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext

from pipeline import engine
from pipeline.batches import Batch
from pipeline.driver import (
    PUBLISH_TRIES,
    Driver,
    RunIncompleteError,
    RunSummary,
    failure_lines,
    publish_run,
    store_report,
)
from pipeline.errors import EngineUnavailableError
from pipeline.flows.server import ui_address
from pipeline.job import Job, parse_job
from pipeline.ledger import Ledger
from pipeline.mapping import BatchResult, map_batch
from pipeline.overview import remember_output
from pipeline.planning import Planned, Resume, plan_run
from pipeline.publish import UploadsVanishedError
from pipeline.records import Progress
from pipeline.rounds import Mapper, MapProgress, Outcome
from pipeline.settings import Settings, load_settings
from pipeline.storage import Storage, open_storage

ARTIFACT_SECONDS = 5.0
"""How often the progress artifact moves."""

COUNT_SECONDS = 5.0
"""How often the cluster's threads are counted."""
NO_WORKERS_SECONDS = 120.0
"""How long a run waits for the first worker, or for another one when all are gone."""

Listener = Callable[[str, MapProgress | None], None]
"""Is told the phase (plan, map, publish, report) and, while mapping, the progress."""


@dataclass(frozen=True, slots=True)
class FlowOptions:
    """What the caller of the flow knows and Prefect need not store."""

    settings: Settings
    listen: Listener = lambda phase, progress: None
    resume: Resume = field(default_factory=Resume)


_options: ContextVar[FlowOptions | None] = ContextVar("options", default=None)


@contextmanager
def options(given: FlowOptions) -> Iterator[None]:
    """Run the flow with these options; a deployment runs with those of its environment."""
    token = _options.set(given)
    try:
        yield
    finally:
        _options.reset(token)


# Results are small and live in the ledger: nothing of them is persisted or cached by Prefect, whose
# hashing and storage probes cost more than a batch of small chunks.
@task(name="plan", task_run_name="plan {job_name}", persist_result=False, cache_policy=NO_CACHE)
def plan_task(job_name: str, job_yaml: str) -> Planned:
    """Store the plan, or find the unfinished run of this job."""
    given = _given()
    storage = open_storage(given.settings)
    return plan_run(parse_job(job_yaml), given.settings, storage, given.resume)


@task(name="map-batch", task_run_name="{name}", persist_result=False, cache_policy=NO_CACHE)
def map_batch_task(run_uri: str, fingerprint: str, name: str, spec: str) -> BatchResult:
    """Map one batch of chunks, on a Dask worker."""
    return map_batch(run_uri, fingerprint, Batch(name, spec), engine.worker_name())


@task(name="publish", task_run_name="publish {run}", persist_result=False, cache_policy=NO_CACHE)
def publish_task(run: str, run_uri: str, vanished: UploadsVanishedError | None) -> int:
    """Publish a run that is complete; returns the manifest's number."""
    storage = open_storage(_given().settings)
    ledger = Ledger.open(storage, run_uri)
    return publish_run(storage, ledger, vanished)


def _given() -> FlowOptions:
    return _options.get() or FlowOptions(load_settings())


class DaskEngine:
    """Batches as Prefect task runs on the flow's DaskTaskRunner."""

    def __init__(
        self, runner: Any, run_uri: str, fingerprint: str, task_of_batch: Any = map_batch_task
    ) -> None:
        self._runner = runner
        self._task = task_of_batch
        self._run = run_uri, fingerprint
        self._flying: dict[Any, Batch] = {}
        self._threads = 0
        self._counted = self._served = time.monotonic()

    @property
    def threads(self) -> int:
        """See `Engine.threads`. Workers come and go: counted anew every few seconds."""
        now = time.monotonic()
        if not self._threads or now - self._counted > COUNT_SECONDS:
            self._threads = engine.thread_count(self._runner)
            self._counted = now
        if self._threads:
            self._served = now
        elif now - self._served > NO_WORKERS_SECONDS:
            raise EngineUnavailableError(
                f"the Dask cluster has had no worker for {NO_WORKERS_SECONDS:g} s",
                hint="start workers, then run the job again: what is done is kept",
            )
        return max(1, self._threads)

    def submit(self, batch: Batch) -> None:
        """See `Engine.submit`."""
        self._flying[self._task.submit(*self._run, batch.name, batch.spec)] = batch

    def wait(self, seconds: float) -> list[Outcome]:
        """See `Engine.wait`. Futures are dropped as they come in: Dask frees their results."""
        engine.wait_any(list(self._flying), seconds)
        outcomes = []
        for future in list(self._flying):
            kind, detail = engine.fate(future)
            if kind is not None:
                outcomes.append(_outcome(self._flying.pop(future), future, kind, detail))
        return outcomes

    def drop(self, batch: Batch) -> None:
        """See `Engine.drop`."""
        for future in [f for f, b in self._flying.items() if b.name == batch.name]:
            del self._flying[future]


def _outcome(batch: Batch, future: Any, kind: Any, detail: str) -> Outcome:
    if kind != "finished":
        return Outcome(batch, kind, detail=detail)
    try:
        return Outcome(batch, "finished", future.result())
    except Exception as error:
        return Outcome(batch, "error", detail=f"{type(error).__name__}: {error}")


@flow(name="map_dataset", flow_run_name="{name}", persist_result=False, validate_parameters=False)
def map_dataset(name: str, job_yaml: str) -> RunSummary:
    """Map a job's transform over every chunk of its input and publish the results once.

    Args:
        name: The job's name, for Prefect's pages.
        job_yaml: The job file's text.

    Raises:
        RunIncompleteError: some chunks failed; nothing was published, all work is kept.
    """
    given = _given()
    job = parse_job(job_yaml)
    storage = open_storage(given.settings)
    given.listen("plan", None)
    started = time.time()
    planned = plan_task(name, job_yaml)
    remember_output(given.settings.state_dir, job.output.uri)
    run = _Run(given, job, storage, planned, Driver.of(storage, planned.ledger, _page()))
    run.driver.record.phases.append(("plan", started, time.time() - started))
    return run.to_the_end()


def _page() -> str | None:
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return None
    return f"{ui_address(str(context.client.api_url))}/runs/flow-run/{context.flow_run.id}"


@dataclass(slots=True)
class _Run:
    """One driver's work on one run."""

    given: FlowOptions
    job: Job
    storage: Storage
    planned: Planned
    driver: Driver
    mapper: Mapper | None = None
    artifact: UUID | None = None
    shown: float = 0.0

    def to_the_end(self) -> RunSummary:
        ledger = self.planned.ledger
        manifest = ledger.published()
        if manifest is not None:
            return self._summary("done", ledger.read(), manifest)
        self.driver.write()
        progress, manifest = self._map_and_publish()
        self.given.listen("report", None)
        return self._reported(progress, manifest)

    def _map_and_publish(self) -> tuple[Progress, int | None]:
        ledger, plan = self.planned.ledger, self.planned.plan
        vanished: UploadsVanishedError | None = None
        for _ in range(PUBLISH_TRIES):
            with self.driver.phase("map"):
                progress = self._mapped()
            if progress.completions.height < len(plan):
                return progress, None
            self.given.listen("publish", None)
            with self.driver.phase("publish"):
                try:
                    return progress, publish_task(ledger.run, ledger.prefix, vanished)
                except UploadsVanishedError as error:
                    ledger.void(error.attempts)
                    vanished = error
        assert vanished is not None
        raise vanished

    def _mapped(self) -> Progress:
        ledger = self.planned.ledger
        context = FlowRunContext.get()
        assert context is not None, "a flow runs in a flow run's context"
        self.mapper = Mapper(
            ledger=ledger,
            plan=self.planned.plan,
            job=self.job,
            limits=self.given.settings.batches,
            engine=DaskEngine(context.task_runner, ledger.prefix, self.planned.fingerprint),
            listen=self._tell,
        )
        return self.mapper.run()

    def _tell(self, progress: MapProgress) -> None:
        self.driver.saw(progress)
        self.given.listen("map", progress)
        due = time.monotonic() - self.shown >= ARTIFACT_SECONDS
        if not due and progress.done < progress.chunks:
            return
        self.shown = time.monotonic()
        percent = 100.0 * progress.done / max(1, progress.chunks)
        said = f"{progress.done:,} of {progress.chunks:,} chunks, {progress.failed:,} failed"
        if self.artifact is None:
            key = f"progress-{self.planned.ledger.run}"
            made: Any = create_progress_artifact(progress=percent, key=key, description=said)
            self.artifact = made
        else:
            update_progress_artifact(self.artifact, progress=percent, description=said)

    def _reported(self, progress: Progress, manifest: int | None) -> RunSummary:
        state = "done" if manifest is not None else "failed"
        ledger = self.planned.ledger
        report = store_report(
            self.storage, ledger, self.driver.record, state, self.given.settings.state_dir
        )
        create_markdown_artifact(markdown=report.markdown, key=f"run-{ledger.run}")
        self.driver.write(state)
        summary = self._summary(state, progress, manifest, report.uri, report.path)
        if manifest is None:
            raise RunIncompleteError(summary)
        return summary

    def _summary(
        self,
        state: str,
        progress: Progress,
        manifest: int | None,
        report: str = "",
        local: str = "",
    ) -> RunSummary:
        done, failed = progress.completions, progress.failed()
        mapper = self.mapper
        ledger = self.planned.ledger
        return RunSummary(
            run=ledger.run,
            job=self.job.name,
            state=state,
            output=ledger.output,
            manifest=manifest,
            chunks=len(self.planned.plan),
            mapped=done.height - mapper.resumed if mapper else 0,
            failed=failed.height,
            batches=mapper.batches if mapper else 0,
            rounds=mapper.rounds if mapper else 0,
            rows_in=int(done["rows_in"].sum()),
            rows_out=int(done["rows_out"].sum()),
            bytes_in=int(done["bytes_in"].sum()),
            bytes_out=int(done["bytes_out"].sum()),
            seconds=time.time() - self.driver.record.started,
            report=report or ledger.prefix + "report.html",
            local_report=local,
            notes=self.planned.notes,
            errors=failure_lines(failed),
        )
