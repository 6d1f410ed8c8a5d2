"""Load into PostgreSQL: COPY through ADBC, in the transaction that records the commit."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

import adbc_driver_manager
import pyarrow as pa
from adbc_driver_postgresql import dbapi
from typing_extensions import override

from pipeline.errors import ChunkmapError
from pipeline.load.column_types import POSTGRES, Dialect
from pipeline.load.destination import (
    STAGING,
    Destination,
    Session,
    TableColumn,
    TableName,
)
from pipeline.load.errors import (
    DestinationBusyError,
    DestinationError,
    DestinationUnavailableError,
    LoadFailedError,
)
from pipeline.masking import MASK

WAIT_SECONDS = 300.0
"""Seconds to wait for another load of the same table."""
CONNECT_SECONDS = 10
"""Seconds to wait for a server's first answer; a parameter `connect_timeout` in the URI wins."""


@dataclass(frozen=True)
class PostgreSQL(Destination):
    """A PostgreSQL database."""

    uri: str
    """URI of libpq without a password."""
    password: str | None = field(default=None, repr=False)
    """Password; None leaves it to libpq (PGPASSWORD, ~/.pgpass, …)."""
    wait_seconds: float = WAIT_SECONDS
    dialect: Dialect = POSTGRES

    @property
    @override
    def where(self) -> str:
        parts = urlsplit(self.uri)
        options = dict(parse_qsl(parts.query))
        place = parts.netloc or options.get("host", "")
        return f"PostgreSQL database {parts.path.strip('/') or options.get('dbname', '')}" + (
            f" at {place}" if place else ""
        )

    @override
    def connect(self) -> Session:
        with self._connecting():
            return PostgresSession(self, dbapi.connect(self._address()))

    @override
    def look(self) -> Session | None:
        return self.connect()

    def _address(self) -> str:
        options = {
            "application_name": "chunkmap load",
            "connect_timeout": str(CONNECT_SECONDS),
            # A server that is gone is noticed within a minute and a half.
            "keepalives_idle": "30",
            "keepalives_interval": "10",
            "keepalives_count": "6",
        }
        given = dict(parse_qsl(urlsplit(self.uri).query))
        if self.password is not None:
            options["password"] = self.password
        more = "&".join(f"{n}={quote(v, safe='')}" for n, v in options.items() if n not in given)
        return self.uri + ("&" if "?" in self.uri else "?") + more

    @contextmanager
    def _connecting(self) -> Iterator[None]:
        """Translate errors of connecting."""
        try:
            yield
        except adbc_driver_manager.Error as error:
            text = self.without_password(_message(error))
            for pattern, hint in _CONNECT_HINTS.items():
                if re.search(pattern, text):
                    raise DestinationError(
                        f"{self.where} cannot be reached: {text}", hint=hint
                    ) from None
            raise DestinationUnavailableError(
                f"{self.where} does not answer: {text}",
                hint="check that it is running and that the address is right (into.uri), then load "
                "again: nothing is loaded twice",
            ) from None

    def without_password(self, text: str) -> str:
        """Return a text without the password, in case that a message repeats it."""
        for secret in filter(None, (self.password, self.password and quote(self.password))):
            text = text.replace(secret, MASK)
        return text


_CONNECT_HINTS = {
    "could not translate host name|Name or service not known": "fix the host (into.uri)",
    "password authentication failed|no password supplied|fe_sendauth": "set the right password: "
    "PGPASSWORD, ~/.pgpass, into.password_env or into.password_block",
    'role "[^"]*" does not exist|Peer authentication failed|Ident authentication failed': "fix the "
    "user (into.uri: postgresql://USER@host/database)",
    'database "[^"]*" does not exist': "fix the database (into.uri), or create it: CREATE DATABASE",
    "no pg_hba.conf entry": "let the server accept this user and address in pg_hba.conf",
    "certificate|SSL|sslmode": "fix the certificates or sslmode (into.uri)",
    "invalid (?:URI|connection option)|invalid percent": "fix the URI (into.uri)",
}
"""Hints for errors of connecting that waiting does not fix, by a pattern of libpq's message."""


def _message(error: Exception) -> str:
    """Return the server's message without the driver's words around it."""
    text = str(error).strip()
    text = re.sub(r"\. SQLSTATE: \w+$", "", text).strip()
    found = re.search(r"(?:ERROR|FATAL):\s+(.*)", text, re.DOTALL)
    text = found[1] if found else re.sub(r"^[A-Z_]+: (\[libpq\] )?", "", text)
    return " ".join(re.sub(r"\s*Query was:.*", "", text, flags=re.DOTALL).split())


