"""A SQL database as the source of an ingest: read once, in one snapshot, then left alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pipeline.config.ingest import Ingest, SecretPlace
from pipeline.config.ingest_rows import DatabaseUrl, Incremental, Sql, database_kind
from pipeline.errors import ConflictError, UsageError
from pipeline.ingest.database import Database, Selection
from pipeline.ingest.fetch import FetchProgress
from pipeline.ingest.plan import declared_types
from pipeline.ingest.readings import (
    BEGAN_AGAIN,
    PartRows,
    Reading,
    ReadingWriter,
    Watermark,
    discard_others,
    has_parts,
    load_reading,
)
from pipeline.ingest.rows import Rows
from pipeline.ingest.store import IngestStore, ingest_id, place_of
from pipeline.table.log import TableLog


def read_url(place: DatabaseUrl, secret_of: Callable[[SecretPlace], str | None]) -> str:
    """Return the address of a database. Errors do not show it.

    Raises:
        UsageError: It is missing, or is no address.
    """
    if place.value is not None:
        return place.value
    url = (secret_of(place) or "").strip()
    if not url:
        raise UsageError(
            f"the {place.where} holds no address (sql.url)",
            hint=f"export {place.env}=postgresql://…" if place.env else "set its value in Prefect",
        )
    try:
        database_kind(url)
    except ValueError as error:
        raise UsageError(f"the address in the {place.where} {error} (sql.url)") from None
    return url


def open_database(url: str, sql: Sql) -> Database:
    """Return the database at an address; nothing is connected yet.

    Raises:
        ModuleNotFoundError: The package of its driver is not installed.
    """
    if database_kind(url) == "sqlite":
        from pipeline.ingest.sqlite import SQLite

        path = url.partition(":")[2]
        return SQLite(path.removeprefix("//"), sql.rows)
    from pipeline.ingest.postgresql import PostgreSQL

    return PostgreSQL(url, sql.rows)


@dataclass(slots=True)
class SqlSource:
    """A table, or the result of a query."""

    definition: Ingest
    sql: Sql
    table_log: TableLog
    secret_of: Callable[[SecretPlace], str | None]
    listen: Callable[[FetchProgress], None]
    fetched: FetchProgress = field(default_factory=FetchProgress)
    notes: tuple[str, ...] = ()
    _opened: Database | None = None

    @property
    def place(self) -> str:
        """What is read, without the address."""
        return self.sql.rows if self._opened is None else self._opened.place

    def prepare(self) -> None:
        """Look the address up."""
        self._database()

    def store(self, prefix: IngestStore) -> IngestStore:
        """Return the store as it is."""
        return prefix

    def left(self, before: Sequence[IngestStore]) -> bool:
        """Whether there are rows after those that the output has."""
        if self.sql.incremental is None:
            return False
        return self._database().has_rows(self._selection(self._after(None)))

    def begin(self, store: IngestStore) -> None:
        """Store nothing: what is read follows from the output, until it is read."""

    def rows(self, store: IngestStore) -> Rows:
        """Read all rows in one snapshot, unless that is done."""
        after = self._after(store.ingest)
        reading = load_reading(store)
        if reading is None:
            if has_parts(store):
                self.notes = (BEGAN_AGAIN,)
            writer = ReadingWriter(store, self._heard)
            snapshot, watermark = self._database().read(self._selection(after), writer)
            reading = writer.finish(self.definition.name, snapshot, after, watermark)
        if reading.after != after:
            raise ConflictError(
                f"ingest {store.ingest} has read rows from {_shown(reading.after)} on, and the "
                f"output has changed since: it ends at {_shown(after)}",
                hint=store.begin_again,
            )
        discard_others(store, reading.reading)
        return PartRows(store, reading, self.place)

    def _heard(self, progress: FetchProgress) -> None:
        self.fetched = progress
        self.listen(progress)

    def _database(self) -> Database:
        if self._opened is None:
            self._opened = open_database(read_url(self.sql.url, self.secret_of), self.sql)
        return self._opened

    def _selection(self, after: Watermark | None) -> Selection:
        return Selection(self.sql, after, declared_types(self.definition))

    def _after(self, own: str | None) -> Watermark | None:
        """Return how far the output has been read: by this definition, or one of the same name.

        What is rolled back does not count, so the next ingest reads it again.

        Args:
            own: An ingest that does not count; None if all do.
        """
        incremental = self.sql.incremental
        if incremental is None:
            return None
        log = self.table_log
        for entry in reversed(log.manifest().commits):
            store = IngestStore(log.storage, log.output, entry.run)
            reading = None if entry.run == own else load_reading(store)
            if reading is None or not self._is_ours(store, reading):
                continue
            if reading.watermark is None or reading.watermark.column != incremental.column:
                raise _read_otherwise(log.output, reading, incremental)
            if reading.watermark.value is not None:
                return reading.watermark
        return None

    def _is_ours(self, store: IngestStore, reading: Reading) -> bool:
        """Whether a reading is of this definition, or of one of the same name."""
        if reading.name == self.definition.name:
            return True
        record, place = store.record(), place_of(self.definition)
        if record is None or record.place not in ("", place):
            return False
        ids = (ingest_id(self.definition, record.round, where) for where in ("", place))
        return store.ingest in ids


def _read_otherwise(output: str, reading: Reading, incremental: Incremental) -> UsageError:
    """Return the error for rows that were read by another column: they would be there twice."""
    before = "as a whole" if reading.watermark is None else f"by {reading.watermark.column!r}"
    return UsageError(
        f"{output} has the rows of ingest {reading.ingest}, which were read {before}; by "
        f"{incremental.column!r} they would be read again (sql.incremental.column)",
        hint="ingest into another output, or under another name if the rows are others",
    )


def _shown(mark: Watermark | None) -> str:
    return "the beginning" if mark is None else repr(mark.value)
