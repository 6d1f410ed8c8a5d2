"""Load into a Delta table elsewhere: one commit of the table per commit of the output.

The table's own log records what it has, in the transaction that brings the rows (`txn`): per commit
of the output an application id of its own, and one per output, by which two loads that commit at
once conflict. So a load that was killed, or whose reply was lost, loads nothing twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from pipeline.config.load_file import LoadFile, delta_uri
from pipeline.config.settings import Settings
from pipeline.errors import ChunkmapError, TransientStorageError, UsageError, is_transient
from pipeline.load.batches import BatchStream, OutputVersion, check_error
from pipeline.load.column_types import DELTA, Column, SqlType, spelled_delta_type
from pipeline.load.columns import Differences, columns_of, named
from pipeline.load.destination import TableColumn
from pipeline.load.errors import DestinationError, LoadFailedError, TableMismatchError
from pipeline.load.plan import CommitFiles, LoadedCommit, pending
from pipeline.load.records import Listener, LoadMeter, LoadSummary
from pipeline.load.store import LoadStore
from pipeline.report.humanize import plural
from pipeline.runs.driver.overlap import lie_within
from pipeline.storage import Storage, state_prefix
from pipeline.storage.outages import retry_until_available
from pipeline.table.delta.library import (
    LostRaceError,
    library_errors,
    library_options,
    library_path,
)
from pipeline.table.delta.log import APP_ID
from pipeline.table.delta.types import arrow_type
from pipeline.table.errors import DamagedTableError

_REMEDY = "replace all rows of the table in one commit: --mode replace"
_EXACT = replace(DELTA, fold=lambda name: name)
"""Columns of existing tables are found by their exact names."""


@dataclass
class DeltaLoad:
    """Loads one version of an output into one Delta table."""

    file: LoadFile
    source: OutputVersion
    columns: tuple[Column, ...]
    storage: Storage
    meter: LoadMeter
    _held: int | None = None
    _created: bool = False
    _added: tuple[str, ...] = ()
    _attempted: set[str] = field(default_factory=set)
    """Names of the commits that this load has tried to commit."""
    _epoch: int = 0
    _present: dict[str, LoadedCommit] = field(default_factory=dict)
    """Commits that the table is known to have in this epoch, by application id."""
    _recorded: list[LoadedCommit] | None = None
    """Commits that were recorded for this epoch when they were last read; None to read again."""
    _absent: set[str] = field(default_factory=set)
    """Application ids that the table did not have when they were looked up."""

    @classmethod
    def of(
        cls, file: LoadFile, settings: Settings, storage: Storage, listen: Listener
    ) -> DeltaLoad:
        """Pin the version, and refuse what no attempt can load."""
        uri = delta_uri(file.into.uri)
        source = OutputVersion.of(settings, storage, file.input.uri, file.input.version)
        output = source.version.output
        if lie_within(uri, output) or lie_within(uri, state_prefix(output)):
            # A VACUUM of the table would delete an output in its folder.
            raise UsageError(
                f"the Delta table {uri} and the output {output} lie within each other",
                hint="name another place (into.uri); chunkmap publishes an output itself as a "
                "Delta table with output.table: delta",
            )
        columns = columns_of(source, DELTA, f"Delta table {uri}")
        return cls(file, source, columns, storage, LoadMeter(listen))

    @property
    def uri(self) -> str:
        """URI of the table, with a slash at its end."""
        return delta_uri(self.file.into.uri)

    @property
    def where(self) -> str:
        """The table, for messages."""
        return f"Delta table {self.uri}"

    @property
    def store(self) -> LoadStore:
        """What is recorded beside the output."""
        return LoadStore(self.storage, self.source.version.output, f"delta:{self.uri}")

    def run(self) -> LoadSummary:
        """Load until nothing is pending."""
        while self._step_again():
            pass
        return self._summary()

    def preview(self) -> LoadSummary:
        """Return what `run` would do; writes nothing."""
        table = self._open()
        todo = self._pending(table)
        self._created = table is None
        if table is not None:
            _, self._added = self._fit(table)
        self.meter.done = {commit.name: commit.rows for commit in todo}
        return self._summary(dry_run=True)

    def _step_again(self) -> bool:
        try:
            return self._step()
        except ChunkmapError as error:
            # A table that has never answered is an error, not an outage.
            if self._held is None or not is_transient(error):
                raise
        return retry_until_available(self._step)

    def _step(self) -> bool:
        """Make one commit; returns whether more may be pending."""
        table = self._open()
        todo = self._pending(table)
        if not todo:
            return False
        if table is None:
            return self._create()
        is_whole = self.file.into.mode == "replace"
        if is_whole:
            self._refuse_other_rows(table)
        elif table.transaction_version(self._app_id(todo[0], self._epoch)) is not None:
            self._forget_absent()  # Another load has just brought it.
            return True
        commits = todo if is_whole else todo[:1]
        try:
            self._commit(table, commits, self._epoch + is_whole)
        except LostRaceError as error:
            newest = self._open()
            if newest is not None and newest.version() == table.version():
                raise LoadFailedError(f"{self.where} refuses the commit: {error}") from None
            self._forget_absent()  # Look at what the other writer did.
            return True
        self.meter.done |= {commit.name: commit.rows for commit in commits}
        self.meter.tell()
        return not is_whole

    # -- what the table has -----------------------------------------------------------------------

    def _open(self) -> Any:
        """Read the newest version of the table; None if there is no table.

        Raises:
            DestinationError: It is published by runs of chunkmap.
            DamagedTableError: The log cannot be read.
        """
        from deltalake import DeltaTable
        from deltalake.exceptions import TableNotFoundError

        def read() -> Any:
            options = library_options(self.storage, self.uri)
            with library_errors(self.uri):
                try:
                    table = DeltaTable(library_path(self.uri), storage_options=options)
                except TableNotFoundError:
                    return None
                return table, table.transaction_version(APP_ID)

        found = self.storage.retrying(read)
        if found is None:
            return None
        table, manifest = found
        if manifest is not None:
            raise DestinationError(
                f"{self.where} is published by chunkmap, which refuses rows of other writers",
                hint="load into another table (into.uri)",
            )
        return table

    def _pending(self, table: Any) -> tuple[CommitFiles, ...]:
        """Return the commits that the table lacks."""
        mode = self.file.into.mode
        loaded = self._loaded(table)
        # Commits whose reply was lost count as well.
        self.meter.done |= {c.name: c.rows for c in loaded if c.name in self._attempted}
        todo = pending(self.source.version, loaded, mode, self.where, remedy=_REMEDY)
        if self._held is None:
            self._held = len(loaded) if mode != "replace" or not todo else 0
            self.meter.expect(todo)
        return todo

    def _loaded(self, table: Any) -> list[LoadedCommit]:
        """Return the commits of the output that the table has."""
        epoch = 0 if table is None else table.transaction_version(self._app) or 0
        if epoch != self._epoch or table is None:
            self._epoch = epoch
            self._present.clear()
            self._forget_absent()
        if table is None:
            return []
        version = self.source.version
        if self._recorded is None:
            self._recorded = self.store.commits(epoch)
        # Those of this version are looked up even if their record is lost.
        candidates = [
            LoadedCommit(commit.name, version.manifest, commit.rows, commit.digest, "")
            for commit in version.commits
        ] + self._recorded
        for commit in candidates:
            app_id = self._app_id(commit, epoch)
            if app_id in self._present or app_id in self._absent:
                continue
            if table.transaction_version(app_id) is None:
                self._absent.add(app_id)
            else:
                self._present[app_id] = commit
        return list(self._present.values())

    def _forget_absent(self) -> None:
        """Look up again what the table did not have: another load may have brought it."""
        self._absent.clear()
        self._recorded = None

    @property
    def _app(self) -> str:
        """Application id of the output, whose version is the epoch."""
        return (
            f"chunkmap.load:{hashlib.sha256(self.source.version.output.encode()).hexdigest()[:16]}"
        )

    def _app_id(self, commit: CommitFiles | LoadedCommit, epoch: int) -> str:
        return f"{self._app}:{epoch}:{commit.name}:{commit.digest[:16]}"

    def _refuse_other_rows(self, table: Any) -> None:
        with library_errors(self.uri):
            rows = int(table.count())
        brought = sum(commit.rows for commit in self._present.values())
        if rows > brought:
            raise LoadFailedError(
                f"{self.where} has {plural(rows - brought, 'row')} that no load of "
                f"{self.source.version.output} has brought, which mode replace would delete",
                hint="delete them there, or load into another table",
            )

    # -- columns ----------------------------------------------------------------------------------

    def _create(self) -> bool:
        """Create the table without rows."""
        from deltalake import DeltaTable, Schema

        schema = pa.schema([(column.name, column.type.arrow) for column in self.columns])
        try:
            with library_errors(self.uri, is_commit=True):
                DeltaTable.create(
                    library_path(self.uri),
                    schema=Schema.from_arrow(schema),
                    mode="error",
                    storage_options=library_options(self.storage, self.uri),
                )
        except LostRaceError:
            return True  # Another load has created it.
        self._created = True
        return True

    def _fit(self, table: Any) -> tuple[tuple[Column, ...], tuple[str, ...]]:
        """Return the columns as the table has them, and the names of those that it lacks.

        Raises:
            TableMismatchError: They differ in another way.
        """
        fields = json.loads(table.schema().to_json())["fields"]
        existing = {f["name"]: TableColumn(spelled_delta_type(f["type"]), False) for f in fields}
        spellings = {column.name: column.type.sql for column in self.columns}
        differences = Differences.between(self.columns, existing, _EXACT, spellings)
        problems = differences.problems(widen=self.file.into.schema_ == "widen")
        if problems:
            raise TableMismatchError(
                f"{self.where} does not have the columns of {self.source.version.output}: "
                + "; ".join(problems),
                hint=_advice(differences),
            )
        kinds = {name: column.kind for name, column in existing.items()}
        columns = tuple(
            replace(column, type=_as_in_table(column.type, kinds.get(column.name)))
            for column in self.columns
        )
        return columns, tuple(column.name for column in differences.lacking)

    # -- rows -------------------------------------------------------------------------------------

    def _commit(self, table: Any, commits: Sequence[CommitFiles], epoch: int) -> None:
        """Write the rows of commits, and commit them with what says so.

        Raises:
            LostRaceError: Another writer has made a commit that this one conflicts with.
        """
        columns, lacking = self._fit(table)
        version = self.source.version
        for commit in commits:
            self.store.record(commit, version.manifest, epoch)
        self._attempted |= {commit.name for commit in commits}
        stream = BatchStream(self.source, columns, commits, self.meter.count)
        before = self.meter.sent
        try:
            self._write(table, stream, epoch, widen=bool(lacking))
        except BaseException as error:
            self.meter.sent = before
            if stream.error is not None:
                check_error(stream.error)
            raise self._explained(error) from None
        self._added += lacking

    def _write(self, table: Any, stream: BatchStream, epoch: int, *, widen: bool) -> None:
        from deltalake import CommitProperties, Transaction, write_deltalake

        version = self.source.version
        properties = CommitProperties(
            custom_metadata={
                "chunkmap.output": version.output,
                "chunkmap.commits": ",".join(commit.name for commit in stream.commits),
            },
            app_transactions=[
                Transaction(self._app, epoch),
                *(
                    Transaction(self._app_id(commit, epoch), version.manifest)
                    for commit in stream.commits
                ),
            ],
        )
        with library_errors(self.uri, is_commit=True):
            write_deltalake(
                table,
                stream.reader,
                mode="overwrite" if self.file.into.mode == "replace" else "append",
                schema_mode="merge" if widen else None,
                commit_properties=properties,
            )

    def _explained(self, error: BaseException) -> BaseException:
        """Return an error of writing as one that says what to do."""
        if isinstance(error, TransientStorageError) and "No space left" in error.message:
            return LoadFailedError(
                f"{self.where} cannot be written: no space is left on its disk",
                hint="free space, then load again: nothing is loaded twice",
            )
        if isinstance(error, DamagedTableError):
            return LoadFailedError(f"{self.where} refuses the rows: {error.message}")
        return error

    def _summary(self, *, dry_run: bool = False) -> LoadSummary:
        return LoadSummary(
            output=self.source.version.output,
            manifest=self.source.version.manifest,
            destination=self.where,
            table="",
            mode=self.file.into.mode,
            commits=tuple(self.meter.done),
            rows=sum(self.meter.done.values()),
            held=self._held or 0,
            created=self._created,
            added=self._added,
            seconds=self.meter.seconds,
            dry_run=dry_run,
        )


def _advice(differences: Differences) -> str:
    if differences.others:
        return (
            "cast these columns to the table's types in the transform, or load into another table"
        )
    if differences.unknown:
        return f"add {named(differences.unknown)} in the transform, or load into another table"
    return f"let {plural(len(differences.lacking), 'column')} be added: --schema widen"


def _as_in_table(own: SqlType, kind: str | None) -> SqlType:
    """Return the type in which values are sent: the table's, if it is a wider one."""
    if kind is None or kind == own.sql:
        return own
    return SqlType(kind, arrow_type(kind) or own.arrow)