class PostgresSession(Session):
    """A connection to PostgreSQL, with its transaction."""

    dialect = POSTGRES

    def __init__(self, database: PostgreSQL, connection: Any) -> None:
        self._database, self._connection = database, connection
        self._cursor = connection.cursor()

    @override
    def begin(self, table: TableName) -> None:
        # With one snapshot per transaction, the default of some servers and users, it would not
        # see what loads that it has waited for have committed.
        self.run("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
        schema = table.schema or str(self.rows("SELECT current_schema()")[0][0])
        self._lock(f"{schema}.{table.name}")

    def _lock(self, name: str) -> None:
        """Lock a name until the transaction ends."""
        digest = hashlib.sha256(f"chunkmap load {name}".encode()).digest()
        key = int.from_bytes(digest[:8], signed=True)
        deadline = time.monotonic() + self._database.wait_seconds
        while not self.rows("SELECT pg_try_advisory_xact_lock($1)", (key,))[0][0]:
            if time.monotonic() >= deadline:
                holder = self.rows(
                    "SELECT min(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted "
                    "AND ((classid::bigint << 32) | objid::bigint) = $1",
                    (key,),
                )[0][0]
                raise DestinationBusyError(
                    f"another load of table {name} of {self._database.where} is running "
                    f"(its server process is {holder})",
                    hint="wait until it is done, then load again: nothing is loaded twice",
                )
            time.sleep(0.1)

    @override
    def commit(self) -> None:
        with self._errors():
            self._connection.commit()

    @override
    def rollback(self) -> None:
        with suppress(Exception):
            self._connection.rollback()

    @override
    def close(self) -> None:
        with suppress(Exception):
            self._cursor.close()
        with suppress(Exception):
            self._connection.close()

    @override
    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self._errors():
            self._cursor.execute(sql, parameters=tuple(parameters) or None)
            return list(self._cursor.fetchall())

    @override
    def run(self, sql: str, parameters: Sequence[Any] = ()) -> int:
        with self._errors():
            self._cursor.execute(sql, parameters=tuple(parameters) or None)
            return max(0, int(self._cursor.rowcount))

    @override
    def columns(self, table: TableName) -> dict[str, TableColumn] | None:
        found = self.rows(
            "SELECT a.attname, format_type(a.atttypid, a.atttypmod), "
            "a.atthasdef OR a.attidentity <> '' OR a.attgenerated <> '' "
            "FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid "
            "JOIN pg_namespace n ON n.oid = c.relnamespace "
            "WHERE n.nspname = coalesce($1::text, current_schema()::text) AND c.relname = $2 "
            "AND c.relkind IN ('r', 'p', 'v', 'f') AND a.attnum > 0 AND NOT a.attisdropped "
            "ORDER BY a.attnum",
            (table.schema, table.name),
        )
        return {str(n): TableColumn(str(k), bool(d)) for n, k, d in found} or None

    @override
    def schema_exists(self, name: str) -> bool:
        return bool(self.rows("SELECT 1 FROM pg_namespace WHERE nspname = $1", (name,)))

    @override
    def insert(self, table: TableName, reader: pa.RecordBatchReader) -> int:
        before = self._inserted(table)
        with self._errors():
            sent = self._cursor.adbc_ingest(
                table.name, reader, mode="append", db_schema_name=table.schema
            )
        # The driver counts what it sends; a trigger may drop some of it.
        after = self._inserted(table)
        return int(sent) if before is None or after is None else after - before

    def _inserted(self, table: TableName) -> int | None:
        """Return the rows that this transaction has inserted into a table, if the server counts.

        It does not where `track_counts` is off, and for views and foreign tables.
        """
        [(counted,)] = self.rows(
            "SELECT CASE WHEN current_setting('track_counts')::bool "
            "AND c.relkind IN ('r', 'p') THEN (SELECT coalesce(sum("
            "pg_stat_get_xact_tuples_inserted(coalesce(p.relid, c.oid))), 0)::bigint "
            "FROM (SELECT 1) AS one LEFT JOIN pg_partition_tree(c.oid) AS p ON true) END "
            "FROM pg_class AS c WHERE c.oid = $1::regclass",
            (table.sql,),
        )
        return None if counted is None else int(counted)

    @override
    def create_staging(self, columns: str) -> TableName:
        table = TableName("pg_temp", STAGING)
        self.run(f"CREATE TEMPORARY TABLE {table.sql} ({columns}) ON COMMIT DROP")
        return table

    @override
    def drop_staging(self) -> None:
        self.run(f"DROP TABLE {TableName('pg_temp', STAGING).sql}")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Translate the driver's errors by SQLSTATE."""
        try:
            yield
        except adbc_driver_manager.Error as error:
            raise self._translated(error) from None

    def _translated(self, error: Any) -> ChunkmapError:
        state = error.sqlstate or ""
        text = self._database.without_password(_message(error))
        where = self._database.where
        again = "load again: nothing is loaded twice"
        is_stopped = state[:2] in ("08", "57") and state != _CANCELLED
        if not state or is_stopped or state in ("40001", "40P01"):
            return DestinationUnavailableError(
                f"the transaction with {where} broke off: {text}",
                hint=f"check that it is running, then {again}",
            )
        if state == "55P03":
            return DestinationBusyError(f"{where}: {text}", hint=f"wait, then {again}")
        for prefix, hint in _HINTS.items():
            if state.startswith(prefix):
                kind = DestinationError if prefix in _SETTINGS else LoadFailedError
                return kind(f"{where}: {text}", hint=hint)
        return LoadFailedError(f"{where}: {text} (SQLSTATE {state})")


_CANCELLED = "57014"
_SETTINGS = ("42501", "3F000", "25006", "28")
_HINTS = {
    "42501": "let the database's owner grant the right, e.g. GRANT USAGE, CREATE ON SCHEMA … and "
    "GRANT SELECT, INSERT, UPDATE, DELETE ON … to this user",
    "3F000": "create the schema: CREATE SCHEMA …",
    "25006": "load into the primary server: this one is read-only",
    "28": "check the user and the password",
    "53100": "free space on the database's disk, then load again: nothing is loaded twice",
    _CANCELLED: "raise the time limit of this user (ALTER ROLE … SET statement_timeout), or see "
    "who has cancelled it; then load again: nothing is loaded twice",
    "53": "give the database more resources, then load again: nothing is loaded twice",
    "22021": "remove U+0000 from text in the transform: PostgreSQL cannot store it",
    "22P05": "remove U+0000 from text in the transform: PostgreSQL cannot store it",
    "23": "fix the rows in the transform, or the table's constraint",
    "22": "cast the column in the transform, or change its type in the table",
    "P0001": "see the trigger or rule of the table that raises it",
}
"""Hints by the beginning of the SQLSTATE; the first that fits."""
