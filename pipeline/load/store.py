"""Record loads beside the output, for destinations that cannot: `<output>.chunkmap/loads/<id>/`.

    commits/<epoch>/<commit>-<digest>.json   a commit that was loaded, or is to be, once
    progress.json                            rows of a commit that an endpoint has, If-Match

The id follows from the destination's address, so the same load finds what it did before.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from pipeline.concurrency import map_concurrently
from pipeline.errors import AlreadyExistsError, PreconditionFailedError, StateError
from pipeline.load.errors import DestinationBusyError
from pipeline.load.plan import CommitFiles, LoadedCommit
from pipeline.storage import Storage, join, state_prefix
from pipeline.storage.documents import is_name, parse_stored, seal_json
from pipeline.table.errors import refuse_newer

STORE_VERSION = 1
"""Format of these documents."""
_NAME = re.compile(r"(?P<commit>.+)-(?P<digest>[0-9a-f]{16})\.json")

_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Count = Annotated[int, Field(ge=0)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    version: int = STORE_VERSION
    destination: str
    """Address of the destination, without secrets."""
    commit: str
    digest: _Digest
    """Digest of the keys of the commit's files."""
    rows: _Count


class CommitRecord(_Record):
    """A commit and its files, as they were loaded, or were about to be."""

    epoch: _Count = 0
    """Number of times that the destination was replaced as a whole before."""
    manifest: _Count
    """Number of the manifest that it was loaded from."""


class ProgressRecord(_Record):
    """The rows of a commit, from its first, that an endpoint has acknowledged."""

    manifest: _Count
    writer: str
    """Id of the write; it distinguishes a lost response from a lost race."""


@dataclass
class LoadStore:
    """The records of the loads of one output into one destination."""

    storage: Storage
    output: str
    destination: str
    _etag: str | None = field(default=None, repr=False)

    @property
    def prefix(self) -> str:
        """URI of the folder, with a slash at its end."""
        digest = hashlib.sha256(self.destination.encode()).hexdigest()[:16]
        return join(state_prefix(self.output), "loads", digest) + "/"

    @property
    def progress_uri(self) -> str:
        """URI of the record of progress."""
        return self.prefix + "progress.json"

    # -- commits ----------------------------------------------------------------------------------

    def record(self, commit: CommitFiles, manifest: int, epoch: int = 0) -> None:
        """Record a commit; one that is recorded already stays as it is."""
        record = CommitRecord(
            destination=self.destination, commit=commit.name, digest=commit.digest,
            rows=commit.rows, epoch=epoch, manifest=manifest,
        )  # fmt: skip
        with suppress(AlreadyExistsError):
            self.storage.put_new(self._uri(commit.name, commit.digest, epoch), _seal_record(record))

    def _uri(self, commit: str, digest: str, epoch: int) -> str:
        return f"{self._folder(epoch)}{commit}-{digest[:16]}.json"

    def _folder(self, epoch: int) -> str:
        return f"{self.prefix}commits/{epoch}/"

    def commits(self, epoch: int = 0) -> list[LoadedCommit]:
        """Read the commits that are recorded.

        Raises:
            StateError: A record is damaged.
        """
        folder = self._folder(epoch)
        uris = sorted(info.uri for info in self.storage.objects(folder))

        def read(uri: str) -> LoadedCommit:
            match = _NAME.fullmatch(uri.removeprefix(folder))
            if match is None or not is_name(match["commit"]):
                raise StateError(uri, "it is no record of a load")
            record = parse_stored(CommitRecord, self.storage.get(uri).data, uri)
            self._check(record, uri)
            if uri != self._uri(record.commit, record.digest, record.epoch):
                raise StateError(uri, f"it is the record of commit {record.commit}")
            return LoadedCommit(record.commit, record.manifest, record.rows, record.digest, "")

        return map_concurrently(read, uris)

    # -- progress ---------------------------------------------------------------------------------

    def progress(self) -> ProgressRecord | None:
        """Read how much of a commit an endpoint has acknowledged; None if nothing.

        Raises:
            StateError: The record is damaged.
        """
        uri = self.progress_uri
        blob = self.storage.get_or_none(uri)
        if blob is None:
            self._etag = None
            return None
        record = parse_stored(ProgressRecord, blob.data, uri)
        self._check(record, uri)
        self._etag = blob.etag
        return record

    def advance(self, commit: CommitFiles, manifest: int, rows: int) -> None:
        """Record that an endpoint has the first rows of a commit.

        Raises:
            DestinationBusyError: Another process has recorded something since `progress`.
        """
        uri = self.progress_uri
        record = ProgressRecord(
            destination=self.destination, commit=commit.name, digest=commit.digest, rows=rows,
            manifest=manifest, writer=uuid.uuid4().hex,
        )  # fmt: skip
        try:
            if self._etag is None:
                self.storage.put_new(uri, _seal_record(record))
            else:
                self.storage.put_if(uri, _seal_record(record), self._etag)
        except (AlreadyExistsError, PreconditionFailedError):
            raise self._busy() from None
        blob = self.storage.get(uri)
        if parse_stored(ProgressRecord, blob.data, uri).writer != record.writer:
            raise self._busy()
        self._etag = blob.etag

    def _busy(self) -> DestinationBusyError:
        return DestinationBusyError(
            f"another load of {self.output} into {self.destination} is running",
            hint="wait until it is done, then load again: it resumes after the last batch that was "
            "acknowledged",
        )

    def _check(self, record: _Record, uri: str) -> None:
        refuse_newer(uri, record.version, STORE_VERSION)
        if record.destination != self.destination:
            raise StateError(uri, f"it is of a load into {record.destination}")


def _seal_record(record: _Record) -> bytes:
    return seal_json(record.model_dump_json().encode())
