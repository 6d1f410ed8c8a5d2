"""What an ingest reads: an HTTP API, or files. Each gives the rows that files are made of.

`sql.py` and `functions.py` have the others.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pipeline.config.ingest import Files, Http, Ingest, SecretPlace
from pipeline.config.secret import MIN_MASKED
from pipeline.errors import UsageError
from pipeline.http_answers import Waits
from pipeline.ingest.download import Downloads
from pipeline.ingest.fetch import FetchProgress, fetch_pages
from pipeline.ingest.files import FileRows, find_files
from pipeline.ingest.kept_frames import KeptFrames
from pipeline.ingest.paging import Paging, feeds_of
from pipeline.ingest.parsed import ParsedPages
from pipeline.ingest.pieces import PieceReader
from pipeline.ingest.ranges import Cutting
from pipeline.ingest.rows import PageRows, Rows
from pipeline.ingest.store import IngestStore, SourceFile
from pipeline.ingest.workers import Workers
from pipeline.report.humanize import plural
from pipeline.storage import Storage


class Source(Protocol):
    """What an ingest reads."""

    fetched: FetchProgress
    """What was fetched."""
    notes: tuple[str, ...]
    """What a user should know, in sentences."""

    @property
    def place(self) -> str:
        """Its address, for people."""
        ...

    def prepare(self) -> None:
        """Refuse what cannot be read, before anything is stored."""
        ...

    def store(self, prefix: IngestStore) -> IngestStore:
        """Return the store of an ingest, which knows what its documents may hold."""
        ...

    def left(self, before: Sequence[IngestStore]) -> bool:
        """Whether there is something that the ingests before, which are published, did not read."""
        ...

    def begin(self, store: IngestStore) -> None:
        """Store what is read, before the ingest is recorded."""
        ...

    def rows(self, store: IngestStore) -> Rows:
        """Fetch what is not stored, and return all rows."""
        ...


def secret_of_environment(place: SecretPlace) -> str | None:
    """Return a secret from its environment variable.

    Raises:
        UsageError: It is in a Prefect Secret block, which only a flow can read.
    """
    if place.env is None:
        raise UsageError(
            f"the secret is in the Prefect Secret block {place.secret} ({place.key}.secret), and "
            "no Prefect server is set",
            hint="set PREFECT_API_URL (`chunkmap up` starts a server), or name a variable in "
            f"{place.key}.env",
        )
    return os.environ.get(place.env)


@dataclass(slots=True)
class HttpSource:
    """The pages of an HTTP API."""

    definition: Ingest
    http: Http
    secret_of: Callable[[SecretPlace], str | None]
    waits: Waits
    listen: Callable[[FetchProgress], None]
    fetched: FetchProgress = field(default_factory=FetchProgress)
    notes: tuple[str, ...] = ()
    _secret: str | None = field(default=None, repr=False)

    @property
    def place(self) -> str:
        """The address."""
        return self.http.url

    def prepare(self) -> None:
        """Look the secret up."""
        auth = self.http.auth
        if auth is not None:
            self._secret = auth.checked(self.secret_of(auth))
            if len(self._secret) >= MIN_MASKED and self._secret in self.http.model_dump_json():
                raise UsageError(
                    f"the definition contains the secret of the {auth.where}, which would be "
                    "stored",
                    hint="take it out of http.url, http.params and http.headers",
                )

    def store(self, prefix: IngestStore) -> IngestStore:
        """Return the store, which checks addresses."""
        prefix.paging, prefix.max_page_bytes = Paging(self.http), self.http.max_page_bytes
        return prefix

    def left(self, before: Sequence[IngestStore]) -> bool:
        """Return False: an API does not say what is new."""
        return False

    def begin(self, store: IngestStore) -> None:
        """Store nothing: pages are stored as they come."""

    def rows(self, store: IngestStore) -> Rows:
        """Fetch the pages that are not stored."""
        parsed = ParsedPages(frozenset(self.definition.types))
        pages, self.fetched = fetch_pages(
            self.http,
            store,
            feeds_of(self.definition),
            secret=self._secret,
            waits=self.waits,
            listen=self.listen,
            parsed=parsed,
        )
        return PageRows(store, Paging(self.http), pages, self.place, parsed)


@dataclass(slots=True)
class FileSource:
    """Files in S3, on disk, or at URLs."""

    definition: Ingest
    files: Files
    storage: Storage
    workers: Workers
    waits: Waits = field(default_factory=Waits)
    fetched: FetchProgress = field(default_factory=FetchProgress)
    notes: tuple[str, ...] = ()
    _found: list[SourceFile] | None = None
    """Files that a new ingest reads."""

    @property
    def place(self) -> str:
        """The files, as the definition names them."""
        return ", ".join(self.files.uri)

    @property
    def _downloads(self) -> Downloads:
        return Downloads(self.files, self.waits)

    def prepare(self) -> None:
        """Do nothing: files are found when an ingest begins."""

    def store(self, prefix: IngestStore) -> IngestStore:
        """Return the store as it is."""
        return prefix

    def left(self, before: Sequence[IngestStore]) -> bool:
        """Find the files that were not read before."""
        seen = {file.uri: file.etag for store in before for file in store.sources()}
        found = find_files(self.storage, self.files, self._downloads)
        changed = [file for file in found if file.etag != seen.get(file.uri, file.etag)]
        if changed:
            self.notes = (
                f"{plural(len(changed), 'file')} changed after being ingested, and "
                f"{'is' if len(changed) == 1 else 'are'} not read again, e.g. {changed[0].uri}",
            )
        self._found = [file for file in found if file.uri not in seen]
        return bool(self._found)

    def begin(self, store: IngestStore) -> None:
        """Find the files, and store which they are."""
        if self._found is None:
            self._found = find_files(self.storage, self.files, self._downloads)
        store.put_sources(self._found)

    def rows(self, store: IngestStore) -> Rows:
        """Return the rows of the files, as they were when the ingest began."""
        reader = PieceReader(self.storage, self.files, KeptFrames())
        cutting = Cutting(reader, self.workers)
        sources = store.sources()
        stored = self._downloads.store(store, sources)
        cut = cutting.pieces(store, sources, tuple(self.definition.types), stored)
        return FileRows(self.files, reader, cut, self.workers)
