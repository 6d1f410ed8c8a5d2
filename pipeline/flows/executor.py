"""Batches as Prefect task runs on Dask."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import TypeAdapter

from pipeline.cluster.dask_profiler import stop_profiler
from pipeline.cluster.futures import (
    connection_errors,
    is_leaving,
    prioritised,
    wait_any,
    worker_name,
)
from pipeline.cluster.task_runner import thread_count
from pipeline.errors import EngineUnavailableError, RunFailedError
from pipeline.flows.concurrency_slots import Slots
from pipeline.flows.task_report import error_of
from pipeline.flows.task_sender import Ended, SentTaskRun, TaskSender
from pipeline.runs.driver.executor import Outcome
from pipeline.runs.worker.batch import Batch, BatchResult, map_batch
from pipeline.runs.worker.reduce import Step, reduce_step

PARAMETERS = ("run_uri", "fingerprint", "name", "spec", "types")
"""Of a task that maps a batch."""
COUNT_SECONDS = 5.0
"""How often the cluster's threads are counted."""
NO_WORKERS_SECONDS = 120.0
"""How long a run waits for the first worker, or for another one when all are gone."""

SLOT_SECONDS = 0.05
"""How often batches that wait for a slot are looked at."""
LARGEST = 2**63
"""Beyond every figure of a batch."""

_RESULT = TypeAdapter(BatchResult)


# Results are small and live in the ledger: nothing of them is persisted or cached by Prefect, whose
# hashing and storage probes cost more than a batch of small chunks. Whoever makes it persist them
# all the same gets JSON: whoever can write to a store of pickles can run code where they are read.
TASK_OPTIONS: dict[str, Any] = {
    "persist_result": False,
    "cache_policy": NO_CACHE,
    "result_serializer": "json",
}


@task(name="map-batch", task_run_name="{name}", **TASK_OPTIONS)
def map_batch_task(run_uri: str, fingerprint: str, name: str, spec: str, types: str) -> BatchResult:
    """Map one batch of chunks, on a Dask worker."""
    stop_profiler()
    batch = Batch(name, spec, types)
    return map_batch(run_uri, fingerprint, batch, worker_name(), is_leaving)


@task(name="reduce", task_run_name="{name}", retries=2, **TASK_OPTIONS)
def reduce_task(run_uri: str, fingerprint: str, name: str, step: Step) -> None:
    """Do one step of the reduce, on a Dask worker."""
    stop_profiler()
    reduce_step(run_uri, fingerprint, step, worker_name())


def run_reduce_steps(runner: Any, run_uri: str, fingerprint: str, steps: Sequence[Step]) -> None:
    """Do the steps of one level of a reduce, side by side, in the flow run that this is called in.

    Raises:
        ChunkmapError: what a step raised, or that it was lost. Those that are done are kept.
    """
    sender = TaskSender(runner, reduce_task, ("run_uri", "fingerprint", "name", "step"))
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
            hint="give the same command again: chunks and steps that are done are kept",
        )


