"""What is read of a database, and the parts that a database of each kind supplies."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.config.ingest_rows import Sql
from pipeline.errors import UsageError
from pipeline.ingest.errors import SourceError
from pipeline.ingest.readings import ReadingWriter, Watermark
from pipeline.ingest.schema import Types

AGAIN = "give the command again, which reads from the beginning: nothing is published yet"


@dataclass(frozen=True, slots=True)
class Selection:
    """The rows to read."""

    sql: Sql
    after: Watermark | None
    """Watermark of the ingests before; None to read everything."""
    declared: Types
    """Types that the definition declares."""

    @property
    def relation(self) -> str:
        """What is after FROM: a table, or a query in brackets."""
        if self.sql.query is not None:
            # A comment may end the query, so the bracket is on a line of its own.
            return f"(\n{self.sql.query.strip().rstrip(';')}\n) AS rows_of_query"
        assert self.sql.table is not None, "a definition has one of them"
        return ".".join(quoted(name) for name in self.sql.table.split("."))


def quoted(name: str) -> str:
    """Return a name as an identifier of SQL."""
    return '"' + name.replace('"', '""') + '"'


class Database(ABC):
    """A database that rows are read from."""

    place: str
    """Name for messages, which is stored, so without its address."""

    @abstractmethod
    def has_rows(self, selection: Selection) -> bool:
        """Whether there is a row to read.

        Raises:
            SourceError: It cannot be read.
        """

    @abstractmethod
    def read(self, selection: Selection, writer: ReadingWriter) -> tuple[str, Watermark | None]:
        """Read all rows, in one snapshot; return its identity, and how far the column was read.

        Raises:
            SourceError: It cannot be read.
            SchemaChangedError: A column has values that cannot be kept as they are.
        """


def no_value(column: str, place: str) -> SourceError:
    """Return the error for rows that no ingest would read."""
    return SourceError(
        f"rows of {place} have no value in column {column!r} (sql.incremental.column), so no "
        "ingest would read them",
        hint="choose another column, or leave them out by sql.query: SELECT … WHERE "
        f"{column} IS NOT NULL",
    )


def no_watermark(column: str, kind: str, allowed: str) -> UsageError:
    """Return the error for a column that cannot tell what is new."""
    return UsageError(
        f"column {column!r} has type {kind}, by which new rows cannot be found "
        "(sql.incremental.column)",
        hint=f"name a column of type {allowed}",
    )


def no_column(column: str, place: str, columns: Mapping[str, object], key: str) -> UsageError:
    """Return the error for a column that is named and does not exist."""
    return UsageError(
        f"{place} has no column {column!r} ({key})",
        hint=f"its columns are {', '.join(list(columns)[:20])}",
    )


def other_watermark(watermark: Watermark, place: str) -> UsageError:
    """Return the error for a stored value that a column cannot have."""
    return UsageError(
        f"the output was read up to {watermark.value!r} of column {watermark.column!r}, which is "
        f"no value of this column of {place} now",
        hint="ingest into another output",
    )
