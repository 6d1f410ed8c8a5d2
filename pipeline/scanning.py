"""Reading an output: the files of a manifest, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.catalog import Catalog
from pipeline.errors import UsageError
from pipeline.settings import load_settings
from pipeline.storage import own_storage, scan_options
from pipeline.versions import locate

if TYPE_CHECKING:
    import polars as pl


def scan_output(uri: str, version: int | None = None) -> pl.LazyFrame:
    """The rows of an output, as one manifest has them.

    A plain glob over the prefix may, for the seconds in which an overwrite is published, see both
    the old files and the new; a manifest never does.

    Args:
        uri: The output prefix.
        version: Number of an older manifest (`chunkmap history` lists them); default the current.

    Returns:
        A LazyFrame; Hive partitions in the keys become columns.

    Raises:
        UsageError: nothing was published there, or that version is no longer kept.
    """
    import polars as pl

    catalog = Catalog(own_storage(), uri)
    manifest = catalog.manifest(version)
    places = locate(catalog, manifest)
    if not places:
        raise UsageError(f"{uri} has no published files (manifest {manifest.number})")
    files = [place.removeprefix("file://") for place in places.values()]
    return pl.scan_parquet(
        files,
        glob=False,
        hive_partitioning=any("=" in key.rpartition("/")[0] for key in places),
        storage_options=scan_options(load_settings()) if uri.startswith("s3") else None,
    )
