"""The interface of what runs batches (submit, wait, drop), and a serial implementation."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, Self

from typing_extensions import override

from pipeline.config.job import Job
from pipeline.errors import ChunkmapError, is_transient
from pipeline.report.humanize import plural
from pipeline.runs.transforms.user_code import describe, is_from_signal
from pipeline.runs.worker.batch import Batch, BatchResult
from pipeline.runs.worker.run_batch import run_batch

Kind = Literal["finished", "error", "killed", "cancelled", "lost"]
"""How a batch ended: `killed` with its worker, `lost` with the scheduler."""

MAX_COUNT = 1 << 60
"""Largest plausible number of rows or bytes of a batch."""
MAX_SECONDS = 1e9
"""Longest plausible time of a batch (30 years)."""
IDLE_SECONDS = 0.05
"""Seconds that an executor sleeps when it has nothing to do."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one batch ended."""

    batch: Batch
    kind: Kind
    result: BatchResult | None = None
    """Result of a finished batch; None otherwise."""
    detail: str = ""
    """Reason why a batch did not finish."""
    is_final: bool = False
    """Whether any batch would end like this: no such transform, other code, no rights."""
    is_transient: bool = False
    """Whether the error is transient: the next attempt may succeed."""

    @classmethod
    def of_result(cls, batch: Batch, result: object) -> Outcome:
        """Check what a worker returned for a batch, and wrap it."""
        problem = _problem_of(batch, result)
        if problem:
            return cls(batch, "error", detail=f"its worker returned {problem}")
        assert isinstance(result, BatchResult), "anything else is a problem"
        return cls(batch, "finished", result)

    @classmethod
    def of_error(cls, batch: Batch, error: BaseException) -> Outcome:
        """Wrap the error that a batch raised."""
        return cls(
            batch,
            "error",
            detail=describe(error),
            is_final=isinstance(error, ChunkmapError) and not is_transient(error),
            is_transient=is_transient(error),
        )


def _problem_of(batch: Batch, result: object) -> str:
    """Describe what is wrong with a batch's result; empty if nothing is."""
    if type(result) is not BatchResult:
        return f"{type(result).__name__}, not a BatchResult"
    if result.batch != batch.name:
        return "the result of another batch"
    counts = (result.done, result.failed, result.left)
    sizes = (result.rows_in, result.rows_out, result.bytes_in, result.bytes_out)
    for count in (*counts, *sizes, result.decoded_bytes):
        if type(count) is not int or not 0 <= count < MAX_COUNT:
            return f"the count {str(count)[:40]}"
    # A resumed batch counts fewer chunks than it has.
    if sum(counts) > len(batch):
        return f"{plural(sum(counts), 'chunk')} of a batch of {len(batch):,}"
    seconds = result.seconds
    if type(seconds) is not float or not 0.0 <= seconds < MAX_SECONDS:
        return f"the time {str(seconds)[:40]}"
    return ""


@dataclass(frozen=True, slots=True)
class WorkerNeeds:
    """What the batches of a job need of workers."""

    concurrency: int | None = None
    """Maximum number of chunks that a worker maps at a time; None for one per thread."""
    resources: Mapping[str, float] = field(default_factory=dict)
    """Amounts of Dask's resources that each batch needs, by name."""

    @classmethod
    def of(cls, job: Job) -> Self:
        """Return what a job asks for."""
        return cls(job.concurrency, dict(job.resources))


class Executor(Protocol):
    """Runs batches."""

    @property
    def threads(self) -> int:
        """Number of batches that can run at the same time now."""
        ...

    def submit(self, batch: Batch) -> None:
        """Start or queue a batch. It may be submitted again while it runs."""
        ...

    def wait(self, seconds: float) -> list[Outcome]:
        """Return the batches that have ended; wait at most `seconds` for the first."""
        ...

    def drop(self, batch: Batch) -> None:
        """Forget every submission of this batch that has not ended."""
        ...


class SerialExecutor(Executor):
    """Runs each batch at once, in this process; the reference for other executors."""

    @property
    @override
    def threads(self) -> int:
        return 1

    def __init__(self, run_uri: str, fingerprint: str) -> None:
        self._run = run_uri, fingerprint
        self._outcomes: list[Outcome] = []

    @override
    def submit(self, batch: Batch) -> None:
        try:
            result = run_batch(*self._run, batch)
            self._outcomes.append(Outcome.of_result(batch, result))
        except BaseException as error:
            if is_from_signal(error):
                raise
            self._outcomes.append(Outcome.of_error(batch, error))

    @override
    def wait(self, seconds: float) -> list[Outcome]:
        if not self._outcomes:
            time.sleep(min(seconds, IDLE_SECONDS))  # Paused: there is nothing to wait for.
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    @override
    def drop(self, batch: Batch) -> None:
        pass  # Every submission has ended already.
