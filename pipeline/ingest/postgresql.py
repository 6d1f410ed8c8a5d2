"""Read PostgreSQL: COPY through ADBC, by parallel queries that share one exported snapshot."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise
from queue import Empty, SimpleQueue
from threading import Event, Lock
from typing import Any, Final
from urllib.parse import parse_qsl, quote, urlsplit

import adbc_driver_manager
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from adbc_driver_postgresql import dbapi
from typing_extensions import override

from pipeline.config.ingest_rows import secrets_of
from pipeline.errors import ChunkmapError, SchemaChangedError, UsageError
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
from pipeline.ingest.errors import SourceDeniedError, SourceError, SourceUnavailableError
from pipeline.ingest.readings import ReadingWriter, Watermark
from pipeline.masking import MASK

CONNECT_SECONDS = 10
"""Seconds to wait for a server's first answer; `connect_timeout` in the address wins."""
RANGES_PER_CONNECTION = 4
"""Number of ranges per parallel query: where a range has more rows, others do not wait for it."""
_SESSION: Final = (
    "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY",
    "SET LOCAL client_encoding = 'UTF8'",
    "SET LOCAL TimeZone = 'UTC'",
    "SET LOCAL DateStyle = 'ISO, YMD'",
    "SET LOCAL IntervalStyle = 'iso_8601'",
    "SET LOCAL extra_float_digits = 1",
    "SET LOCAL standard_conforming_strings = on",
    # The connection that holds the snapshot waits for the others.
    "SET LOCAL idle_in_transaction_session_timeout = 0",
)
"""What makes a transaction a snapshot, and values the same texts everywhere."""
_NATIVE: Final = frozenset(
    {
        *("bool", "int2", "int4", "int8", "float4", "float8", "bytea"),
        *("text", "varchar", "bpchar", "name", "date", "time", "timestamp", "timestamptz"),
    }
)
"""Types whose values Arrow holds as they are."""
_AS_TEXT: Final = frozenset({"json", "jsonb", "uuid", "xml"})
"""Types that are read as their text."""
_WATERMARKS: Final[dict[str, str]] = {
    "int2": r"-?\d{1,5}",
    "int4": r"-?\d{1,10}",
    "int8": r"-?\d{1,19}",
    "numeric": r"-?\d+(\.\d+)?",
    "date": r"\d{4,}-\d\d-\d\d",
    "timestamp": r"\d{4,}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)?",
    "timestamptz": r"\d{4,}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)?\+00",
    "text": r"[^\x00]*",
    "varchar": r"[^\x00]*",
}
"""Types by which new rows can be found, with the pattern of their texts: no infinity, no NaN."""
_TIMES: Final = ("date", "timestamp", "timestamptz")
_MIN_YEAR, _MAX_YEAR = -4713, 262_142
"""Years of PostgreSQL's first date, and of the last date that Polars holds. Beyond them are
infinity, which Arrow does not have, and times that have overflowed."""
_DAY_US: Final = 86_400_000_000


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the result."""

    name: str
    kind: str
    """Type as PostgreSQL names it; with an underscore at the beginning, an array of that type."""
    typmod: int
    """Precision and scale of a numeric; -1 if it has none."""
    as_text: bool
    """Whether its text is read."""
    is_array: bool

    @property
    def expression(self) -> str:
        """How it is selected."""
        if not self.as_text:
            return quoted(self.name)
        return f"{quoted(self.name)}::text{'[]' if self.is_array else ''}"

    @property
    def decimal(self) -> pl.Decimal | None:
        """Type of a numeric with a precision; None for others."""
        if self.kind != "numeric" or self.typmod < 4:
            return None
        precision, scale = (self.typmod - 4) >> 16 & 0xFFFF, (self.typmod - 4) & 0x7FF
        return pl.Decimal(precision, scale) if scale <= precision <= 38 else None


class PostgreSQL(Database):
    """A PostgreSQL database."""

    def __init__(self, url: str, rows: str) -> None:
        self._url = url
        self._secrets = [url, *secrets_of(url)]
        self.place = f"{rows} of PostgreSQL"

    @override
    def has_rows(self, selection: Selection) -> bool:
        with self.session() as session:
            columns = session.columns(selection)
            source, _ = session.condition(selection, columns)
            return session.one(f"SELECT 1 {source} LIMIT 1") is not None

    @override
    def read(self, selection: Selection, writer: ReadingWriter) -> tuple[str, Watermark | None]:
        with self.session() as session:
            snapshot = str(session.one("SELECT pg_export_snapshot()"))
            columns = session.columns(selection)
            source, low = session.condition(selection, columns)
            watermark = session.watermark(selection, columns, source, low)
            queries = [
                _select(columns, source, part)
                for part in session.ranges(selection, columns, source)
            ]
            _Readers(self, snapshot, columns, queries, writer).run(selection.sql.connections)
        return snapshot, watermark

    @contextmanager
    def session(self, snapshot: str | None = None) -> Iterator[_Session]:
        """Open a transaction: of a snapshot of its own, or of one that another exports."""
        with self._errors(), ExitStack() as stack:
            connection = self._connect()
            stack.callback(_close, connection)
            cursor = connection.cursor()
            stack.callback(_close, cursor)
            isolation, *rest = _SESSION
            cursor.execute(isolation)
            if snapshot is not None:
                self._join(cursor, snapshot)
            for statement in rest:
                cursor.execute(statement)
            yield _Session(self, cursor)

    def _join(self, cursor: Any, snapshot: str) -> None:
        try:
            cursor.execute(f"SET TRANSACTION SNAPSHOT {literal(snapshot)}")
        except adbc_driver_manager.Error as error:
            if error.sqlstate != "22023":
                raise
            raise SourceError(
                "the snapshot of one connection to PostgreSQL is not known to another: "
                f"{self._message(error)}",
                hint="name one server in the address (sql.url), not a pool of several",
            ) from None

    def _connect(self) -> Any:
        options = {
            "application_name": "chunkmap ingest",
            "connect_timeout": str(CONNECT_SECONDS),
            # A server that is gone is noticed within a minute and a half.
            "keepalives_idle": "30",
            "keepalives_interval": "10",
            "keepalives_count": "6",
        }
        given = dict(parse_qsl(urlsplit(self._url).query))
        more = "&".join(f"{n}={quote(v, safe='')}" for n, v in options.items() if n not in given)
        try:
            return dbapi.connect(self._url + ("&" if "?" in self._url else "?") + more)
        except adbc_driver_manager.Error as error:
            raise self._unreachable(error) from None

    def _unreachable(self, error: adbc_driver_manager.Error) -> ChunkmapError:
        text = self._message(error)
        if re.search(_INVALID_ADDRESS, text):  # The message may hold a part of the password.
            return UsageError(
                "the address of the database is not valid (sql.url)",
                hint="write postgresql://user:password@host:port/database, with special characters "
                "of the password encoded, e.g. @ as %40",
            )
        for pattern, hint in _CONNECT_HINTS.items():
            if re.search(pattern, text):
                return SourceDeniedError(f"PostgreSQL cannot be reached: {text}", hint=hint)
        return SourceUnavailableError(
            f"PostgreSQL does not answer: {text}",
            hint="check that it is running and that the address is right (sql.url), then give the "
            "command again",
        )

    def _message(self, error: Exception) -> str:
        """Return the server's message, masked before it is cut: a part of a secret is one too."""
        text = str(error)
        for secret in self._secrets:
            text = text.replace(secret, MASK)
        return _message(text)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Translate the driver's errors."""
        try:
            yield
        except adbc_driver_manager.Error as error:
            raise self.translated(error) from None

    def translated(self, error: Any) -> ChunkmapError:
        """Return the error that an error of the driver means, by its SQLSTATE."""
        found = re.search(r"SQLSTATE: (\w{5})", str(error))
        state = getattr(error, "sqlstate", None) or (found[1] if found else "")
        text = self._message(error)
        if isinstance(error, adbc_driver_manager.NotSupportedError):
            return SourceError(
                f"{self.place} cannot be read: {text}", hint="cast the column in sql.query to text"
            )
        if not state or state[:2] in ("08", "57") or state in ("40001", "40P01"):
            hint = AGAIN if state != "57014" else f"raise statement_timeout of the user; or {AGAIN}"
            return SourceUnavailableError(f"reading {self.place} broke off: {text}", hint=hint)
        for prefix, hint in _HINTS.items():
            if state.startswith(prefix):
                kind = SourceDeniedError if prefix in _DENIED else SourceError
                return kind(f"{self.place} cannot be read: {text}", hint=hint)
        return SourceError(
            f"{self.place} cannot be read: {text} (SQLSTATE {state})",
            hint="fix the table or the query (sql.table, sql.query)",
        )


