"""What a database must offer so that outputs can be loaded into it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.load.column_types import Dialect

STAGING = "_chunkmap_staging"
"""Name of the temporary table of a transaction."""


def quoted(name: str) -> str:
    """Return a name as SQL spells it."""
    return '"' + name.replace('"', '""') + '"'


@dataclass(frozen=True, slots=True)
class TableName:
    """Name of a table; None is the database's default schema."""

    schema: str | None
    name: str

    @property
    def sql(self) -> str:
        """The name as SQL spells it."""
        parts = [self.schema, self.name] if self.schema else [self.name]
        return ".".join(map(quoted, parts))

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}" if self.schema else self.name


@dataclass(frozen=True, slots=True)
class TableColumn:
    """A column of an existing table."""

    kind: str
    """Type as the database spells it."""
    has_default: bool
    """Whether the database fills it where an INSERT does not name it."""


class Session(ABC):
    """A connection to a database.

    All methods raise errors of `pipeline.load.errors`; those that are transient concern the
    connection or other processes, and the transaction is rolled back.
    """

    dialect: Dialect

    @abstractmethod
    def begin(self, table: TableName) -> None:
        """Begin a transaction, and wait until no other one loads this table.

        Raises:
            DestinationBusyError: Another process loads it for long.
        """

    @abstractmethod
    def commit(self) -> None:
        """Commit the transaction. An error does not tell whether it is committed."""

    @abstractmethod
    def rollback(self) -> None:
        """Roll back the transaction, if there is one; never raises."""

    @abstractmethod
    def close(self) -> None:
        """Close the connection; never raises."""

    @abstractmethod
    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return the rows of a query; parameters are `$1`, `$2`, …."""

    @abstractmethod
    def run(self, sql: str, parameters: Sequence[Any] = ()) -> int:
        """Execute a statement; return the number of rows that it changed, if it changes any."""

    @abstractmethod
    def columns(self, table: TableName) -> dict[str, TableColumn] | None:
        """Return the columns of a table in order; None if there is no such table."""

    def spelled(self, kind: str) -> str:
        """Return a type as the database spells it for columns of existing tables."""
        return kind

    @abstractmethod
    def schema_exists(self, name: str) -> bool:
        """Whether there is a schema with this name."""

    @abstractmethod
    def insert(self, table: TableName, reader: pa.RecordBatchReader) -> int:
        """Insert a stream of batches, whose columns are named as the table's; return the rows."""

    @abstractmethod
    def create_staging(self, columns: str) -> TableName:
        """Create a temporary table that ends with the transaction; return its name."""

    @abstractmethod
    def drop_staging(self) -> None:
        """Drop the temporary table of the transaction."""


class Destination(ABC):
    """A database that outputs are loaded into."""

    dialect: Dialect

    @property
    @abstractmethod
    def where(self) -> str:
        """Address for messages, without secrets."""

    @abstractmethod
    def connect(self) -> Session:
        """Open a connection.

        Raises:
            DestinationError: It cannot be reached with this address, user or password.
            DestinationUnavailableError: It does not answer now.
            DestinationBusyError: Another process has the file for long.
        """

    @abstractmethod
    def look(self) -> Session | None:
        """Open a connection that writes nothing; None if the database does not exist yet."""
