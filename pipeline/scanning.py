"""Reading an output: the files of a manifest, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING

from pipeline.catalog import Catalog
from pipeline.errors import UsageError
from pipeline.folding import window_label
from pipeline.manifest import Manifest
from pipeline.settings import load_settings
from pipeline.storage import own_storage, scan_options
from pipeline.table.retention import locate

if TYPE_CHECKING:
    import polars as pl


def scan_output(uri: str, version: int | None = None, window: str | None = None) -> pl.LazyFrame:
    """The rows of an output, as one manifest has them.

    A plain glob over the prefix may, for the seconds in which an overwrite is published, see both
    the old files and the new; a manifest never does.

    Args:
        uri: The output prefix.
        version: Number of an older manifest (`chunkmap history` lists them); default the current.
        window: Label of a window, such as `2024-02-29`: only its files; default all.

    Returns:
        A LazyFrame; Hive partitions in the keys become columns.

    Raises:
        UsageError: nothing was published there, or it has no such window.
        FilesMissingError: that version is no longer kept, or its files were deleted.
    """
    import polars as pl

    catalog = Catalog(own_storage(), uri)
    manifest = catalog.manifest(version)
    places = locate(catalog, manifest)
    if window is not None:
        places = _of_window(uri, manifest, places, window)
    if not places:
        which = "" if window is None else f" of window {window}"
        raise UsageError(f"{uri} has no published files{which} (manifest {manifest.number})")
    files = [place.removeprefix("file://") for place in places.values()]
    return pl.scan_parquet(
        files,
        glob=False,
        hive_partitioning=any("=" in key.rpartition("/")[0] for key in places),
        storage_options=scan_options(load_settings(), uri) if uri.startswith("s3") else None,
    )


def _of_window(
    uri: str, manifest: Manifest, places: Mapping[str, str], window: str
) -> dict[str, str]:
    """Those of some files that are in folders of a window, however it was published."""
    known = {entry.window: entry.rule for entry in manifest.commits if entry.window is not None}
    rules = set(known.values())
    found = {
        key: place
        for key, place in places.items()
        if any(window_label(rule, key.rpartition("/")[0]) == window for rule in rules)
    }
    if not found and window not in known:
        near = get_close_matches(window, known, 1)
        raise UsageError(
            f"manifest {manifest.number} of {uri} has no window {window!r}",
            hint=f"is it {near[0]}?" if near else f"it has {len(known):,} windows",
        )
    return found