_INVALID_ADDRESS = (
    "invalid (?:URI|connection option|percent|integer|port|character)|forbidden value"
    "|unexpected character"
)
_CONNECT_HINTS = {
    "could not translate host name|Name or service not known": "fix the host in the address "
    "(sql.url)",
    "password authentication failed|no password supplied|fe_sendauth": "set the right password in "
    "the address (sql.url), PGPASSWORD or ~/.pgpass",
    'role "[^"]*" does not exist|Peer authentication failed|Ident authentication failed': "fix the "
    "user in the address: postgresql://USER:…@host/database (sql.url)",
    'database "[^"]*" does not exist': "fix the database in the address (sql.url)",
    "no pg_hba.conf entry": "let the server accept this user and address in pg_hba.conf",
    "certificate|SSL|sslmode": "fix the certificates or sslmode in the address (sql.url)",
}
"""Hints for errors of connecting that waiting does not fix, by a pattern of libpq's message."""
_DENIED = ("42501", "28")
_HINTS = {
    "42501": "let the owner grant the right: GRANT USAGE ON SCHEMA … and GRANT SELECT ON … to this "
    "user",
    "42P01": "fix the name (sql.table, sql.query); a table is spelled as the database stores it",
    "3F000": "fix the schema (sql.table, sql.query)",
    "25006": "use a query that only reads (sql.query)",
    "28": "check the user and the password in the address (sql.url)",
}
"""Hints by the beginning of the SQLSTATE."""


