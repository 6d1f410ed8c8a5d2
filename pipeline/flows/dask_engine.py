"""Batches as Prefect task runs on Dask."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency
from prefect.exceptions import PrefectException

from pipeline import engine
from pipeline.batches import Batch
from pipeline.engine.profiling import stop_profiler
from pipeline.engines import Outcome
from pipeline.errors import EngineUnavailableError
from pipeline.flows.sending import Sender
from pipeline.flows.server import patient
from pipeline.mapping import BatchResult, map_batch
from pipeline.reducing import Step, reduce_step

COUNT_SECONDS = 5.0
"""How often the cluster's threads are counted."""
NO_WORKERS_SECONDS = 120.0
"""How long a run waits for the first worker, or for another one when all are gone."""

SLOT_RETRIES = 4
"""How often Prefect is asked again for a slot of a limit."""

_SILENCE = (PrefectException, ConcurrencySlotAcquisitionError, httpx.HTTPError)
log = logging.getLogger(__name__)


# Results are small and live in the ledger: nothing of them is persisted or cached by Prefect, whose
# hashing and storage probes cost more than a batch of small chunks. Whoever makes it persist them
# all the same gets JSON: whoever can write to a store of pickles can run code where they are read.
HOT: dict[str, Any] = {
    "persist_result": False,
    "cache_policy": NO_CACHE,
    "result_serializer": "json",
}


@task(name="map-batch", task_run_name="{name}", **HOT)
def map_batch_task(
    run_uri: str, fingerprint: str, name: str, spec: str, limit: str = ""
) -> BatchResult:
    """Map one batch of chunks, on a Dask worker, holding a slot of a limit of Prefect's if any."""
    stop_profiler()
    batch = Batch(name, spec)
    with slot_of(limit):
        return map_batch(run_uri, fingerprint, batch, engine.worker_name(), engine.is_leaving)


@task(name="reduce", task_run_name="{name}", retries=2, **HOT)
def reduce_task(run_uri: str, fingerprint: str, name: str, step: Step) -> None:
    """Do one step of the reduce, on a Dask worker."""
    stop_profiler()
    reduce_step(run_uri, fingerprint, step, engine.worker_name())


@contextmanager
def slot_of(limit: str) -> Iterator[None]:
    """Hold one slot of a global concurrency limit; where Prefect does not answer, go on without."""
    with ExitStack() as stack:
        if limit:
            try:
                # With SQLite below, Prefect is busy for moments when several ask at once.
                with patient(SLOT_RETRIES):
                    stack.enter_context(concurrency(limit, occupy=1, strict=False))
            except (*_SILENCE, OSError, RuntimeError) as error:
                log.warning("goes on without a slot of the limit %s: %s", limit, error)
        yield


class DaskEngine:
    """The flow's DaskTaskRunner as an engine (see `pipeline.rounds.Engine`)."""

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
        self._priority = priority
        self._runner = runner
        self._sender = Sender(runner, task_of_batch)
        self._common = {"run_uri": run_uri, "fingerprint": fingerprint}
        if limit:
            self._common["limit"] = limit
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
            with engine.prioritised(self._priority()):
                future = self._sender.submit(**self._common, name=batch.name, spec=batch.spec)
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
        return Outcome.of_result(batch, future.result())
    except Exception as error:
        return Outcome.of_error(batch, error)
