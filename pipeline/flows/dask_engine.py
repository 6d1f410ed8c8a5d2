"""Batches as Prefect task runs on Dask."""

from __future__ import annotations

import time
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from pipeline import engine
from pipeline.batches import Batch
from pipeline.engines import Outcome
from pipeline.errors import EngineUnavailableError
from pipeline.mapping import BatchResult, map_batch
from pipeline.reducing import Step, reduce_step

COUNT_SECONDS = 5.0
"""How often the cluster's threads are counted."""
NO_WORKERS_SECONDS = 120.0
"""How long a run waits for the first worker, or for another one when all are gone."""


# Results are small and live in the ledger: nothing of them is persisted or cached by Prefect, whose
# hashing and storage probes cost more than a batch of small chunks.
@task(name="map-batch", task_run_name="{name}", persist_result=False, cache_policy=NO_CACHE)
def map_batch_task(run_uri: str, fingerprint: str, name: str, spec: str) -> BatchResult:
    """Map one batch of chunks, on a Dask worker."""
    return map_batch(run_uri, fingerprint, Batch(name, spec), engine.worker_name())


@task(name="reduce", task_run_name="{name}", persist_result=False, cache_policy=NO_CACHE, retries=2)
def reduce_task(run_uri: str, fingerprint: str, name: str, step: Step) -> None:
    """Do one step of the reduce, on a Dask worker."""
    reduce_step(run_uri, fingerprint, step, engine.worker_name())


class DaskEngine:
    """The flow's DaskTaskRunner as an engine (see `pipeline.rounds.Engine`)."""

    def __init__(
        self, runner: Any, run_uri: str, fingerprint: str, task_of_batch: Any = map_batch_task
    ) -> None:
        self._runner = runner
        self._task = task_of_batch
        self._run = run_uri, fingerprint
        self._flying: dict[Any, Batch] = {}
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
            self._threads = engine.thread_count(self._runner)
            self._counted = now
        if self._threads:
            self._served = now
        elif now - self._served > NO_WORKERS_SECONDS:
            raise EngineUnavailableError(
                f"the Dask cluster has had no worker for {NO_WORKERS_SECONDS:g} s",
                hint="start workers, then run the job again: what is done is kept",
            )
        return 0 if self._threads is None else max(1, self._threads)

    def submit(self, batch: Batch) -> None:
        """See `Engine.submit`. A scheduler that is gone loses the batch, not the run."""
        try:
            future = self._task.submit(*self._run, batch.name, batch.spec)
        except engine.connection_errors() as error:
            self._threads = None
            self._unsent.append(Outcome(batch, "lost", detail=f"not submitted: {error}"))
        else:
            self._flying[future] = batch

    def wait(self, seconds: float) -> list[Outcome]:
        """See `Engine.wait`. Futures are dropped as they come in: Dask frees their results."""
        outcomes, self._unsent = self._unsent, []
        if self._flying:
            engine.wait_any(list(self._flying), 0.0 if outcomes else seconds)
        elif not outcomes:
            time.sleep(seconds)
        for future in list(self._flying):
            kind, detail = engine.fate(future)
            if kind in ("cancelled", "lost"):
                self._threads = None  # Is the scheduler still there?
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
