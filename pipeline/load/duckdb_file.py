"""Load into a DuckDB file."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import duckdb
import pyarrow as pa
from typing_extensions import override

from pipeline.load.column_types import DUCKDB, Dialect
from pipeline.load.destination import (
    STAGING,
    Destination,
    Session,
    TableColumn,
    TableName,
    quoted,
)
from pipeline.load.errors import DestinationBusyError, DestinationError, LoadFailedError

WAIT_SECONDS = 60.0
"""Seconds to wait for another process that has the file open."""
_SOURCE = "_chunkmap_batches"
_UNWRITTEN = "Could not write file"
"""Part of the message where a COMMIT fails because the disk is full."""


@dataclass(frozen=True)
class DuckDBFile(Destination):
    """A DuckDB file; it is created if it does not exist."""

    path: Path
    wait_seconds: float = WAIT_SECONDS
    dialect: Dialect = DUCKDB

    @property
    @override
    def where(self) -> str:
        return f"DuckDB file {self.path}"

    @override
    def connect(self) -> Session:
        if not self.path.parent.is_dir():
            raise DestinationError(
                f"the folder of {self.where} does not exist",
                hint=f"create it: mkdir -p {self.path.parent}",
            )
        return DuckDBSession(self, self._open(read_only=False))

    @override
    def look(self) -> Session | None:
        if not self.path.exists():
            return None
        return DuckDBSession(self, self._open(read_only=True))

    def _open(self, *, read_only: bool) -> Any:
        deadline = time.monotonic() + self.wait_seconds
        while True:
            try:
                return duckdb.connect(str(self.path), read_only=read_only)
            except duckdb.Error as error:
                if "lock on file" not in str(error):
                    raise self._refusal(error) from error
                if time.monotonic() >= deadline:
                    raise DestinationBusyError(
                        f"another process has {self.where} open: {_first_line(error)}",
                        hint="close it there, then load again: nothing is loaded twice",
                    ) from error
            time.sleep(0.2)

    def _refusal(self, error: Exception) -> DestinationError:
        hint = "check its path and its permissions"
        if "not a valid DuckDB" in str(error):
            hint = "name another file: this one was not written by DuckDB"
        elif "version number" in str(error):
            hint = "install the version of duckdb that wrote it, or a newer one"
        return DestinationError(f"{self.where} cannot be opened: {_first_line(error)}", hint=hint)


@cache
def _lock_of(path: str) -> Lock:
    """Return the lock of a file, for the threads of this process."""
    return Lock()


def _first_line(error: object) -> str:
    return str(error).strip().partition("\n")[0]


class DuckDBSession(Session):
    """A connection to a DuckDB file. Only one process at a time can have one that writes."""

    dialect = DUCKDB

    def __init__(self, file: DuckDBFile, connection: Any) -> None:
        self._file, self._connection, self._where = file, connection, file.where
        self._has_lock = False

    @override
    def begin(self, table: TableName) -> None:
        # The file's lock keeps other processes out, this one other threads.
        lock = _lock_of(str(self._file.path))
        if not lock.acquire(timeout=self._file.wait_seconds):
            raise DestinationBusyError(
                f"another thread of this process loads into {self._where}",
                hint="wait until it is done, then load again: nothing is loaded twice",
            )
        self._has_lock = True
        with self._errors():
            self._connection.begin()

    @override
    def commit(self) -> None:
        with self._errors():
            self._connection.commit()
        self._unlock()

    @override
    def rollback(self) -> None:
        with suppress(duckdb.Error):
            self._connection.rollback()
        self._unlock()

    def _unlock(self) -> None:
        if self._has_lock:
            self._has_lock = False
            _lock_of(str(self._file.path)).release()

    @override
    def close(self) -> None:
        with suppress(duckdb.Error):
            self._connection.close()

    @override
    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self._errors():
            return list(self._connection.execute(sql, list(parameters)).fetchall())

    @override
    def run(self, sql: str, parameters: Sequence[Any] = ()) -> int:
        found = self.rows(sql, parameters)
        return int(found[0][0]) if found and isinstance(found[0][0], int) else 0

    @override
    def columns(self, table: TableName) -> dict[str, TableColumn] | None:
        found = self.rows(
            "SELECT column_name, data_type, column_default IS NOT NULL FROM duckdb_columns() "
            "WHERE database_name = current_database() "
            "AND lower(schema_name) = lower(coalesce($1, current_schema())) "
            "AND lower(table_name) = lower($2) ORDER BY column_index",
            (table.schema, table.name),
        )
        return {str(n): TableColumn(str(k), bool(d)) for n, k, d in found} or None

    @override
    def spelled(self, kind: str) -> str:
        return str(self.rows(f"SELECT typeof(CAST(NULL AS {kind}))")[0][0])

    @override
    def schema_exists(self, name: str) -> bool:
        return bool(
            self.rows(
                "SELECT 1 FROM duckdb_schemas() WHERE database_name = current_database() "
                "AND lower(schema_name) = lower($1)",
                (name,),
            )
        )

    @override
    def insert(self, table: TableName, reader: pa.RecordBatchReader) -> int:
        names = ", ".join(map(quoted, reader.schema.names))
        with self._errors():
            self._connection.register(_SOURCE, reader)
            try:
                return self.run(f"INSERT INTO {table.sql} ({names}) SELECT {names} FROM {_SOURCE}")
            finally:
                with suppress(duckdb.Error):
                    self._connection.unregister(_SOURCE)

    @override
    def create_staging(self, columns: str) -> TableName:
        table = TableName("temp", STAGING)
        self.run(f"CREATE TEMP TABLE {table.sql} ({columns})")
        return table

    @override
    def drop_staging(self) -> None:
        self.run(f"DROP TABLE {TableName('temp', STAGING).sql}")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Translate DuckDB's errors."""
        try:
            yield
        except duckdb.TransactionException as error:
            if _UNWRITTEN in str(error):
                raise self._full(error) from error
            raise DestinationBusyError(
                f"another load changes the same table of {self._where}: {_first_line(error)}",
                hint="load again: nothing is loaded twice",
            ) from error
        except duckdb.ConstraintException as error:
            raise LoadFailedError(
                f"{self._where} refuses the rows: {_first_line(error)}",
                hint="fix the rows in the transform, or the table's constraint",
            ) from error
        except (duckdb.IOException, duckdb.OutOfMemoryException) as error:
            raise self._full(error) from error
        except duckdb.Error as error:
            raise LoadFailedError(f"{self._where}: {_first_line(error)}") from error

    def _full(self, error: Exception) -> LoadFailedError:
        return LoadFailedError(
            f"{self._where} cannot be written: {_first_line(error)}",
            hint="free space on its disk, then load again: nothing is loaded twice",
        )
