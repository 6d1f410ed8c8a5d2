"""A table of a database that outputs are loaded into, of each kind, for tests that hold for all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
from typing_extensions import override

from pipeline.load.destination import Destination, TableName
from pipeline.load.duckdb_file import DuckDBFile
from pipeline.load.loader import LoadRequest, load, preview
from pipeline.load.postgresql import PostgreSQL
from pipeline.load.records import LoadProgress, LoadSummary
from tests.servers.postgres import PASSWORD, Postgres, with_search_path
from tests.support.published_frames import Frames


def ids(*values: int) -> pl.DataFrame:
    """Rows with these ids, and a text each."""
    return pl.DataFrame({"id": values, "v": [f"v{value}" for value in values]})


def _ignore(progress: LoadProgress) -> None:
    """Show nothing."""


@dataclass(frozen=True)
class Target(ABC):
    """Loads of one output into a database."""

    output: Frames

    @property
    @abstractmethod
    def database(self) -> Destination:
        """The database."""

    @property
    @abstractmethod
    def into(self) -> str:
        """Its address, as users write it."""

    @abstractmethod
    def rows(self, sql: str = "SELECT * FROM t ORDER BY 1") -> list[tuple[Any, ...]]:
        """Execute a statement of the user's own, and return its rows."""

    @abstractmethod
    def run(self, *statements: str) -> None:
        """Execute statements of the user's own."""

    def has_table(self, name: str) -> bool:
        """Whether there is a table with this name."""
        session = self.database.look()
        if session is None:
            return False
        try:
            return session.columns(TableName(None, name)) is not None
        finally:
            session.rollback()
            session.close()

    def request(self, table: str = "t", schema: str | None = None, **more: Any) -> LoadRequest:
        return LoadRequest(self.output.uri, TableName(schema, table), **more)

    def load(self, listen: Callable[[LoadProgress], None] = _ignore, **more: Any) -> LoadSummary:
        output, request = self.output, self.request(**more)
        return load(request, self.database, output.settings, output.storage, listen)

    def preview(self, **more: Any) -> LoadSummary:
        output, request = self.output, self.request(**more)
        return preview(request, self.database, output.settings, output.storage)


@dataclass(frozen=True)
class DuckDBTarget(Target):
    """A DuckDB file."""

    path: Path
    wait_seconds: float = 60.0

    @property
    @override
    def database(self) -> DuckDBFile:
        return DuckDBFile(self.path, wait_seconds=self.wait_seconds)

    @property
    @override
    def into(self) -> str:
        return f"duckdb:{self.path}"

    @override
    def rows(self, sql: str = "SELECT * FROM t ORDER BY 1") -> list[tuple[Any, ...]]:
        with duckdb.connect(str(self.path)) as connection:
            return list(connection.execute(sql).fetchall())

    @override
    def run(self, *statements: str) -> None:
        with duckdb.connect(str(self.path)) as connection:
            for statement in statements:
                connection.execute(statement)


@dataclass(frozen=True)
class PostgresTarget(Target):
    """A schema of its own in a PostgreSQL server."""

    server: Postgres
    schema: str
    port: int | None = None
    """Port of a proxy to the server; None is the server's."""
    wait_seconds: float = 60.0
    settings: tuple[str, ...] = ()
    """Settings of its sessions, such as `lock_timeout=1s`."""

    @property
    @override
    def database(self) -> PostgreSQL:
        uri = with_search_path(self.server.uri(port=self.port), self.schema, *self.settings)
        return PostgreSQL(uri, PASSWORD, wait_seconds=self.wait_seconds)

    @property
    @override
    def into(self) -> str:
        return with_search_path(self.server.socket_uri, self.schema)

    @override
    def rows(self, sql: str = "SELECT * FROM t ORDER BY 1") -> list[tuple[Any, ...]]:
        return self.server.run(f"SET search_path = {self.schema}", sql)

    @override
    def run(self, *statements: str) -> None:
        self.server.run(f"SET search_path = {self.schema}", *statements)
