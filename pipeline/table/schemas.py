"""Check the schema of an output: all its files must be readable together."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from pipeline.errors import ChunkmapError, SchemaChangedError
from pipeline.storage import join
from pipeline.table.column_types import merge_types
from pipeline.table.columns import Columns, differences, digest_columns, widen
from pipeline.table.log import TableLog
from pipeline.table.manifest import CommitEntry, Manifest
from pipeline.table.replay import Footprint, live_folders

log = logging.getLogger(__name__)

_MAX_SCHEMAS_READ = 8
"""Maximum number of an output's schemas that are read for the types of its columns."""


@dataclass(frozen=True, slots=True)
class Addition:
    """Files that will be added to an output."""

    footprint: Footprint
    columns: Columns
    """Columns of these files; empty if unknown."""


def refuse_other_columns(
    table_log: TableLog,
    manifest: Manifest,
    additions: Sequence[Addition],
    widens: Callable[[], bool],
) -> None:
    """Refuse files whose columns differ from those of the files that stay in the output.

    Args:
        table_log: Table log of the output.
        manifest: The manifest that the files are added to.
        additions: The files, which are added together.
        widens: Returns whether the output may be widened; called only if needed.

    Raises:
        SchemaChangedError: The columns differ; the message names them and the next step.
    """
    known = [item for item in additions if item.columns and item.footprint.folders]
    new = {digest_columns(item.columns) for item in known}
    old = {entry.columns for entry in manifest.commits if entry.adds_files and entry.files}
    if not new or (old <= new and len(new) == 1):
        return  # The usual case, which reads nothing.
    staying = staying_commits(table_log, manifest, [item.footprint for item in additions])
    current: Columns = {}
    for columns in _distinct_columns(table_log, staying):
        current = widen(current, columns) or current
    if not current:
        return
    for item in known:
        differing = differences(current, item.columns)
        if differing and not (all(column.is_safe for column in differing) and widens()):
            raise _refusal(table_log.output, item, current, staying)


def staying_commits(
    table_log: TableLog, manifest: Manifest, on_top: Sequence[Footprint]
) -> list[CommitEntry]:
    """Return the commits of a manifest that keep live files after others are added."""
    footprints = table_log.footprints(manifest.commits)
    alive = live_folders([*footprints, *on_top])
    pairs = zip(manifest.commits, alive[: len(footprints)], strict=True)
    return [entry for entry, folders in pairs if entry.adds_files and folders]


def _distinct_columns(table_log: TableLog, entries: Iterable[CommitEntry]) -> list[Columns]:
    """Return the distinct sets of columns of some commits."""
    examples = {entry.columns or entry.name: entry for entry in entries}
    sets = [columns_of(table_log, entry) for entry in examples.values()]
    return [columns for columns in sets if columns]


def types_of_output(table_log: TableLog) -> Columns:
    """Return the types of an output's columns, found with few requests; newer commits win.

    Commits that have been replaced are included, so the types are good enough only for nulls.
    """
    newest: dict[str, CommitEntry] = {}
    for entry in reversed(table_log.manifest().commits):
        if entry.adds_files and entry.files and entry.columns and len(newest) < _MAX_SCHEMAS_READ:
            newest.setdefault(entry.columns, entry)
    types: Columns = {}
    for entry in newest.values():
        for name, kind in table_log.load(entry).columns.items():
            types[name] = merge_types(types.get(name, kind), kind) or types[name]
    return types


def columns_of(table_log: TableLog, entry: CommitEntry) -> Columns:
    """Return the columns of a commit's files; empty if they are unknown."""
    commit = table_log.load(entry)
    if commit.columns or commit.files.is_empty():
        return dict(commit.columns)
    # An old commit without columns: read them from one of its files.
    cache = table_log.inferred_columns
    if entry.name not in cache:
        cache[entry.name] = _read_columns(table_log, commit.files["key"][0])
    return cache[entry.name]


def _read_columns(table_log: TableLog, key: str) -> Columns:
    try:
        data = table_log.storage.get(join(table_log.output, key)).data
        return {name: str(kind) for name, kind in pl.read_parquet_schema(io.BytesIO(data)).items()}
    except (ChunkmapError, pl.exceptions.PolarsError) as error:
        log.warning("cannot read the columns of %s: %s", key, error)
        return {}


def _refusal(
    output: str, item: Addition, current: Mapping[str, str], staying: Sequence[CommitEntry]
) -> SchemaChangedError:
    differing = differences(current, item.columns)
    entry = item.footprint.entry
    whole = "replace the whole output (output.mode: overwrite)"
    if entry.adopts:
        hint = "move the new files away, and publish their rows with a job in mode append"
    elif all(column.is_safe for column in differing):
        hint = f"let the output be widened (output.schema: widen), or {whole}"
    else:
        hint = f"cast these columns to the output's types in the transform, or {whole}"
    return SchemaChangedError(
        f"{entry.source if entry.run or entry.adopts else 'the job'} has other columns than the "
        f"files that stay in {output} (of {staying[-1].source}), and no reader could read them "
        "together: "
        f"{', '.join(map(str, differing))} (in the output / new)",
        hint=hint,
    )
