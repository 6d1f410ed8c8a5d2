"""Drive an ingest from its first request to its commit."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pipeline.config.ingest import Ingest, SecretPlace, load_ingest
from pipeline.config.settings import Settings, load_settings
from pipeline.errors import ConflictError, ObjectChangedError, ObjectMissingError, UsageError
from pipeline.http_answers import Waits
from pipeline.ingest.errors import SourceFileError
from pipeline.ingest.fetch import FetchProgress
from pipeline.ingest.functions import FunctionSource
from pipeline.ingest.plan import plan_files
from pipeline.ingest.publish import IngestPublisher
from pipeline.ingest.schema import drift_text
from pipeline.ingest.sources import FileSource, HttpSource, Source, secret_of_environment
from pipeline.ingest.sql import SqlSource
from pipeline.ingest.stage import Staging
from pipeline.ingest.store import (
    Drift,
    IngestPlan,
    IngestRecord,
    IngestStore,
    as_output,
    find_ingests,
    ingest_id,
    place_of,
)
from pipeline.ingest.workers import LocalWorkers, Workers
from pipeline.report.humanize import plural
from pipeline.storage import Storage, open_storage
from pipeline.table.errors import plain_run
from pipeline.table.log import TableLog
from pipeline.table.manifest import CommitEntry
from pipeline.table.publish import prepare_output

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class IngestProgress:
    """How far an ingest is."""

    phase: str
    """`fetch`, `plan`, `stage` or `publish`."""
    fetched: FetchProgress = field(default_factory=FetchProgress)
    files: int = 0
    """Number of files that are staged."""
    of_files: int = 0


Listener = Callable[[IngestProgress], None]
Step = Callable[[str, str, Callable[[], Any]], Any]
"""Runs a step, given its name, the ingest's id and what it does."""


def run_step(name: str, ingest: str, work: Callable[[], T]) -> T:
    """Run a step of an ingest here."""
    return work()


@dataclass(frozen=True, slots=True)
class IngestOptions:
    """How an ingest is run."""

    refresh: bool = False
    """Whether to ask for everything again, as another ingest, if the last one is published."""
    waits: Waits = field(default_factory=Waits)
    """Waits between attempts at a request."""
    listen: Listener = lambda progress: None
    step: Step = run_step
    workers: Workers | None = None
    """What reads and writes files; default threads of this process."""
    secret: Callable[[SecretPlace], str | None] = secret_of_environment
    """Returns the secret of a header, or the address of a database."""


@dataclass(frozen=True, slots=True)
class IngestSummary:
    """The result of an ingest."""

    name: str
    ingest: str
    """Id."""
    output: str
    manifest: int
    """Number of the current manifest."""
    already: bool
    """Whether it was published before, so that there was nothing to do."""
    source: str
    """`http`, `files`, `sql` or `source`."""
    window: str
    pages: int
    """Number of pages, files or parts that were read."""
    asked: int
    """Number of pages that were asked for now; the others were stored."""
    requests: int
    """Number of requests now, with retries and those for pages after the last."""
    retries: int
    records: int
    rows: int
    files: int
    bytes: int
    """Bytes of the files."""
    drift: Drift
    """How the records differ from the output's columns."""
    notes: tuple[str, ...]
    """What a user should know, in sentences."""
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        return asdict(self) | {"drift": self.drift.model_dump()}


def ingest(
    definition: Ingest | str | Path,
    settings: Settings | None = None,
    options: IngestOptions | None = None,
    *,
    storage: Storage | None = None,
) -> IngestSummary:
    """Ingest what a definition names, or resume an ingest that was stopped; exactly once.

    Args:
        definition: The definition, or its file.
        settings: Where the output's storage is, and which modules may be imported; default those
            of the environment.
        options: How to run it.
        storage: The storage; default that of the settings.

    Raises:
        SourceError: The source refuses, or answers something unusable. Stored pages are kept.
        SchemaChangedError: The records do not fit the output's columns. Stored pages are kept.
        UsageError: The secret is missing, or the output cannot be used.
        ConflictError: Others have published what this ingest would replace.
    """
    definition = definition if isinstance(definition, Ingest) else load_ingest(definition)
    settings = settings or load_settings()
    storage = storage or open_storage(settings)
    return _Driver(definition, storage, options or IngestOptions(), settings).run()