def _message(text: str) -> str:
    """Return the server's message without the driver's words around it."""
    text = re.sub(r"\. SQLSTATE: \w+$", "", text.strip()).strip()
    text = re.sub(r"\s*Query was:.*", "", text, flags=re.DOTALL)
    found = re.search(r"(?:ERROR|FATAL):\s+(.*)", text, re.DOTALL)
    text = found[1] if found else re.sub(r"^[A-Z_]+: (\[libpq\] )?", "", text)
    return " ".join(text.split())[:500]


def literal(text: str) -> str:
    """Return a text as a literal of SQL, for sessions with standard_conforming_strings."""
    return "'" + text.replace("'", "''") + "'"


def _close(opened: Any) -> None:
    with suppress(Exception):
        opened.close()


def _select(columns: Sequence[Column], source: str, part: str | None) -> str:
    """Return a query, with the dimensions of arrays after the columns."""
    names = [column.expression for column in columns]
    names += [f"array_ndims({quoted(c.name)})" for c in columns if c.is_array]
    more = "" if part is None else f" AND ({part})"
    return f"SELECT {', '.join(names)} {source}{more}"


class _Session:
    """A transaction that reads."""

    def __init__(self, database: PostgreSQL, cursor: Any) -> None:
        self._database, self.cursor = database, cursor

    def one(self, sql: str) -> Any:
        """Return the only value of a query; None without rows."""
        self.cursor.execute(sql)
        row = self.cursor.fetchone()
        return None if row is None else row[0]

    def columns(self, selection: Selection) -> list[Column]:
        """Return the columns of a selection.

        Raises:
            SourceError: One has a type that is not kept as it is.
        """
        self.cursor.execute(f"SELECT * FROM {selection.relation} LIMIT 0")
        schema = self.cursor.fetch_record_batch().schema
        place = self._database.place
        if not schema.names:
            raise UsageError(f"{place} has no columns", hint="select at least one")
        twice = [name for name in schema.names if schema.names.count(name) > 1]
        if twice:
            raise UsageError(
                f"{place} has two columns {twice[0]!r}", hint="rename one: SELECT … AS …"
            )
        return [_column(field, selection, place) for field in schema]

    # -- what is new -------------------------------------------------------------------------------

    def condition(self, selection: Selection, columns: list[Column]) -> tuple[str, str | None]:
        """Return FROM and WHERE, and with a lag the literal of the value that is not read yet."""
        source, incremental = f"FROM {selection.relation} WHERE true", selection.sql.incremental
        if incremental is None:
            return source, None
        place, name = self._database.place, incremental.column
        kinds = {column.name: column.kind for column in columns}
        if name not in kinds:
            raise no_column(name, place, kinds, "sql.incremental.column")
        kind = kinds[name]
        if kind not in _WATERMARKS or (incremental.lag is not None and kind not in _TIMES):
            allowed = list(_TIMES) if incremental.lag is not None else list(_WATERMARKS)
            raise no_watermark(name, kind, ", ".join(allowed))
        if self.one(f"SELECT 1 {source} AND {quoted(name)} IS NULL LIMIT 1") is not None:
            raise no_value(name, place)
        rules: list[str] = []
        after, low, high = selection.after, "", None
        if after is not None:
            if not re.fullmatch(_WATERMARKS[kind], str(after.value)):
                raise other_watermark(after, place)
            low = f"{literal(str(after.value))}::{kind}"
            rules.append(f"{quoted(name)} {'>' if after.is_read else '>='} {low}")
        if incremental.lag is not None:
            end = f"(now() - interval '{incremental.lag:f} seconds')::{kind}"
            start = end if after is None else f"greatest({end}, {low})"
            high = f"{literal(str(self.one(f'SELECT ({start})::text')))}::{kind}"
            rules.append(f"{quoted(name)} < {high}")
        return " AND ".join([source, *rules]), high

    def watermark(
        self, selection: Selection, columns: list[Column], source: str, high: str | None
    ) -> Watermark | None:
        """Return how far the column is read in this snapshot."""
        incremental = selection.sql.incremental
        if incremental is None:
            return None
        name = incremental.column
        kind = next(column.kind for column in columns if column.name == name)
        value = f"SELECT max({quoted(name)})::text {source}"
        found = self.one(value if high is None else f"SELECT ({high})::text")
        if found is None:
            return selection.after or Watermark(column=name, value=None)
        if not re.fullmatch(_WATERMARKS[kind], str(found)):
            raise no_watermark(name, f"{kind}, with the value {found}", "finite values")
        return Watermark(column=name, value=str(found), is_read=high is None)

    # -- ranges ------------------------------------------------------------------------------------

    def ranges(self, selection: Selection, columns: list[Column], source: str) -> list[str | None]:
        """Return conditions that divide the rows between queries; each row fits exactly one."""
        name = selection.sql.split_by
        if name is None:
            return [None]
        kinds = {column.name: column.kind for column in columns}
        if name not in kinds:
            raise no_column(name, self._database.place, kinds, "sql.split_by")
        if kinds[name] not in ("int2", "int4", "int8"):
            raise UsageError(
                f"column {name!r} has type {kinds[name]}, which is not split (sql.split_by)",
                hint="name a column of type smallint, integer or bigint, such as the key",
            )
        column = quoted(name)
        least, greatest = self.one(f"SELECT min({column}) {source}"), None
        if least is not None:
            greatest = self.one(f"SELECT max({column}) {source}")
        if least is None or greatest is None:
            return [None]
        return list(split(column, int(least), int(greatest), selection.sql.connections))