class DaskExecutor:
    """The flow's DaskTaskRunner as an engine (see `pipeline.runs.driver.map_stage.Engine`)."""

    def __init__(
        self,
        runner: Any,
        run_uri: str,
        fingerprint: str,
        task_of_batch: Any = map_batch_task,
        *,
        priority: Callable[[], int] = lambda: 0,
        limit: str | None = None,
    ) -> None:
        """Make an engine, in the flow run that its batches are of.

        Args:
            runner: The flow's task runner.
            run_uri: `<output>.chunkmap/runs/<run>/`.
            fingerprint: Of the driver's code.
            task_of_batch: The Prefect task that maps a batch.
            priority: Of the batches at this moment; Dask hands out higher ones first.
            limit: A global concurrency limit of Prefect's, of which each batch holds a slot.
        """
        self._priority = priority
        self._runner = runner
        self._sender = TaskSender(runner, task_of_batch, PARAMETERS)
        self._common = {"run_uri": run_uri, "fingerprint": fingerprint}
        self._flying: dict[SentTaskRun, Batch] = {}
        self._waiting: dict[str, list[Batch]] = {}
        """Batches without a slot, by name: as often as they were submitted."""
        limits = [*([limit] if limit else []), *(f"tag:{tag}" for tag in self._sender.tags)]
        self._slots = Slots(limits) if limits else None
        self._copies: dict[str, int] = {}
        """Outcomes that are owed of a batch, where more than one."""
        self._unsent: list[Outcome] = []
        self._threads: int | None = None
        self._counted = self._served = time.monotonic()

    @property
    def threads(self) -> int:
        """See `Engine.threads`. Workers come and go: counted anew every few seconds.

        None while the scheduler is gone, lest one round after the other is lost to it. With a
        scheduler but no workers it is one: a cluster that scales itself has to see work.
        """
        now = time.monotonic()
        if not self._threads or now - self._counted > COUNT_SECONDS:
            self._threads = thread_count(self._runner)
            self._counted = now
        if self._threads:
            self._served = now
        elif now - self._served > NO_WORKERS_SECONDS:
            raise EngineUnavailableError(
                f"the Dask cluster has had no worker for {NO_WORKERS_SECONDS:g} s",
                hint="start workers (`chunkmap up` starts the local stack's again), then run the "
                "job again: what is done is kept",
            )
        return 0 if self._threads is None else max(1, self._threads)

    def submit(self, batch: Batch) -> None:
        """See `Engine.submit`. A scheduler that is gone loses the batch, not the run."""
        if self._slots is None or any(one.name == batch.name for one in self._flying.values()):
            self._send(batch)  # A second copy shares the slot of the first.
        elif batch.name in self._waiting:
            self._waiting[batch.name].append(batch)
        else:
            self._waiting[batch.name] = [batch]
            self._slots.want(batch.name)

    def _send(self, batch: Batch) -> None:
        try:
            with prioritised(self._priority()):
                sent = self._sender.submit(
                    **self._common, name=batch.name, spec=batch.spec, types=batch.types
                )
        except connection_errors() as error:
            self._threads = None
            self._unsent.append(Outcome(batch, "lost", detail=f"not submitted: {error}"))
        else:
            self._flying[sent] = batch

    def wait(self, seconds: float) -> list[Outcome]:
        """See `Engine.wait`. Futures are dropped as they come in: Dask frees their results."""
        seconds = self._send_those_with_slots(seconds)
        outcomes, self._unsent = self._unsent, []
        if self._flying:
            futures = [sent.future for sent in self._flying]
            wait_any(futures, 0.0 if outcomes else seconds)
        elif not outcomes:
            time.sleep(seconds)
        for sent in list(self._flying):
            ended = sent.ended()
            if ended is None:
                continue
            if ended.kind in ("cancelled", "lost"):
                self._threads = None  # Is the scheduler still there?
            outcomes.append(_outcome(self._flying.pop(sent), ended))
        return self._with_copies(outcomes)

    def _send_those_with_slots(self, seconds: float) -> float:
        """Send the batches that have got a slot; returns how long to wait for what is under way."""
        if self._slots is None:
            return seconds
        self._slots.most = self._threads or 1
        pause = SLOT_SECONDS if self._waiting else 0.0
        for name in self._slots.granted(0.0 if self._flying else min(seconds, pause)):
            first, *others = self._waiting.pop(name)
            self._copies[name] = len(others)
            self._send(first)
        return min(seconds, SLOT_SECONDS) if self._waiting else seconds

    def _with_copies(self, outcomes: list[Outcome]) -> list[Outcome]:
        """Outcomes, each as often as its batch was submitted while it had no slot."""
        if self._slots is None:
            return outcomes
        found = []
        for outcome in outcomes:
            name = outcome.batch.name
            if all(batch.name != name for batch in self._flying.values()):
                self._slots.release(name)
                found += [outcome] * self._copies.pop(name, 0)
            found.append(outcome)
        return found

    def drop(self, batch: Batch) -> None:
        """See `Engine.drop`."""
        for sent in [one for one, b in self._flying.items() if b.name == batch.name]:
            sent.cancel()
            del self._flying[sent]
        self._waiting.pop(batch.name, None)
        self._copies.pop(batch.name, None)
        if self._slots is not None:
            self._slots.release(batch.name)


def _outcome(batch: Batch, ended: Ended) -> Outcome:
    """What became of a batch. A worker's figures must at least be figures of this batch."""
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
