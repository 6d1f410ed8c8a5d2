"""What runs batches, as the driver sees it: submit, wait, drop."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal, Protocol

from pipeline.errors import ChunkmapError, is_transient
from pipeline.runs.transforms.user_code import describe, is_from_signal
from pipeline.runs.worker.batch import Batch, BatchResult, map_batch

Kind = Literal["finished", "error", "killed", "cancelled", "lost"]
"""What became of a batch: `killed` took its worker with it, `lost` vanished with the scheduler."""

MOST_COUNT = 1 << 60
"""Rows or bytes of a batch, far beyond any."""
MOST_SECONDS = 1e9
"""Of a batch: 30 years."""
IDLE_SECONDS = 0.05
"""How long an executor that has nothing to do lets others work."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one batch."""

    batch: Batch
    kind: Kind
    result: BatchResult | None = None
    """Only of a finished one."""
    detail: str = ""
    """What is known otherwise."""
    is_final: bool = False
    """Any batch would end like this there: no such transform, other code, no rights."""
    is_transient: bool = False
    """Storage was away: the same batch may end well the next time."""

    @classmethod
    def of_result(cls, batch: Batch, result: object) -> Outcome:
        """Of a batch that came back. What a worker says of it is checked before it is used."""
        problem = _problem_of(batch, result)
        if problem:
            return cls(batch, "error", detail=f"its worker returned {problem}")
        assert isinstance(result, BatchResult), "anything else is a problem"
        return cls(batch, "finished", result)

    @classmethod
    def of_error(cls, batch: Batch, error: BaseException) -> Outcome:
        """Of a batch that raised."""
        return cls(
            batch,
            "error",
            detail=describe(error),
            is_final=isinstance(error, ChunkmapError) and not is_transient(error),
            is_transient=is_transient(error),
        )


def _problem_of(batch: Batch, result: object) -> str:
    """What is wrong with what a batch returned, in words; empty if nothing is."""
    if type(result) is not BatchResult:
        return f"{type(result).__name__}, not a BatchResult"
    if result.batch != batch.name:
        return "the result of another batch"
    counts = (result.done, result.failed, result.left)
    sizes = (result.rows_in, result.rows_out, result.bytes_in, result.bytes_out)
    for count in (*counts, *sizes, result.decoded_bytes):
        if type(count) is not int or not 0 <= count < MOST_COUNT:
            return f"the count {str(count)[:40]}"
    # A batch that was taken up again has less to do than its chunks.
    if sum(counts) > len(batch):
        return f"{sum(counts):,} chunks of a batch of {len(batch):,}"
    seconds = result.seconds
    if type(seconds) is not float or not 0.0 <= seconds < MOST_SECONDS:
        return f"the time {str(seconds)[:40]}"
    return ""


class Executor(Protocol):
    """What runs batches."""

    @property
    def threads(self) -> int:
        """Batches that can run at the same time at this moment."""
        ...

    def submit(self, batch: Batch) -> None:
        """Start a batch, or queue it. A batch may be submitted again while it runs."""
        ...

    def wait(self, seconds: float) -> list[Outcome]:
        """Outcomes that have come in; waits at most so long for the first."""
        ...

    def drop(self, batch: Batch) -> None:
        """Forget every submission of this batch that has not come in."""
        ...


class SerialExecutor:
    """Runs each batch at once, in this process: the oracle of the others."""

    threads = 1

    def __init__(self, run_uri: str, fingerprint: str) -> None:
        self._run = run_uri, fingerprint
        self._outcomes: list[Outcome] = []

    def submit(self, batch: Batch) -> None:
        """See `Executor.submit`."""
        try:
            result = map_batch(*self._run, batch)
            self._outcomes.append(Outcome.of_result(batch, result))
        except BaseException as error:
            if is_from_signal(error):
                raise
            self._outcomes.append(Outcome.of_error(batch, error))

    def wait(self, seconds: float) -> list[Outcome]:
        """See `Executor.wait`."""
        if not self._outcomes:
            time.sleep(min(seconds, IDLE_SECONDS))  # Held: there is nothing to wait for.
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def drop(self, batch: Batch) -> None:
        """See `Executor.drop`: everything has come in already."""