def split(column: str, least: int, greatest: int, connections: int) -> Iterator[str]:
    """Yield conditions for ranges of a column of about the same width.

    Together they hold every row, also those without a value, whatever the two numbers are.
    """
    count = min(connections * RANGES_PER_CONNECTION if connections > 1 else 1, greatest - least + 1)
    cuts = [least + (greatest - least + 1) * at // count for at in range(1, count)]
    if not cuts:
        yield "true"
        return
    yield f"{column} < {cuts[0]} OR {column} IS NULL"
    for low, high in pairwise(cuts):
        yield f"{column} >= {low} AND {column} < {high}"
    yield f"{column} >= {cuts[-1]}"


def _column(field: pa.Field, selection: Selection, place: str) -> Column:
    metadata = field.metadata or {}
    if b"POSTGRESQL:type" not in metadata:
        raise UsageError(
            "adbc-driver-postgresql does not say which types columns have",
            hint="pip install --upgrade 'chunkmap[sql]'",
        )
    kind = metadata[b"POSTGRESQL:type"].decode(errors="replace")
    typmod = int(metadata.get(b"POSTGRESQL:typmod", b"-1"))
    declared = selection.declared.get(field.name)
    is_array = pa.types.is_list(field.type)
    inner = kind.removeprefix("_") if is_array else kind
    if inner in _AS_TEXT or kind == "numeric":
        column = Column(field.name, kind, typmod, as_text=True, is_array=is_array)
        if kind == "numeric" and column.decimal is None and declared is None:
            raise SourceError(
                f"column {field.name!r} of {place} is a numeric without a precision that a decimal "
                "can have",
                hint=f"declare its type, e.g. types: {{{field.name}: "
                f'"decimal[38, 9]"}}, or cast it in sql.query: {field.name}::numeric(18, 2)',
            )
        return column
    # Enums are texts, whatever their names are.
    if inner in _NATIVE or pa.types.is_string(field.type):
        return Column(field.name, kind, typmod, as_text=False, is_array=is_array)
    if declared == pl.String():
        return Column(field.name, inner, typmod, as_text=True, is_array=False)
    raise SourceError(
        f"column {field.name!r} of {place} has type {_type_name(kind)}, whose values no type keeps "
        "as they are",
        hint=f"declare it as text, types: {{{field.name}: string}}, or cast it in sql.query, e.g. "
        f"{field.name}::text",
    )


def _type_name(kind: str) -> str:
    return f"{kind[1:]}[]" if kind.startswith("_") else kind


class _Readers:
    """Reads the queries of a snapshot in threads, each on a connection of its own."""

    def __init__(
        self,
        database: PostgreSQL,
        snapshot: str,
        columns: Sequence[Column],
        queries: Sequence[str],
        writer: ReadingWriter,
    ) -> None:
        self._database, self._snapshot, self._columns = database, snapshot, columns
        self._writer, self._count = writer, len(queries)
        self._queue: SimpleQueue[tuple[int, str]] = SimpleQueue()
        for numbered in enumerate(queries):
            self._queue.put(numbered)
        self._stop = Event()
        self._cursors: list[Any] = []
        self._lock = Lock()

    def run(self, connections: int) -> None:
        """Read everything; the first error ends all queries, and is raised."""
        threads = min(connections, self._count)
        with ThreadPoolExecutor(threads) as pool:
            futures = [pool.submit(self._read) for _ in range(threads)]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
                failed = [f for f in futures if f.done() and f.exception() is not None]
                if failed:
                    failed[0].result()
            finally:
                self._cancel()

    def _cancel(self) -> None:
        self._stop.set()
        with self._lock:
            for cursor in self._cursors:
                with suppress(Exception):
                    cursor.adbc_cancel()

    def _read(self) -> None:
        with self._database.session(self._snapshot) as session:
            with self._lock:
                self._cursors.append(session.cursor)
            try:
                while not self._stop.is_set():
                    number, query = self._queue.get_nowait()
                    self._read_query(session, number, query)
            except Empty:
                pass
            finally:
                with self._lock:
                    self._cursors.remove(session.cursor)

    def _read_query(self, session: _Session, number: int, query: str) -> None:
        session.cursor.execute(query)
        stream = self._writer.stream(number)
        with session.cursor.fetch_record_batch() as reader:
            if number == 0:  # A result without rows has columns.
                stream.add(_frame(reader.schema.empty_table(), self._columns, self._database.place))
            while (batch := self._next(reader)) is not None and not self._stop.is_set():
                table = pa.Table.from_batches([batch])
                stream.add(_frame(table, self._columns, self._database.place))
        stream.close()

    def _next(self, reader: pa.RecordBatchReader) -> pa.RecordBatch | None:
        try:
            return reader.read_next_batch()
        except StopIteration:
            return None
        except (OSError, pa.ArrowException) as error:
            # While a result is read, pyarrow raises errors of its own.
            raise self._database.translated(error) from None


# -- values ----------------------------------------------------------------------------------------


def _frame(table: pa.Table, columns: Sequence[Column], place: str) -> pl.DataFrame:
    """Return rows as a frame, after checks of values that the driver does not keep as they are.

    Raises:
        SchemaChangedError: There is one.
    """
    dimensions = iter(range(len(columns), table.num_columns))
    series = []
    for column, values in zip(columns, table.columns, strict=False):
        if column.is_array:
            deepest = pc.max(table.column(next(dimensions))).as_py()
            if (deepest or 0) > 1:
                raise _lost(column, place, f"an array of {deepest} dimensions")
        series.append(_series(column, values, place))
    return pl.DataFrame(series, height=table.num_rows)


def _series(column: Column, values: pa.ChunkedArray, place: str) -> pl.Series:
    for chunk in values.chunks:
        _check_range(column, chunk, place)
    try:
        values.validate(full=True)
    except pa.ArrowInvalid as error:
        raise _lost(column, place, str(error).splitlines()[0]) from None
    found: Any = pl.from_arrow(values)
    result = pl.Series(column.name, found)
    if column.decimal is None:
        return result
    cast = result.cast(column.decimal, strict=False)
    wrong = (cast.is_null() & result.is_not_null()).arg_true()
    if len(wrong):
        raise _lost(column, place, str(result[int(wrong[0])]))
    return cast


def _check_range(column: Column, values: pa.Array, place: str) -> None:
    kind = values.type
    if pa.types.is_list(kind):
        _check_range(column, values.flatten(), place)
    elif pa.types.is_timestamp(kind):
        _check_between(column, values.view(pa.int64()), _DAY_US, place)
    elif pa.types.is_date32(kind):
        _check_between(column, values.view(pa.int32()), 1, place)
    elif pa.types.is_time64(kind):
        greatest = pc.max(values.view(pa.int64())).as_py()
        if greatest is not None and greatest >= _DAY_US:
            raise _lost(column, place, "the time 24:00")


def _check_between(column: Column, values: pa.Array, day: int, place: str) -> None:
    found = pc.min_max(values).as_py()
    if found["min"] is None:
        return
    days = Decimal("365.2425") * day
    if found["min"] < (_MIN_YEAR - 1970) * days or found["max"] > (_MAX_YEAR - 1970) * days:
        raise _lost(column, place, "a date that is infinite, or too far away")


def _lost(column: Column, place: str, value: str) -> SchemaChangedError:
    return SchemaChangedError(
        f"column {column.name!r} of {place} has {value[:100]}, which type "
        f"{_type_name(column.kind)} does not keep in Parquet",
        hint=f"leave such rows out in sql.query, or cast the column, e.g. {column.name}::text",
    )
