"""Failures that a driver records itself, for batches whose worker could not."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial

import polars as pl

from partitioning import Plan
from pipeline.masking import mask_text
from pipeline.printable import encodable
from pipeline.report.humanize import byte_size
from pipeline.runs.driver.executor import Outcome
from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.ledger.records import Failure
from pipeline.runs.worker.batch import Batch
from pipeline.runs.worker.failures import where_of
from pipeline.storage.outages import retry_until_available

MESSAGE_CHARACTERS = 10_000
"""Maximum length of a batch's error message; longer ones are cut."""
SEGMENT_FAILURES = 1_000
"""Maximum number of failures in a segment that the driver writes."""


@dataclass(slots=True)
class DriverFailures:
    """Names this driver's batches, tells their failures from others', and records more."""

    ledger: Ledger
    plan: Plan
    _prefixes: list[str] = field(default_factory=lambda: [f"driver-{uuid.uuid4().hex[:8]}-"])
    """Name prefixes of this driver's batches; the first is that of its own records."""

    def new_prefix(self, round_number: int) -> str:
        """Return a name prefix for further batches."""
        # Pieces of a reduced result have other names of batches.
        stage = "" if self.ledger.unit == "chunk" else "then-"
        self._prefixes.append(f"{stage}r{round_number}-{uuid.uuid4().hex[:4]}-")
        return self._prefixes[-1]

    def own(self, failures: pl.DataFrame) -> pl.DataFrame:
        """Select the failures of this driver's batches, by name: workers' clocks may differ."""
        prefixes = failures["batch"].str.replace(r"\d+$", "")
        return failures.filter(prefixes.is_in(self._prefixes))

    def has_failure(self, batch: Batch) -> bool:
        """Whether the worker recorded a failure (e.g. of a chunk that hung) before it ended."""
        return retry_until_available(partial(self.ledger.of_batch, batch.name)).failures.height > 0

    def record_killed(self, outcome: Outcome, target: int) -> None:
        """Record that a chunk, mapped with no other in flight, killed its worker.

        Args:
            outcome: Of the batch with the chunk.
            target: The job's `chunks.target`, in bytes.
        """
        [chunk] = self.plan.chunks(outcome.batch.indices)
        smaller = f"a chunks.target below {byte_size(target)}"
        if self.ledger.unit == "piece":
            smaller = "a smaller then.max_groups"
        message = (
            f"the worker died while this {self.ledger.unit}, of {byte_size(chunk.decoded_bytes)} "
            f"decoded, was the only one in flight: {outcome.detail}. If it ran out of memory, plan "
            f"again (--replan) with {smaller}"
        )
        self.record(outcome.batch.indices, "WorkerKilledError", message, transient=False)

    def record(self, indices: Iterable[int], error: str, message: str, *, transient: bool) -> None:
        """Record a failure of each of these chunks."""
        failures = [
            Failure(
                chunk=chunk.id,
                index=chunk.index,
                batch=self._prefixes[0],
                attempt=uuid.uuid4().hex,
                worker="driver",
                at=time.time(),
                error=error,
                message=encodable(mask_text(message))[:MESSAGE_CHARACTERS],
                transient=transient,
                trace="",
                where=where_of(chunk),
            )
            for chunk in self.plan.chunks(indices)
        ]
        # In several segments: readers limit the size of one.
        for start in range(0, len(failures), SEGMENT_FAILURES):
            segment = f"driver-{uuid.uuid4().hex}"
            part = failures[start : start + SEGMENT_FAILURES]
            retry_until_available(partial(self.ledger.write_segment, segment, part))