def published_ingest(
    definition: Ingest,
    storage: Storage,
    settings: Settings,
    secret: Callable[[SecretPlace], str | None] = secret_of_environment,
) -> IngestSummary | None:
    """Return the summary of an ingest that has nothing left to do; None if it has.

    Asks no API and writes nothing; files are listed, and a database that is read by a watermark is
    asked for newer rows.

    Args:
        definition: The definition.
        storage: Where the output is.
        settings: Where code is.
        secret: Returns the secret of a database's address.

    Raises:
        StateError: Its state is damaged.
        UsageError: The secret is missing.
    """
    options = IngestOptions(secret=secret)
    return _Driver(definition, storage, options, settings).published()


class _Driver:
    """Runs one ingest."""

    def __init__(
        self, definition: Ingest, storage: Storage, options: IngestOptions, settings: Settings
    ) -> None:
        self._definition = definition
        self._storage = storage
        self._options = options
        self._output = as_output(definition.output.uri)
        self._table_log = TableLog(storage, self._output)
        self._place = place_of(definition)
        self._started = time.monotonic()
        self._workers = options.workers or LocalWorkers(storage)
        self._source = self._open(settings)

    def _open(self, settings: Settings) -> Source:
        definition, options = self._definition, self._options
        if definition.files is not None:
            return FileSource(
                definition, definition.files, self._storage, self._workers, options.waits
            )
        if definition.sql is not None:
            return SqlSource(
                definition, definition.sql, self._table_log, options.secret, self._heard
            )
        if definition.source is not None:
            return FunctionSource(definition, definition.source, settings.transforms, self._heard)
        assert definition.http is not None, "a definition has one of them"
        return HttpSource(definition, definition.http, options.secret, options.waits, self._heard)

    def run(self) -> IngestSummary:
        """Do what is left."""
        number, store, record = self._last_round()
        done = None
        if record is not None:
            done = self._publisher(record, store).published()
            if done is not None and not self._is_more(done):
                return self._summary(record, store, done, already=True)
            if done is not None or store.is_discarded():
                number += 1
                store, record = self._find(number)
        self._source.prepare()
        mode, own = self._definition.output.mode, store.ingest
        manifest = prepare_output(self._table_log, mode, own)
        if manifest.table:
            raise plain_run(self._output, f"ingest {own}")
        if record is None:
            is_found = done is not None or mode != "append"
            if self._definition.files is not None and not is_found:
                self._source.left(self._read_before())
            self._source.begin(store)
            record = store.create(self._record(number, own, manifest.number))
            if not self._is_ours(record):
                raise ConflictError(
                    f"ingest {own} of {record.name} began at the same time, with the same requests "
                    f"to another source ({record.place})",
                    hint="give the command again",
                )
        publisher = self._publisher(record, store, manifest.number if self._options.refresh else 0)
        self._tell("fetch")
        rows = self._step("fetch", store, partial(self._source.rows, store))
        self._tell("plan")
        plan = publisher.frozen_plan() or self._step(
            "plan", store, partial(plan_files, self._definition, store, rows, self._table_log)
        )
        staging = Staging(self._definition, store, rows, plan, self._staged, self._stagers)
        entry = self._step("publish", store, partial(publisher.publish, staging))
        store.note_published(self._table_log.head()[0].current)
        return self._summary(record, store, entry, plan=plan)

    def published(self) -> IngestSummary | None:
        """Return the summary if all is published; None if something is left."""
        _, store, record = self._last_round()
        done = None if record is None else self._publisher(record, store).published()
        if record is None or done is None or self._is_more(done):
            return None
        return self._summary(record, store, done, already=True)

    def _is_more(self, done: CommitEntry) -> bool:
        """Whether another ingest follows one that is published: with new files, or on request."""
        mode = self._definition.output.mode
        if mode == "append" and self._source.left(self._read_before()):
            return True
        if self._options.refresh:
            self._refuse_twice(done)
        return self._options.refresh

    @property
    def _stagers(self) -> Workers | None:
        """What stages files; pages are parsed by the interpreter, so threads would not help."""
        if self._definition.files is not None:
            return self._workers
        return None if self._definition.http is not None else LocalWorkers(self._storage)

    def _read_before(self) -> list[IngestStore]:
        """Return the ingests whose rows the output has, or gets: of all definitions.

        Raises:
            StateError: The record of one is damaged, so that it is not known what it has read.
        """
        if self._definition.files is None:  # Others do not ask.
            return []
        found = find_ingests(self._storage, self._output)
        for error in found.damaged.values():
            raise error
        stores = [IngestStore(self._storage, self._output, each.ingest) for each in found.records]
        published = {entry.run for entry in self._table_log.entries()}
        live = {entry.run for entry in self._table_log.manifest().commits}
        return [
            store
            for store in stores
            if (store.ingest in live)
            or (store.ingest not in published and not store.is_discarded())
        ]

    def _step(self, name: str, store: IngestStore, work: Callable[[], T]) -> T:
        try:
            result: T = self._options.step(name, store.ingest, work)
        except (ObjectChangedError, ObjectMissingError) as error:
            if all(source.uri != error.uri for source in store.sources()):
                raise
            raise SourceFileError(
                f"{error.message}; ingest {store.ingest} reads the version that it has found",
                hint=store.begin_again,
            ) from error
        return result

    # -- which ingest ----------------------------------------------------------------------------

    def _find(self, number: int) -> tuple[IngestStore, IngestRecord | None]:
        """Return the store of a round of this definition, and its record if it has begun.

        The same requests to another source, by another definition, are another ingest.
        """
        store = self._store(ingest_id(self._definition, number))
        record = store.record()
        if record is None or self._is_ours(record):
            return store, record
        store = self._store(ingest_id(self._definition, number, self._place))
        return store, store.record()

    def _store(self, ingest: str) -> IngestStore:
        return self._source.store(IngestStore(self._storage, self._output, ingest))

    def _is_ours(self, record: IngestRecord) -> bool:
        """Whether an ingest with these requests is of this definition; it may be renamed."""
        return record.name == self._definition.name or record.place in ("", self._place)

    def _last_round(self) -> tuple[int, IngestStore, IngestRecord | None]:
        """Find the last ingest of this definition by bisection: there may be thousands."""
        last, (store, record), end = 1, self._find(1), 2
        if record is None:
            return last, store, None
        while (found := self._find(end))[1] is not None:
            last, (store, record), end = end, found, 2 * end
        while end - last > 1:
            middle = (last + end) // 2
            found = self._find(middle)
            if found[1] is None:
                end = middle
            else:
                last, (store, record) = middle, found
        return last, store, record

    def _refuse_twice(self, done: CommitEntry) -> None:
        """Refuse to append the same records again."""
        live = {entry.name for entry in self._table_log.manifest().commits}
        if self._definition.output.mode == "append" and done.name in live:
            raise UsageError(
                f"{self._output} already has the rows of ingest {done.run}, and the mode is "
                "append: it would have them twice",
                hint="choose another window, or set output.mode to overwrite or "
                "overwrite-partitions",
            )

    def _record(self, number: int, own: str, base: int) -> IngestRecord:
        definition = self._definition
        return IngestRecord(
            ingest=own,
            name=definition.name,
            url=self._source.place[:1000],
            place=self._place,
            window="" if definition.window is None else definition.window.label,
            round=number,
            output=self._output,
            mode=definition.output.mode,
            base=base,
            created=time.time(),
        )

    def _publisher(
        self, record: IngestRecord, store: IngestStore, accepted: int = 0
    ) -> IngestPublisher:
        return IngestPublisher(self._definition, record, store, self._table_log, accepted)

    # -- progress and result ---------------------------------------------------------------------

    def _heard(self, progress: FetchProgress) -> None:
        self._options.listen(IngestProgress("fetch", progress))

    def _staged(self, files: int, of_files: int) -> None:
        phase = "publish" if files == of_files else "stage"
        self._options.listen(IngestProgress(phase, self._source.fetched, files, of_files))

    def _tell(self, phase: str) -> None:
        self._options.listen(IngestProgress(phase, self._source.fetched))

    def _summary(
        self,
        record: IngestRecord,
        store: IngestStore,
        entry: CommitEntry,
        *,
        plan: IngestPlan | None = None,
        already: bool = False,
    ) -> IngestSummary:
        plan = plan or store.plan(entry.code)
        drift, fetched = Drift() if plan is None else plan.drift, self._source.fetched
        return IngestSummary(
            name=record.name,
            ingest=record.ingest,
            output=self._output,
            manifest=self._table_log.head()[0].current,
            already=already,
            source=self._definition.kind,
            window=record.window,
            pages=fetched.pages if plan is None else plan.pages,
            asked=fetched.asked,
            requests=fetched.requests,
            retries=fetched.retries,
            records=entry.rows if plan is None else plan.records,
            rows=entry.rows,
            files=entry.files,
            bytes=entry.bytes,
            drift=drift,
            notes=(*self._source.notes, *_notes(drift, self._definition.schema_)),
            seconds=time.monotonic() - self._started,
        )


def _notes(drift: Drift, rule: str) -> list[str]:
    notes = []
    if drift.new and rule == "pinned":
        fields = plural(len(drift.new), "new field")
        notes.append(f"left out {fields} that the output does not have (schema: widen adds them)")
    text = drift_text(drift)
    return [*notes, f"compared with the output: {text}"] if text else notes
