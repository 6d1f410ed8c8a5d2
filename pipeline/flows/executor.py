"""Batches as Prefect task runs on Dask."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import TypeAdapter
from typing_extensions import override

from pipeline.cluster.dask_profiler import stop_profiler
from pipeline.cluster.futures import (
    connection_errors,
    is_leaving,
    memory_limit,
    prioritised,
    wait_any,
    worker_name,
)
from pipeline.cluster.resources import NO_WORKERS_SECONDS
from pipeline.cluster.task_runner import lacking_resources, slot_count
from pipeline.config.settings import Settings
from pipeline.errors import EngineUnavailableError, RunFailedError
from pipeline.flows.concurrency_slots import Slots
from pipeline.flows.task_report import error_of
from pipeline.flows.task_sender import Ended, SentTaskRun, TaskSender
from pipeline.flows.worker_task import settings_of_run
from pipeline.runs.driver.executor import Executor, Outcome, WorkerNeeds
from pipeline.runs.ledger.merge_plan import number_of
from pipeline.runs.worker.batch import Batch, BatchResult
from pipeline.runs.worker.reduce import Step, reduce_step
from pipeline.runs.worker.run_batch import run_batch
from pipeline.runs.worker.run_settings import sent_functions, sent_settings

PARAMETERS = ("run_uri", "fingerprint", "name", "spec", "types")
"""Parameters of a task that maps a batch."""
COUNT_SECONDS = 5.0
"""Seconds between two counts of the cluster's threads."""

SLOT_SECONDS = 0.05
"""Seconds between two checks for granted slots."""

_RESULT = TypeAdapter(BatchResult)


# Results are small and stored in the ledger, so Prefect need not persist or cache them: its hashing
# and storage probes cost more than a batch of small chunks. If a user makes it persist them, they
# are JSON: anyone who can write to a store of pickles can run code where they are read.
TASK_OPTIONS: dict[str, Any] = {
    "persist_result": False,
    "cache_policy": NO_CACHE,
    "result_serializer": "json",
}


@task(name="map-batch", task_run_name="{name}", **TASK_OPTIONS)
def map_batch_task(run_uri: str, fingerprint: str, name: str, spec: str, types: str) -> BatchResult:
    """Map one batch of chunks, or merge one of files, on a Dask worker."""
    stop_profiler()
    batch = Batch(name, spec, types)
    return run_batch(
        run_uri,
        fingerprint,
        batch,
        worker_name(),
        is_leaving,
        sent=settings_of_run(),
        memory_limit=memory_limit(),
    )


@task(name="reduce", task_run_name="{name}", retries=2, **TASK_OPTIONS)
def reduce_task(run_uri: str, fingerprint: str, name: str, step: Step) -> None:
    """Do one step of the reduce, on a Dask worker."""
    stop_profiler()
    reduce_step(run_uri, fingerprint, step, worker_name(), sent=settings_of_run())


def run_reduce_steps(
    runner: Any, run_uri: str, fingerprint: str, steps: Sequence[Step], settings: Settings
) -> None:
    """Do the steps of one level of a reduce in parallel, as task runs of the current flow run.

    Raises:
        ChunkmapError: A step failed, or was lost. Results of completed steps are kept.
    """
    names = ("run_uri", "fingerprint", "name", "step")
    functions = sent_functions(settings)
    sender = TaskSender(runner, reduce_task, names, sent_settings(settings), functions)
    common = {"run_uri": run_uri, "fingerprint": fingerprint}
    left = [sender.submit(**common, name=step.name, step=step) for step in steps]
    try:
        while left:
            wait_any([sent.future for sent in left], 1.0)
            for sent in list(left):
                ended = sent.ended()
                if ended is not None:
                    left.remove(sent)
                    _check_step(ended)
    finally:
        for sent in left:
            sent.cancel()


def _check_step(ended: Ended) -> None:
    if ended.error is not None:
        raise error_of(ended.error)
    if ended.kind != "finished":
        raise RunFailedError(
            f"a step of the reduce was lost: {ended.detail}",
            hint="run the same command again: completed chunks and steps are kept",
        )


