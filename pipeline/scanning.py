"""Reading an output: the files of a manifest, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from pipeline.catalog import Catalog
from pipeline.columns import Columns, digest_columns, widened
from pipeline.errors import UsageError
from pipeline.folding import window_label
from pipeline.manifest import Manifest
from pipeline.settings import load_settings
from pipeline.storage import own_storage, scan_options
from pipeline.table.retention import locate
from pipeline.table.schemas import columns_of

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
        A LazyFrame; Hive partitions in the keys become columns. Where the output was widened, files
        of before have nulls in the columns that they lack, and the wider types.

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
    options: dict[str, Any] = {
        "glob": False,
        "hive_partitioning": any("=" in key.rpartition("/")[0] for key in places),
        "storage_options": scan_options(load_settings(), uri) if uri.startswith("s3") else None,
    }
    schema = _widened_schema(catalog, manifest, places, options["storage_options"])
    if schema is not None:
        upcast = pl.ScanCastOptions(integer_cast="upcast", float_cast="upcast")
        options |= {"schema": schema, "missing_columns": "insert", "cast_options": upcast}
    return pl.scan_parquet(list(map(_path, places.values())), **options)


def _path(place: str) -> str:
    return place.removeprefix("file://")


def _widened_schema(
    catalog: Catalog,
    manifest: Manifest,
    places: Mapping[str, str],
    storage_options: dict[str, str] | None,
) -> pl.Schema | None:
    """The columns that hold those of all files; None where all files are alike, as usual.

    Read from one file of each kind.
    """
    import polars as pl

    if len({entry.columns for entry in manifest.commits if entry.adds_files and entry.files}) < 2:
        return None
    kinds = {
        entry.name: digest_columns(columns_of(catalog, entry))
        for entry in manifest.commits
        if entry.adds_files
    }
    examples: dict[str, str] = {}
    for key, commit in catalog.snapshot(manifest).select("key", "commit").iter_rows():
        if key in places:
            examples.setdefault(kinds[commit], places[key])
    if len(examples) < 2:
        return None
    merged: Columns = {}
    types: dict[str, pl.DataType] = {}
    for place in examples.values():
        found = pl.scan_parquet(
            _path(place), glob=False, hive_partitioning=False, storage_options=storage_options
        ).collect_schema()
        both = widened(merged, {name: str(kind) for name, kind in found.items()})
        if both is None:
            return None  # Published before chunkmap looked: Polars says what does not fit.
        types |= {name: kind for name, kind in found.items() if both[name] == str(kind)}
        merged = both
    return pl.Schema({name: types[name] for name in merged})


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
