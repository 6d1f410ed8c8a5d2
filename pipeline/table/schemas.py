"""The schema of an output: no commit may add files that cannot be read with those that stay."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from pipeline.errors import ChunkmapError, SchemaChangedError
from pipeline.storage import join
from pipeline.table.column_types import merged
from pipeline.table.columns import Columns, differences, digest_columns, widened
from pipeline.table.log import TableLog
from pipeline.table.manifest import CommitEntry, Manifest
from pipeline.table.replay import Footprint, surviving

log = logging.getLogger(__name__)

_KINDS = 8
"""Schemas of an output that are looked at for the types of its columns."""


@dataclass(frozen=True, slots=True)
class Addition:
    """Files that are to come on top of an output."""

    footprint: Footprint
    columns: Columns
    """Of these files; empty where nothing is known."""


def refuse_other_columns(
    table_log: TableLog,
    manifest: Manifest,
    additions: Sequence[Addition],
    widens: Callable[[], bool],
) -> None:
    """Refuse files whose columns are not those of the files that stay beside them.

    Args:
        table_log: Of the output.
        manifest: What the output holds.
        additions: What is to come on top of it, together.
        widens: Whether the output may be widened; asked only where that matters.

    Raises:
        SchemaChangedError: naming the columns and the way on.
    """
    known = [one for one in additions if one.columns and one.footprint.folders]
    new = {digest_columns(one.columns) for one in known}
    held = [entry for entry in manifest.commits if entry.adds_files and entry.files]
    if not new or ({entry.columns for entry in held} <= new and len(new) == 1):
        return  # What is usual; nothing was read for it.
    staying = _staying(table_log, manifest, [one.footprint for one in additions])
    current: Columns = {}
    for columns in _distinct(table_log, staying):
        current = widened(current, columns) or current
    if not current:
        return
    for one in known:
        found = differences(current, one.columns)
        if found and not (all(item.is_safe for item in found) and widens()):
            raise _refusal(table_log.output, one, current, staying)


def _staying(
    table_log: TableLog, manifest: Manifest, on_top: Sequence[Footprint]
) -> list[CommitEntry]:
    """The commits of a manifest that have files left once others are on top of it."""
    prints = table_log.footprints(manifest.commits)
    alive = surviving([*prints, *on_top])
    pairs = zip(manifest.commits, alive[: len(prints)], strict=True)
    return [entry for entry, folders in pairs if entry.adds_files and folders]


def _distinct(table_log: TableLog, entries: Iterable[CommitEntry]) -> list[Columns]:
    """The columns of some commits, each only once."""
    examples = {entry.columns or entry.name: entry for entry in entries}
    found = [columns_of(table_log, entry) for entry in examples.values()]
    return [columns for columns in found if columns]


def types_of_output(table_log: TableLog) -> Columns:
    """The types that columns of an output have, as far as few requests tell: the newest come first.

    What has been replaced since may be among them, so it is good for nothing but nulls.
    """
    newest: dict[str, CommitEntry] = {}
    for entry in reversed(table_log.manifest().commits):
        if entry.adds_files and entry.files and entry.columns and len(newest) < _KINDS:
            newest.setdefault(entry.columns, entry)
    found: Columns = {}
    for entry in newest.values():
        for name, kind in table_log.known(entry).columns.items():
            found[name] = merged(found.get(name, kind), kind) or found[name]
    return found


def columns_of(table_log: TableLog, entry: CommitEntry) -> Columns:
    """The columns of a commit's files; empty if they cannot be told."""
    commit = table_log.known(entry)
    if commit.columns or commit.files.is_empty():
        return dict(commit.columns)
    # Made before commits said so: one of its files does.
    seen = table_log.columns_of_old
    if entry.name not in seen:
        seen[entry.name] = _columns_in_a_file(table_log, commit.files["key"][0])
    return seen[entry.name]


def _columns_in_a_file(table_log: TableLog, key: str) -> Columns:
    try:
        data = table_log.storage.get(join(table_log.output, key)).data
        return {name: str(kind) for name, kind in pl.read_parquet_schema(io.BytesIO(data)).items()}
    except (ChunkmapError, pl.exceptions.PolarsError) as error:
        log.warning("the columns of %s cannot be told: %s", key, error)
        return {}


def _refusal(
    output: str, one: Addition, current: Mapping[str, str], staying: Sequence[CommitEntry]
) -> SchemaChangedError:
    found = differences(current, one.columns)
    run = one.footprint.entry.run
    said = ", ".join(map(str, found))
    whole = "replace the whole output (output.mode: overwrite)"
    if all(item.is_safe for item in found):
        hint = f"let the output be widened (output.schema: widen), or {whole}"
    else:
        hint = f"give these columns the output's types in the transform, or {whole}"
    return SchemaChangedError(
        f"{'run ' + run if run else 'the job'} gives other columns than {output} has in files that "
        f"stay (of run {staying[-1].run}), and no reader could take them together: {said} "
        "(in the output / new)",
        hint=hint,
    )
