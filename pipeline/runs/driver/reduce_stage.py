"""Find the partial results of a run and the result of their reduce."""

from __future__ import annotations

from functools import partial

import polars as pl

from pipeline.concurrency import map_concurrently
from pipeline.runs.driver.schemas import drop_retyped
from pipeline.runs.ledger.check_files import FOLDER as CHECK_FOLDER
from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.ledger.records import Progress
from pipeline.runs.worker.reduce import tree
from pipeline.storage import Storage
from pipeline.storage.outages import retry_until_available


def partials_of(ledger: Ledger, progress: Progress) -> list[str]:
    """List the names of the partials that hold a run's chunks; each chunk is in exactly one."""
    return sorted({uri.removeprefix(ledger.prefix) for uri in progress.completions["uri"]})


def pin_partials(ledger: Ledger, progress: Progress) -> Progress:
    """Pin the partials that the reduce combines; return the progress in which they count.

    Otherwise a copy of a batch that is stored later could change which partials count, and the
    reduced result would be one of others.
    """
    while not retry_until_available(partial(ledger.store_reduce_plan, progress.completions)):
        progress = drop_retyped(ledger, retry_until_available(ledger.read))
    return progress


def last_step(ledger: Ledger, progress: Progress) -> str:
    """Return the name of the last step of the reduce of a run's partials; empty if it has none."""
    partials = partials_of(ledger, progress)
    return tree(partials)[-1][0].name if partials else ""


def reduced_of(ledger: Ledger, progress: Progress) -> pl.DataFrame:
    """Return the completion of the reduce of these partials (schema COMPLETIONS), or no row."""
    last = last_step(ledger, progress)
    return progress.reduced.filter(pl.col("chunk") == last).sort("attempt").head(1)


def without_partial(storage: Storage, ledger: Ledger, progress: Progress) -> list[str]:
    """List the attempts whose partial is not stored: their chunks must be mapped again."""
    stored = [info.uri for info in storage.objects(ledger.prefix + "partials/")]
    lost = progress.completions.filter(~pl.col("uri").is_in(stored))
    return lost["attempt"].to_list()


def drop_partials(storage: Storage, ledger: Ledger) -> None:
    """Delete what only the reduce and the checks of a published result needed."""
    for folder in ("partials/", "reduced/", CHECK_FOLDER):
        uris = [info.uri for info in storage.objects(ledger.prefix + folder)]
        map_concurrently(storage.delete, uris)
