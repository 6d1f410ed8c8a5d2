"""Load into an HTTP endpoint, batch by batch.

An endpoint records nothing, so what it has acknowledged is recorded beside the output, after each
batch. If the answer to a request is lost, or the load dies before it is recorded, the same batch is
sent again with the same Idempotency-Key: at least once, and exactly once where the endpoint keeps
the keys.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

from pipeline.config.load_file import LoadFile, LoadRequests
from pipeline.config.settings import Settings
from pipeline.errors import StateError
from pipeline.http_answers import Waits
from pipeline.load.batches import BatchStream, OutputVersion
from pipeline.load.column_types import JSON, Column
from pipeline.load.columns import columns_of
from pipeline.load.endpoint_client import Batch, EndpointClient, open_endpoint
from pipeline.load.errors import LoadFailedError
from pipeline.load.plan import CommitFiles, LoadedCommit, pending
from pipeline.load.records import Listener, LoadMeter, LoadSummary
from pipeline.load.store import LoadStore, ProgressRecord
from pipeline.storage import Storage
from pipeline.uris import redacted

ROWS_CONVERTED = 1024
"""Number of rows that are turned into Python values at a time."""


@dataclass
class EndpointLoad:
    """Sends the rows of the commits that an endpoint has not acknowledged."""

    file: LoadFile
    source: OutputVersion
    columns: tuple[Column, ...]
    store: LoadStore
    secret: str | None
    meter: LoadMeter
    waits: Waits
    _held: int = 0
    _requests: int = 0

    @classmethod
    def of(
        cls,
        file: LoadFile,
        settings: Settings,
        storage: Storage,
        listen: Listener,
        *,
        secret: str | None,
        waits: Waits | None = None,
    ) -> EndpointLoad:
        """Pin the version, and refuse what no attempt can load."""
        source = OutputVersion.of(settings, storage, file.input.uri, file.input.version)
        columns = columns_of(source, JSON, redacted(file.into.uri))
        store = LoadStore(storage, source.version.output, file.into.uri)
        return cls(file, source, columns, store, secret, LoadMeter(listen), waits or Waits())

    def run(self) -> LoadSummary:
        """Send until nothing is pending."""
        into = self.file.into
        with open_endpoint(into.uri, into.http, self.secret, self.waits) as client:
            todo, skip = self._pending()
            self.meter.expect(todo, without=skip)
            for commit in todo:
                self._send(client, commit, skip)
                skip = 0
        return self._summary()

    def preview(self) -> LoadSummary:
        """Return what `run` would do; writes nothing."""
        todo, skip = self._pending()
        self.meter.done = {commit.name: commit.rows for commit in todo}
        self.meter.sent = sum(self.meter.done.values()) - skip
        return self._summary(dry_run=True)

    def _pending(self) -> tuple[Sequence[CommitFiles], int]:
        """Return the commits to send, and how many rows of the first of them are acknowledged."""
        # In this order: another load that runs meanwhile is then noticed at the first batch.
        progress = self.store.progress()
        loaded = self.store.commits()
        begun = None if progress is None else _begun(progress, loaded)
        version = self.source.version
        commit = None if begun is None else version.by_name.get(begun.name)
        is_whole = begun is None or (commit is not None and commit.digest == begun.digest)
        todo = pending(
            version,
            loaded if begun is None or is_whole else [*loaded, begun],
            "append",
            redacted(self.file.into.uri),
            remedy="an endpoint keeps what it has: remove there what is obsolete, then delete "
            f"{self.store.prefix} to send the current version as a whole",
        )
        self._held = len(loaded)
        if begun is not None and commit is not None and begun.rows > commit.rows:
            raise StateError(
                self.store.progress_uri,
                f"it says that {begun.rows:,} rows of commit {begun.name} were acknowledged, which "
                f"has {commit.rows:,}",
            )
        if begun is None or commit is None:
            return todo, 0
        # The one that was begun goes first: only its progress is recorded.
        return [commit, *(other for other in todo if other != commit)], begun.rows

    def _send(self, client: EndpointClient, commit: CommitFiles, skip: int) -> None:
        manifest = self.source.version.manifest
        if skip < commit.rows:
            stream = BatchStream(self.source, self.columns, [commit], skip=skip)
            for batch in self._batches(stream, commit, skip):
                client.post(batch)
                self.store.advance(commit, manifest, batch.end)
                self._requests += 1
                self.meter.count(batch.rows)
        self.store.record(commit, manifest)
        self.meter.done[commit.name] = commit.rows
        self.meter.tell()

    def _batches(self, stream: BatchStream, commit: CommitFiles, skip: int) -> Iterator[Batch]:
        first = skip
        for lines in _group(_lines(stream, commit, skip), self.file.into.http, commit):
            body = _body(lines, self.file.into.http)
            place = [self.source.version.output, commit.name, commit.digest, first]
            key = hashlib.sha256(json.dumps(place).encode() + b"\0" + body).hexdigest()[:32]
            yield Batch(body, key, first, len(lines))
            first += len(lines)

    def _summary(self, *, dry_run: bool = False) -> LoadSummary:
        return LoadSummary(
            output=self.source.version.output,
            manifest=self.source.version.manifest,
            destination=redacted(self.file.into.uri),
            table="",
            mode="append",
            commits=tuple(self.meter.done),
            rows=self.meter.sent,
            held=self._held,
            created=False,
            added=(),
            seconds=self.meter.seconds,
            dry_run=dry_run,
            requests=self._requests,
        )


def _begun(progress: ProgressRecord, loaded: Sequence[LoadedCommit]) -> LoadedCommit | None:
    """Return the commit that an endpoint has in part; None if it has it as a whole."""
    if any((done.name, done.digest) == (progress.commit, progress.digest) for done in loaded):
        return None
    return LoadedCommit(progress.commit, progress.manifest, progress.rows, progress.digest, "")


# -- rows as JSON -------------------------------------------------------------------------------


def _lines(stream: BatchStream, commit: CommitFiles, skip: int) -> Iterator[bytes]:
    """Yield each row as a JSON object."""
    number = skip
    for batch in stream.batches():
        for start in range(0, batch.num_rows, ROWS_CONVERTED):
            for row in _convert_rows(batch.slice(start, ROWS_CONVERTED), commit):
                number += 1
                yield _line(row, commit, number)


def _convert_rows(batch: Any, commit: CommitFiles) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
    except (ValueError, OverflowError) as error:  # Python's dates end with the year 9999.
        raise _not_json(f"a value of commit {commit.name}", error) from None
    return rows


def _line(row: dict[str, Any], commit: CommitFiles, number: int) -> bytes:
    try:
        return _json(row)
    except ValueError as error:
        for name, value in row.items():
            try:
                _json(value)
            except ValueError:
                what = f"column {name} in row {number:,} of commit {commit.name}"
                raise _not_json(what, error) from None
        raise


def _not_json(what: str, error: Exception) -> LoadFailedError:
    return LoadFailedError(
        f"{what} cannot be JSON: {error}",
        hint="replace NaN, infinities and dates outside of the years 1 to 9999 by nulls, and round "
        "times to microseconds, in the transform",
    )


def _json(value: Any) -> bytes:
    return _encoder.encode(value).encode()


def _text(value: Any) -> str:
    """Return a value that JSON lacks as text: ISO 8601, and the digits of a decimal."""
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return f"{value:f}"
    raise TypeError(f"no type of JSON columns: {type(value).__name__}")


# Made once: json.dumps makes one per call.
_encoder = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, default=_text, separators=(",", ":")
)


def _group(
    lines: Iterator[bytes], requests: LoadRequests, commit: CommitFiles
) -> Iterator[list[bytes]]:
    """Group rows to requests. The groups depend on the rows alone, so a repeated load has them too.

    Raises:
        LoadFailedError: A row alone is larger than a request may be.
    """
    group: list[bytes] = []
    size = 2  # The brackets of an array.
    for line in lines:
        length = len(line) + 1
        if length + 2 > requests.max_bytes:
            raise LoadFailedError(
                f"a row of commit {commit.name} has {length:,} bytes as JSON, and into.http."
                f"max_bytes is {requests.max_bytes:,}",
                hint="raise into.http.max_bytes, or drop large columns in the transform",
            )
        if group and (len(group) == requests.rows or size + length > requests.max_bytes):
            yield group
            group, size = [], 2
        group.append(line)
        size += length
    if group:
        yield group


def _body(lines: Sequence[bytes], requests: LoadRequests) -> bytes:
    if requests.format == "array":
        return b"[" + b",".join(lines) + b"]"
    return b"\n".join(lines) + b"\n"
