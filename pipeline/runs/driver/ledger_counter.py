"""Count what a ledger holds while batches are in flight, and compact it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from pipeline.runs.driver.in_flight import InFlightBatches
from pipeline.runs.driver.summary import failure_lines
from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.ledger.records import Progress
from pipeline.storage.outages import best_effort

COUNT_SECONDS = 2.0
"""Minimum seconds between two counts of what is stored, while batches are in flight."""
COUNT_PAUSE_FACTOR = 1
"""Minimum pause after a count, as a multiple of the count's duration; 1 leaves half of the driver's
time for batches. Simulated, a million chunks on 1,000 workers take 55 minutes without a pause, 58
with this one, and 74 with 4 (more accumulates between counts)."""
COMPACT_SECONDS = 60.0
"""Seconds between two compactions of the ledger's segments."""
COMPACT_SEGMENTS = 200
"""Minimum number of segments worth compacting: fewer are read within a second."""


@dataclass(slots=True)
class LedgerCounter:
    """Counts what is stored, at intervals that leave time for batches."""

    ledger: Ledger
    on_count: Callable[[Progress], None]
    """Callback with what is stored, after each count."""
    totals: dict[str, int] = field(default_factory=dict)
    """Chunks done and failed, rows and bytes, as last counted."""
    errors: tuple[str, ...] = ()
    """Kinds of failures, as last counted."""
    _counted_at: float = 0.0
    _seconds: float = 0.0
    """Duration of the last count."""
    _compacted_at: float = field(default_factory=time.monotonic)

    def count(self, progress: Progress) -> None:
        """Count what has been read."""
        self._counted_at = time.monotonic()
        self.on_count(progress)
        done = progress.completions
        self.totals = {
            name: int(done[name].sum()) for name in ("rows_in", "rows_out", "bytes_in", "bytes_out")
        }
        failed = progress.failed()
        self.errors = failure_lines(failed, self.ledger.unit) if failed.height else ()
        self.totals |= {"done": done.height, "failed": failed.height}

    def count_soon(self) -> None:
        """Let the next `count_if_due` count."""
        self._counted_at = 0.0

    def count_if_due(self, in_flight: InFlightBatches) -> None:
        """Count what is stored: batches store their chunks long before they end.

        What others store meanwhile (another driver, a worker counted as lost) is counted at the
        end of the round.
        """
        # With 1,000 workers a count takes most of a minute; leave time for batches.
        pause = max(COUNT_SECONDS, COUNT_PAUSE_FACTOR * self._seconds)
        clock = time.monotonic()
        if clock - self._counted_at >= pause:
            with best_effort():
                self.count(self.ledger.read(in_flight.first_name))
                in_flight.mark_read()
                self._seconds = time.monotonic() - clock

    def compact_if_due(self) -> None:
        """Compact the ledger's segments, if there are many."""
        if time.monotonic() - self._compacted_at < COMPACT_SECONDS:
            return
        self._compacted_at = time.monotonic()
        if self.ledger.uncompacted > COMPACT_SEGMENTS:
            with best_effort():
                self.ledger.compact()
