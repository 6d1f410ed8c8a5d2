"""Cleaning up after runs that were given up: abandoned uploads, files that no manifest names."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.catalog import Catalog
from pipeline.ledger import Ledger
from pipeline.publish import settle
from pipeline.records import RunRecord
from pipeline.runs.ledger.find import find_runs
from pipeline.storage import Staged, Storage
from pipeline.versions import prune


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What was cleaned up, or would be."""

    output: str
    uploads: int
    """Staged outputs that were aborted."""
    replaced: int
    """Files of versions that are no longer kept."""
    strays: tuple[str, ...]
    """Visible files of known runs that no manifest names: removed."""
    spared: tuple[str, ...]
    """Unfinished runs whose staged work was left alone."""
    dry_run: bool


def clean(
    storage: Storage,
    output: str,
    *,
    older_than: float = 7 * 86400.0,
    dry_run: bool = False,
    discard: Iterable[str] = (),
) -> Cleaned:
    """Abort abandoned uploads and remove what no manifest names.

    Args:
        storage: Where.
        output: URI of the output prefix.
        older_than: Seconds; younger uploads are left alone.
        dry_run: Only say what would be done.
        discard: Ids of unfinished runs whose staged work is given up too.
    """
    catalog = Catalog(storage, output)
    manifest = settle(catalog)
    found = find_runs(storage, catalog.output)
    records, given_up = found.records, set(discard)
    unfinished = [
        one for one in records if Ledger(storage, one.output, one.run).published() is None
    ]
    # Of a damaged one it cannot be told whether it is finished: its staged work is left alone.
    runs = [one.run for one in unfinished] + list(found.damaged)
    spared = [run for run in runs if run not in given_up]
    uploads = _abandoned(catalog, spared, given_up, older_than)
    strays = _strays(catalog, records, spared)
    keep = manifest.commits[-1].keep_versions if manifest.commits else 1
    replaced = prune(catalog, manifest.number - keep, dry_run=dry_run)
    count = len(uploads)
    if not dry_run:
        while uploads:
            storage.abort(uploads)
            # Servers list so many uploads and no more: look again until there are none.
            uploads = _abandoned(catalog, spared, given_up, older_than)
            count += len(uploads)
        for uri in strays:
            storage.delete(uri)
    return Cleaned(
        output=catalog.output,
        uploads=count,
        replaced=replaced,
        strays=tuple(strays),
        spared=tuple(spared),
        dry_run=dry_run,
    )


def discard_run(storage: Storage, ledger: Ledger) -> int:
    """Abort everything that a run has staged; returns the number of uploads."""
    progress = ledger.read()
    catalog = Catalog(storage, ledger.output)
    uploads = _abandoned(catalog, [], {ledger.run}, 0.0)
    uploads = [one for one in uploads if _run_of(one.uri) == ledger.run]
    storage.abort(uploads)
    ledger.void(progress.completions["attempt"].to_list())
    return len(uploads)


def _abandoned(
    catalog: Catalog, spared: list[str], given_up: set[str], older_than: float
) -> list[Staged]:
    staged = catalog.storage.staged_under(catalog.output, catalog.state + "staged/")
    latest = time.time() - older_than
    return [
        one
        for one in staged
        if (run := _run_of(one.uri)) not in spared and (run in given_up or one.created < latest)
    ]


def _run_of(uri: str) -> str:
    """The id of the run that a final key belongs to (see `pipeline.process.output_uri`)."""
    return uri.rpartition("-")[2].removesuffix(".parquet")


def _strays(catalog: Catalog, records: list[RunRecord], spared: list[str]) -> list[str]:
    """Visible files of our own naming that the current manifest does not list."""
    named = set(catalog.keys(catalog.manifest().commits))
    ours = {record.run for record in records} - set(spared)
    return [
        info.uri
        for info in catalog.storage.objects(catalog.output)
        if info.uri.removeprefix(catalog.output) not in named and _run_of(info.uri) in ours
    ]