class DaskExecutor(Executor):
    """Runs batches as task runs on the flow's DaskTaskRunner."""

    def __init__(
        self,
        runner: Any,
        run_uri: str,
        fingerprint: str,
        task_of_batch: Any = map_batch_task,
        *,
        priority: Callable[[], int] = lambda: 0,
        limit: str | None = None,
        settings: Settings | None = None,
        needs: WorkerNeeds | None = None,
    ) -> None:
        """Make an executor; call it in the flow run to which the task runs are to belong.

        Args:
            runner: The flow's task runner.
            run_uri: `<output>.chunkmap/runs/<run>/`.
            fingerprint: The fingerprint of the driver's code.
            task_of_batch: The Prefect task that maps a batch.
            priority: Returns the current priority of batches; Dask runs higher ones first.
            limit: A global concurrency limit of Prefect, of which each batch holds a slot.
            settings: Settings that the workers use, within the limits of their own; default theirs.
            needs: What its batches need of workers; those that merge files need nothing.
        """
        self._priority = priority
        self._runner = runner
        sent = "" if settings is None else sent_settings(settings)
        functions = {} if settings is None else sent_functions(settings)
        self._sender = TaskSender(runner, task_of_batch, PARAMETERS, sent, functions)
        self._needs = needs or WorkerNeeds()
        self._common = {"run_uri": run_uri, "fingerprint": fingerprint}
        self._in_flight: dict[SentTaskRun, Batch] = {}
        self._waiting: dict[str, list[Batch]] = {}
        """Batches without a slot, by name, once per submission."""
        limits = [*([limit] if limit else []), *(f"tag:{tag}" for tag in self._sender.tags)]
        self._slots = Slots(limits) if limits else None
        self._copies: dict[str, int] = {}
        """Number of further outcomes to return for a batch, one per further submission."""
        self._unsent: list[Outcome] = []
        self._threads: int | None = None
        self._counted = self._served = time.monotonic()

    @property
    @override
    def threads(self) -> int:
        # Counted again every few seconds, since workers come and go. Zero without a scheduler, so
        # that no rounds are lost to it; one with a scheduler but no workers, since an adaptive
        # cluster scales up only if there is work.
        now = time.monotonic()
        if not self._threads or now - self._counted > COUNT_SECONDS:
            needs = self._needs
            self._threads = slot_count(self._runner, needs.concurrency, needs.resources)
            self._counted = now
        if self._threads:
            self._served = now
        elif now - self._served > NO_WORKERS_SECONDS:
            if self._threads == 0 and self._needs.resources:
                raise lacking_resources(self._needs.resources)
            raise EngineUnavailableError(
                f"the Dask cluster has had no worker for {NO_WORKERS_SECONDS:g} s",
                hint="start workers (`chunkmap up` restarts those of the local stack), then run "
                "the job again: completed chunks are kept",
            )
        return 0 if self._threads is None else max(1, self._threads)

    @override
    def submit(self, batch: Batch) -> None:
        if self._slots is None or any(b.name == batch.name for b in self._in_flight.values()):
            self._send(batch)  # A duplicate shares the slot of the first.
        elif batch.name in self._waiting:
            self._waiting[batch.name].append(batch)
        else:
            self._waiting[batch.name] = [batch]
            self._slots.request(batch.name)

    def _send(self, batch: Batch) -> None:
        try:
            with prioritised(self._priority()):
                sent = self._sender.submit(
                    self._needs.resources if number_of(batch.name) is None else None,
                    **self._common,
                    name=batch.name,
                    spec=batch.spec,
                    types=batch.types,
                )
        except connection_errors() as error:
            self._threads = None
            self._unsent.append(Outcome(batch, "lost", detail=f"not submitted: {error}"))
        else:
            self._in_flight[sent] = batch

    @override
    def wait(self, seconds: float) -> list[Outcome]:
        seconds = self._send_granted(seconds)
        outcomes, self._unsent = self._unsent, []
        if self._in_flight:
            futures = [sent.future for sent in self._in_flight]
            wait_any(futures, 0.0 if outcomes else seconds)
        elif not outcomes:
            time.sleep(seconds)
        # Ended futures are dropped, so that Dask frees their results.
        for sent in list(self._in_flight):
            ended = sent.ended()
            if ended is None:
                continue
            if ended.kind in ("cancelled", "lost"):
                self._threads = None  # The scheduler may be unavailable: count again.
            outcomes.append(_outcome(self._in_flight.pop(sent), ended))
        return self._with_copies(outcomes)

    def _send_granted(self, seconds: float) -> float:
        """Send the batches with a granted slot; returns how long to wait for those in flight."""
        if self._slots is None:
            return seconds
        self._slots.max_held = self._threads or 1
        pause = SLOT_SECONDS if self._waiting else 0.0
        for name in self._slots.granted(0.0 if self._in_flight else min(seconds, pause)):
            first, *others = self._waiting.pop(name)
            self._copies[name] = len(others)
            self._send(first)
        return min(seconds, SLOT_SECONDS) if self._waiting else seconds

    def _with_copies(self, outcomes: list[Outcome]) -> list[Outcome]:
        """Repeat each outcome for every time its batch was submitted while it had no slot."""
        if self._slots is None:
            return outcomes
        repeated = []
        for outcome in outcomes:
            name = outcome.batch.name
            if all(batch.name != name for batch in self._in_flight.values()):
                self._slots.release(name)
                repeated += [outcome] * self._copies.pop(name, 0)
            repeated.append(outcome)
        return repeated

    @override
    def drop(self, batch: Batch) -> None:
        for sent in [sent for sent, b in self._in_flight.items() if b.name == batch.name]:
            sent.cancel()
            del self._in_flight[sent]
        self._waiting.pop(batch.name, None)
        self._copies.pop(batch.name, None)
        if self._slots is not None:
            self._slots.release(batch.name)


def _outcome(batch: Batch, ended: Ended) -> Outcome:
    """Convert the end of a task run to an outcome, checking that its result is of this batch."""
    if ended.kind != "finished":
        error = ended.error
        return Outcome(
            batch,
            ended.kind,
            detail=ended.detail,
            is_final=error is not None and error.is_final,
            is_transient=error is not None and error.is_transient,
        )
    try:
        result = _RESULT.validate_python(ended.result)
    except ValueError as error:
        return Outcome(batch, "error", detail=f"a worker's result cannot be used: {error}")
    return Outcome.of_result(batch, result)
