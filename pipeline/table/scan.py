"""Read an output: exactly the files of a manifest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

import pyarrow as pa

from partitioning import HiveTypeError
from partitioning.hive import parse
from partitioning.hive_paths import raw_values
from pipeline.config.settings import Settings, own_settings
from pipeline.errors import UsageError
from pipeline.report.humanize import plural
from pipeline.storage import open_storage, scan_arguments
from pipeline.table.columns import Columns, digest_columns, widen
from pipeline.table.log import TableLog
from pipeline.table.manifest import Manifest
from pipeline.table.replay import window_label
from pipeline.table.retention import locate
from pipeline.table.schemas import columns_of

if TYPE_CHECKING:
    import polars as pl


def scan_output(uri: str, version: int | None = None, window: str | None = None) -> pl.LazyFrame:
    """Scan the rows of an output in one version.

    A plain glob over the prefix may see both old and new files for the seconds in which an
    overwrite is published; a manifest never does.

    Args:
        uri: The output prefix.
        version: Number of a manifest (`chunkmap history` lists them); default the current.
        window: Label of a window, such as `2024-02-29`, to scan only its files; default all.

    Returns:
        A LazyFrame; Hive partitions in the keys become columns, with the types that the planner
        would infer or the last run's job declares (`input.hive_types`). If the output was widened,
        older files have nulls in missing columns, and the wider types.

    Raises:
        UsageError: The output has no published files, or no such window.
        FilesMissingError: That version is no longer kept, or its files were deleted.
    """
    return scan(own_settings(), uri, version, window)


def scan(
    settings: Settings, uri: str, version: int | None = None, window: str | None = None
) -> pl.LazyFrame:
    """Scan the rows of an output as `scan_output` does, with these settings."""
    table_log = TableLog(open_storage(settings), uri)
    version_scan = VersionScan.of(settings, table_log, table_log.manifest(version))
    manifest, places = version_scan.manifest, version_scan.places
    selected = places if window is None else _select_window(uri, manifest, places, window)
    if not selected:
        which = "" if window is None else f" of window {window}"
        raise UsageError(f"{uri} has no published files{which} (manifest {manifest.number})")
    return version_scan.frame(selected)


@dataclass(frozen=True, slots=True)
class VersionScan:
    """Scans files of one version of an output; what they have in common is found once."""

    settings: Settings
    table_log: TableLog
    manifest: Manifest
    places: Mapping[str, str]
    """URI of each file, by key."""
    hive: _Hive

    @classmethod
    def of(cls, settings: Settings, table_log: TableLog, manifest: Manifest) -> VersionScan:
        """Find the files of a version.

        Raises:
            FilesMissingError: The version is no longer kept, or its files were deleted.
        """
        places = locate(table_log, manifest)
        hive = _Hive.of(list(places), _declared_types(table_log, manifest))
        return cls(settings, table_log, manifest, places, hive)

    def frame(self, keys: Iterable[str]) -> pl.LazyFrame:
        """Scan some files, at least one; missing columns of widened outputs are nulls."""
        import polars as pl

        selected = {key: self.places[key] for key in keys}
        options = scan_arguments(self.settings, self.table_log.output)
        schema = _widened_schema(self.table_log, self.manifest, selected, options)
        if schema is not None:
            upcast = pl.ScanCastOptions(integer_cast="upcast", float_cast="upcast")
            options |= {"schema": schema, "missing_columns": "insert", "cast_options": upcast}
        files = {key: _path(place) for key, place in selected.items()}
        return _scan(files, self.hive, options)


def _path(place: str) -> str:
    return place.removeprefix("file://")


def _widened_schema(
    table_log: TableLog,
    manifest: Manifest,
    places: Mapping[str, str],
    options: Mapping[str, Any],
) -> pl.Schema | None:
    """Return columns that hold those of all files; None if all files agree, as is usual.

    It reads one file for each set of columns.
    """
    import polars as pl

    if len({entry.columns for entry in manifest.commits if entry.adds_files and entry.files}) < 2:
        return None
    kinds = {
        entry.name: digest_columns(columns_of(table_log, entry))
        for entry in manifest.commits
        if entry.adds_files
    }
    examples: dict[str, str] = {}
    for key, commit in table_log.snapshot(manifest).select("key", "commit").iter_rows():
        if key in places:
            examples.setdefault(kinds[commit], places[key])
    if len(examples) < 2:
        return None
    merged: Columns = {}
    types: dict[str, pl.DataType] = {}
    for place in examples.values():
        schema = pl.scan_parquet(
            _path(place), glob=False, hive_partitioning=False, **options
        ).collect_schema()
        both = widen(merged, {name: str(kind) for name, kind in schema.items()})
        if both is None:
            return None  # From before chunkmap compared columns: Polars raises the error.
        types |= {name: kind for name, kind in schema.items() if both[name] == str(kind)}
        merged = both
    return pl.Schema({name: types[name] for name in merged})


def _select_window(
    uri: str, manifest: Manifest, places: Mapping[str, str], window: str
) -> dict[str, str]:
    """Select the files in folders of a window, also those that were not published by windows."""
    rules = {entry.window: entry.rule for entry in manifest.commits if entry.window is not None}
    selected = {
        key: place
        for key, place in places.items()
        if any(window_label(rule, key.rpartition("/")[0]) == window for rule in set(rules.values()))
    }
    if not selected and window not in rules:
        near = get_close_matches(window, rules, 1)
        raise UsageError(
            f"manifest {manifest.number} of {uri} has no window {window!r}",
            hint=f"did you mean {near[0]}?" if near else f"it has {plural(len(rules), 'window')}",
        )
    return selected


def _declared_types(table_log: TableLog, manifest: Manifest) -> Mapping[str, str]:
    """Return the types of Hive columns that the job of the newest run declares."""
    runs = [entry for entry in manifest.commits if entry.adds_files]
    return table_log.load(runs[-1]).hive_types if runs else {}


@dataclass(frozen=True, slots=True)
class _Hive:
    """The Hive columns of an output."""

    schema: pl.Schema
    values: Mapping[str, Mapping[str, Any]]
    """Values of each folder, by folder and column."""

    @classmethod
    def of(cls, keys: Sequence[str], declared: Mapping[str, str]) -> _Hive:
        """Parse the Hive columns of all files, so that types do not depend on the window."""
        import polars as pl

        folders = sorted({key.rpartition("/")[0] for key in keys})
        raws = {folder: dict(raw_values(folder)) for folder in folders}
        names = {name for values in raws.values() for name in values}
        declared = {name: kind for name, kind in declared.items() if name in names}
        try:
            hive = parse(folders, folders, lenient=True, declared=declared)
        except HiveTypeError:
            # Earlier runs may have published values that do not fit the type declared now.
            hive = parse(folders, folders, lenient=True)
        frame = pl.DataFrame(pl.from_arrow(pa.schema(hive.fields()).empty_table()))
        rows = zip(*hive.columns, strict=True) if hive.names else ([()] * len(folders))
        values = {
            folder: {
                name: value
                for name, value in zip(hive.names, row, strict=True)
                if name in raws[folder]
            }
            for folder, row in zip(folders, rows, strict=True)
        }
        return cls(frame.schema, values)

    def is_plain(self, folders: Iterable[str]) -> bool:
        """Whether Polars can parse the values of these folders itself."""
        return all(
            len(self.values[folder]) == len(self.schema) and _is_readable(folder)
            for folder in folders
        )


def _scan(files: Mapping[str, str], hive: _Hive, options: Mapping[str, Any]) -> pl.LazyFrame:
    """Scan files (URI by key), and add their Hive columns."""
    import polars as pl

    parts: dict[str, list[str]] = {}
    for key, place in files.items():
        parts.setdefault(key.rpartition("/")[0], []).append(place)
    if hive.is_plain(parts):
        return pl.scan_parquet(
            list(files.values()),
            glob=False,
            hive_partitioning=bool(hive.schema),
            hive_schema=dict(hive.schema) if hive.schema else None,
            **options,
        )
    # One scan per folder. Chunks that cross partitions have a column in the file instead.
    return pl.concat(
        (
            pl.scan_parquet(places, glob=False, hive_partitioning=False, **options).with_columns(
                pl.lit(value, dtype=hive.schema[name]).alias(name)
                for name, value in hive.values[folder].items()
            )
            for folder, places in parts.items()
        ),
        how="diagonal",
    )


def _is_readable(folder: str) -> bool:
    """Whether Polars can parse the Hive values in this spelling of a folder."""
    for segment in folder.split("/"):
        _, _, raw = segment.partition("=")
        if "*" in raw or "=" in raw:
            return False
        try:
            unquote_to_bytes(raw).decode()
        except UnicodeDecodeError:
            return False
    return True
