"""The Delta log of a table, through `deltalake`."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote

from pipeline.storage import Storage
from pipeline.table.delta.actions import Changes, TableFile, TableSchema
from pipeline.table.delta.library import library_errors, library_options, library_path
from pipeline.table.delta.types import DeltaType, field_json

APP_ID: Final = "chunkmap"
"""Name under which a table holds the number of the manifest that it has (Delta's `txn`)."""
_MANIFEST: Final = "chunkmap.manifest"
_RUNS: Final = "chunkmap.runs"


@dataclass(frozen=True, slots=True)
class TableState:
    """A version of a Delta table."""

    version: int
    manifest: int | None
    """Number of the manifest that it has; None if chunkmap has never committed to it."""
    schema: TableSchema


class DeltaLog:
    """Reads and writes the log of one Delta table. Each commit is tried once."""

    def __init__(self, storage: Storage, uri: str) -> None:
        self._storage, self._uri = storage, uri
        self._table: Any = None

    def read(self, version: int | None = None) -> TableState | None:
        """Read a version, default the newest; None if there is no table.

        Raises:
            DamagedTableError: The log cannot be read.
        """
        from deltalake import DeltaTable
        from deltalake.exceptions import TableNotFoundError

        with library_errors(self._uri):
            try:
                self._table = DeltaTable(
                    library_path(self._uri),
                    version=version,
                    storage_options=library_options(self._storage, self._uri),
                )
            except TableNotFoundError:
                return None
            metadata = self._table.metadata()
            fields = json.loads(self._table.schema().to_json())["fields"]
            return TableState(
                self._table.version(),
                self._table.transaction_version(APP_ID),
                TableSchema(
                    {field["name"]: field["type"] for field in fields},
                    tuple(metadata.partition_columns),
                ),
            )

    def files(self) -> set[str]:
        """Return the keys of the files of the version that was read last."""
        with library_errors(self._uri):
            # As URIs relative to the table, which are percent-encoded.
            paths = self._table.get_add_actions(flatten=True).column("path").to_pylist()
        return {unquote(path) for path in paths}

    def figures(self) -> dict[str, tuple[int | None, int]]:
        """Return rows and bytes of the files of the version that was read last, by key."""
        with library_errors(self._uri):
            actions = self._table.get_add_actions(flatten=True)
            columns = [actions.column(n).to_pylist() for n in ("path", "num_records", "size_bytes")]
        return {unquote(path): (rows, size) for path, rows, size in zip(*columns, strict=True)}

    def partitions(self, names: Sequence[str]) -> list[tuple[str, int, dict[str, Any]]]:
        """Return path (percent-encoded), bytes and partition values of the files that were read."""
        with library_errors(self._uri):
            actions = self._table.get_add_actions(flatten=True)
            paths, sizes = (actions.column(n).to_pylist() for n in ("path", "size_bytes"))
            values = [actions.column(f"partition.{name}").to_pylist() for name in names]
        rows = zip(*values, strict=True) if names else ([()] * len(paths))
        return [
            (path, size, dict(zip(names, row, strict=True)))
            for path, size, row in zip(paths, sizes, rows, strict=True)
        ]

    def reader_features(self) -> frozenset[str]:
        """Return the features that readers of the version need that was read last."""
        with library_errors(self._uri):
            return frozenset(self._table.protocol().reader_features or ())

    def property(self, name: str) -> str | None:
        """Return a property of the version that was read last."""
        with library_errors(self._uri):
            value = self._table.metadata().configuration.get(name)
        return None if value is None else str(value)

    def files_with_deletions(self) -> int:
        """Return the number of files with deletion vectors, of the version that was read last."""
        with library_errors(self._uri):
            return sum(batch.num_rows for batch in self._table.deletion_vectors())

    def manifests(self) -> dict[int, int]:
        """Return the version of the table for each manifest that it has had, newest first."""
        with library_errors(self._uri):
            history = self._table.history()
        return {
            int(commit[_MANIFEST]): commit["version"]
            for commit in history
            if str(commit.get(_MANIFEST, "")).isdigit()
        }

    def others_since(self, manifest: int) -> list[str]:
        """Describe the commits of other writers since the one that has a manifest."""
        with library_errors(self._uri):
            history = self._table.history()
        found = []
        for commit in history:
            if str(commit.get(_MANIFEST, "")) == str(manifest):
                break
            if _RUNS not in commit:
                found.append(f"version {commit['version']}: {commit.get('operation', 'unknown')}")
        return found

    def create(
        self, schema: TableSchema, files: Sequence[TableFile], statistics: Mapping[str, str],
        manifest: int, runs: str,
    ) -> None:  # fmt: skip
        """Create the table, as version 0.

        Raises:
            LostRaceError: There is a table.
        """
        from deltalake.transaction import create_table_with_add_actions

        with library_errors(self._uri, is_commit=True):
            create_table_with_add_actions(
                library_path(self._uri),
                _schema(schema),
                [_added(file, statistics) for file in files],
                mode="error",
                partition_by=list(schema.partitions),
                storage_options=library_options(self._storage, self._uri),
                commit_properties=_properties(manifest, runs),
            )

    def add_columns(self, columns: Mapping[str, DeltaType], runs: str) -> None:
        """Add nullable columns, as a version of its own.

        Args:
            columns: Types by name.
            runs: Ids of the runs whose files have them.

        Raises:
            LostRaceError: Another writer was faster.
        """
        from deltalake import CommitProperties, Field

        fields = [Field.from_json(json.dumps(field_json(*pair))) for pair in columns.items()]
        with library_errors(self._uri, is_commit=True):
            self._table.alter.add_columns(
                fields,
                commit_properties=CommitProperties(
                    custom_metadata={_RUNS: runs}, max_commit_retries=0
                ),
            )

    def commit(
        self, schema: TableSchema, changes: Changes, statistics: Mapping[str, str],
        manifest: int, runs: str, *, replaces_all: bool,
    ) -> None:  # fmt: skip
        """Commit the files of a manifest, as the version after the one that was read last.

        Args:
            schema: Columns of the table.
            changes: The files.
            statistics: Statistics of the added files, by key.
            manifest: Number of the manifest.
            runs: Ids of the runs whose commits it adds.
            replaces_all: Whether no earlier file stays, so that columns may have other types.

        Raises:
            LostRaceError: Another writer was faster.
        """
        actions = [_added(file, statistics) for file in changes.added]
        with library_errors(self._uri, is_commit=True):
            self._table.create_write_transaction(
                actions if replaces_all else [*actions, *map(_removed, changes.removed)],
                mode="overwrite" if replaces_all else "append",
                schema=_schema(schema),
                partition_by=list(schema.partitions),
                commit_properties=_properties(manifest, runs),
            )


def _schema(schema: TableSchema) -> Any:
    from deltalake import Schema

    fields = [field_json(*pair) for pair in schema.columns.items()]
    return Schema.from_json(json.dumps({"type": "struct", "fields": fields}))


def _properties(manifest: int, runs: str) -> Any:
    from deltalake import CommitProperties, Transaction

    return CommitProperties(
        custom_metadata={_MANIFEST: str(manifest), _RUNS: runs},
        # The next version is decided on what was read: another writer's commit is looked at first.
        max_commit_retries=0,
        app_transactions=[Transaction(APP_ID, manifest)],
    )


def _now() -> int:
    return int(time.time() * 1000)


def _added(file: TableFile, statistics: Mapping[str, str]) -> Any:
    from deltalake.transaction import AddAction

    values = dict(file.values)
    return AddAction(file.key, file.bytes, values, _now(), True, statistics[file.key])


def _removed(file: TableFile) -> Any:
    from deltalake.transaction import RemoveAction

    return RemoveAction(file.key, True, _now(), file.bytes, dict(file.values))
