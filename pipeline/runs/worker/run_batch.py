"""Run a batch: map its chunks, or merge its files."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.runs.ledger.merge_plan import number_of
from pipeline.runs.worker.batch import Batch, BatchResult, map_batch
from pipeline.runs.worker.merge import merge_batch


def run_batch(
    run_uri: str,
    fingerprint: str,
    batch: Batch,
    worker: str = "serial",
    is_leaving: Callable[[], bool] = lambda: False,
    *,
    sent: str = "",
    memory_limit: int = 0,
) -> BatchResult:
    """Map or merge what a batch names; arguments as of `map_batch`."""
    if number_of(batch.name) is not None:
        return merge_batch(run_uri, fingerprint, batch, worker, is_leaving, sent=sent)
    return map_batch(
        run_uri, fingerprint, batch, worker, is_leaving, sent=sent, memory_limit=memory_limit
    )
