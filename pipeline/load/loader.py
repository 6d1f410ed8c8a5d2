"""Load an output into a database: pin a version, then commit by commit what the table lacks."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from pipeline.config.settings import Settings
from pipeline.errors import ChunkmapError, UsageError, is_transient
from pipeline.load.batches import BatchStream, OutputVersion, check_error, sums_text, total_of
from pipeline.load.column_types import Column
from pipeline.load.columns import Differences, columns_of, named
from pipeline.load.destination import Destination, Session, TableName, quoted
from pipeline.load.errors import (
    DestinationBusyError,
    DestinationError,
    LoadFailedError,
    TableMismatchError,
)
from pipeline.load.ledger import LEDGER, LoadLedger
from pipeline.load.plan import CommitFiles, LoadedCommit, Mode, pending
from pipeline.load.records import Listener, LoadMeter, LoadSummary
from pipeline.report.humanize import plural
from pipeline.storage import Storage
from pipeline.storage.outages import retry_until_available


@dataclass(frozen=True)
class LoadRequest:
    """What is loaded, and how."""

    output: str
    """URI of the output."""
    table: TableName
    mode: Mode = "append"
    key: tuple[str, ...] = ()
    """Columns by which rows are merged."""
    widen: bool = False
    """Whether the table gets the columns that it lacks."""
    version: int | None = None
    """Number of a manifest; default the current."""


def load(
    request: LoadRequest,
    destination: Destination,
    settings: Settings,
    storage: Storage,
    listen: Listener = lambda progress: None,
) -> LoadSummary:
    """Load what the table lacks of a version; to call it again loads nothing twice.

    Raises:
        DestinationError, TableMismatchError, ReplacedCommitsError: Nothing was loaded.
        LoadFailedError: The database refuses rows; commits before it are loaded.
        DestinationUnavailableError, DestinationBusyError: Call it again.
    """
    return Loader.of(request, destination, settings, storage, listen).run()


def preview(
    request: LoadRequest, destination: Destination, settings: Settings, storage: Storage
) -> LoadSummary:
    """Return what `load` would do; writes nothing. Raises as `load`."""
    return Loader.of(request, destination, settings, storage).preview()


@dataclass
class Loader:
    """Loads one version of an output into one table.

    Each transaction waits for other loads of the table, reads what the table has, loads the first
    commit that it lacks, and records it. So whatever happened to the transaction before, e.g. if
    the reply to its COMMIT was lost, the next one finds out.
    """

    request: LoadRequest
    destination: Destination
    source: OutputVersion
    columns: tuple[Column, ...]
    meter: LoadMeter
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    _session: Session | None = None
    _has_answered: bool = False
    _held: int | None = None
    _created: bool = False
    _added: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        request: LoadRequest,
        destination: Destination,
        settings: Settings,
        storage: Storage,
        listen: Listener = lambda progress: None,
    ) -> Loader:
        """Pin the version, and refuse what no attempt can load."""
        if destination.dialect.fold(request.table.name) == LEDGER:
            raise UsageError(f"{LEDGER} records what was loaded and cannot be loaded into")
        limit = destination.dialect.max_name_bytes
        for name in (request.table.schema, request.table.name):
            if limit is not None and len((name or "").encode()) > limit:
                raise UsageError(
                    f"the name {name} is longer than {limit} bytes, and "
                    f"{destination.dialect.name} would cut it",
                    hint="choose a shorter one",
                )
        source = OutputVersion.of(settings, storage, request.output, request.version)
        columns = columns_of(source, destination.dialect, destination.where)
        names = [column.name for column in columns]
        for name in request.key:
            if name not in names:
                raise UsageError(
                    f"{source.version.output} has no column {name} to merge by",
                    hint="its columns: " + named(names),
                )
        return cls(request, destination, source, columns, LoadMeter(listen))

    def run(self) -> LoadSummary:
        """Load until nothing is pending."""
        try:
            while self._step_again():
                pass
        finally:
            self._disconnect()
        return self._summary()

    def _step_again(self) -> bool:
        try:
            return self._step()
        except ChunkmapError as error:
            if not (is_transient(error) and self._is_outage(error)):
                raise
        return retry_until_available(self._step)

    def _is_outage(self, error: ChunkmapError) -> bool:
        """Whether a transient error is worth waiting for.

        That of an address that has never answered is not, nor that of another load, which was
        waited for.
        """
        if isinstance(error, DestinationBusyError):
            return self._held is not None
        return self._has_answered

    def _step(self) -> bool:
        """Do one transaction; returns whether more may be pending."""
        session = self._session = self._session or self.destination.connect()
        self._has_answered = True
        try:
            more = self._transaction(session)
        except BaseException:
            # It may be broken, so the next attempt begins with a new one.
            self._disconnect()
            raise
        return more

    def _disconnect(self) -> None:
        if self._session is not None:
            self._session.rollback()
            self._session.close()
            self._session = None

    def _transaction(self, session: Session) -> bool:
        version, request = self.source.version, self.request
        session.begin(request.table)
        self._check_schema(session)
        ledger = LoadLedger(session, request.table)
        if not ledger.exists():
            self._create_ledger(session, ledger)
        if session.columns(request.table) is None and ledger.forget_all():
            # The loaded rows are gone with the table. Committed first, because DuckDB refuses a key
            # that the same transaction has deleted.
            session.commit()
            return True
        loaded = ledger.read(version.output)
        self._count(loaded)
        todo = self._pending(session, loaded)
        if self._held is None:
            self._held = len(loaded) if request.mode != "replace" or not todo else 0
            self.meter.expect(todo)
        if not todo:
            session.rollback()
            return False
        commits = todo if request.mode == "replace" else todo[:1]
        created, added = self._prepare_table(session)
        if request.mode == "replace":
            self._empty(session, ledger)
        before = self.meter.sent
        try:
            stream = self._insert(session, commits)
        except BaseException:
            self.meter.sent = before
            raise
        known = {commit.name for commit in loaded}
        for commit in commits:
            write = ledger.renew if commit.name in known else ledger.record
            write(
                version.output, version.manifest, commit, self.id,
                sums_text(stream.sums[commit.name]),
            )  # fmt: skip
        if request.mode == "replace":
            ledger.forget(version.output, sorted(known - {commit.name for commit in commits}))
        self._created, self._added = self._created or created, self._added or added
        session.commit()
        self.meter.done |= {commit.name: commit.rows for commit in commits}
        self.meter.tell()
        return request.mode != "replace"

    def _pending(
        self, session: Session | None, loaded: Sequence[LoadedCommit]
    ) -> tuple[CommitFiles, ...]:
        """Return the commits that are to be loaded.

        A table that has lost rows, e.g. by TRUNCATE, is replaced although its commits are loaded.
        """
        version, request = self.source.version, self.request
        todo = pending(version, loaded, request.mode, f"table {request.table}")
        if session is not None and request.mode == "replace" and loaded and not todo:
            is_whole = self._rows(session) >= sum(commit.rows for commit in loaded)
            return () if is_whole else version.commits
        return todo

    def _rows(self, session: Session) -> int:
        [(count,)] = session.rows(f"SELECT count(*) FROM {self.request.table.sql}")
        return int(count)

    def _create_ledger(self, session: Session, ledger: LoadLedger) -> None:
        """Create the ledger's table, and begin the transaction again.

        It has a transaction of its own: in that of a commit, the first loads of all other tables
        of the schema would wait until its rows are sent, and then fail.
        """
        session.rollback()
        session.begin(ledger.name)
        ledger.create()
        session.commit()
        session.begin(self.request.table)

    def _count(self, loaded: Sequence[LoadedCommit]) -> None:
        """Count commits whose transaction is committed although its reply was lost."""
        self.meter.done |= {commit.name: commit.rows for commit in loaded if commit.load == self.id}

    def _check_schema(self, session: Session) -> None:
        schema = self.request.table.schema
        if schema is not None and not session.schema_exists(schema):
            raise DestinationError(
                f"{self.destination.where} has no schema {schema}",
                hint=f"create it: CREATE SCHEMA {quoted(schema)}",
            )

    # -- the table --------------------------------------------------------------------------------

    def _prepare_table(self, session: Session) -> tuple[bool, tuple[str, ...]]:
        """Create or widen the table, or check that it fits; returns what was done."""
        table = self.request.table
        created, lacking = self._changes(session)
        if created:
            session.run(f"CREATE TABLE {table.sql} ({_definitions(self.columns)})")
        for column in lacking:
            definition = _definitions([column])
            session.run(f"ALTER TABLE {table.sql} ADD COLUMN {definition}")
        return created, tuple(column.name for column in lacking)

    def _changes(self, session: Session) -> tuple[bool, tuple[Column, ...]]:
        """Return whether the table must be created, and the columns that it must get.

        Raises:
            TableMismatchError: Its columns differ in another way.
        """
        table = self.request.table
        existing = session.columns(table)
        if existing is None:
            return True, ()
        spellings = {column.name: session.spelled(column.type.sql) for column in self.columns}
        differences = Differences.between(self.columns, existing, session.dialect, spellings)
        problems = differences.problems(widen=self.request.widen)
        if problems:
            raise TableMismatchError(
                f"table {table} does not have the columns of {self.source.version.output}: "
                + "; ".join(problems),
                hint=self._advice(differences),
            )
        return False, differences.lacking

    def _advice(self, differences: Differences) -> str:
        table = self.request.table.sql
        if differences.others:
            column, _ = differences.others[0]
            return (
                f"change the table (ALTER TABLE {table} ALTER COLUMN {quoted(column.name)} TYPE "
                f"{column.type.sql}), cast the column in the transform, or load into another table"
            )
        if differences.unknown:
            column_name = quoted(differences.unknown[0])
            return (
                f"drop the column (ALTER TABLE {table} DROP COLUMN {column_name}), give it a "
                "default, or load into another table"
            )
        return f"let {plural(len(differences.lacking), 'column')} be added: --schema widen"

    def _empty(self, session: Session, ledger: LoadLedger) -> None:
        """Delete all rows of a table that holds nothing but this output.

        After merges, rows of others are noticed only if they are more than rows were replaced.
        """
        table, output = self.request.table, self.source.version.output
        other = ledger.other_output(output)
        if other is not None:
            raise LoadFailedError(
                f"table {table} also has rows of {other}, which mode replace would delete",
                hint="load each output into a table of its own, or use mode append or merge",
            )
        foreign = self._rows(session) - sum(commit.rows for commit in ledger.read(output))
        if foreign > 0:
            raise LoadFailedError(
                f"table {table} has {plural(foreign, 'row')} that no load has brought, which mode "
                "replace would delete",
                hint="delete them there, or load into another table",
            )
        session.run(f"DELETE FROM {table.sql}")

    # -- the rows ---------------------------------------------------------------------------------

    def _insert(self, session: Session, commits: Sequence[CommitFiles]) -> BatchStream:
        """Insert the rows of commits, and reconcile them with the manifest."""
        table = self.request.table
        stream = BatchStream(self.source, self.columns, commits, self.meter.count, with_sums=True)
        expected = sum(commit.rows for commit in commits)
        if not (self.request.mode == "merge" or self._needs_casts(session)):
            self._send(session, table, stream, expected)
            if self.request.mode == "replace":
                self._reconcile(session, table, stream, expected)
            return stream
        staging = session.create_staging(_definitions(self.columns))
        self._send(session, staging, stream, expected)
        self._reconcile(session, staging, stream, expected)
        names = ", ".join(quoted(column.name) for column in self.columns)
        if self.request.mode == "merge":
            self._merge(session, staging, expected)
        else:
            inserted = session.run(
                f"INSERT INTO {table.sql} ({names}) SELECT {names} FROM {staging.sql}"
            )
            self._check_inserted(inserted, expected)
        session.drop_staging()
        return stream

    def _needs_casts(self, session: Session) -> bool:
        """Whether columns of the table have other types than those in which values are sent."""
        existing = session.columns(self.request.table) or {}
        kinds = {session.dialect.fold(name): column.kind for name, column in existing.items()}
        return any(
            kinds[session.dialect.fold(column.name)] != session.spelled(column.type.sql)
            for column in self.columns
        )

    def _send(self, session: Session, table: TableName, stream: BatchStream, expected: int) -> None:
        try:
            inserted = session.insert(table, stream.reader)
        except Exception:
            if stream.error is not None:
                check_error(stream.error)
            raise
        self._check_inserted(inserted, expected)

    def _check_inserted(self, inserted: int, expected: int) -> None:
        if inserted != expected:
            raise LoadFailedError(
                f"{self.destination.where} took {inserted:,} rows for table "
                f"{self.request.table}, and the manifest says {expected:,}; nothing was committed",
                hint="look for triggers or rules of the table that drop or add rows",
            )

    def _reconcile(
        self, session: Session, table: TableName, stream: BatchStream, expected: int
    ) -> None:
        """Compare count and exact sums of a table with what was read."""
        summed = [column.name for column in self.columns if column.is_summed]
        parts = ["count(*)", *(f"sum({quoted(name)})" for name in summed)]
        [(count, *sums)] = session.rows(f"SELECT {', '.join(parts)} FROM {table.sql}")
        differing = [] if count == expected else [f"{count:,} rows instead of {expected:,}"]
        for name, value in zip(summed, sums, strict=True):
            total = total_of(of[name] for of in stream.sums.values())
            if _exact(value) != total:
                differing.append(f"a sum of {name} of {value} instead of {total}")
        if differing:
            raise LoadFailedError(
                f"table {self.request.table} would have {', '.join(differing)}; nothing was "
                "committed",
                hint="look for triggers or rules of the table that change rows",
            )

    def _merge(self, session: Session, staging: TableName, expected: int) -> None:
        """Update the rows of the table that have the key of a staged row, and insert the others."""
        table, keys = self.request.table, [quoted(name) for name in self.request.key]
        self._check_keys(session, staging, keys)
        names = [quoted(column.name) for column in self.columns]
        same = " AND ".join(f"t.{key} = s.{key}" for key in keys)
        values = ", ".join(f"{name} = s.{name}" for name in names if name not in keys)
        updated = 0
        if values:
            updated = session.run(
                f"UPDATE {table.sql} AS t SET {values} FROM {staging.sql} AS s WHERE {same}"
            )
        else:
            [(updated,)] = session.rows(
                f"SELECT count(*) FROM {table.sql} AS t, {staging.sql} AS s WHERE {same}"
            )
        inserted = session.run(
            f"INSERT INTO {table.sql} ({', '.join(names)}) "
            f"SELECT {', '.join(f's.{name}' for name in names)} FROM {staging.sql} AS s "
            f"WHERE NOT EXISTS (SELECT 1 FROM {table.sql} AS t WHERE {same})"
        )
        if updated + inserted != expected:
            raise LoadFailedError(
                f"table {table} has several rows with the same key "
                f"({', '.join(self.request.key)}): {updated:,} rows would be updated and "
                f"{inserted:,} inserted for {expected:,} rows; nothing was committed",
                hint="remove its duplicates, or merge by a key that is unique",
            )

    def _check_keys(self, session: Session, staging: TableName, keys: Sequence[str]) -> None:
        """Raise LoadFailedError if a key of the staged rows is null or not unique."""
        columns, spelled = ", ".join(keys), ", ".join(self.request.key)
        nulls = " OR ".join(f"{key} IS NULL" for key in keys)
        [(empty,)] = session.rows(f"SELECT count(*) FROM {staging.sql} WHERE {nulls}")
        if empty:
            raise LoadFailedError(
                f"{plural(empty, 'row')} of {self.source.version.output} have no key ({spelled})",
                hint="filter or fill them in the transform, or merge by another key",
            )
        twice = session.rows(
            f"SELECT {columns}, count(*) FROM {staging.sql} GROUP BY {columns} "
            "HAVING count(*) > 1 LIMIT 1"
        )
        if twice:
            *values, count = twice[0]
            pairs = zip(self.request.key, values, strict=True)
            example = ", ".join(f"{name} = {value}" for name, value in pairs)
            raise LoadFailedError(
                f"a commit of {self.source.version.output} has {count:,} rows with the key "
                f"{example}",
                hint="make the key unique in the transform, or merge by more columns",
            )

    # -- progress ---------------------------------------------------------------------------------

    def _summary(self, *, dry_run: bool = False) -> LoadSummary:
        return LoadSummary(
            output=self.source.version.output,
            manifest=self.source.version.manifest,
            destination=self.destination.where,
            table=str(self.request.table),
            mode=self.request.mode,
            commits=tuple(self.meter.done),
            rows=sum(self.meter.done.values()),
            held=self._held or 0,
            created=self._created,
            added=self._added,
            seconds=self.meter.seconds,
            dry_run=dry_run,
        )

    def preview(self) -> LoadSummary:
        """Return what `run` would do; writes nothing."""
        session = self._session = self.destination.look()
        try:
            loaded: list[LoadedCommit] = []
            if session is None:
                self._created = True
            else:
                self._check_schema(session)
                ledger = LoadLedger(session, self.request.table)
                self._created, added = self._changes(session)
                self._added = tuple(column.name for column in added)
                if ledger.exists() and not self._created:
                    loaded = ledger.read(self.source.version.output)
            todo = self._pending(session, loaded)
        finally:
            self._disconnect()
        self._held = len(loaded) if self.request.mode != "replace" or not todo else 0
        self.meter.done = {commit.name: commit.rows for commit in todo}
        return self._summary(dry_run=True)


def _definitions(columns: Sequence[Column]) -> str:
    return ", ".join(f"{quoted(column.name)} {column.type.sql}" for column in columns)


def _exact(value: Any) -> Decimal:
    return Decimal(0) if value is None else Decimal(value)
