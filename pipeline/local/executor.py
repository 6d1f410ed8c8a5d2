"""Batches as calls in worker processes of this machine."""

from __future__ import annotations

import time
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

from typing_extensions import override

from pipeline.config.settings import Settings
from pipeline.errors import is_transient
from pipeline.local.process import map_here, reduce_here
from pipeline.local.workers import LocalWorkers, WorkerDiedError
from pipeline.runs.driver.executor import IDLE_SECONDS, Executor, Outcome, WorkerNeeds
from pipeline.runs.ledger.merge_plan import number_of
from pipeline.runs.worker.batch import Batch
from pipeline.runs.worker.reduce import Step
from pipeline.runs.worker.run_settings import sent_functions, sent_settings

STEP_RETRIES = 2
"""Retries of a step of a reduce after a transient error, or after its worker died."""


class LocalExecutor(Executor):
    """Runs batches in worker processes of this machine."""

    def __init__(
        self,
        workers: LocalWorkers,
        run_uri: str,
        fingerprint: str,
        settings: Settings,
        needs: WorkerNeeds | None = None,
    ) -> None:
        """Make an executor for one run; several may share the workers.

        Args:
            workers: The worker processes.
            run_uri: `<output>.chunkmap/runs/<run>/`.
            fingerprint: The fingerprint of the driver's code.
            settings: Settings of the run.
            needs: What its batches need; of the resources this machine has what it has.
        """
        self._workers = workers
        self._run = run_uri, fingerprint
        self._sent, self._functions = sent_settings(settings), sent_functions(settings)
        concurrency = None if needs is None else needs.concurrency
        self._threads = min(workers.count, concurrency or workers.count)
        self._in_flight: dict[Future[Any], Batch] = {}

    @property
    @override
    def threads(self) -> int:
        return self._threads

    @override
    def submit(self, batch: Batch) -> None:
        arguments = (*self._run, batch, self._sent, self._workers.memory)
        # Merging is not what the job limits.
        among = self._threads if number_of(batch.name) is None else None
        future = self._workers.submit(map_here, *arguments, functions=self._functions, among=among)
        self._in_flight[future] = batch

    @override
    def wait(self, seconds: float) -> list[Outcome]:
        if not self._in_flight:
            time.sleep(min(seconds, IDLE_SECONDS))
            return []
        ended, _ = wait(self._in_flight, seconds, FIRST_COMPLETED)
        return [_outcome(self._in_flight.pop(future), future) for future in ended]

    @override
    def drop(self, batch: Batch) -> None:
        for future in [f for f, other in self._in_flight.items() if other.name == batch.name]:
            future.cancel()  # One that runs goes on; its result is not needed.
            del self._in_flight[future]


def _outcome(batch: Batch, future: Future[Any]) -> Outcome:
    if future.cancelled():
        return Outcome(batch, "cancelled", detail="it was cancelled")
    error = future.exception()
    if error is None:
        return Outcome.of_result(batch, future.result())
    if isinstance(error, WorkerDiedError):
        return Outcome(batch, "killed", detail=str(error))
    return Outcome.of_error(batch, error)


def run_reduce_steps(
    workers: LocalWorkers, run_uri: str, fingerprint: str, steps: list[Step], settings: Settings
) -> None:
    """Do the steps of one level of a reduce in parallel.

    Raises:
        ChunkmapError: A step failed. Results of completed steps are kept.
    """
    sent, functions = sent_settings(settings), sent_functions(settings)

    def submit(step: Step) -> Future[Any]:
        return workers.submit(reduce_here, run_uri, fingerprint, step, sent, functions=functions)

    left = [(submit(step), step, STEP_RETRIES) for step in steps]
    try:
        while left:
            future, step, retries = left[0]
            error = future.exception()
            if error is not None and not (retries and _may_pass(error)):
                raise error
            left[:1] = [] if error is None else [(submit(step), step, retries - 1)]
    finally:
        for future, _, _ in left:
            future.cancel()


def _may_pass(error: BaseException) -> bool:
    return is_transient(error) or isinstance(error, WorkerDiedError)
