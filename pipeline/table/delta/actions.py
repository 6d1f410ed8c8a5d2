"""What a Delta transaction changes: the difference between two manifests, and between schemas.

Overwrite, partition overwrite and rollback are all the same: some files are added, some removed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import polars as pl

from partitioning.hive import parse
from partitioning.hive_paths import raw_values
from pipeline.table.column_types import parse_dtype
from pipeline.table.columns import Columns
from pipeline.table.delta.types import (
    HIVE_TYPES,
    DeltaType,
    delta_type,
    partition_values,
)


@dataclass(frozen=True, slots=True)
class TableFile:
    """A file that a table adds or removes."""

    key: str
    """Key below the output."""
    rows: int
    bytes: int
    values: Mapping[str, str | None]
    """Partition values, as Delta spells them."""


@dataclass(frozen=True, slots=True)
class Changes:
    """The files that a transaction adds and removes. A file is never both."""

    added: tuple[TableFile, ...]
    removed: tuple[TableFile, ...]


@dataclass(frozen=True, slots=True)
class TableSchema:
    """Columns of a Delta table."""

    columns: Mapping[str, DeltaType]
    """Types of all columns by name, in order; partition columns included."""
    partitions: tuple[str, ...]
    """Names of the partition columns, from the top folder down."""

    @property
    def partition_types(self) -> dict[str, DeltaType]:
        """Types of the partition columns by name."""
        return {name: self.columns[name] for name in self.partitions}


def changes_between(before: pl.DataFrame, after: pl.DataFrame, schema: TableSchema) -> Changes:
    """Return what a transaction adds and removes, from one snapshot to the next.

    Args:
        before: Files of the manifest that the table has (columns `key`, `rows` and `bytes`).
        after: Files of the manifest that it is to have.
        schema: Columns of the table.

    Raises:
        ValueError: A folder does not fit the table's partition columns.
    """
    return Changes(
        _files(after.join(before, on="key", how="anti", maintain_order="left"), schema),
        _files(before.join(after, on="key", how="anti", maintain_order="left"), schema),
    )


def _files(files: pl.DataFrame, schema: TableSchema) -> tuple[TableFile, ...]:
    types = schema.partition_types
    values: dict[str, dict[str, str | None]] = {}
    found = []
    for key, rows, size in files.select("key", "rows", "bytes").iter_rows():
        folder = key.rpartition("/")[0]
        if folder not in values:
            values[folder] = partition_values(folder, types)
        found.append(TableFile(key, rows, size, values[folder]))
    return tuple(found)


def schema_of(
    columns: Mapping[str, DeltaType], folders: Iterable[str], declared: Mapping[str, str]
) -> TableSchema:
    """Return the columns of a table that has some files.

    Args:
        columns: Columns of the files, without partition columns.
        folders: Folders of all files.
        declared: Declared types of Hive columns.

    Raises:
        HiveTypeError, SchemaMismatchError: The folders do not agree.
    """
    distinct = sorted(set(folders))
    names = {name for folder in distinct for name, _ in raw_values(folder)}
    declared = {name: kind for name, kind in declared.items() if name in names}
    hive = parse(distinct, distinct, lenient=False, declared=declared)
    partitions = {
        name: HIVE_TYPES[str(kind)] for name, kind in zip(hive.names, hive.types, strict=True)
    }
    own = {name: kind for name, kind in columns.items() if name not in partitions}
    return TableSchema({**own, **partitions}, hive.names)


@dataclass(frozen=True, slots=True)
class Evolution:
    """How the columns of a table change."""

    added: Mapping[str, DeltaType]
    """New columns."""
    retyped: Mapping[str, tuple[DeltaType, DeltaType]]
    """Types in the table and in the files, of columns that have another type in the files."""


def evolution(table: TableSchema, files: Mapping[str, DeltaType]) -> Evolution:
    """Compare the columns of files, without partition columns, with those of a table."""
    return Evolution(
        {name: kind for name, kind in files.items() if name not in table.columns},
        {
            name: (table.columns[name], kind)
            for name, kind in files.items()
            if name in table.columns and table.columns[name] != kind
        },
    )


def delta_columns(columns: Columns) -> dict[str, DeltaType]:
    """Return the Delta types of the columns of files (see `types.column_problems`)."""
    kinds = {name: parse_dtype(text) for name, text in columns.items()}
    return {name: delta_type(kind) for name, kind in kinds.items() if kind is not None}
