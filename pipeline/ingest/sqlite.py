"""Read a SQLite file, through Python's own driver.

SQLite has types of values, not of columns. The driver of ADBC derives the types of columns from the
first rows, and fails at a text after a thousand nulls; here each part of the rows has types of its
own, which are put together afterwards.
"""

from __future__ import annotations

import math
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from typing_extensions import override

from pipeline.errors import SchemaChangedError, UsageError
from pipeline.ingest.database import (
    AGAIN,
    Database,
    Selection,
    no_column,
    no_value,
    no_watermark,
    other_watermark,
    quoted,
)
from pipeline.ingest.errors import SourceError, SourceUnavailableError
from pipeline.ingest.readings import ReadingWriter, Watermark
from pipeline.ingest.values import frame_of_columns

ROWS_AT_ONCE = 1_000
"""Number of rows that are fetched at a time."""
BUSY_SECONDS = 30.0
"""Seconds to wait for a process that writes."""


class SQLite(Database):
    """A SQLite file."""

    def __init__(self, path: str, rows: str) -> None:
        self._path = Path(path).expanduser()
        self.place = f"{rows} of SQLite"

    @override
    def has_rows(self, selection: Selection) -> bool:
        with self._snapshot() as connection:
            condition, values = self._condition(connection, selection)
            return self._one(connection, f"SELECT 1 {condition} LIMIT 1", values) is not None

    @override
    def read(self, selection: Selection, writer: ReadingWriter) -> tuple[str, Watermark | None]:
        with self._snapshot() as connection:
            condition, values = self._condition(connection, selection)
            watermark = self._watermark(connection, selection, condition, values)
            stream = writer.stream(0)
            cursor = connection.execute(f"SELECT * {condition}", values)
            names = self._names(cursor)
            rows = cursor.fetchmany(ROWS_AT_ONCE)
            while True:  # At least once, since a result without rows has columns.
                values_by_name = zip(*rows, strict=True) if rows else [()] * len(names)
                columns = zip(names, values_by_name, strict=True)
                stream.add(frame_of_columns(columns, selection.declared, self.place, len(rows)))
                rows = cursor.fetchmany(ROWS_AT_ONCE)
                if not rows:
                    break
            stream.close()
        return "", watermark

    @contextmanager
    def _snapshot(self) -> Iterator[sqlite3.Connection]:
        """Open the file for reading, in one transaction, which sees one snapshot."""
        if not self._path.is_file():
            raise UsageError(
                f"there is no SQLite file {self._path} (sql.url)",
                hint="fix the path: sqlite:FILE, relative to the current folder",
            )
        uri = f"file:{quote(str(self._path.absolute()))}?mode=ro"
        try:
            with closing(
                sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None)
            ) as connection:
                connection.execute("BEGIN")
                yield connection
        except sqlite3.Error as error:
            raise self._translated(error) from None

    def _translated(self, error: sqlite3.Error) -> Exception:
        text = f"{self.place} cannot be read: {error}"
        if "decode to UTF-8" in str(error):
            return SchemaChangedError(text, hint="select it as bytes in sql.query: CAST(… AS BLOB)")
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in (
            sqlite3.SQLITE_BUSY,
            sqlite3.SQLITE_LOCKED,
        ):
            return SourceUnavailableError(f"{text}: another process writes", hint=AGAIN)
        return SourceError(text, hint="fix the table or the query (sql.table, sql.query)")

    def _names(self, cursor: sqlite3.Cursor) -> list[str]:
        if cursor.description is None:
            raise UsageError("the query (sql.query) returns no rows", hint="use a SELECT")
        names = [str(column[0]) for column in cursor.description]
        # SQLite renames the second column `a` of a query to `a:1`.
        plain = [re.sub(r":\d+$", "", name) for name in names]
        twice = [name for name in plain if plain.count(name) > 1]
        if twice:
            raise UsageError(
                f"{self.place} has two columns {twice[0]!r}", hint="rename one: SELECT … AS …"
            )
        return names

    def _one(self, connection: sqlite3.Connection, sql: str, values: list[Any]) -> Any:
        row = connection.execute(sql, values).fetchone()
        return None if row is None else row[0]

    # -- what is new -------------------------------------------------------------------------------

    def _condition(
        self, connection: sqlite3.Connection, selection: Selection
    ) -> tuple[str, list[Any]]:
        """Return FROM and WHERE, with the values of its parameters."""
        incremental, source = selection.sql.incremental, f"FROM {selection.relation}"
        if incremental is None:
            return source, []
        if incremental.lag is not None:
            raise UsageError(
                "SQLite has no clock that rows are written by, so `lag` cannot be kept "
                "(sql.incremental.lag)",
                hint="leave it out: SQLite has one writer at a time",
            )
        name, column = incremental.column, quoted(incremental.column)
        known = self._names(connection.execute(f"SELECT * {source} LIMIT 0"))
        if name not in known:  # SQLite would take the name for a text.
            key = "sql.incremental.column"
            raise no_column(name, self.place, dict.fromkeys(known), key)
        kinds = {
            kind for (kind,) in connection.execute(f"SELECT DISTINCT typeof({column}) {source}")
        }
        if "null" in kinds:
            raise no_value(name, self.place)
        if "blob" in kinds:
            raise no_watermark(name, "blob", "integer, real or text")
        after = selection.after
        if after is None or after.value is None:
            return source, []
        value = after.value
        if kinds - ({"text"} if isinstance(value, str) else {"integer", "real"}):
            raise other_watermark(after, self.place)
        # A parameter has no affinity, which a text that looks like a number depends on.
        return f"{source} WHERE {column} {'>' if after.is_read else '>='} ?", [value]

    def _watermark(
        self,
        connection: sqlite3.Connection,
        selection: Selection,
        condition: str,
        values: list[Any],
    ) -> Watermark | None:
        incremental = selection.sql.incremental
        if incremental is None:
            return None
        name = incremental.column
        found = self._one(connection, f"SELECT max({quoted(name)}) {condition}", values)
        if found is None and selection.after is not None:
            return selection.after
        if isinstance(found, float) and not math.isfinite(found):
            raise no_watermark(name, "real, with infinite values", "integer, real or text")
        return Watermark(column=name, value=found)
