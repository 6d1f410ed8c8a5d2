"""The reduce of a run as its driver sees it: which partials there are, and what came of them."""

from __future__ import annotations

import polars as pl

from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.ledger.records import Progress
from pipeline.runs.worker.reduce import tree
from pipeline.storage import Storage


def partials_of(ledger: Ledger, progress: Progress) -> list[str]:
    """The names of the partials that hold a run's chunks, each chunk in just one of them."""
    return sorted({uri.removeprefix(ledger.prefix) for uri in progress.completions["uri"]})


def reduced_of(ledger: Ledger, progress: Progress) -> pl.DataFrame:
    """The completion of the reduce of just these partials (schema COMPLETIONS), or no row."""
    partials = partials_of(ledger, progress)
    last = tree(partials)[-1][0].name if partials else ""
    found = progress.reduced.filter(pl.col("chunk") == last)
    return found.sort("attempt").head(1)


def without_partial(storage: Storage, ledger: Ledger, progress: Progress) -> list[str]:
    """The attempts whose partial is not stored: their chunks have to be mapped again."""
    there = [info.uri for info in storage.objects(ledger.prefix + "partials/")]
    lost = progress.completions.filter(~pl.col("uri").is_in(there))
    return lost["attempt"].to_list()


def drop_partials(storage: Storage, ledger: Ledger) -> None:
    """Delete what only the reduce needed, once its result is published."""
    for folder in ("partials/", "reduced/"):
        for info in storage.objects(ledger.prefix + folder):
            storage.delete(info.uri)
