"""Run a batch: map its chunks, or merge its files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline import traces
from pipeline.runs.ledger.merge_plan import number_of
from pipeline.runs.worker.batch import Batch, BatchResult, map_batch
from pipeline.runs.worker.merge import merge_batch
from pipeline.runs.worker.run_settings import sent_parent


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
    facts = {"chunkmap.batch": batch.name, "chunkmap.worker": worker}
    with traces.continued(sent_parent(sent)), traces.span("batch", facts):
        if number_of(batch.name) is not None:
            result = merge_batch(run_uri, fingerprint, batch, worker, is_leaving, sent=sent)
        else:
            options: dict[str, Any] = {"sent": sent, "memory_limit": memory_limit}
            result = map_batch(run_uri, fingerprint, batch, worker, is_leaving, **options)
        traces.set_attributes({"chunkmap.done": result.done, "chunkmap.failed": result.failed})
        return result
